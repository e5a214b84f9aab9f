"""Colours for flow fields: direction gives the hue, length gives the saturation (Baker et al. 2011, Middlebury)."""

import cv2
import numpy as np
import torch
from torch import Tensor

# Middlebury's colour wheel has 55 steps. Its pure colours are at these steps, clockwise on screen from red (motion to
# the right).
_CORNERS = (0, 15, 21, 25, 36, 49, 55)
_RGB = ((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1), (1, 0, 0))
SMALLEST_SCALE = 2.0  # px; with less, an estimator's error between identical frames would look like motion


def flow_to_rgb(flow: Tensor, *, largest: float | None = None) -> np.ndarray:
    """Draw a flow field in Middlebury's colours: white is no motion, a full colour is motion by ``largest``.

    Args:
        flow: (2, H, W) in pixels; vectors that are not finite become black.
        largest: the length in pixels that gets the full colour; longer vectors are darker. If it is not given,
            :func:`color_scale` chooses it.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ValueError: the flow has another shape, or ``largest`` is not a positive, finite number.
    """
    scale = color_scale(flow) if largest is None else largest
    if not 0 < scale < np.inf:
        raise ValueError(f"flow_to_rgb expects largest to be a positive length in pixels, got {largest!r}.")
    (u, v), known = _finite(flow)
    length = np.hypot(u, v) / scale
    # As in Middlebury's own program, a full turn spans 54 steps: it begins at the first colour and ends at the last.
    place = (np.arctan2(-v, -u) / np.pi + 1) / 2 * (_CORNERS[-1] - 1)
    hue = np.stack([np.interp(place, _CORNERS, channel) for channel in zip(*_RGB, strict=True)], -1)
    color = np.where(length[..., None] <= 1 + 1e-6, 1 - length[..., None] * (1 - hue), 0.75 * hue)
    return np.round(255 * np.where(known[..., None], color, 0.0)).astype(np.uint8)


def color_scale(flow: Tensor) -> float:
    """The length in pixels that gets the full colour by default: that of the longest finite vector, at least 2 px.

    Args:
        flow: (2, H, W) in pixels.

    Raises:
        ValueError: the flow has another shape.
    """
    (u, v), _ = _finite(flow)
    return max(float(np.hypot(u, v).max(initial=0.0)), SMALLEST_SCALE)


def _finite(flow: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The vectors, (2, H, W), zero where they are not finite, and a mask, (H, W), true where they are finite."""
    if flow.dim() != 3 or flow.shape[0] != 2:
        raise ValueError(f"flow_to_rgb expects a flow of shape (2, H, W), got {tuple(flow.shape)}.")
    vectors = flow.detach().double().cpu().numpy()
    known = np.isfinite(vectors[0]) & np.isfinite(vectors[1])
    return np.where(known, vectors, 0.0), known


def color_wheel(side: int = 151) -> np.ndarray:
    """A disc that shows the colour of each direction and of each length up to 1, (side, side, 3) uint8 RGB."""
    axis = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = x.hypot(y) <= 1
    disc = flow_to_rgb(torch.where(inside, torch.stack([x, y]), 0.0), largest=1.0)
    return np.where(inside.numpy()[..., None], disc, 255).astype(np.uint8)


def add_key(image: np.ndarray, largest: float) -> np.ndarray:
    """Add a key to the right of an image of a flow: the colour wheel, and the length that its rim stands for.

    Args:
        image: (H, W, 3) uint8, RGB.
        largest: the length in pixels that has the full colour.

    Returns:
        (H', W', 3) uint8, RGB, with the image at its upper left; H' > H only if the key is taller than the image.
    """
    height, width = image.shape[:2]
    side = int(np.clip(min(height, width) // 3, 41, 151)) // 2 * 2 + 1
    margin, size = side // 8, side / 200
    text = f"{largest:.3g} px"
    (text_width, text_height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, max(size, 0.35), 1)
    strip = max(side, text_width) + 2 * margin
    canvas = np.full((max(height, side + text_height + below + 3 * margin), width + strip, 3), 255, np.uint8)
    canvas[:height, :width] = image
    left = width + (strip - side) // 2
    canvas[margin : margin + side, left : left + side] = color_wheel(side)
    # A dark rim and radius show the length that the text names even where the colours are light.
    centre = (left + side // 2, margin + side // 2)
    cv2.circle(canvas, centre, side // 2, (90, 90, 90), 1, cv2.LINE_AA)
    cv2.line(canvas, centre, (centre[0] + side // 2, centre[1]), (90, 90, 90), 1)
    place = (width + (strip - text_width) // 2, 2 * margin + side + text_height)
    cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, max(size, 0.35), (0, 0, 0), 1, cv2.LINE_AA)
    return canvas
