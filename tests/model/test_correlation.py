import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import deqflow.model.correlation
from deqflow.evidence.diagnostics import KeptForBackward
from deqflow.model.correlation import CorrelationPyramid, SampledCorrelation, all_pairs, correlate, volume_bytes, window
from deqflow.model.correlation.volume import WindowGrid, sample_windows


def as_on_a_gpu(first, second, **options):
    """A pyramid that looks up as it does wherever there is no CPU."""
    pyramid = CorrelationPyramid(first, second, **options)
    assert pyramid.gathers
    pyramid.gathers = False
    return pyramid


KINDS = pytest.mark.parametrize("kind", [CorrelationPyramid, as_on_a_gpu, SampledCorrelation])


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
@KINDS
def test_the_lookup_equals_rafts_with_grid_sample(generator, kind, height, width, levels, radius):
    first, second = features(height, width)
    flow = 4 * torch.randn(2, 2, height, width, generator=generator, dtype=torch.float64)
    flow[0, :, 0, 0] = torch.tensor([30.0, -20.0])  # outside
    flow[1, :, 1, 1] = 2.0  # whole pixels
    got = kind(first, second, levels=levels, radius=radius).lookup(flow)
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


@KINDS
def test_a_true_displacement_is_found_at_its_place_in_the_window(kind):
    first = torch.eye(48, dtype=torch.float64).view(1, 48, 6, 8)  # each pixel its own channel
    second = first.roll((1, 2), (2, 3))  # 2 px to the right, 1 px down
    found = kind(first, second, levels=1, radius=3).lookup(torch.zeros(1, 2, 6, 8, dtype=torch.float64))
    middle = found[0, :, 2, 3]
    assert int(middle.argmax()) == (2 + 3) * 7 + (1 + 3)
    assert int((middle != 0).sum()) == 1
    centred = kind(first, second, levels=1, radius=0)
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
@KINDS
def test_a_flow_far_out_of_the_picture_sees_zeros(kind, distance, sign, axis):
    first, second = features(4, 6, dtype=torch.float32)
    flow = torch.zeros(2, 2, 4, 6)
    flow[:, axis] = sign * distance
    pyramid = kind(first, second, levels=1, radius=4)
    assert torch.equal(pyramid.lookup(flow), torch.zeros(2, 81, 4, 6))


@pytest.mark.parametrize("axis", [0, 1])
@KINDS
def test_nan_in_the_flow_shows_where_it_is_and_nowhere_else(kind, axis):
    first, second = features(4, 6, dtype=torch.float32)
    flow = torch.zeros(2, 2, 4, 6)
    flow[1, axis, 2, 3] = torch.nan
    found = kind(first, second, levels=3, radius=2).lookup(flow)
    spoilt = torch.isnan(found)
    assert spoilt[1, :, 2, 3].all()
    assert int(spoilt.sum()) == found.shape[1]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 5), (1, 16), (15, 15)])
@KINDS
def test_pictures_of_any_size_have_four_levels_without_nan(kind, height, width):
    first, second = features(height, width, dtype=torch.float32)
    pyramid = kind(first, second)
    found = pyramid.lookup(torch.zeros(2, 2, height, width))
    assert found.shape == (2, 4 * 81, height, width)
    assert torch.isfinite(found).all()
    centre = found[:, 4 * 9 + 4]  # on the finest level, without flow: each pixel with itself
    torch.testing.assert_close(centre, (first * second).sum(1) / math.sqrt(3))


def test_the_volume_has_a_side_of_at_least_one_pixel_at_every_level():
    volumes = CorrelationPyramid(*features(3, 1), levels=4).volumes
    assert [tuple(volume.shape) for volume in volumes] == [(2, 3, 3, 1), (2, 3, 1, 1), (2, 3, 1, 1), (2, 3, 1, 1)]


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
@KINDS
def test_gradients_reach_features_and_flow_exactly(generator, kind, height, width):
    first, second = (f.requires_grad_() for f in features(height, width, batch=1))
    # Away from whole pixels of every level, where a bilinear sample has a kink.
    flow = 0.2 + 0.1 * torch.rand(1, 2, height, width, generator=generator, dtype=torch.float64)

    def lookup(first, second, flow):
        return kind(first, second, levels=2, radius=1).lookup(flow)

    assert torch.autograd.gradcheck(lookup, (first, second, flow.requires_grad_()))
    assert torch.autograd.gradgradcheck(lookup, (first, second, flow))


