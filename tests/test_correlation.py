import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from deqflow.correlation import CorrelationPyramid, all_pairs, window


def features(height, width, *, batch=2, channels=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, channels, height, width, generator=generator, dtype=dtype).unbind()


def reference_lookup(features1, features2, flow, levels, radius):
    """RAFT's lookup, transcribed: grid_sample with aligned corners, which needs levels wider than a pixel."""
    batch, channels, height, width = features1.shape
    volume = torch.einsum("bcij,bckl->bijkl", features1, features2) / math.sqrt(channels)
    volume = volume.reshape(batch * height * width, 1, height, width)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    coordinates = (flow + torch.stack([x, y])).permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
    steps = torch.arange(-radius, radius + 1, dtype=flow.dtype)
    # RAFT adds what it calls (dy, dx) to (x, y): the slow index of the window moves in x.
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)
    found = []
    for level in range(levels):
        size = volume.shape[-2:]
        assert min(size) > 1
        where = coordinates / 2**level + offsets
        grid = torch.stack([2 * where[..., 0] / (size[1] - 1) - 1, 2 * where[..., 1] / (size[0] - 1) - 1], -1)
        found.append(F.grid_sample(volume, grid, align_corners=True).view(batch, height, width, -1))
        volume = F.avg_pool2d(volume, 2, stride=2)
    return torch.cat(found, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (4, 1)])
