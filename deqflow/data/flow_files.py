"""Reading and writing of images and flow files. Files are encoded in memory, and written whole or not at all."""

import io
import re
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deqflow.data.netpbm import decode_netpbm
from deqflow.data.numpy_files import DEFLATE_LARGEST, read_arrays
from deqflow.data.writing import write_whole

# The suffixes by which images in a folder are found. A single file may have any suffix that OpenCV can read.
IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".pnm", ".pam", ".bmp", ".tif", ".tiff", ".webp"))
FLOAT_SUFFIXES = (".pfm", ".exr", ".hdr", ".pic")  # floating-point images, whose pixel range is unknown
UNKNOWN_FLOW = 1e9  # Middlebury's files mark unknown vectors by greater values, in px
UNKNOWN_MARK = 1e10  # the value that we write for unknown vectors
# Tag, width, height, scale and line end, as in b"PF\n960 540\n-1.0\n".
PFM_HEADER = re.compile(rb"PF\s+(\d{1,9})\s+(\d{1,9})\s+([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?)\s")
KITTI_LARGEST = (2**16 - 1 - 2**15) / 64  # px; the smallest is -512
NAMES_OF_FLOW_FILES = ".flo, .pfm, .flo5, .npy, .npz or KITTI's 16-bit .png"


def image_files(folder: Path, *, recursive: bool = False) -> list[Path]:
    """The image files in a folder, sorted by name.

    Files and folders whose names begin with a dot are left out: operating systems and programs use such names for their
    own files, for example macOS's ``._x.png`` beside ``x.png``.

    Args:
        folder: the folder to search.
        recursive: whether to search the folders inside it as well.
    """
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(
        path
        for path in found
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not has_hidden_part(path.relative_to(folder))
    )


def has_hidden_part(path: Path) -> bool:
    """Whether any part of a relative path begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


def read_image(path: str | Path) -> Tensor:
    """Read an image file as (1, 3, H, W) float32, RGB, 0..255, the form that an estimator takes.

    Grey images get three equal channels, and transparency is dropped. Values of 16 bits are scaled to 0..255. Values
    of .pgm, .ppm and .pam files are scaled by the largest value that the file names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: OpenCV can't read the file as an image, it is damaged, it holds several images, or its pixels have
            neither 8 nor 16 bits.
    """
    path, expected = Path(path), "an image such as .png, .jpg or .ppm"
    content = _content(path)
    _require_single(path, content)
    try:
        rgb = decode_netpbm(content)
    except ValueError as error:
        raise ValueError(f"{path} can't be read: {error}. Copy it again.") from error
    if rgb is None:
        pixels = _decode(path, content, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, expected)
        if pixels.dtype not in (np.uint8, np.uint16):
            raise ValueError(
                f"{path} expects 8 or 16 bits, got {pixels.dtype}, and its pixel range is unknown: convert it to 8 or "
                "16 bits."
            )
        rgb = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(np.float32)
        rgb = rgb / 257 if pixels.dtype == np.uint16 else rgb
    return torch.from_numpy(rgb).permute(2, 0, 1)[None]


def _require_single(path: Path, content: bytes) -> None:
    """Raise if a file holds an animation or several pages, of which only the first would be read."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            count = getattr(image, "n_frames", 1) if image.format in ("GIF", "PNG", "TIFF", "WEBP") else 1
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # OpenCV has a message of its own
        return
    if count > 1:
        raise ValueError(
            f"{path} expects one image, got {count} in one file: save each in a file of its own, or the animation as "
            ".gif or .mp4."
        )


def write_image(path: str | Path, image: np.ndarray) -> Path:
    """Write an RGB image (H, W, 3) uint8 in the format that the suffix names.

    Raises:
        ValueError: the array has another shape or type, the suffix does not name an 8-bit format that OpenCV can
            write, or the format cannot hold an image of this size.
        OSError: the folder can't be written to, or the disk is full.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"write_image expects (H, W, 3) uint8, got {image.dtype} {image.shape}.")
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    path = Path(path)
    check_image_path(path)
    return write_whole(path, _encode(path, bgr))


def check_image_path(path: Path) -> None:
    """Check, before an image is computed, that the suffix names an image format that can be written.

    Raises:
        ValueError: the suffix does not.
    """
    known = path.suffix and path.suffix.lower() not in FLOAT_SUFFIXES and cv2.haveImageWriter(path.name)
    if not known:
        raise ValueError(
            f"Can't write the image {path}: expected a suffix such as .png or .jpg, got {path.suffix!r}. The numbers "
            f"of a flow go into {', '.join(sorted(FLOW_SUFFIXES - {'.png'}))}."
        )


def read_flow(path: str | Path) -> tuple[Tensor, Tensor]:
    """Read a flow field in the format that the suffix names.

    The formats are Middlebury's ``.flo``, FlyingThings3D's ``.pfm``, KITTI's 16-bit ``.png``, Spring's ``.flo5``, and
    NumPy's ``.npy`` and ``.npz``. NumPy's files hold an array of shape (H, W, 2) or (2, H, W). In an ``.npz`` its name
    is ``flow``, and there may be a second array ``valid``, booleans of shape (H, W). An array of shape (2, W, 2) is
    read as (H, W, 2).

    Returns:
        flow (2, H, W) float32 in pixels, zero where unknown, and valid (H, W) booleans, true where it is known.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the suffix is another one, or the file is damaged.
        ImportError: ``.flo5`` needs h5py, which is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"read_flow expects {NAMES_OF_FLOW_FILES}, got {path}.")
    _require(path)
    read, _ = _FORMATS[path.suffix.lower()]
    return read(path)


