"""Colours for flow fields: the direction is the hue, the length the saturation (Baker et al. 2011, Middlebury)."""

import numpy as np
import torch
from torch import Tensor

# Middlebury's wheel of 55 steps: where its corners lie, clockwise on screen from red (motion to the right).
_CORNERS = (0, 15, 21, 25, 36, 49, 55)
_RGB = ((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1), (1, 0, 0))


def flow_to_rgb(flow: Tensor, *, largest: float | None = None) -> np.ndarray:
    """Draw a flow field in Middlebury's colours: white stands still, full colour moves by ``largest``.

    Args:
        flow: (2, H, W) in pixels; vectors that are not finite become black.
        largest: length in pixels that gets the full colour, longer ones are darkened; the longest vector's if
            not given.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ValueError: another shape, or ``largest`` is not positive.
    """
    if flow.dim() != 3 or flow.shape[0] != 2:
        raise ValueError(f"flow_to_rgb expects a flow of shape (2, H, W), got {tuple(flow.shape)}.")
    if largest is not None and not largest > 0:
        raise ValueError(f"flow_to_rgb expects largest to be a positive length in pixels, got {largest!r}.")
    u, v = flow.detach().double().cpu().numpy()
    known = np.isfinite(u) & np.isfinite(v)
    u, v = np.where(known, u, 0.0), np.where(known, v, 0.0)
    length = np.hypot(u, v)
    length = length / (largest or max(float(length.max()), 1e-9))
    # Middlebury's own program spreads the 55 colours over a turn with the first and the last beside each other.
    place = (np.arctan2(-v, -u) / np.pi + 1) / 2 * (_CORNERS[-1] - 1)
    hue = np.stack([np.interp(place, _CORNERS, channel) for channel in zip(*_RGB, strict=True)], -1)
    color = np.where(length[..., None] <= 1 + 1e-6, 1 - length[..., None] * (1 - hue), 0.75 * hue)
    return np.round(255 * np.where(known[..., None], color, 0.0)).astype(np.uint8)


def color_wheel(side: int = 151) -> np.ndarray:
    """The legend: the colour of each direction and length up to 1, on a disc, (side, side, 3) uint8 RGB."""
    axis = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = x.hypot(y) <= 1
    disc = flow_to_rgb(torch.where(inside, torch.stack([x, y]), 0.0), largest=1.0)
    return np.where(inside.numpy()[..., None], disc, 255).astype(np.uint8)
