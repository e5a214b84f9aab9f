import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from deqflow.model.geometry import (
    Padding,
    enlarge_convex,
    fill_holes,
    pixel_grid,
    project_forward,
    sample_bilinear,
    upsample_bilinear,
    warp,
)

SIDES = st.integers(1, 40)


def points(*pairs: tuple[float, float], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """(x, y) pairs as a row of points, (1, 2, 1, N)."""
    return torch.tensor(pairs, dtype=dtype).T[None, :, None]


def slow_sample(image: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """Bilinear sampling by its definition: (C, H, W) -> (C,), zero outside."""
    total = torch.zeros(len(image), dtype=image.dtype)
    for j in range(image.shape[1]):
        for i in range(image.shape[2]):
            total += image[:, j, i] * max(0.0, 1 - abs(x - i)) * max(0.0, 1 - abs(y - j))
    return total


def test_the_grid_counts_x_to_the_right_and_y_down():
    grid = pixel_grid(2, 3)
    assert grid.dtype == torch.float32
    assert grid.tolist() == [[[[0, 1, 2], [0, 1, 2]], [[0, 0, 0], [1, 1, 1]]]]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6), (6, 1), (5, 7)])
def test_sampling_at_the_pixels_gives_the_pixels(generator, height, width):
    image = torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)
    grid = pixel_grid(height, width).double().expand(2, -1, -1, -1)
    torch.testing.assert_close(sample_bilinear(image, grid), image, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (4, 1), (3, 5)])
def test_sampling_follows_its_definition_also_past_the_border(generator, height, width):
    image = torch.randn(1, 2, height, width, generator=generator, dtype=torch.float64)
    where = 8 * torch.rand(1, 2, 4, 6, generator=generator, dtype=torch.float64) - 2
    got = sample_bilinear(image, where)
    assert got.shape == (1, 2, 4, 6)
    for row in range(4):
        for column in range(6):
            x, y = where[0, :, row, column].tolist()
            torch.testing.assert_close(got[0, :, row, column], slow_sample(image[0], x, y), rtol=0, atol=1e-12)


def test_it_is_zero_from_one_pixel_outside_on():
    image = torch.ones(1, 1, 3, 5, dtype=torch.float64)
    outside = points((-1, 1), (5, 1), (2, -1), (2, 3), (1e6, 1), (-3, -3))
    assert sample_bilinear(image, outside).abs().max() < 1e-12
    torch.testing.assert_close(sample_bilinear(image, points((-0.5, 1), (4.25, 1))).flatten().tolist(), [0.5, 0.75])


