"""Conversion of images from the usual forms (files, PIL, NumPy, tensors) to the tensors that estimators take."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from deqflow.data.flow_files import read_image

TAKEN = ("uint8", "float16", "bfloat16", "float32", "float64")
ImageLike = str | Path | Image.Image | np.ndarray | Tensor


def as_images(image: ImageLike, name: str = "image") -> Tensor:
    """Convert an image, or a batch of images, to (B, 3, H, W) float32, RGB, 0..255.

    Args:
        image: a path; a PIL image of 8 or 16 bits, turned as its camera says (EXIF); a NumPy array or tensor of uint8
            or floating point: (H, W), (H, W, C), (C, H, W), (B, H, W, C) or (B, C, H, W), where C is 3, 1 (grey,
            repeated) or 4 (transparency is dropped). Where a shape fits both orders, channels are taken to be last in
            arrays and first in tensors.
        name: the name of the argument, for error messages.

    Raises:
        TypeError: ``image`` has another type, or its numbers are neither uint8 nor floating point.
        ValueError: ``image`` has another shape, or its file cannot be read as an image.
        FileNotFoundError: there is no such file.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        image = _from_pil(image, name)
    if not isinstance(image, np.ndarray | Tensor):
        raise TypeError(
            f"{name} expects a path, a PIL image, a NumPy array or a tensor, got {type(image).__name__}: open a file "
            "that is in memory with PIL.Image.open, and put several images into one array."
        )
    last_first = isinstance(image, np.ndarray)
    dtype = image.dtype.name if isinstance(image, np.ndarray) else str(image.dtype).removeprefix("torch.")
    if dtype not in TAKEN:
        advice = {"uint16": "divide them by 257", "bool": "multiply them by 255.0"}.get(dtype, "convert them")
        raise TypeError(f"{name} expects uint8 or floating-point values in 0..255, got {dtype}: {advice}.")
    # A copy that may be written to, in the machine's own byte order, since torch takes no others.
    values = torch.from_numpy(image.astype(dtype)) if isinstance(image, np.ndarray) else image
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


def _from_pil(image: Image.Image, name: str) -> np.ndarray:
    """(H, W, 3) uint8, or (H, W) float32 where a grey image has 16 bits, which PIL's conversion cuts off at 255."""
    if image.mode in ("I", "F"):
        raise ValueError(
            f"{name} expects a PIL image of 8 or 16 bits, got mode {image.mode!r} with 32, whose pixel range is "
            "unknown: pass numpy.asarray(image, numpy.float32), scaled to 0..255."
        )
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return np.asarray(image, np.float32) / 257
    return np.asarray(image.convert("RGB"))


def _channels_first(values: Tensor, last_first: bool) -> Tensor:
    """(B, H, W, C) or (B, C, H, W) -> (B, C, H, W). The axis of 1, 3 or 4 elements is that of the channels."""
    ends = {"last": values.shape[-1] in (1, 3, 4), "first": values.shape[1] in (1, 3, 4)}
    last = ends["last"] and (last_first or not ends["first"])
    return values.movedim(-1, 1) if last else values