@KINDS
def test_looking_up_changes_nothing_and_repeats_itself(kind):
    first, second = features(3, 5, dtype=torch.float32)
    before = first.clone(), second.clone()
    pyramid = kind(first, second, levels=2, radius=2)
    flow = torch.full((2, 2, 3, 5), 0.3)
    assert torch.equal(pyramid.lookup(flow), pyramid.lookup(flow))
    assert torch.equal(first, before[0])
    assert torch.equal(second, before[1])
    assert torch.equal(flow, torch.full((2, 2, 3, 5), 0.3))


def smooth(height, width, scale, seed):
    """A flow whose neighbours differ little, with a step along the middle column."""
    coarse = scale * features(3, 4, channels=2, seed=seed)[0]
    flow = F.interpolate(coarse, (height, width), mode="bilinear")
    flow[..., width // 2 :] += 2 * scale
    return flow


@pytest.mark.parametrize("scale", [0.0, 0.3, 4.0, 40.0])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 17), (23, 30)])
@pytest.mark.parametrize("levels_radius", [(4, 4), (2, 1)])
def test_without_the_volume_values_and_gradients_are_the_same(scale, height, width, levels_radius):
    levels, radius = levels_radius
    inputs = [*features(height, width, channels=5), smooth(height, width, scale, seed=1)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    found = [
        kind(*inputs[:2], levels=levels, radius=radius).lookup(inputs[2])
        for kind in (CorrelationPyramid, SampledCorrelation)
    ]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)
    direction = torch.randn(found[0].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected, got = (torch.autograd.grad(values, inputs, direction) for values in found)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@given(seed=st.integers(0, 999), scale=st.sampled_from([0.1, 1.0, 6.0, 30.0]), chunk=st.sampled_from([1, 3000, 10**9]))
@settings(max_examples=25, deadline=None)
def test_without_the_volume_how_pixels_are_grouped_does_not_matter(seed, scale, chunk):
    first, second = features(10, 13, seed=seed)
    flow = scale * features(10, 13, channels=2, seed=seed + 1)[0]
    expected = CorrelationPyramid(first, second, levels=3, radius=2).lookup(flow)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deqflow.model.correlation.sampled, "CHUNK", chunk)
        found = SampledCorrelation(first, second, levels=3, radius=2).lookup(flow)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_gradients_that_are_not_asked_for_are_not_needed():
    first, second = features(9, 9)
    flow = torch.zeros(2, 2, 9, 9, dtype=torch.float64)
    for wanted in (first, second):
        pyramid = SampledCorrelation(*(f.detach().requires_grad_(f is wanted) for f in (first, second)))
        pyramid.lookup(flow).sum().backward()


def test_autocast_does_not_reach_the_inner_products():
    first, second = features(9, 9, dtype=torch.float32)
    flow = torch.zeros(2, 2, 9, 9)
    found = SampledCorrelation(first, second)
    plain = found.lookup(flow)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(found.lookup(flow), plain)


@KINDS
def test_a_subset_of_the_samples_sees_what_it_saw_before(generator, kind):
    first, second = features(5, 7, batch=4)
    flow = torch.randn(4, 2, 5, 7, generator=generator, dtype=torch.float64)
    pyramid = kind(first, second, levels=2, radius=2)
    whole = pyramid.lookup(flow)
    rows = torch.tensor([3, 1, 0])
    part = pyramid.subset(rows)
    torch.testing.assert_close(part.lookup(flow[rows]), whole[rows], rtol=0, atol=1e-12)
    again = torch.tensor([0, 2])
    torch.testing.assert_close(part.subset(again).lookup(flow[rows][again]), whole[rows][again], rtol=0, atol=1e-12)


def by_grid(first, second, flow, levels, radius, rows=None):
    """The lookup by grid_sample, from features, where :class:`CorrelationPyramid` would gather for the flow's sake."""
    pyramid = as_on_a_gpu(first, second, levels=levels, radius=radius)
    pyramid = pyramid if rows is None else pyramid.subset(rows)
    return sample_windows(pyramid.volumes, flow, WindowGrid(pyramid.volumes, flow.shape[-2:], radius))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [None, [2, 0], [1, 1, 2]])