def test_all_pairs_are_inner_products_over_the_root_of_the_channels(height, width):
    first, second = features(height, width, channels=5)
    volume = all_pairs(first, second)
    assert volume.shape == (2, height * width, height, width)
    for b in range(2):
        for n in range(height * width):
            for row in range(height):
                for column in range(width):
                    one, other = first[b, :, n // width, n % width], second[b, :, row, column]
                    assert float(volume[b, n, row, column]) == pytest.approx(float(one @ other) / math.sqrt(5))


@pytest.mark.parametrize(
    ("height", "width", "levels", "radius"), [(16, 24, 4, 4), (17, 23, 4, 3), (5, 7, 2, 2), (2, 3, 1, 4)]
)
def test_the_lookup_equals_rafts_with_grid_sample(generator, height, width, levels, radius):
    first, second = features(height, width)
    flow = 4 * torch.randn(2, 2, height, width, generator=generator, dtype=torch.float64)
    flow[0, :, 0, 0] = torch.tensor([30.0, -20.0])  # outside
    flow[1, :, 1, 1] = 2.0  # whole pixels
    got = CorrelationPyramid(first, second, levels=levels, radius=radius).lookup(flow)
    assert got.shape == (2, levels * (2 * radius + 1) ** 2, height, width)
    torch.testing.assert_close(got, reference_lookup(first, second, flow, levels, radius), rtol=0, atol=1e-10)


def test_the_window_is_x_major():
    height, width, radius = 7, 9, 1
    picture = torch.arange(float(height * width)).view(1, 1, height, width)  # value = 9 y + x
    got = window(picture, torch.tensor([[4.0]]), torch.tensor([[3.0]]), radius)[0, 0]
    by_x_then_y = [9 * (3 + dy) + (4 + dx) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    by_y_then_x = [9 * (3 + dy) + (4 + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    assert got.tolist() == by_x_then_y
    assert got.tolist() != by_y_then_x


def test_a_true_displacement_is_found_at_its_place_in_the_window():
    first = torch.eye(48, dtype=torch.float64).view(1, 48, 6, 8)  # each pixel its own channel
    second = first.roll((1, 2), (2, 3))  # 2 px to the right, 1 px down
    found = CorrelationPyramid(first, second, levels=1, radius=3).lookup(torch.zeros(1, 2, 6, 8, dtype=torch.float64))
    middle = found[0, :, 2, 3]
    assert int(middle.argmax()) == (2 + 3) * 7 + (1 + 3)
    assert int((middle != 0).sum()) == 1
    centred = CorrelationPyramid(first, second, levels=1, radius=0)
    flow = torch.tensor([2.0, 1.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 6, 8)
    inside = centred.lookup(flow)[0, 0, :-1, :-2]
    torch.testing.assert_close(inside, torch.full_like(inside, 48**-0.5))


def test_outside_the_picture_the_window_is_zero():
    ones = torch.ones(1, 1, 3, 4, dtype=torch.float64)
    got = window(ones, torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64), 2)
    expected = torch.zeros(5, 5, dtype=torch.float64)
    expected[2:, 2:] = 1  # from the corner, only what lies to the right and below is inside
    assert torch.equal(got.view(5, 5), expected)
    quarter = window(ones, torch.full((1, 1), -0.5).double(), torch.full((1, 1), -0.5).double(), 0)
    assert quarter.item() == 0.25


@pytest.mark.parametrize("distance", [50.0, 1e6, 1e18, 3e38, torch.inf])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_flow_far_out_of_the_picture_sees_zeros(distance, sign, axis):
    first, second = features(4, 6, dtype=torch.float32)
    flow = torch.zeros(2, 2, 4, 6)
    flow[:, axis] = sign * distance
    pyramid = CorrelationPyramid(first, second, levels=1, radius=4)
    assert torch.equal(pyramid.lookup(flow), torch.zeros(2, 81, 4, 6))


@pytest.mark.parametrize("axis", [0, 1])
def test_nan_in_the_flow_shows_where_it_is_and_nowhere_else(axis):
    first, second = features(4, 6, dtype=torch.float32)
    flow = torch.zeros(2, 2, 4, 6)
    flow[1, axis, 2, 3] = torch.nan
    found = CorrelationPyramid(first, second, levels=3, radius=2).lookup(flow)
    spoilt = torch.isnan(found)
    assert spoilt[1, :, 2, 3].all()
    assert int(spoilt.sum()) == found.shape[1]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 5), (1, 16), (15, 15)])
def test_pictures_of_any_size_have_four_levels_without_nan(height, width):
    first, second = features(height, width, dtype=torch.float32)
    pyramid = CorrelationPyramid(first, second)
    sides = [(max(1, height // 2**i), max(1, width // 2**i)) for i in range(4)]
    assert [tuple(volume.shape[-2:]) for volume in pyramid.volumes] == sides
    found = pyramid.lookup(torch.zeros(2, 2, height, width))
    assert found.shape == (2, 4 * 81, height, width)
    assert torch.isfinite(found).all()
    centre = found[:, 4 * 9 + 4]  # on the finest level, without flow: each pixel with itself
    torch.testing.assert_close(centre, (first * second).sum(1) / math.sqrt(3))


@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    levels=st.integers(1, 4),
    radius=st.integers(0, 4),
    scale=st.sampled_from([0.0, 0.5, 3.0, 100.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_any_window_is_bilinear_by_definition(height, width, levels, radius, scale, seed):
    first, second = features(height, width, batch=1, seed=seed)
    flow = scale * features(height, width, batch=1, channels=2, seed=seed + 1)[0]
    pyramid = CorrelationPyramid(first, second, levels=levels, radius=radius)
    found = pyramid.lookup(flow).view(levels, 2 * radius + 1, 2 * radius + 1, height, width)
    column, row, level, i, j = (seed % n for n in (width, height, levels, 2 * radius + 1, 2 * radius + 1))
    picture = pyramid.volumes[level][0, row * width + column]
    x = float(column + flow[0, 0, row, column]) / 2**level + i - radius
    y = float(row + flow[0, 1, row, column]) / 2**level + j - radius
    across = (1 - (torch.arange(picture.shape[1]) - x).abs()).clamp(min=0).double()
    down = (1 - (torch.arange(picture.shape[0]) - y).abs()).clamp(min=0).double()
    assert float(found[level, i, j, row, column]) == pytest.approx(float(down @ picture @ across), abs=1e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3)])
def test_gradients_reach_features_and_flow_exactly(generator, height, width):
    first, second = (f.requires_grad_() for f in features(height, width, batch=1))
    # Away from whole pixels of every level, where a bilinear sample has a kink.
    flow = 0.2 + 0.1 * torch.rand(1, 2, height, width, generator=generator, dtype=torch.float64)

    def lookup(first, second, flow):
        return CorrelationPyramid(first, second, levels=2, radius=1).lookup(flow)

    assert torch.autograd.gradcheck(lookup, (first, second, flow.requires_grad_()))


def test_looking_up_changes_nothing_and_repeats_itself():
    first, second = features(3, 5, dtype=torch.float32)
    pyramid = CorrelationPyramid(first, second, levels=2, radius=2)
    before = [volume.clone() for volume in pyramid.volumes]
    flow = torch.full((2, 2, 3, 5), 0.3)
    assert torch.equal(pyramid.lookup(flow), pyramid.lookup(flow))
    assert all(torch.equal(a, b) for a, b in zip(before, pyramid.volumes, strict=True))
    assert torch.equal(flow, torch.full((2, 2, 3, 5), 0.3))
