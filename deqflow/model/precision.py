"""The device to run on, and the precision that is fast on it."""

import time
from functools import cache

import torch

PROBE_SIDE = 384  # rows of the square matrices that are multiplied; a processor that emulates bfloat16 takes 0.1 s
WORTH_IT = 1.2  # bfloat16 must be faster than float32 by this factor, because it costs accuracy


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device that a name means.

    Args:
        name: such as "cpu" or "cuda:1"; "auto" is the first GPU if there is one, else the CPU.

    Raises:
        ValueError: torch does not know such a device, or this machine has none.
    """
    if str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"Expected a device such as auto, cpu, cuda or cuda:1, got {str(name)!r}.") from error
    if device.type == "meta":
        raise ValueError("No device meta: it computes nothing. Use auto, or cpu.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"No device {device}: torch finds no GPU here. Use auto, or cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"No device {device}: torch finds {torch.cuda.device_count()} GPUs here, counted from 0.")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise ValueError(f"No device {device}: torch can't use it here. Use auto, or cpu.") from error
    return device


def fast_precision(device: str | torch.device = "auto") -> torch.dtype:
    """The precision in which a device multiplies matrices fast: bfloat16, or float32 where bfloat16 is emulated.

    The device's capabilities are checked first. Only if they do not tell, two short matrix products are timed. The
    answer is kept as long as the process runs.

    Args:
        device: a device, or a name for :func:`choose_device`.

    Raises:
        ValueError: there is no such device.
    """
    return _fast_precision(str(choose_device(device)))


@cache
def _fast_precision(name: str) -> torch.dtype:
    device = torch.device(name)
    known = _multiplies_bfloat16(device)
    if known is None:
        float32, bfloat16 = (product_speed(device, dtype) for dtype in (torch.float32, torch.bfloat16))
        known = bfloat16 > WORTH_IT * float32
    return torch.bfloat16 if known else torch.float32


def _multiplies_bfloat16(device: torch.device) -> bool | None:
    """Whether a device has fast instructions for bfloat16; None if its capabilities do not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    if device.type != "cpu":
        return False
    if not torch.backends.mkldnn.is_available():
        return False
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("amx_bf16"):
        return True
    if capabilities.get("architecture") == "x86_64" and not capabilities.get("avx512_bf16"):
        return False
    return None


def product_speed(device: torch.device, dtype: torch.dtype, *, side: int = PROBE_SIDE, repeats: int = 3) -> float:
    """Operations a second of the product of two square matrices: the best of some repeats, after one that is not timed.

    Args:
        device: the device that multiplies.
        dtype: precision of the matrices.
        side: rows of the matrices.
        repeats: how many products are timed.
    """
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    seconds = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        product = matrix @ matrix
        float(product[0, 0])  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds[1:])
