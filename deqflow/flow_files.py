"""Images and flow files, in and out. Files are written under a temporary name and renamed once whole."""

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

UNKNOWN_FLOW = 1e9  # Middlebury marks unknown vectors by greater values


def read_image(path: str | Path) -> Tensor:
    """Read an image file as (1, 3, H, W) float32, RGB, 0..255: what an estimator takes.

    Grey images get three equal channels, transparency is dropped, 16 bits are scaled down to 8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no image that OpenCV can read, or damaged.
    """
    pixels = _decode(path, cv2.IMREAD_COLOR, "an image such as .png, .jpg or .ppm")
    return torch.from_numpy(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)[None].float()


def write_image(path: str | Path, image: np.ndarray) -> Path:
    """Write an RGB picture (H, W, 3) uint8 in the format that the suffix names.

    Raises:
        ValueError: not such an array, or OpenCV has no such format.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"write_image expects (H, W, 3) uint8, got {image.dtype} {image.shape}.")
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    path = Path(path)
    if not path.suffix or not cv2.haveImageWriter(path.name):
        raise ValueError(f"Can't write {path}: expected a suffix such as .png or .jpg, got {path.suffix!r}.")
    return _write(path, lambda part: cv2.imwrite(part, bgr))


def read_flow(path: str | Path) -> tuple[Tensor, Tensor]:
    """Read a flow field from Middlebury's ``.flo`` or KITTI's 16-bit ``.png``.

    Returns:
        flow (2, H, W) float32 in pixels, zero where unknown, and valid (H, W) booleans.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another suffix, or a damaged file.
    """
    path = Path(path)
    if path.suffix == ".flo":
        return _read_flo(path)
    if path.suffix == ".png":
        return _read_kitti(path)
    raise ValueError(f"read_flow expects a .flo file or KITTI's 16-bit .png, got {path}.")


def write_flow(path: str | Path, flow: Tensor) -> Path:
    """Write a flow field, (2, H, W) in pixels, as Middlebury's ``.flo``.

    Raises:
        ValueError: another shape, no pixels, or another suffix.
    """
    path = Path(path)
    if path.suffix != ".flo":
        raise ValueError(f"write_flow expects a path that ends in .flo, got {path}.")
    if flow.dim() != 3 or flow.shape[0] != 2 or flow.numel() == 0:
        raise ValueError(f"write_flow expects a flow of shape (2, H, W), got {tuple(flow.shape)}.")
    pixels = np.ascontiguousarray(flow.detach().float().cpu().permute(1, 2, 0).numpy())
    return _write(path, lambda part: cv2.writeOpticalFlow(part, pixels))


def _read_flo(path: Path) -> tuple[Tensor, Tensor]:
    _require(path)
    header = np.fromfile(path, "<i4", count=3)
    # Check the size before OpenCV allocates what a damaged header asks for.
    if len(header) < 3 or header[0].tobytes() != b"PIEH":
        raise ValueError(f"{path} is no .flo file: expected the tag PIEH and a size at its beginning.")
    width, height = int(header[1]), int(header[2])
    expected, got = 12 + 8 * width * height, path.stat().st_size
    if min(width, height) < 1 or got != expected:
        raise ValueError(
            f"{path} is damaged: a flow of {width}x{height} takes {expected} bytes, the file has {got}. Copy it again."
        )
    flow = torch.from_numpy(cv2.readOpticalFlow(str(path))).permute(2, 0, 1).contiguous()
    valid = (torch.isfinite(flow) & (flow.abs() < UNKNOWN_FLOW)).all(0)
    return torch.where(valid, flow, 0.0), valid


def _read_kitti(path: Path) -> tuple[Tensor, Tensor]:
    pixels = _decode(path, cv2.IMREAD_UNCHANGED, "a 16-bit flow image of KITTI")
    if pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(
            f"{path} expects 16 bits and three channels (KITTI's flow), got {pixels.dtype} {pixels.shape}."
        )
    valid = torch.from_numpy(pixels[..., 0] > 0)
    flow = torch.from_numpy((pixels[..., :0:-1].astype(np.float32) - 2**15) / 64).permute(2, 0, 1)
    return torch.where(valid, flow, 0.0), valid


def _require(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"No file at {path}: check the path and the working folder.")


def _decode(path: str | Path, flags: int, expected: str) -> np.ndarray:
    path = Path(path)
    _require(path)
    # Reading the bytes ourselves makes any path work, whatever letters are in it.
    data = np.fromfile(path, np.uint8)
    try:
        pixels = cv2.imdecode(data, flags) if len(data) else None
    except cv2.error:  # a header that asks for more pixels than OpenCV is willing to read
        pixels = None
    if pixels is None:
        raise ValueError(f"{path} can't be read: expected {expected}, and the file is damaged or something else.")
    return pixels


def _write(path: Path, write: Callable[[str], bool]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, since it names the format.
    unfinished = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        if not write(str(unfinished)):
            raise OSError(f"Writing {path} failed: check that its folder can be written to and the disk is not full.")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