def test_sampling_is_differentiable_in_image_and_points(generator):
    image = torch.randn(1, 2, 3, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    where = points((0.3, 0.4), (-0.3, 1.6)).requires_grad_()
    assert torch.autograd.gradcheck(sample_bilinear, (image, where))


def test_warping_undoes_a_translation(generator):
    image1 = torch.rand(2, 3, 12, 16, generator=generator)
    image2 = torch.zeros_like(image1)
    image2[..., 2:, 3:] = image1[..., :-2, :-3]  # everything moves 3 px to the right and 2 px down
    flow = torch.tensor([3.0, 2.0]).view(1, 2, 1, 1).expand(2, 2, 12, 16)
    warped = warp(image2, flow)
    torch.testing.assert_close(warped[..., :-2, :-3], image1[..., :-2, :-3], rtol=0, atol=1e-5)
    assert warped[..., -2:, :].abs().max() < 1e-5  # its truth left the picture
    assert warped[..., -3:].abs().max() < 1e-5


def test_warping_by_half_a_pixel_is_the_mean_of_neighbours(generator):
    image = torch.rand(1, 1, 4, 6, generator=generator)
    flow = torch.tensor([0.5, 0.0]).view(1, 2, 1, 1).expand(1, 2, 4, 6)
    torch.testing.assert_close(warp(image, flow)[..., :-1], (image[..., :-1] + image[..., 1:]) / 2)


@pytest.mark.parametrize(("height", "width", "factor"), [(3, 5, 8), (2, 2, 4), (1, 3, 8), (1, 1, 8)])
def test_bilinear_upsampling_aligns_corners_and_scales_the_vectors(generator, height, width, factor):
    flow = torch.randn(2, 2, height, width, generator=generator)
    fine = upsample_bilinear(flow, factor)
    size = (factor * height, factor * width)
    expected = factor * F.interpolate(flow, size=size, mode="bilinear", align_corners=True)
    assert torch.equal(fine, expected)
    corners = ([0, 0, -1, -1], [0, -1, 0, -1])
    torch.testing.assert_close(fine[..., corners[0], corners[1]], factor * flow[..., corners[0], corners[1]])


def test_bilinear_upsampling_of_a_ramp_is_a_ramp():
    ramp = torch.arange(5.0).expand(1, 2, 3, 5)
    expected = torch.linspace(0, 32, 40).expand(1, 2, 24, 40)
    torch.testing.assert_close(upsample_bilinear(ramp), expected)


@pytest.mark.parametrize("factor", [2, 8])
def test_convex_upsampling_keeps_a_constant_inside_and_scales_it(generator, factor):
    flow = torch.tensor([1.5, -0.25]).view(1, 2, 1, 1).expand(2, 2, 5, 6)
    mask = 3 * torch.randn(2, 9 * factor**2, 5, 6, generator=generator)
    fine = enlarge_convex(factor * flow, mask, factor)
    assert fine.shape == (2, 2, 5 * factor, 6 * factor)
    inner = fine[..., factor:-factor, factor:-factor]
    torch.testing.assert_close(inner, (factor * flow[..., :1, :1]).expand_as(inner))
    assert fine[:, 0].max() <= factor * 1.5 + 1e-5


@pytest.mark.parametrize(("height", "width"), [(3, 4), (1, 1), (1, 3)])
def test_convex_upsampling_equals_a_direct_loop(generator, height, width):
    factor = 4
    flow = torch.randn(2, 2, height, width, generator=generator, dtype=torch.float64)
    mask = torch.randn(2, 9 * factor**2, height, width, generator=generator, dtype=torch.float64)
    got = enlarge_convex(factor * flow, mask, factor)
    padded = F.pad(flow, (1, 1, 1, 1))
    for y in range(factor * height):
        for x in range(factor * width):
            row, column, place = y // factor, x // factor, y % factor * factor + x % factor
            # The logits of neighbour k at place p within the coarse pixel are channel k f^2 + p, k row by row.
            weights = mask[:, place :: factor**2, row, column].softmax(1)
            neighbours = padded[:, :, row : row + 3, column : column + 3].flatten(2)
            expected = factor * (neighbours * weights[:, None]).sum(2)
            torch.testing.assert_close(got[:, :, y, x], expected)


@given(height=SIDES, width=SIDES, multiple=st.integers(1, 16))
@settings(max_examples=60, deadline=None)
def test_padding_makes_sides_divide_and_cropping_undoes_it(height, width, multiple):
    padding = Padding(height, width, multiple)
    image = torch.arange(float(2 * height * width)).view(1, 2, height, width)
    padded = padding.pad(image)
    assert padded.shape[-2] % multiple == padded.shape[-1] % multiple == 0
    assert 0 <= padded.shape[-2] - height < multiple
    assert 0 <= padded.shape[-1] - width < multiple
    assert torch.equal(padding.crop(padded), image)
    assert padding.bottom - padding.top in (0, 1)  # centred
    assert padding.right - padding.left in (0, 1)


def test_padding_replicates_the_border():
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    assert Padding(2, 2, 4).pad(image)[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert Padding(8, 16).pad(image) is image
    below = Padding(2, 2, 4, "top")
    assert below.pad(image)[0, 0].tolist() == [[1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert torch.equal(below.crop(below.pad(image)), image)


def splat_slowly(values: torch.Tensor, flow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bilinear splatting by its definition: (C, H, W), (2, H, W) -> (C, H, W), (H, W)."""
    height, width = values.shape[1:]
    total, weight = torch.zeros_like(values), torch.zeros(height, width, dtype=values.dtype)
    for j in range(height):
        for i in range(width):
            x, y = i + flow[0, j, i].item(), j + flow[1, j, i].item()
            for row in range(height):
                for column in range(width):
                    share = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
                    total[:, row, column] += share * values[:, j, i]
                    weight[row, column] += share
    return torch.where(weight > 0, total / weight.clamp(min=1e-12), 0.0), weight


@given(height=st.integers(1, 5), width=st.integers(1, 6), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_forward_projection_follows_its_definition(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)
    flow = 3 * torch.randn(2, 2, height, width, generator=generator, dtype=torch.float64)
    got, weight = project_forward(values, flow)
    for i in range(2):
        expected, arrived = splat_slowly(values[i], flow[i])
        torch.testing.assert_close(weight[i, 0], arrived)
        torch.testing.assert_close(got[i], expected)


def test_forward_projection_undoes_warping_by_whole_pixels(generator):
    image = torch.rand(1, 2, 6, 9, generator=generator)
    flow = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 6, 9)
    moved, weight = project_forward(image, flow)
    assert torch.equal(moved[..., :-1, 2:], image[..., 1:, :-2])
    assert torch.equal(weight[..., :-1, 2:], torch.ones(1, 1, 5, 7))
    assert not moved[..., :2].any()
    assert not weight[..., -1, :].any()


@pytest.mark.parametrize("far", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
def test_what_ends_nowhere_or_far_away_is_lost(far):
    values, flow = torch.ones(1, 1, 3, 4), torch.zeros(1, 2, 3, 4)
    flow[0, 0, 1, 2] = far
    moved, weight = project_forward(values, flow)
    expected = torch.ones(1, 1, 3, 4)
    expected[0, 0, 1, 2] = 0
    assert torch.equal(moved, expected)
    assert torch.equal(weight, expected)
    assert not project_forward(flow, flow)[0].any()  # itself included


def test_holes_take_the_values_of_the_nearest_known_pixel():
    values = torch.arange(24.0).view(2, 1, 3, 4)
    known = torch.ones(2, 1, 3, 4, dtype=torch.bool)
    known[0, 0, :, 1:3] = False
    filled = fill_holes(values, known)
    assert filled[0, 0].tolist() == [[0, 0, 3, 3], [4, 4, 7, 7], [8, 8, 11, 11]]
    assert torch.equal(filled[1], values[1])
    assert values[0, 0, 0, 1] == 1  # the input stays as it was
    assert torch.equal(fill_holes(values, torch.zeros_like(known)), values)  # nothing to take from
