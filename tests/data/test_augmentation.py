import dataclasses
from collections.abc import Callable

import layouts
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deqflow.data.datasets import Augmentation, Eraser, FlowSample, Jitter, dense_augmentation, sparse_augmentation
from deqflow.data.datasets.photometric import turn_hue
from deqflow.data.datasets.samples import leaves_frame
from deqflow.model.geometry import warp

SCENE = layouts.Sequence(3)


def image(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).float()


def dense_sample() -> FlowSample:
    flow = SCENE.flow()
    known = torch.ones(flow.shape[1:], dtype=torch.bool)
    return FlowSample(image(SCENE.frame(0)), image(SCENE.frame(1)), flow, known, leaves_frame(flow))


def sparse_sample() -> FlowSample:
    sample = dense_sample()
    known = torch.from_numpy(np.random.default_rng(0).random(sample.valid.shape) < 0.2)
    return sample._replace(flow=sample.flow * known, valid=known, occluded=sample.occluded & known)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def only(**options: object) -> Augmentation:
    """An augmentation that does nothing but crop, and what is asked for."""
    still = {"zooms": 0.0, "stretches": 0.0, "flips": (0.0, 0.0), "jitter": None, "eraser": None}
    return Augmentation(**{"crop": (layouts.HEIGHT, layouts.WIDTH)} | still | options)


def drift(sample: FlowSample) -> float:
    """Mean difference in grey levels between the first image and the second, warped by the flow."""
    known = sample.valid & ~sample.occluded
    return (warp(sample.image2[None], sample.flow[None])[0] - sample.image1).abs().mean(0)[known].mean().item()


DENSE = dense_augmentation((64, 80), (-0.3, 0.7), (0.5, 0.5))
SPARSE = sparse_augmentation((64, 80), (-0.3, 0.7), (0.5, 0.0))


@pytest.mark.parametrize(("augmentation", "sample"), [(DENSE, dense_sample()), (SPARSE, sparse_sample())])
def test_the_flow_still_leads_to_the_same_colours(augmentation, sample):
    quiet = dataclasses.replace(augmentation, jitter=None, eraser=None)
    for seed in range(20):
        changed = quiet(sample, rng(seed))
        assert changed.valid.any()
        # Scattered vectors move to whole pixels, up to half a pixel away from where they belong.
        assert drift(changed) < (8 if quiet.sparse else 2)
        assert drift(changed._replace(flow=torch.zeros_like(changed.flow))) > 4 * drift(changed)


@pytest.mark.parametrize(("augmentation", "sample"), [(DENSE, dense_sample()), (SPARSE, sparse_sample())])
def test_what_comes_out_is_a_sample_of_the_crops_size(augmentation, sample):
    before = FlowSample(*(part.clone() for part in sample))
    changed = augmentation(sample, rng())
    for part, channels, dtype in zip(changed, (3, 3, 2, 0, 0), [torch.float32] * 3 + [torch.bool] * 2, strict=True):
        assert part.shape == ((channels,) if channels else ()) + augmentation.crop
        assert part.dtype == dtype
        assert part.is_contiguous()
    for picture in (changed.image1, changed.image2):
        assert picture.min() >= 0
        assert 100 < picture.max() <= 255
    assert (changed.flow[:, ~changed.valid] == 0).all()
    assert not (changed.occluded & ~changed.valid).any()
    assert all(torch.equal(a, b) for a, b in zip(before, sample, strict=True))  # and the sample is as it was


def test_the_generator_decides_all_of_it():
    sample = dense_sample()
    torch.manual_seed(0)
    first = DENSE(sample, rng(5))
    torch.manual_seed(1)
    again, other = DENSE(sample, rng(5)), DENSE(sample, rng(6))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.image1, other.image1)