@pytest.mark.parametrize("scale", [0.3, 4.0, 40.0])
@pytest.mark.parametrize(
    ("height", "width", "levels", "radius"), [(1, 1, 4, 4), (1, 2, 2, 1), (3, 2, 4, 3), (9, 13, 4, 4), (17, 11, 3, 2)]
)
def test_grid_sample_and_gather_give_the_same_values_and_gradients(height, width, levels, radius, scale, rows, dtype):
    rows = None if rows is None else torch.tensor(rows)
    first, second = features(height, width, batch=3, dtype=dtype)
    # Away from whole pixels of every level, where a bilinear sample has a kink and its derivative has two values.
    flow = scale * features(height, width, batch=3 if rows is None else len(rows), channels=2, seed=1)[0]
    flow = ((8 * flow).floor() / 8 + 1 / 16).to(dtype)
    inputs = [tensor.requires_grad_() for tensor in (first, second, flow)]
    pyramid = CorrelationPyramid(first, second, levels=levels, radius=radius)
    expected = (pyramid if rows is None else pyramid.subset(rows)).lookup(flow)
    found = by_grid(*inputs, levels, radius, rows)
    exact = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, expected, rtol=exact, atol=exact)
    assert found.stride() == expected.stride()  # channels last, as convolutions like it
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    gradients = [torch.autograd.grad(values, inputs, direction) for values in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=10 * exact, atol=10 * exact * float(theirs.abs().max()))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38, -1e6])
def test_grid_sample_and_gather_treat_far_and_unknown_flow_alike(value):
    first, second = features(4, 6, dtype=torch.float32)
    flow = features(4, 6, channels=2, seed=1, dtype=torch.float32)[0]
    flow[0, 0, 1, 2] = flow[1, 1, 3, 3] = value
    expected = CorrelationPyramid(first, second, levels=3, radius=2).lookup(flow)
    found = by_grid(first, second, flow, 3, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, equal_nan=True)


class Operations(TorchDispatchMode):
    """Counts what costs a GPU a start: operations that do more than look at a tensor in another way."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.count += not (func.is_view or func.overloadpacket == torch.ops.aten._unsafe_view)
        return result


def test_grid_sample_takes_a_tenth_of_the_operations():
    flow = torch.zeros(2, 2, 9, 13)
    counts = []
    for kind in (as_on_a_gpu, CorrelationPyramid):
        pyramid = kind(*features(9, 13, dtype=torch.float32))
        pyramid.lookup(flow)
        with Operations() as operations:
            pyramid.lookup(flow)
        counts.append(operations.count)
    assert counts[0] <= 11  # 4 of them sample
    assert counts[1] >= 10 * counts[0]


def test_grid_sample_keeps_less_for_backward_than_gather():
    kept = []
    for kind in (as_on_a_gpu, CorrelationPyramid):
        with KeptForBackward() as saved:
            pyramid = kind(*(tensor.requires_grad_() for tensor in features(16, 16, dtype=torch.float32)))
            found = [pyramid.lookup(torch.zeros(2, 2, 16, 16)) for _ in range(3)]
        assert all(one.requires_grad for one in found)
        kept.append(saved.bytes)
    assert kept[0] < kept[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_volumes_in_half_precision_are_gathered_from_everywhere(dtype):
    first, second = (tensor.to("meta", dtype) for tensor in features(4, 6))
    assert CorrelationPyramid(first, second).gathers
    assert not CorrelationPyramid(first.float(), second.float()).gathers


@pytest.mark.parametrize(("kind", "made"), [("volume", CorrelationPyramid), ("sampled", SampledCorrelation)])
def test_a_kind_of_correlation_can_be_asked_for(kind, made):
    assert isinstance(correlate(*features(4, 4), kind=kind), made)


def test_by_itself_the_volume_is_taken_up_to_its_limit(monkeypatch):
    first, second = features(6, 5, batch=3, dtype=torch.float32)
    assert volume_bytes(first, 3) == sum(v.nbytes for v in CorrelationPyramid(first, second, levels=3).volumes)
    assert deqflow.model.correlation.VOLUME_LIMIT == 2**30
    monkeypatch.setattr(deqflow.model.correlation, "VOLUME_LIMIT", volume_bytes(first, 3))
    assert isinstance(correlate(first, second, levels=3), CorrelationPyramid)
    monkeypatch.setattr(deqflow.model.correlation, "VOLUME_LIMIT", volume_bytes(first, 3) - 1)
    assert isinstance(correlate(first, second, levels=3), SampledCorrelation)


def test_an_unknown_kind_of_correlation_is_refused():
    with pytest.raises(ValueError, match="Unknown correlation 'sparse': expected one of auto, volume, sampled"):
        correlate(*features(2, 2), kind="sparse")


def test_backward_keeps_no_volume():
    first, second = (f.requires_grad_() for f in features(24, 24, dtype=torch.float32))
    flow = torch.zeros(2, 2, 24, 24)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        SampledCorrelation(first, second, levels=1, radius=1).lookup(flow)
    assert max(saved) <= 2 * 24 * 24 * 9  # features, positions: nothing of the size of 2 (24 x 24)^2
