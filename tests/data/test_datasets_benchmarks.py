from collections.abc import Callable
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from layouts import without

from deqflow.data.datasets import (
    HD1K,
    FlowDataset,
    FlyingChairs,
    FlyingThings3D,
    Kitti,
    Middlebury,
    SetNotFoundError,
    Sintel,
    Spring,
    available_benchmarks,
    open_set,
    set_folders,
)
from deqflow.data.flow_files import read_flow, write_flow, write_image
from deqflow.data.metrics import mean_endpoint_error
from deqflow.model.geometry import warp


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    return layouts.write_all(tmp_path_factory.mktemp("sets"))


NAMES = [
    "chairs-validation",
    "things-clean",
    "things-final",
    "sintel-clean",
    "sintel-final",
    "sintel-albedo",
    "kitti-2012",
    "kitti-2015",
    "hd1k",
    "spring",
    "middlebury",
]


def test_every_benchmark_is_found(everything):
    assert list(available_benchmarks(str(everything))) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_samples_of_every_set_are_true_pairs(everything, name):
    dataset = available_benchmarks(everything)[name]
    assert len(dataset) == {"chairs-validation": 1, "kitti-2012": 2, "kitti-2015": 2, "middlebury": 2}.get(name, 4)
    for i in range(len(dataset)):
        sample = dataset[i]
        for part, channels in zip(sample, [(3,), (3,), (2,), (), ()], strict=True):
            assert part.shape == (*channels, layouts.HEIGHT, layouts.WIDTH)
        assert sample.image1.dtype == sample.flow.dtype == torch.float32
        assert sample.valid.dtype == sample.occluded.dtype == torch.bool
        assert (sample.flow[:, ~sample.valid] == 0).all()
        assert not (sample.occluded & ~sample.valid).any()
        seen = sample.valid & ~sample.occluded
        back, stay = (
            (warp(sample.image2[None], flow[None])[0] - sample.image1).abs().mean(0)[seen].mean()
            for flow in (sample.flow, torch.zeros_like(sample.flow))
        )
        assert back < 0.2 * stay


def test_what_lies_elsewhere_or_nowhere_is_not_found(tmp_path):
    assert available_benchmarks(tmp_path) == available_benchmarks(tmp_path / "missing") == {}
    with pytest.raises(
        SetNotFoundError, match=r"No folder of the set sintel in .*: expected .*Sintel\. data/README\.md"
    ):
        set_folders(tmp_path / "missing", "sintel")
    with pytest.raises(ValueError, match=r"Expected the set to be one of chairs, .*got 'chair'"):
        set_folders(tmp_path, "chair")


@pytest.mark.parametrize("folder", ["MPI-Sintel-complete", "mpi_sintel", "sintel", "SINTEL"])
def test_folders_may_be_called_as_they_are_unpacked(tmp_path, folder):
    layouts.write_sintel(tmp_path).rename(tmp_path / folder)
    assert set_folders(tmp_path, "sintel") == [tmp_path / folder]


def test_kittis_folder_is_told_by_what_is_in_it(tmp_path):
    layouts.write_kitti(tmp_path, 2012).rename(tmp_path / "kitti")
    assert list(available_benchmarks(tmp_path)) == ["kitti-2012"]


def test_a_set_may_lie_in_several_folders(tmp_path):
    layouts.write_chairs_samples(tmp_path)
    layouts.write_chairs(tmp_path)
    assert [folder.name for folder in set_folders(tmp_path, "chairs")] == ["FlyingChairs", "FlyingChairs_release"]
    assert list(available_benchmarks(tmp_path)) == ["chairs-validation", "chairs-samples"]
    assert len(open_set(tmp_path, "chairs", lambda folder: FlyingChairs(folder, "train"))) == 3
    without(tmp_path / "FlyingChairs_release", "FlyingChairs_train_val.txt")
    with pytest.raises(SetNotFoundError, match=r"No file at .*FlyingChairs.FlyingChairs_train_val\.txt"):
        open_set(tmp_path, "chairs", lambda folder: FlyingChairs(folder, "train"))


def test_parts_of_a_set_are_enough(tmp_path):
    without(layouts.write_sintel(tmp_path), "training/final", "training/albedo", "training/occlusions", "test")
    without(layouts.write_chairs(tmp_path), "FlyingChairs_train_val.txt")
    without(layouts.write_things(tmp_path), "optical_flow/TEST")
    without(layouts.write_kitti(tmp_path), "training/flow_noc", "testing")
    found = available_benchmarks(tmp_path)
    assert list(found) == ["sintel-clean", "kitti-2015"]
    assert not found["sintel-clean"][0].occluded[45, 70]
    assert not found["kitti-2015"][0].occluded[45, 4]