def write_flow(path: str | Path, flow: Tensor, valid: Tensor | None = None) -> Path:
    """Write a flow field, (2, H, W) in pixels, in the format that the suffix names.

    ``.flo``, ``.pfm``, ``.flo5``, ``.npy`` and ``.npz`` hold float32. KITTI's 16-bit ``.png`` holds multiples of 1/64
    from -512 to 511.984375; the flow is rounded to the nearest of them. In ``.npy`` and ``.npz`` files the flow has
    the shape (H, W, 2) and is NaN where it is unknown; an ``.npz`` holds ``flow`` and ``valid``.

    Args:
        path: ends in .flo, .pfm, .png, .flo5, .npy or .npz.
        flow: the flow to write.
        valid: (H, W) booleans, where the flow is known; everywhere if not given.

    Raises:
        ValueError: the flow has another shape or no pixels, the suffix is another one, or KITTI's format cannot hold
            the flow.
        OSError: the folder can't be written to, or the disk is full.
        ImportError: ``.flo5`` needs h5py, which is not installed.
    """
    path = Path(path)
    check_flow_path(path)
    if flow.dim() != 3 or flow.shape[0] != 2 or flow.numel() == 0:
        raise ValueError(f"write_flow expects a flow of shape (2, H, W), got {tuple(flow.shape)}.")
    known = torch.ones(flow.shape[1:], dtype=torch.bool) if valid is None else valid.cpu()
    if known.dtype != torch.bool or known.shape != flow.shape[1:]:
        raise ValueError(
            f"write_flow expects valid to be booleans of shape {tuple(flow.shape[1:])}, "
            f"got {known.dtype} {tuple(known.shape)}."
        )
    pixels = flow.detach().float().cpu().permute(1, 2, 0).contiguous().numpy()  # (H, W, 2)
    _, encode = _FORMATS[path.suffix.lower()]
    return write_whole(path, encode(path, pixels, known.numpy()))


def check_flow_path(path: Path) -> None:
    """Check, before a flow is computed, that the suffix names a flow format that can be written.

    Raises:
        ValueError: the suffix does not.
        ImportError: ``.flo5`` needs h5py, which is not installed.
    """
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"write_flow expects a path that ends in {NAMES_OF_FLOW_FILES}, got {path}.")
    if path.suffix.lower() == ".flo5":
        _h5py(path)


def holds_numbers(path: str | Path) -> bool:
    """Whether a file of a flow holds numbers, by its suffix, or an image of it in colours, as every .png does.

    Raises:
        ValueError: the suffix names neither a flow format nor an image format that can be written.
        ImportError: ``.flo5`` needs h5py, which is not installed.
    """
    path = Path(path)
    if path.suffix.lower() in FLOW_SUFFIXES - {".png"}:
        check_flow_path(path)
        return True
    check_image_path(path)
    return False


def _read_flo(path: Path) -> tuple[Tensor, Tensor]:
    header = np.fromfile(path, "<i4", count=3)
    # Check the size first: for a damaged header, OpenCV would allocate too much memory.
    if len(header) < 3 or header[0].tobytes() != b"PIEH":
        raise ValueError(f"{path} is not a .flo file: expected the tag PIEH and a size at its beginning.")
    width, height = int(header[1]), int(header[2])
    _check_size(path, width, height, expected=12 + 8 * width * height)
    return _known(torch.from_numpy(cv2.readOpticalFlow(str(path))).permute(2, 0, 1).contiguous())


def _flo(path: Path, pixels: np.ndarray, known: np.ndarray) -> bytes:
    height, width = known.shape
    return struct.pack("<4sii", b"PIEH", width, height) + _marked(pixels, known, UNKNOWN_MARK).astype("<f4").tobytes()