def test_without_anything_asked_for_a_crop_is_what_was_there():
    sample = dense_sample()
    assert all(torch.equal(a, b) for a, b in zip(only()(sample, rng()), sample, strict=True))
    changed = only(crop=(32, 48))(sample, rng(1))
    places = sample.image1.unfold(1, 32, 1).unfold(2, 48, 1).permute(1, 2, 0, 3, 4)
    (top, left), *others = (places == changed.image1).flatten(2).all(2).nonzero().tolist()
    assert not others
    assert torch.equal(changed.image2, sample.image2[:, top : top + 32, left : left + 48])
    assert torch.equal(changed.flow, sample.flow[:, top : top + 32, left : left + 48])
    assert torch.equal(changed.occluded, leaves_frame(changed.flow) | sample.occluded[top : top + 32, left : left + 48])


def test_crops_are_spread_over_all_places_up_to_the_edges():
    sample = dense_sample()
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    coded = sample._replace(image1=torch.stack([y, x, x]))
    corners = np.array([only(crop=(80, 100))(coded, rng(i)).image1[:2, 0, 0].numpy() for i in range(400)])
    assert corners.min(0).tolist() == [0, 0]
    assert corners.max(0).tolist() == [16, 28]
    assert abs(corners.mean(0) - [8, 14]).max() < 1
    sparse = [only(crop=(80, 100), sparse=True)(coded, rng(i)).image1[:2, 0, 0].numpy() for i in range(400)]
    at_edges = np.mean([corner[1] in (0, 28) for corner in sparse])
    assert abs(at_edges - 102 / 129) < 0.07  # 50 columns beside each edge are pushed back to it


@pytest.mark.parametrize("axis", [0, 1])
def test_mirroring_turns_one_component_around(axis):
    sample = dense_sample()
    changed = only(flips=(1.0, 0.0) if axis == 1 else (0.0, 1.0))(sample, rng())
    sign = torch.tensor([-1.0, 1.0] if axis == 1 else [1.0, -1.0])[:, None, None]
    assert torch.equal(changed.image1, sample.image1.flip(axis + 1))
    assert torch.equal(changed.flow, sign * sample.flow.flip(axis + 1))


def test_shares_are_kept():
    sample = dense_sample()

    def count(changed: Callable[[FlowSample], bool], **options: object) -> float:
        augmentation = only(**options)
        return float(np.mean([changed(augmentation(sample, rng(seed))) for seed in range(300)]))

    def moved(result: FlowSample) -> bool:
        return not torch.equal(result.image1, sample.image1)

    assert abs(count(moved, flips=(0.5, 0.0)) - 0.5) < 0.09
    assert abs(count(moved, flips=(0.0, 0.1)) - 0.1) < 0.06
    assert abs(count(moved, zooms=0.8, scale=(0.5, 0.5)) - 0.8) < 0.07
    assert abs(count(lambda result: not torch.equal(result.image2, sample.image2), eraser=Eraser()) - 0.5) < 0.09


def test_zoom_and_stretch_reach_as_far_as_they_say():
    sample = dense_sample()
    grow = [only(crop=(32, 40), zooms=1.0, scale=(-0.4, 0.8))._size((96, 128), rng(seed)) for seed in range(500)]
    powers = np.log2(np.array(grow) / [96, 128])
    assert -0.42 < powers.min() < -0.37
    assert 0.77 < powers.max() < 0.82
    assert abs(powers[:, 0] - powers[:, 1]).max() < 0.02
    stretched = only(crop=(32, 40), zooms=1.0, scale=(0.0, 0.0), stretch=0.2, stretches=0.8)
    powers = np.log2(np.array([stretched._size((96, 128), rng(seed)) for seed in range(500)]) / [96, 128])
    assert 0.17 < abs(powers).max() < 0.21
    assert abs((powers == 0).all(1).mean() - 0.2) < 0.07
    doubled = only(crop=(192, 256), zooms=1.0, scale=(1.0, 1.0))
    changed = doubled(sample, rng())
    assert changed.flow.abs().max() > 1.9 * sample.flow.abs().max()


@settings(deadline=None, max_examples=40)
@given(st.integers(20, 90), st.integers(20, 90), st.integers(16, 100), st.integers(16, 100), st.booleans())
def test_any_picture_is_enlarged_until_the_crop_fits(height, width, crop_height, crop_width, sparse):
    sample = FlowSample(*(part[..., :height, :width] for part in (sparse_sample() if sparse else dense_sample())))
    make = sparse_augmentation if sparse else dense_augmentation
    for seed in range(3):
        changed = make((crop_height, crop_width), (-1.0, 0.2))(sample, rng(seed))
        assert changed.image1.shape == (3, crop_height, crop_width)


