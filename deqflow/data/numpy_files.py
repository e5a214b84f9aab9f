"""Reading of NumPy's files, .npy and .npz, without trust in their headers and without running pickled code."""

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

DEFLATE_LARGEST = 1032  # the most bytes that one compressed byte can expand to
ERRORS = (ValueError, EOFError, OSError, SyntaxError, zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file that holds a flow: ``flow`` and, if an .npz has it, ``valid``.

    Raises:
        ValueError: the file is damaged, holds something other than numbers, or lacks ``flow``.
    """
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                return {"flow": _read_array(file, path.stat().st_size)}
        with zipfile.ZipFile(path) as archive:
            there = set(archive.namelist())
            arrays = {name: _read_member(archive, name) for name in ("flow", "valid") if f"{name}.npy" in there}
    except ERRORS as error:
        raise ValueError(f"{path} can't be read as {path.suffix.lower()}: {error}. Copy it again.") from error
    if "flow" not in arrays:
        raise ValueError(f"{path} can't be read as a flow: expected an array named flow in it, got none.")
    return arrays


def _read_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as file:
        return _read_array(file, min(entry.file_size, DEFLATE_LARGEST * entry.compress_size))


def _read_array(file: IO[bytes], size: int) -> np.ndarray:
    """Read an array of numbers or booleans in NumPy's format, from a stream of at most ``size`` bytes."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise ValueError(f"expected numbers of up to 64 bits, got {dtype}")
    expected = math.prod(shape) * dtype.itemsize
    content = file.read(expected) if 0 <= expected <= size else b""
    if len(content) != expected or min(shape, default=1) < 0:
        raise ValueError(f"an array of shape {shape} does not fit in the {size} bytes that the file holds")
    values = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return np.array(values, dtype.newbyteorder("="))
