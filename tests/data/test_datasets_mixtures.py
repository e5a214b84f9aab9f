import dataclasses
from collections import Counter
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from deqflow.data.datasets import (
    FlowDataset,
    FlowSample,
    Mixture,
    Part,
    SetNotFoundError,
    available_benchmarks,
    dense_augmentation,
    sparse_augmentation,
    stage_mixture,
)
from deqflow.data.datasets.folders import FOLDERS
from deqflow.model.geometry import warp

CROP = (64, 80)


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    return layouts.write_all(tmp_path_factory.mktemp("sets"))


class Numbers:
    """A set whose samples tell which they are."""

    def __init__(self, start: int, count: int) -> None:
        self.start, self.count = start, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> FlowSample:
        assert 0 <= index < self.count
        value = torch.full((3, 4, 4), float(self.start + index))
        nowhere = torch.zeros(4, 4, dtype=torch.bool)
        return FlowSample(value, value, value[:2], nowhere, nowhere)


def shift(sample: FlowSample, rng: np.random.Generator) -> FlowSample:
    """Tells in the second image what was drawn."""
    return sample._replace(image2=torch.full((3, 4, 4), rng.random()))


def mixture(seed: int = 0) -> Mixture:
    return Mixture(
        [
            Part(dataset=Numbers(0, 5), augmentation=shift, weight=3),
            Part(dataset=Numbers(100, 2), augmentation=shift),
            Part(dataset=Numbers(200, 4), augmentation=shift, weight=2),
        ],
        seed=seed,
    )


def items(source: Mixture, start: int, stop: int) -> list[tuple[float, float]]:
    return [(float(source[i].image1[0, 0, 0]), float(source[i].image2[0, 0, 0])) for i in range(start, stop)]


def test_each_sample_comes_as_often_as_its_weight_says_in_every_epoch():
    source = mixture()
    assert len(source) == 5 * 3 + 2 + 4 * 2
    expected = {float(n): 3 for n in range(5)} | {100.0: 1, 101.0: 1} | {float(200 + n): 2 for n in range(4)}
    for epoch in range(3):
        drawn = items(source, 25 * epoch, 25 * (epoch + 1))
        assert Counter(number for number, _ in drawn) == expected
        assert len({noise for _, noise in drawn}) == 25  # no two copies of a sample are augmented alike


def test_epochs_repeat_neither_order_nor_augmentations():
    drawn = items(mixture(), 0, 100)
    assert len({noise for _, noise in drawn}) == 100
    orders = {tuple(number for number, _ in drawn[25 * epoch : 25 * (epoch + 1)]) for epoch in range(4)}
    assert len(orders) == 4
    assert items(mixture(1), 0, 25) != drawn[:25]


def test_an_item_is_a_function_of_seed_and_index():
    drawn, source = items(mixture(3), 0, 60), mixture(3)
    for index in np.random.default_rng(0).permutation(60):
        assert items(source, index, index + 1) == [drawn[index]]
    torch.manual_seed(5)
    assert items(mixture(3), 30, 40) == drawn[30:40]


def test_going_through_it_is_one_epoch():
    assert len(list(mixture())) == 25
    with pytest.raises(IndexError, match="index of at least 0, got -1"):
        mixture()[-1]


def test_where_an_item_comes_from_is_told():
    source = mixture()
    for index in range(50):
        part, item = source.locate(index)
        assert part.dataset[item].image1[0, 0, 0] == source[index].image1[0, 0, 0]


def test_wrong_mixtures_are_told():
    with pytest.raises(ValueError, match="at least one part and a seed of at least 0, got 0 and 0"):
        Mixture([])
    with pytest.raises(ValueError, match="at least one part and a seed of at least 0, got 3 and -1"):
        mixture(-1)
    with pytest.raises(ValueError, match="a weight of at least 1, got 0"):
        Part(dataset=Numbers(0, 1), augmentation=shift, weight=0)