def test_scattered_vectors_are_moved_and_scaled_but_never_mixed():
    flow = torch.zeros(2, 20, 32)
    flow[:, 4, 6], flow[:, 15, 20] = torch.tensor([3.0, -1.0]), torch.tensor([0.5, 8.0])
    valid, occluded = (flow != 0).any(0), torch.zeros(20, 32, dtype=torch.bool)
    occluded[15, 20] = True
    sample = FlowSample(torch.zeros(3, 20, 32), torch.zeros(3, 20, 32), flow, valid, occluded)
    changed = only(crop=(40, 60), zooms=1.0, scale=(1.0, 1.0), sparse=True)(sample, rng())
    # Twice as large and a pixel to spare: 41 x 66, so that a row and six columns are cut off.
    assert changed.valid.sum() == 2
    first, second = changed.valid.nonzero().tolist()
    assert second[0] - first[0] == int(15.5 * 41 / 20) - int(4.5 * 41 / 20)
    assert second[1] - first[1] == int(20.5 * 66 / 32) - int(6.5 * 66 / 32)
    assert torch.allclose(changed.flow[:, *first], torch.tensor([3.0 * 66 / 32, -1.0 * 41 / 20]))
    assert torch.allclose(changed.flow[:, *second], torch.tensor([0.5 * 66 / 32, 8.0 * 41 / 20]))
    assert changed.occluded[*second]
    smaller = only(crop=(16, 16), zooms=1.0, scale=(-0.2, -0.2), sparse=True)
    assert {float(value) for seed in range(9) for value in smaller(sample, rng(seed)).flow[0].unique()} <= {
        0.0,
        *(torch.tensor([3.0, 0.5]) * round(32 * 0.5**0.2) / 32).tolist(),
    }


def test_unknown_vectors_spread_when_dense_truth_is_interpolated():
    sample = dense_sample()
    valid = sample.valid.clone()
    valid[40:50, 50:60] = False
    sample = sample._replace(valid=valid, flow=sample.flow * valid)
    changed = only(crop=(170, 230), zooms=1.0, scale=(0.9, 0.9))(sample, rng())
    assert 0.9 * 4**0.9 < (~changed.valid).sum() / 100 < 1.4 * 4**0.9
    assert drift(changed) < 2


def test_the_eraser_hides_what_it_covers():
    sample = dense_sample()
    erasing = only(eraser=Eraser(share=1.0, rectangles=(1, 1), sides=(20, 30)))
    for seed in range(5):
        changed = erasing(sample, rng(seed))
        erased = (changed.image2 != sample.image2).any(0)
        rows, columns = erased.any(1).sum(), erased.any(0).sum()
        assert erased.sum() == rows * columns
        assert max(rows, columns) <= 30
        assert torch.allclose(changed.image2[:, erased].mean(1), sample.image2.mean((1, 2)), atol=0.01)
        assert torch.equal(changed.image1, sample.image1)
        newly = changed.occluded & ~sample.occluded
        assert abs(newly.sum() - erased.sum()) < 0.5 * erased.sum() + 60
        y, x = newly.nonzero().T
        ends = torch.stack([y + sample.flow[1, y, x], x + sample.flow[0, y, x]]).round().long()
        assert erased[ends[0], ends[1]].all()


def test_erased_rectangles_are_as_many_and_as_large_as_they_say():
    picture = np.random.default_rng(0).uniform(0, 255, (300, 400, 3)).astype(np.float32)
    areas, few = [], 0
    for seed in range(100):
        changed, erased = Eraser(share=1.0)(picture, rng(seed))
        assert np.array_equal(changed[~erased], picture[~erased])
        areas.append(erased.sum())
        few += erased.any(0).sum() <= 100
    assert max(areas) <= 2 * 100**2
    assert max(areas) > 100**2
    assert 0.4 < few / 100 < 0.8  # one rectangle, or two that lie above each other
    assert Eraser(share=0.0)(picture, rng())[0] is picture


