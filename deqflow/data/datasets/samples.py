"""Pairs of images with their true flow."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage
import torch
from torch import Tensor

from deqflow.data.flow_files import read_image


class FlowSample(NamedTuple):
    """A pair of images with its true flow.

    Attributes:
        image1, image2: (3, H, W) float32, RGB, 0..255.
        flow: (2, H, W) float32, from the first to the second image, in pixels.
        valid: (H, W) booleans, where the flow is known.
        occluded: (H, W) booleans, where the first image is known to be hidden or out of frame in the second.
    """

    image1: Tensor
    image2: Tensor
    flow: Tensor
    valid: Tensor
    occluded: Tensor


def own_pair(path1: str | Path, path2: str | Path) -> FlowSample:
    """Read a pair of your own images. Their true flow is unknown, so ``valid`` is false everywhere.

    Raises:
        FileNotFoundError: as for :func:`deqflow.data.flow_files.read_image`.
        ValueError: as for :func:`deqflow.data.flow_files.read_image`, or the sizes differ.
    """
    image1, image2 = read_image(path1)[0], read_image(path2)[0]
    if image1.shape != image2.shape:
        sizes = " and ".join(f"{image.shape[2]}x{image.shape[1]}" for image in (image1, image2))
        raise ValueError(f"Both images must have one size, got {sizes} (width x height): crop or resize one.")
    nowhere = torch.zeros(image1.shape[-2:], dtype=torch.bool)
    return FlowSample(image1, image2, torch.zeros(2, *nowhere.shape), nowhere, nowhere)


def motorcycle() -> FlowSample:
    """scikit-image's motorcycle stereo pair, 500 x 741: a real photograph pair with measured truth.

    The flow from the left to the right image is (-disparity, 0). It is known at 92.7 % of the pixels; the occlusion is
    unknown.
    Source: Middlebury stereo 2014 (Scharstein et al.), as shipped with scikit-image.
    """
    folder = Path(skimage.__file__).parent / "data"
    with np.load(folder / "motorcycle_disp.npz") as file:
        disparity = torch.from_numpy(file["arr_0"].astype(np.float32))
    valid = torch.isfinite(disparity)
    across = torch.where(valid, -disparity, 0.0)
    return FlowSample(
        image1=read_image(folder / "motorcycle_left.png")[0],
        image2=read_image(folder / "motorcycle_right.png")[0],
        flow=torch.stack([across, torch.zeros_like(across)]),
        valid=valid,
        occluded=torch.zeros_like(valid),
    )


def leaves_frame(flow: Tensor) -> Tensor:
    """Where a flow (2, H, W), rounded to the nearest pixel, leads out of the frame: (H, W) booleans."""
    height, width = flow.shape[1:]
    across = torch.arange(width) + flow[0]
    down = torch.arange(height)[:, None] + flow[1]
    inside = (across >= -0.5) & (across <= width - 0.5) & (down >= -0.5) & (down <= height - 0.5)
    return ~inside