def _read_pfm(path: Path) -> tuple[Tensor, Tensor]:
    with path.open("rb") as file:
        beginning = file.read(100)
    header = PFM_HEADER.match(beginning)
    scale = float(header[3]) if header else 0.0
    if header is None or scale == 0:
        raise ValueError(
            f"{path} is not a flow in .pfm: expected the tag PF (three channels), a width, a height "
            "and a scale other than 0 at its beginning."
        )
    width, height = int(header[1]), int(header[2])
    start, size = header.end(), 12 * width * height
    # A header with Windows line ends is one character longer.
    if beginning[start - 1 : start + 1] == b"\r\n" and path.stat().st_size == start + 1 + size:
        start += 1
    _check_size(path, width, height, expected=start + size)
    # The sign of the scale gives the byte order. The lowest row comes first.
    values = np.fromfile(path, "<f4" if scale < 0 else ">f4", offset=start).reshape(height, width, 3)
    return _known(torch.from_numpy(values[::-1, :, :2].transpose(2, 0, 1).astype(np.float32, order="C")))


def _pfm(path: Path, pixels: np.ndarray, known: np.ndarray) -> bytes:
    height, width = known.shape
    values = np.pad(_marked(pixels, known, UNKNOWN_MARK), ((0, 0), (0, 0), (0, 1)))[::-1]  # a third channel of zeros
    return f"PF\n{width} {height}\n-1.0\n".encode() + values.astype("<f4").tobytes()


def _read_kitti(path: Path) -> tuple[Tensor, Tensor]:
    pixels = _decode(path, _content(path), cv2.IMREAD_UNCHANGED, "a 16-bit flow image of KITTI")
    if pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(
            f"{path} expects 16 bits and three channels (KITTI's flow), got {pixels.dtype} {pixels.shape}."
        )
    valid = torch.from_numpy(pixels[..., 0] > 0)
    flow = torch.from_numpy((pixels[..., :0:-1].astype(np.float32) - 2**15) / 64).permute(2, 0, 1)
    return torch.where(valid, flow, 0.0), valid


def _kitti(path: Path, pixels: np.ndarray, known: np.ndarray) -> bytes:
    values = np.rint(64.0 * pixels) + 2**15
    held = ((values >= 0) & (values < 2**16)).all(2)  # also false for NaN
    if (known & ~held).any():
        wrong = pixels[known & ~held]
        raise ValueError(
            f"Can't write {path}: KITTI's format holds -512 to {KITTI_LARGEST} px, got {len(wrong)} vectors out of "
            f"range, the first {wrong[0].tolist()}. Clamp the flow with flow.clamp(-512, {KITTI_LARGEST}), "
            "mark them as not valid, or write a .flo file."
        )
    # Green and red are v and u, blue is the mask; OpenCV's order is blue, green, red.
    bgr = np.concatenate([np.ones((*known.shape, 1)), values[..., ::-1]], 2)
    bgr = np.where(known[..., None], bgr, 0).astype(np.uint16)
    return _encode(path, bgr)


def _read_flo5(path: Path) -> tuple[Tensor, Tensor]:
    h5py = _h5py(path)
    values = np.zeros(0)
    try:
        with h5py.File(path, "r") as file:
            wrong = _flo5_fault(h5py, file, path.stat().st_size)
            if not wrong:
                values = np.asarray(file["flow"][()], np.float32)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        wrong = f"HDF5 says: {error}"
    if wrong:
        raise ValueError(f"{path} can't be read as .flo5: {wrong}. Copy it again.")
    return _known(torch.from_numpy(values).permute(2, 0, 1).contiguous())


def _flo5_fault(h5py: ModuleType, file: Any, size: int) -> str:
    """Say what is wrong with an HDF5 file, before its flow is read. The string is empty if nothing is wrong."""
    # Links and virtual data could lead to any other file.
    if not isinstance(file.get("flow", getlink=True), h5py.HardLink):
        return "expected a dataset named flow"
    flow = file["flow"]
    if not isinstance(flow, h5py.Dataset) or flow.is_virtual or flow.external:
        return "expected a dataset named flow, with its values in the file"
    if flow.dtype.kind != "f" or flow.ndim != 3 or flow.shape[2] != 2 or flow.size == 0:
        return f"expected floats of shape (H, W, 2), got {flow.dtype} {flow.shape}"
    stored = min(flow.id.get_storage_size(), size)
    if flow.nbytes > (DEFLATE_LARGEST if flow.compression else 1) * stored:
        return f"a flow of {flow.shape[1]}x{flow.shape[0]} does not fit in the {stored} bytes that the file holds"
    return ""


