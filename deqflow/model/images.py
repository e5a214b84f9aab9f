"""Checks of the images that an estimator is given: errors, and warnings about their range of values."""

import warnings

import torch
from torch import Tensor

SMALLEST_SIDE = 16
TOO_BRIGHT = 512  # well above 255: resized or sharpened images may exceed 255 a little
NORMALISED = 8  # images normalised by mean and standard deviation stay below this, and have values below zero
TWELVE_BITS = 16  # 4095 / 257: the largest value of 12 bits that were read as 16


def check_images(image1: Tensor, image2: Tensor, *, stacklevel: int = 2) -> None:
    """Raise unless both images can be used; warn where their range of values looks wrong.

    Args:
        image1, image2: (B, 3, H, W), floating point or uint8, of one shape, at least 16 px a side.
        stacklevel: of the warning, counted from the caller, as :func:`warnings.warn` counts it.

    Raises:
        TypeError: an image is not a floating-point or uint8 tensor.
        ValueError: an image has another shape or is too small, or the shapes differ.
    """
    for name, image in (("image1", image1), ("image2", image2)):
        _check_tensor(name, image)
    if image1.shape != image2.shape:
        raise ValueError(
            f"Both images must have one size, got {tuple(image1.shape)} and {tuple(image2.shape)}: crop or resize one."
        )
    height, width = image1.shape[-2:]
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(
            f"Images must be at least {SMALLEST_SIDE} px a side, got {width}x{height} (width x height): enlarge them."
        )
    if torch.compiler.is_exporting():
        return
    advice = _advice(image1, image2)
    if advice:
        warnings.warn(f"Images are expected in 0..255, but {advice}.", stacklevel=stacklevel + 1)


def _check_tensor(name: str, image: object) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(
            f"{name} expects a tensor (B, 3, H, W) with values 0..255, got {type(image).__module__}."
            f"{type(image).__name__}: deqflow.flow(image1, image2) takes paths, PIL images and NumPy arrays too."
        )
    if not image.is_floating_point() and image.dtype != torch.uint8:
        raise TypeError(
            f"{name} expects a floating-point or uint8 tensor (B, 3, H, W) with values 0..255, got {image.dtype}: "
            "convert with .float()."
        )
    if image.dim() != 4 or image.shape[1] != 3:
        raise ValueError(
            f"{name} expects shape (B, 3, H, W) with three colour channels (RGB), got {tuple(image.shape)}: "
            "add a batch dimension with image[None], repeat a grey channel three times, leave out transparency, or "
            "move channels that come last with image.movedim(-1, -3)."
        )


def _advice(image1: Tensor, image2: Tensor) -> str:
    """What is wrong with the range of values, and what to do; empty if nothing is wrong."""
    image1, image2 = image1.detach(), image2.detach()
    highest = float(torch.maximum(image1.max(), image2.max()))
    if not highest < torch.inf:
        return ""  # images that are not finite have a message of their own
    if highest > TOO_BRIGHT:
        return f"the largest value is {highest:.3g}: divide by 257 if they have 16 bits"
    if NORMALISED < highest <= TWELVE_BITS:
        return f"the largest value is {highest:.3g}: multiply by 16 if they have 12 bits and were read as 16"
    if highest > NORMALISED:
        return ""
    lowest = float(torch.minimum(image1.min(), image2.min()))
    if lowest < 0:
        return (
            f"all values lie between {lowest:.3g} and {highest:.3g}, as after normalisation by a mean and a standard "
            "deviation: undo it"
        )
    return f"the largest value is {highest:.3g}: multiply by 255 if they are 0..1" if 0 < highest <= 1 else ""


def not_finite(image1: Tensor, image2: Tensor) -> Tensor:
    """Which samples have NaN or infinity in an image, (B,) booleans."""
    return ~(torch.isfinite(image1) & torch.isfinite(image2)).flatten(1).all(1)