def test_symmetric_colours_change_alike_and_asymmetric_ones_don_t():
    picture = SCENE.frame(0).astype(np.float32)
    alike = Jitter(asymmetric=0.0)(picture, picture, rng())
    apart = Jitter(asymmetric=1.0)(picture, picture, rng())
    assert np.array_equal(*alike)
    assert abs(apart[0] - apart[1]).mean() > 2
    assert abs(alike[0] - picture).mean() > 2
    share = np.mean([not np.array_equal(*Jitter()(picture, picture, rng(seed))) for seed in range(200)])
    assert abs(share - 0.2) < 0.09


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_each_colour_change_does_what_it_is_called(name):
    picture = (SCENE.frame(0) * 0.4 + 70).astype(np.float32)
    jitter = Jitter(**dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0) | {name: 0.4})
    grey = picture @ np.array([0.299, 0.587, 0.114], np.float32)
    factors = []
    for seed in range(100):
        changed = jitter.change(picture, rng(seed))
        centre = {"brightness": np.float32(0), "contrast": grey.mean(), "saturation": grey[..., None]}[name]
        # What was changed is the distance from black, from the mean grey, or from the pixel's own grey.
        before, after = picture - centre, changed - centre
        factor = float((before * after).sum() / (before * before).sum())
        assert abs(after - factor * before).max() < 0.5
        factors.append(factor)
    assert 0.59 < min(factors) < 0.64
    assert 1.36 < max(factors) < 1.41


def test_hue_turns_the_colour_circle():
    red = np.zeros((2, 2, 3), np.float32)
    red[..., 0] = 200
    assert np.allclose(turn_hue(red, 1 / 3)[0, 0], [0, 200, 0], atol=0.5)
    assert np.allclose(turn_hue(red, -1 / 3)[0, 0], [0, 0, 200], atol=0.5)
    picture = SCENE.frame(0).astype(np.float32)
    assert np.allclose(turn_hue(picture, 1.0), picture, atol=0.5)
    changed = [Jitter(brightness=0, contrast=0, saturation=0).change(red, rng(seed))[0, 0] for seed in range(50)]
    assert {float(np.argmax(colour)) for colour in changed} == {0.0}  # at most 0.16 of a turn
    assert max(colour[1] for colour in changed) > 150
    assert max(colour[2] for colour in changed) > 150


def test_colours_change_in_random_order():
    picture = SCENE.frame(0).astype(np.float32)
    extreme = Jitter(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.5)
    for seed in range(30):
        changed = extreme.change(picture, rng(seed))
        assert changed.dtype == np.float32
        assert changed.min() >= 0
        assert changed.max() <= 255

    orders = set()

    class Watched(np.random.Generator):
        def permutation(self, *arguments: int) -> np.ndarray:
            order = super().permutation(*arguments)
            orders.add(tuple(order.tolist()))
            return order

    for seed in range(200):
        extreme.change(picture[:4, :4], Watched(np.random.PCG64(seed)))
    assert len(orders) == 24


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Augmentation(crop=(8, 100)), r"crop \(height, width\) of at least 16 px a side, got \(8, 100\)"),
        (lambda: Augmentation(crop=(64, 64), scale=(0.5, 0.2)), r"scale as \(least, greatest\)"),
        (lambda: Augmentation(crop=(64, 64), stretch=-0.1), "a stretch of at least 0"),
        (lambda: Jitter(brightness=1.5), "changes of factors from 0 to 1"),
        (lambda: Jitter(contrast=-0.1), "changes of factors from 0 to 1"),
        (lambda: Jitter(hue=0.7), "hue from 0 to 0.5"),
        (lambda: Eraser(rectangles=(0, 1)), r"rectangles and sides as \(least, greatest\)"),
        (lambda: Eraser(sides=(50, 20)), r"rectangles and sides as \(least, greatest\)"),
    ],
)
def test_wrong_options_are_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()