def _flo5(path: Path, pixels: np.ndarray, known: np.ndarray) -> bytes:
    content = io.BytesIO()  # if HDF5 itself writes to a full disk, it ends the process
    with _h5py(path).File(content, "w") as file:
        marked = _marked(pixels, known, np.nan)
        file.create_dataset("flow", data=marked, compression="gzip", compression_opts=5)
    return content.getvalue()


def _h5py(path: Path) -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path} needs the package h5py: pip install 'deqflow[data]'.") from error
    return h5py


def _read_npy(path: Path) -> tuple[Tensor, Tensor]:
    return _known(_as_flow(path, read_arrays(path)["flow"]))


def _read_npz(path: Path) -> tuple[Tensor, Tensor]:
    arrays = read_arrays(path)
    flow, valid = _known(_as_flow(path, arrays["flow"]))
    if "valid" in arrays:
        mask = torch.from_numpy(arrays["valid"])
        if mask.dtype != torch.bool or mask.shape != valid.shape:
            raise ValueError(
                f"{path} expects valid to be booleans of shape {tuple(valid.shape)}, got {mask.dtype} "
                f"{tuple(mask.shape)}."
            )
        valid = valid & mask
    return torch.where(valid, flow, 0.0), valid


def _as_flow(path: Path, values: np.ndarray) -> Tensor:
    """(H, W, 2) or (2, H, W) -> (2, H, W) float32."""
    if values.ndim == 3 and values.size and values.dtype.kind != "b":
        flow = torch.from_numpy(values.astype(np.float32))
        if values.shape[2] == 2:
            return flow.permute(2, 0, 1).contiguous()
        if values.shape[0] == 2:
            return flow.contiguous()
    raise ValueError(
        f"{path} expects a flow of shape (H, W, 2) or (2, H, W), got an array of {values.dtype} {values.shape}."
    )


def _npy(path: Path, pixels: np.ndarray, known: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, _marked(pixels, known, np.nan))
    return content.getvalue()


def _npz(path: Path, pixels: np.ndarray, known: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, flow=_marked(pixels, known, np.nan), valid=known)
    return content.getvalue()


_Read = Callable[[Path], tuple[Tensor, Tensor]]
_Encode = Callable[[Path, np.ndarray, np.ndarray], bytes]  # path, pixels (H, W, 2), known (H, W)
_FORMATS: dict[str, tuple[_Read, _Encode]] = {
    ".flo": (_read_flo, _flo),
    ".pfm": (_read_pfm, _pfm),
    ".png": (_read_kitti, _kitti),
    ".flo5": (_read_flo5, _flo5),
    ".npy": (_read_npy, _npy),
    ".npz": (_read_npz, _npz),
}
FLOW_SUFFIXES = frozenset(_FORMATS)


def _marked(pixels: np.ndarray, known: np.ndarray, mark: float) -> np.ndarray:
    return np.where(known[..., None], pixels, np.float32(mark))


def _check_size(path: Path, width: int, height: int, *, expected: int) -> None:
    """Raise an error for a damaged header before memory of the size that it names is allocated."""
    got = path.stat().st_size
    if min(width, height) < 1 or got != expected:
        raise ValueError(
            f"{path} is damaged: a flow of {width}x{height} takes {expected} bytes, the file has {got}. Copy it again."
        )


def _known(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Return the flow, zero where it is unknown, and a mask of where it is known."""
    valid = (torch.isfinite(flow) & (flow.abs() < UNKNOWN_FLOW)).all(0)
    return torch.where(valid, flow, 0.0), valid


def _require(path: Path) -> None:
    if path.is_dir() or not path.exists():  # a pipe is read as a file is
        advice = ", for there is a folder of this name" if path.is_dir() else " and the working folder"
        raise FileNotFoundError(f"No file at {path}: check the path{advice}.")


def _content(path: Path) -> bytes:
    """The bytes of a file. On some systems, OpenCV cannot open a path that has letters outside of ASCII."""
    _require(path)
    return path.read_bytes()


def _decode(path: Path, content: bytes, flags: int, expected: str) -> np.ndarray:
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
    except cv2.error:  # the header names more pixels than OpenCV reads
        pixels = None
    if pixels is None:
        raise ValueError(f"{path} can't be read: expected {expected}, and the file is damaged or something else.")
    return pixels


def _encode(path: Path, bgr: np.ndarray) -> bytes:
    """The bytes of an image file. OpenCV does not write the file itself, as it can miss that a disk is full."""
    done, content = cv2.imencode(path.suffix, bgr)
    if not done:
        height, width = bgr.shape[:2]
        raise ValueError(f"Can't write {path}: its format can't hold an image of {width}x{height}.")
    return content.tobytes()