def test_a_benchmark_that_misses_a_file_is_told(tmp_path):
    without(layouts.write_middlebury(tmp_path), "other-data/Venus/frame11.png")
    with pytest.raises(
        FileNotFoundError,
        match=r"Middlebury is incomplete: expected the image2 of flow10\.flo at .*Venus.frame11\.png\. Unpack or copy",
    ):
        available_benchmarks(tmp_path)


def test_chairs_are_split_by_the_official_file(tmp_path):
    folder = layouts.write_chairs(tmp_path, "12112")
    names = {
        split: [files.flow.name[:5] for files in FlyingChairs(folder, split).files]
        for split in ("train", "validation", "all")
    }
    assert names == {
        "train": ["00001", "00003", "00004"],
        "validation": ["00002", "00005"],
        "all": [f"{number:05d}" for number in range(1, 6)],
    }
    files = FlyingChairs(folder, "train").files[1]
    assert [path.name for path in (files.image1, files.image2)] == ["00003_img1.ppm", "00003_img2.ppm"]


def test_chairs_may_lie_without_a_data_folder(tmp_path):
    folder = layouts.write_chairs(tmp_path)
    for path in (folder / "data").iterdir():
        path.rename(folder / path.name)
    (folder / "data").rmdir()
    assert len(FlyingChairs(folder, "train")) == 3


def test_the_samples_of_chairs_are_read_under_their_own_names(tmp_path):
    folder = layouts.write_chairs_samples(tmp_path, 3)
    dataset = FlyingChairs(folder, "samples")
    assert len(dataset) == len(FlyingChairs(folder)) == 3
    scene = layouts.Sequence(101)
    assert torch.equal(dataset[1].image1, torch.from_numpy(scene.frame(0)).permute(2, 0, 1).float())
    assert torch.equal(dataset[1].image2, torch.from_numpy(scene.frame(1)).permute(2, 0, 1).float())
    assert torch.equal(dataset[1].flow, scene.flow())
    assert list(available_benchmarks(tmp_path)) == ["chairs-samples"]
    with pytest.raises(SetNotFoundError, match=r"expected FlyingChairs' official split there, a line of 1"):
        FlyingChairs(folder, "train")


def test_a_split_without_pairs_is_told(tmp_path):
    folder = layouts.write_chairs(tmp_path, "111")
    for split in ("validation", "samples"):
        with pytest.raises(SetNotFoundError, match=f"No pair of the split '{split}' in .*data: expected"):
            FlyingChairs(folder, split)


@pytest.mark.parametrize(
    ("labels", "told"),
    [("1 1 3 2", r"damaged: expected 1 or 2 in line 3, got '3'"), ("1 1", r"has 2 lines: expected one for each pair")],
)
def test_a_damaged_split_file_is_told(tmp_path, labels, told):
    folder = layouts.write_chairs(tmp_path)
    (folder / "FlyingChairs_train_val.txt").write_text(labels)
    with pytest.raises(ValueError, match=told):
        FlyingChairs(folder, "train")


def test_other_names_in_chairs_are_told(tmp_path):
    folder = layouts.write_chairs(tmp_path)
    write_flow(folder / "data" / "flow.flo", torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"Expected a name like 00001_flow\.flo or 0000001-gt\.flo.*flow\.flo"):
        FlyingChairs(folder)
    assert len(FlyingChairs(folder, "train")) == 3


def test_things_lead_into_the_future_and_the_past(tmp_path):
    folder = layouts.write_things(tmp_path, frames=4)
    pairs = [
        (files.flow.parent.parent.name, int(files.image1.stem), int(files.image2.stem))
        for files in FlyingThings3D(folder, render="final").files
    ]
    assert pairs == [
        ("into_future", 6, 7),
        ("into_future", 7, 8),
        ("into_future", 8, 9),
        ("into_past", 7, 6),
        ("into_past", 8, 7),
        ("into_past", 9, 8),
    ]
    only = FlyingThings3D(folder, "test", directions=("into_past",))
    assert {files.image1.relative_to(folder).parts[:2] for files in only.files} == {("frames_cleanpass", "TEST")}
    assert len(only) == 3


def test_a_frame_missing_inside_a_scene_of_things_is_told(tmp_path):
    folder = without(layouts.write_things(tmp_path, 4), "frames_cleanpass/TRAIN/A/0000/left/0008.png")
    with pytest.raises(FileNotFoundError, match=r"image2 of OpticalFlowIntoFuture_0007_L\.pfm at .*0008\.png"):
        FlyingThings3D(folder)