@pytest.mark.parametrize("stage", ["chairs", "things", "sintel", "kitti"])
def test_every_published_stage_gives_crops(everything, stage):
    source = stage_mixture(stage, everything, crop=CROP, seed=0)
    for index in (0, 1, len(source) - 1, len(source), 5 * len(source) + 3):
        sample = source[index]
        assert sample.image1.shape == sample.image2.shape == (3, *CROP)
        assert sample.valid.any()


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("chairs", {"FlyingChairs": 3}),
        ("things", {"FlyingThings3D": 4 + 4}),
        ("sintel", {"Sintel": 4 * 100 + 4 * 100, "Kitti": 2 * 200, "HD1K": 4 * 5, "FlyingThings3D": 4}),
        ("kitti", {"Kitti": 2}),
    ],
)
def test_the_stages_have_the_published_weights(everything, stage, expected):
    source = stage_mixture(stage, str(everything), crop=CROP, seed=0)
    counts: Counter[str] = Counter()
    files: Counter[Path] = Counter()
    for index in range(len(source)):
        part, item = source.locate(index)
        counts[type(part.dataset).__name__] += 1
        files[part.dataset.files[item].image1] += 1
    assert counts == expected
    folders = {path.relative_to(everything).parts[:3] for path in files}
    if stage == "sintel":
        assert {part.weight for part in source.parts} == {1, 5, 100, 200}
        assert ("Sintel", "training", "final") in folders
        assert ("FlyingThings3D", "frames_finalpass", "TRAIN") not in folders
    if stage == "things":
        assert ("FlyingThings3D", "frames_finalpass", "TRAIN") in folders


def test_sparse_sets_are_augmented_as_such(everything):
    for stage in ("chairs", "things", "sintel", "kitti"):
        for part in stage_mixture(stage, everything, crop=CROP, seed=0).parts:
            assert isinstance(part.dataset, FlowDataset)
            assert part.augmentation.sparse == part.dataset.sparse
            assert part.augmentation.jitter.asymmetric == (0.0 if part.dataset.sparse else 0.2)
            assert part.augmentation.flips[0] == (0.0 if stage == "kitti" else 0.5)
            assert part.augmentation.crop == CROP


def test_the_number_of_workers_does_not_matter(everything):
    def batches(workers: int, first: int) -> list[FlowSample]:
        source = stage_mixture("sintel", everything, crop=(32, 48), seed=4)
        return list(DataLoader(source, batch_size=2, sampler=range(2 * first, 12), num_workers=workers))

    alone = batches(0, 0)
    assert len(alone) == 6
    for workers, first in ((2, 0), (1, 3)):
        for mine, other in zip(alone[first:], batches(workers, first), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


def test_a_stage_without_its_sets_says_which_is_missing(tmp_path):
    with pytest.raises(
        SetNotFoundError, match=r"No folder of the set chairs in .*: expected .*FlyingChairs\. data/README"
    ):
        stage_mixture("chairs", tmp_path, crop=CROP, seed=0)
    layouts.write_chairs_samples(tmp_path)
    with pytest.raises(SetNotFoundError, match=r"No file at .*FlyingChairs_train_val\.txt"):
        stage_mixture("chairs", tmp_path, crop=CROP, seed=0)
    layouts.write_sintel(tmp_path)
    with pytest.raises(SetNotFoundError, match="No folder of the set kitti-2015"):
        stage_mixture("sintel", tmp_path, crop=CROP, seed=0)
    with pytest.raises(ValueError, match="stage to be one of chairs, things, sintel, kitti, got 'spring'"):
        stage_mixture("spring", tmp_path, crop=CROP, seed=0)


@pytest.mark.parametrize(("name", "crop"), [("middlebury", (320, 400)), ("kitti-2015", (288, 960))])
def test_real_pairs_come_through_with_their_flow_true(shared_data, name, crop):
    dataset = available_benchmarks(shared_data)[name]
    make = sparse_augmentation if dataset.sparse else dense_augmentation
    quiet = dataclasses.replace(make(crop, (-0.2, 0.4)), jitter=None, eraser=None)
    source = Mixture([Part(dataset=dataset, augmentation=quiet)])
    for index in range(4):
        image1, image2, flow, valid, occluded = source[index]
        assert image1.shape == (3, *crop)
        differences = [
            (warp(image2[None], way[None])[0] - image1).abs().mean(0)[valid & ~occluded].mean() for way in (flow, -flow)
        ]
        assert differences[0] < 0.7 * differences[1]


def test_the_page_of_the_data_folder_shows_every_layout(everything):
    page = (Path(__file__).parents[2] / "data" / "README.md").read_text()
    assert all(f"`{name}`" in page for name in available_benchmarks(everything))
    folders = {
        part for path in everything.rglob("*") for part in path.relative_to(everything).parts[:3] if path.is_dir()
    }
    scenes = {"market_2", "alley_1_test", "market_2_test", "Venus", "Beanbags"}
    assert {folder for folder in folders if folder not in page} <= scenes
    assert all(f"`{names[0]}`" in page for names in FOLDERS.values())
