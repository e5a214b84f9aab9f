import numpy as np
import pytest
import torch

from deqflow.data.colors import add_key, color_scale, color_wheel, flow_to_rgb

DIRECTIONS = {
    "right": ((1, 0), (255, 0, 0)),
    "down": ((0, 1), (255, 229, 0)),
    "left": ((-1, 0), (0, 209, 255)),
    "up": ((0, -1), (88, 0, 255)),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_directions_have_middleburys_hues(name):
    (u, v), expected = DIRECTIONS[name]
    color = flow_to_rgb(torch.tensor([u, v]).view(2, 1, 1).float(), largest=1.0)[0, 0]
    assert np.abs(color.astype(int) - expected).max() <= 1


def test_no_motion_is_white_and_unknown_is_black():
    flow = torch.tensor([[0.0, torch.nan, 1.0]]).expand(2, 3)[:, None]
    colors = flow_to_rgb(flow)
    assert colors.shape == (1, 3, 3)
    assert colors[0, 0].tolist() == [255, 255, 255]
    assert colors[0, 1].tolist() == [0, 0, 0]


def test_longer_is_more_saturated_and_beyond_the_largest_darker():
    flow = torch.tensor([0.2, 0.6, 1.0, 3.0]).view(1, 1, 4) * torch.tensor([1.0, 0.0]).view(2, 1, 1)
    colors = flow_to_rgb(flow, largest=1.0)[0].astype(int)
    assert colors[0, 1] > colors[1, 1] > colors[2, 1]
    assert colors[3].max() < 255


def test_the_scale_is_the_longest_vector_if_none_is_given():
    flow = 3 * torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    flow[:, 0, 0] = torch.nan
    longest = float(torch.linalg.vector_norm(flow.double().nan_to_num(), dim=0).max())
    assert color_scale(flow) == pytest.approx(longest)
    assert np.array_equal(flow_to_rgb(flow), flow_to_rgb(flow, largest=longest))


def test_the_wheel_is_white_in_its_middle_and_outside():
    wheel = color_wheel(51)
    assert wheel.shape == (51, 51, 3)
    assert wheel[25, 25].tolist() == wheel[0, 0].tolist() == [255, 255, 255]
    assert wheel[25, 50].tolist() == [255, 0, 0]


def test_a_wrong_shape_or_scale_is_refused():
    with pytest.raises(ValueError, match=r"expects a flow of shape \(2, H, W\), got \(3, 4, 4\)"):
        flow_to_rgb(torch.zeros(3, 4, 4))
    for largest in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"positive length in pixels, got {largest}"):
            flow_to_rgb(torch.zeros(2, 4, 4), largest=largest)


def test_motion_that_is_nothing_but_error_stays_pale():
    flow = 0.24 * torch.randn(2, 30, 40, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)  # at most 0.34 px
    assert (
        color_scale(flow) == color_scale(torch.zeros(2, 4, 4)) == color_scale(torch.full((2, 1, 1), torch.nan)) == 2.0
    )
    assert flow_to_rgb(flow).min() > 255 * 0.8


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 64), (375, 500), (30, 900)])
def test_a_key_stands_beside_the_image_and_leaves_it_as_it_is(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    keyed = add_key(image, 12.3)
    assert keyed.dtype == np.uint8
    assert np.array_equal(keyed[:height, :width], image)
    assert (keyed[height:, :width] == 255).all()
    strip = keyed[:, width:].reshape(-1, 3)
    wheel = {tuple(color) for color in color_wheel(41).reshape(-1, 3).tolist()}
    shown = {tuple(color) for color in strip.tolist()}
    assert len(shown & wheel) > 30 or min(height, width) > 150
    assert (strip.max(1) < 60).sum() > 10  # the text is black


def test_the_key_names_its_scale():
    image = np.full((200, 200, 3), 255, np.uint8)
    assert not np.array_equal(add_key(image, 12.0), add_key(image, 13.0))
    assert np.array_equal(add_key(image, 12.0), add_key(image, 12.0001))
