import numpy as np
import pytest
import torch

from deqflow.data.colors import color_wheel, flow_to_rgb

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
    flow = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    longest = float(torch.linalg.vector_norm(flow.double(), dim=0).max())
    assert np.array_equal(flow_to_rgb(flow), flow_to_rgb(flow, largest=longest))


def test_the_wheel_is_white_in_its_middle_and_outside():
    wheel = color_wheel(51)
    assert wheel.shape == (51, 51, 3)
    assert wheel[25, 25].tolist() == wheel[0, 0].tolist() == [255, 255, 255]
    assert wheel[25, 50].tolist() == [255, 0, 0]


def test_a_wrong_shape_or_scale_is_refused():
    with pytest.raises(ValueError, match=r"expects a flow of shape \(2, H, W\), got \(3, 4, 4\)"):
        flow_to_rgb(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="positive length"):
        flow_to_rgb(torch.zeros(2, 4, 4), largest=0.0)