def test_sintels_occlusions_are_read_where_they_are(everything):
    sample = Sintel(everything / "Sintel")[0]
    assert sample.occluded[40:50, 60:80].all()
    assert not sample.occluded[20:40, 20:60].any()
    assert sample.valid.all()


@pytest.mark.parametrize("year", [2012, 2015])
def test_kittis_occlusion_is_what_is_known_of_all_but_not_of_visible_pixels(everything, year):
    dataset = Kitti(everything / f"KITTI-{year}", year)
    assert dataset.sparse
    sample = dataset[0]
    assert 0.25 < sample.valid.float().mean() < 0.35
    assert torch.equal(sample.occluded[20:-20, :8], sample.valid[20:-20, :8])
    assert not sample.occluded[20:-20, 20:-20].any()


def test_hd1k_pairs_stay_in_their_sequence(everything):
    pairs = [(files.image1.stem, files.image2.stem) for files in HD1K(everything / "HD1K").files]
    assert pairs == [
        ("000000_0000", "000000_0001"),
        ("000000_0001", "000000_0002"),
        ("000001_0000", "000001_0001"),
        ("000001_0001", "000001_0002"),
    ]


def test_a_missing_picture_of_hd1k_is_told(tmp_path):
    folder = without(layouts.write_hd1k(tmp_path), "hd1k_input/image_2/000000_0001.png")
    with pytest.raises(FileNotFoundError, match=r"HD1K is incomplete: expected the image1 of 000000_0001\.png"):
        HD1K(folder)


def test_spring_has_a_vector_a_pixel_of_two_cameras_and_directions(everything):
    dataset = Spring(everything / "Spring", cameras=("right",), directions=("BW",))
    assert [(files.image1.stem, files.image2.stem) for files in dataset.files] == [
        ("frame_right_0002", "frame_right_0001"),
        ("frame_right_0003", "frame_right_0002"),
    ]
    assert torch.allclose(dataset[0].flow, layouts.Sequence(41).flow(back=True), atol=1e-5)
    assert len(Spring(everything / "Spring", cameras=("left", "right"))) == 8
    assert read_flow(dataset.files[0].flow)[0].shape == (2, 2 * layouts.HEIGHT, 2 * layouts.WIDTH)


def test_middleburys_unknown_vectors_are_not_valid(everything):
    sample = Middlebury(everything / "Middlebury")[0]
    assert not sample.valid[:4].any()
    assert sample.valid[4:].all()


def test_what_leaves_the_frame_is_occluded(everything):
    sample = FlyingChairs(everything / "FlyingChairs_release")[0]
    y, x = torch.meshgrid(torch.arange(layouts.HEIGHT), torch.arange(layouts.WIDTH), indexing="ij")
    across, down = (x + sample.flow[0]).round(), (y + sample.flow[1]).round()
    outside = (across < 0) | (across >= layouts.WIDTH) | (down < 0) | (down >= layouts.HEIGHT)
    assert outside.any()
    assert torch.equal(sample.occluded, outside)


OPENERS: list[tuple[Callable[[Path], Path], Callable[[Path], FlowDataset], str]] = [
    (layouts.write_chairs, lambda root: FlyingChairs(root, "train"), "data/00001_img2.ppm"),
    (layouts.write_chairs_samples, FlyingChairs, "0000001-img0.ppm"),
    (layouts.write_things, FlyingThings3D, "frames_cleanpass/TRAIN/A/0000/left/0007.png"),
    (layouts.write_sintel, Sintel, "training/clean/market_2/frame_0003.png"),
    (layouts.write_sintel, Sintel, "training/clean/alley_1"),
    (layouts.write_sintel, Sintel, "training/occlusions/market_2/frame_0002.png"),
    (layouts.write_kitti, Kitti, "training/image_2/000001_11.png"),
    (layouts.write_kitti, Kitti, "training/flow_noc/000000_10.png"),
    (layouts.write_spring, Spring, "train/0001/frame_left/frame_left_0001.png"),
    (layouts.write_middlebury, Middlebury, "other-data/Venus/frame10.png"),
]


@pytest.mark.parametrize(("write", "opened", "part"), OPENERS)
def test_a_missing_file_is_named_when_the_set_is_opened(tmp_path, write, opened, part):
    folder = write(tmp_path)
    assert len(opened(folder)) > 0
    without(folder, part)
    with pytest.raises(FileNotFoundError, match=r"is incomplete: expected the .* at .*data/README\.md says") as told:
        opened(folder)
    assert str(folder / part) in str(told.value)
    assert not isinstance(told.value, SetNotFoundError)


