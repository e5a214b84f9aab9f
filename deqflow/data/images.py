"""Conversion of images from the usual forms (files, PIL, NumPy, tensors) to the tensors that estimators take."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deqflow.data.flow_files import read_image

ImageLike = str | Path | Image.Image | np.ndarray | Tensor


def as_images(image: ImageLike, name: str = "image") -> Tensor:
    """Convert an image, or a batch of images, to (B, 3, H, W) float32, RGB, 0..255.

    Args:
        image: a path; a PIL image of any mode; a NumPy array or tensor of uint8 or floating point: (H, W), (H, W, C),
            (C, H, W), (B, H, W, C) or (B, C, H, W), where C is 3, 1 (grey, repeated) or 4 (transparency is dropped).
            Where a shape fits both orders, channels are taken to be last in arrays and first in tensors.
        name: the name of the argument, for error messages.

    Raises:
        TypeError: ``image`` has another type, or its numbers are neither uint8 nor floating point.
        ValueError: ``image`` has another shape, or its file cannot be read as an image.
        FileNotFoundError: there is no such file.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray | Tensor):
        raise TypeError(
            f"{name} expects a path, a PIL image, a NumPy array or a tensor, got {type(image).__module__}."
            f"{type(image).__name__}."
        )
    last_first = isinstance(image, np.ndarray)
    values = torch.from_numpy(np.array(image)) if last_first else image
    if values.dtype != torch.uint8 and not values.is_floating_point():
        raise TypeError(
            f"{name} expects uint8 or floating-point values in 0..255, got {values.dtype}: convert them, 16 bits for "
            "instance by dividing by 257."
        )
    shape = tuple(values.shape)
    if values.dim() == 2:
        values = values[None, None]
    elif values.dim() in (3, 4):
        values = values[None] if values.dim() == 3 else values
        values = _channels_first(values, last_first)
    if values.dim() != 4 or values.shape[1] not in (1, 3, 4):
        raise ValueError(
            f"{name} expects (H, W), (H, W, C), (C, H, W), (B, H, W, C) or (B, C, H, W) with 1, 3 or 4 channels, "
            f"got {shape}."
        )
    values = values[:, :3]
    return (values if values.is_floating_point() else values.float()).expand(-1, 3, -1, -1)


def _channels_first(values: Tensor, last_first: bool) -> Tensor:
    """(B, H, W, C) or (B, C, H, W) -> (B, C, H, W). The axis of 1, 3 or 4 elements is that of the channels."""
    ends = {"last": values.shape[-1] in (1, 3, 4), "first": values.shape[1] in (1, 3, 4)}
    last = ends["last"] and (last_first or not ends["first"])
    return values.movedim(-1, 1) if last else values
