"""Reading tensors by name from any checkpoint file, without running pickled code.

A file's content decides how it is read, not its suffix. Training programs wrap what they save: in a dictionary under a
key such as "state_dict", or by a prefix such as "module." of data parallelism. Both are removed here.
"""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

_SAVED = (b"PK\x03\x04", b"\x80")  # how files of torch.save begin: a zip archive, or a pickle in old files
KEYS = ("model", "state_dict", "model_state_dict")  # keys under which programs save a model's tensors
_WRAPPER = re.compile(r"(?:(?<=\.)|\A)(?:module|_orig_mod)\.")  # of data parallelism, and of torch.compile
_OUTER = "model."  # the name that a training framework gives the model in its own module


class CheckpointError(ValueError):
    """A checkpoint is damaged, or is not of the expected kind."""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint file by name, on the CPU, without wrappers and without running pickled code.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, or holds anything but tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint at {path}: expected a .pth or .safetensors file.")
    try:
        if is_safetensors(path):
            return plain_names(load_file(path))
        with path.open("rb") as file:  # given a path, torch.load would use its suffix
            if not file.read(4).startswith(_SAVED):
                raise CheckpointError(
                    f"{path} can't be read as a checkpoint: it is not a checkpoint. Expected a file that torch.save "
                    "has written, or a .safetensors file."
                )
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(  # the unpickler's own error message says how to run the code in the file
            f"{path} can't be read as a checkpoint: it is damaged, or holds code instead of plain tensors. Code in a "
            "checkpoint is never run."
        ) from error
    except Exception as error:  # damaged bytes may raise any exception in an unpickler
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} can't be read as a checkpoint ({reason}): it is damaged, or holds code instead of plain tensors."
        ) from error
    content = unwrapped(content)
    if not _is_named(content):
        raise CheckpointError(
            f"{path} expects a dictionary of tensors by name, got {_what(content)}. It may lie under one of the keys "
            f"{', '.join(KEYS)}."
        )
    return plain_names(content)


def is_safetensors(path: Path) -> bool:
    """Whether a file's first bytes are a safetensors header; if they do not tell its format, its suffix decides."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return True
    pickled = head[:1] == b"\x80" and head[1:2] <= b"\x05"  # followed by the protocol's number
    return path.suffix.lower() == ".safetensors" and not (zipfile.is_zipfile(path) or pickled)


def safetensors_metadata(path: Path) -> dict[str, str]:
    """The strings stored beside the tensors.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({error}): download or save it again."
        ) from error


def unwrapped(content: Any) -> Any:
    """The content under the keys by which training programs save a model's tensors, level by level."""
    while isinstance(content, dict):
        inner = next((content[key] for key in KEYS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    return content


def plain_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without the names of wrappers: "module." and "_orig_mod." anywhere, "model." if all have it.

    Raises:
        CheckpointError: two tensors would have the same name.
    """
    names = {name: _WRAPPER.sub("", name) for name in tensors}
    while names and all(name.startswith(_OUTER) for name in names.values()):
        names = {old: _WRAPPER.sub("", name.removeprefix(_OUTER)) for old, name in names.items()}
    if len(set(names.values())) < len(names):
        twice = next(name for name in names.values() if list(names.values()).count(name) > 1)
        raise CheckpointError(
            f"The checkpoint has {twice} twice, with and without the name of a wrapper: keep the one that is meant."
        )
    return {names[old]: tensor for old, tensor in tensors.items()}


def _is_named(content: Any) -> bool:
    if not isinstance(content, dict) or not content:
        return False
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items())


def _what(content: Any) -> str:
    """A content in words: its type, and for a dictionary its first entry that is not a tensor by name."""
    kind = type(content).__name__
    if not isinstance(content, dict):
        return kind
    for key, value in content.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            return f"{kind} in which {key!r} is {type(value).__name__}"
    return f"{kind} without entries"