@pytest.mark.parametrize(
    ("write", "opened", "part"),
    [
        (layouts.write_chairs, FlyingChairs, "data"),
        (layouts.write_things, FlyingThings3D, "frames_cleanpass"),
        (layouts.write_things, FlyingThings3D, "optical_flow/TRAIN/A/0000/into_past"),
        (layouts.write_sintel, lambda root: Sintel(root, "final"), "training/final"),
        (layouts.write_sintel, Sintel, "training/flow"),
        (layouts.write_kitti, Kitti, "training/image_2"),
        (layouts.write_kitti, Kitti, "training/flow_occ"),
        (layouts.write_hd1k, HD1K, "hd1k_input"),
        (layouts.write_hd1k, HD1K, "hd1k_flow_gt/flow_occ"),
        (layouts.write_spring, Spring, "train"),
        (layouts.write_spring, Spring, "train/0001/flow_BW_left"),
        (layouts.write_middlebury, Middlebury, "other-data"),
        (layouts.write_middlebury, Middlebury, "other-gt-flow"),
    ],
)
def test_a_missing_folder_is_named_with_what_should_be_there(tmp_path, write, opened, part):
    folder = without(write(tmp_path), part)
    with pytest.raises(
        SetNotFoundError, match=r"(No folder at|Nothing to read in) .*: expected .*data/README\.md says"
    ):
        opened(folder)


@pytest.mark.parametrize(
    ("opened", "told"),
    [
        (lambda: FlyingChairs("x", "val"), "split to be one of train, validation, samples, all, got 'val'"),
        (lambda: FlyingThings3D("x", "val"), "split to be one of train, test, got 'val'"),
        (lambda: FlyingThings3D("x", render="albedo"), "render to be one of clean, final, got 'albedo'"),
        (
            lambda: FlyingThings3D("x", directions=("up",)),
            r"directions to be a tuple of some of into_future, into_past",
        ),
        (lambda: FlyingThings3D("x", directions=()), r"directions to be a tuple of some of"),
        (lambda: Sintel("x", "dirty"), "render to be one of clean, final, albedo, got 'dirty'"),
        (lambda: Kitti("x", 2014), "year to be one of 2012, 2015, got '2014'"),
        (lambda: Spring("x", cameras="left"), "cameras to be a tuple of some of left, right, got 'left'"),
        (lambda: Spring("x", directions=("FW", "UP")), "directions to be a tuple of some of FW, BW"),
    ],
)
def test_other_choices_are_told(opened, told):
    with pytest.raises(ValueError, match=f"Expected {told}"):
        opened()


@pytest.mark.parametrize("part", ["training/image_2/000000_11.png", "training/flow_noc/000000_10.png"])
def test_files_of_two_sizes_are_told_when_they_are_read(tmp_path, part):
    folder = layouts.write_kitti(tmp_path)
    if "flow" in part:
        write_flow(folder / part, torch.zeros(2, 40, 50))
    else:
        write_image(folder / part, np.zeros((40, 50, 3), np.uint8))
    dataset = Kitti(folder)
    with pytest.raises(
        ValueError, match=r"000000_10\.png and its images must have one size, got first 128x96, .*50x40"
    ):
        dataset[0]
    assert dataset[1].valid.any()
    with pytest.raises(IndexError):
        dataset[2]


@pytest.mark.parametrize(
    ("name", "count", "zero_flow_error"),
    [("middlebury", 4, 2.55), ("chairs-samples", 9, 10.51), ("sintel-clean", 1, 2.80), ("kitti-2015", 1, 9.03)],
)
def test_the_published_sets_have_their_known_numbers(shared_data, name, count, zero_flow_error):
    dataset = available_benchmarks(shared_data)[name]
    assert len(dataset) == count
    samples = [dataset[i] for i in range(count)]
    errors = [mean_endpoint_error(0 * flow[None], flow[None], valid[None]) for _, _, flow, valid, _ in samples]
    assert abs(torch.stack(errors).mean().item() - zero_flow_error) < 0.006
    for sample in samples:
        seen = sample.valid & ~sample.occluded
        back, stay = (
            (warp(sample.image2[None], flow[None])[0] - sample.image1).abs().mean(0)[seen].mean()
            for flow in (sample.flow, torch.zeros_like(sample.flow))
        )
        assert back < 0.75 * stay
