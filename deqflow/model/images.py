"""Checks of the images that an estimator is given: errors, and warnings about their range of values."""

import inspect
import traceback
import warnings

import torch
from torch import Tensor

SMALLEST_SIDE = 16
TOO_BRIGHT = 512  # well above 255: resized or sharpened images may exceed 255 a little
NORMALISED = 8  # images normalised by mean and standard deviation stay below this, and have values below zero
UNIT = 2  # images of 0..1 stay below this, though resized or sharpened ones may exceed 1; those of 10 bits do not
TOO_NEGATIVE = -64  # resized or sharpened images may have values a little below zero
TAKEN = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
OUTSIDE = ("deqflow.", "torch.", "contextlib")  # modules whose lines a warning does not name


def check_images(image1: Tensor, image2: Tensor, *, warn: bool = True) -> None:
    """Raise unless both images can be used; warn where their range of values looks wrong.

    Args:
        image1, image2: (B, 3, H, W), floating point or uint8, of one shape, at least 16 px a side.
        warn: whether to warn; the warning names the line that called this package.

    Raises:
        TypeError: an image is not a floating-point or uint8 tensor.
        ValueError: an image has another shape or is too small, or the shapes differ.
    """
    for name, image in (("image1", image1), ("image2", image2)):
        _check_tensor(name, image)
    height, width = image1.shape[-2:]
    if image1.shape[-2:] != image2.shape[-2:]:
        raise ValueError(
            f"Both images must have one size, got {width}x{height} and {image2.shape[-1]}x{image2.shape[-2]} "
            "(width x height): crop or resize one."
        )
    if len(image1) != len(image2) or len(image1) == 0:
        raise ValueError(
            f"Both batches must have one number of images, at least 1, got {len(image1)} and {len(image2)}: "
            "leave some out, or repeat one with image.expand(B, -1, -1, -1)."
        )
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(
            f"Images must be at least {SMALLEST_SIDE} px a side, got {width}x{height} (width x height): enlarge them."
        )
    if not warn or torch.compiler.is_exporting():
        return
    advice = next(filter(None, (*map(_advice, (image1, image2)), _unit_advice(image1, image2))), "")
    if advice:
        warnings.warn(f"Images are expected in 0..255, but {advice}.", stacklevel=_level_outside())


def _level_outside() -> int:
    """The stack level, counted from the caller as :func:`warnings.warn` counts it, of the first frame outside."""
    modules = [f"{frame.f_globals.get('__name__', '')}." for frame, _ in traceback.walk_stack(inspect.currentframe())]
    return next((level for level, module in enumerate(modules) if not module.startswith(OUTSIDE)), len(modules) - 1)


def _check_tensor(name: str, image: object) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(
            f"{name} expects a tensor (B, 3, H, W) with values 0..255, got {type(image).__module__}."
            f"{type(image).__name__}: "
            "deqflow.flow(image1, image2) takes paths, PIL images and NumPy arrays too."
        )
    if image.dtype not in TAKEN or image.layout != torch.strided or image.is_meta:
        usual = image.layout == torch.strided and not image.is_meta
        got = str(image.dtype) if usual else f"{image.layout} on {image.device} of {image.dtype}"
        raise TypeError(
            f"{name} expects a floating-point or uint8 tensor (B, 3, H, W) with values 0..255, got {got}: convert "
            "with .float() or .to_dense()."
        )
    if image.dim() != 4 or image.shape[1] != 3:
        raise ValueError(
            f"{name} expects shape (B, 3, H, W) with three colour channels (RGB), got {tuple(image.shape)}: "
            "add a batch dimension with image[None], repeat a grey channel three times, leave out transparency, or "
            "move channels that come last with image.movedim(-1, -3)."
        )


def _advice(image: Tensor) -> str:
    """What is wrong with the range of values, and what to do; empty if nothing is wrong."""
    lowest, highest = (float(value) for value in image.detach().aminmax())
    if not -torch.inf < lowest <= highest < torch.inf or lowest == highest == 0:
        return ""  # images that are not finite have a message of their own
    if highest > TOO_BRIGHT:
        return f"the largest value is {highest:.3g}: divide by 257 if they have 16 bits"
    if lowest < TOO_NEGATIVE or (lowest < 0 and highest <= NORMALISED):
        return (
            f"all values lie between {lowest:.3g} and {highest:.3g}, as after normalisation by a mean and a standard "
            "deviation: undo it"
        )
    for bits, above in ((10, UNIT), (12, NORMALISED)):
        if above < highest <= (2**bits - 1) / 257 and not _is_whole(image):
            factor = f"{2 ** (16 - bits)} if they have {bits} bits and were read as 16"
            return f"the largest value is {highest:.3g}: multiply by {factor}"
    return ""


def _unit_advice(image1: Tensor, image2: Tensor) -> str:
    """What to do if both images have values of 0..1; empty if they have not. One of them may be a dark frame."""
    highest = max(float(image.detach().max()) for image in (image1, image2))
    return f"the largest value is {highest:.3g}: multiply by 255 if they are 0..1" if 0 < highest <= 1 else ""


def _is_whole(image: Tensor) -> bool:
    """Whether all values are whole numbers, as those of a dark image of 8 bits are."""
    return bool((image == image.round()).all()) if image.is_floating_point() else True


def not_finite(image1: Tensor, image2: Tensor) -> Tensor:
    """Which samples have NaN or infinity in an image, (B,) booleans."""
    return ~(torch.isfinite(image1) & torch.isfinite(image2)).flatten(1).all(1)
