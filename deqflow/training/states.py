"""The saved states of a run, from which it can be continued. Each is written whole or not at all; three are kept."""

import random
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deqflow.data.writing import not_written, whole

KEPT = 3


def save_state(state: dict[str, Any], folder: Path, step: int) -> Path:
    """Write ``state-STEP.pt`` and delete all but the newest three.

    Raises:
        OSError: the folder can't be written to, or the disk is full.
    """
    path = folder / f"state-{step:07d}.pt"
    write_tensors(state, path)
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()
    return path


def write_tensors(content: dict[str, Any], path: Path) -> None:
    """Write a file with torch.save; it is written whole or not at all."""
    try:
        with whole(path) as unfinished:
            torch.save(content, unfinished)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError if the disk is full
        raise not_written(path, error) from error


def load_state(folder: Path) -> dict[str, Any] | None:
    """The newest undamaged state of a folder, on the CPU; None if the folder has no states.

    Damaged states are skipped with a warning.

    Raises:
        ValueError: there are states, but all are damaged.
    """
    paths = _newest_first(folder)
    for path in paths:
        try:
            return _read(path)
        except Exception as error:  # on a damaged file the unpickler may raise anything
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.warn(f"{path} is damaged ({reason}): going on from the one before.", stacklevel=2)
    if paths:
        raise ValueError(f"{folder} holds no state that is whole: use a new folder, or delete it to start anew.")
    return None


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # torch does not compare checksums
    if damaged is not None:
        raise ValueError(f"{damaged} is not what was written")
    # A file from another machine may name a GPU that does not exist here.
    return torch.load(path, map_location="cpu", weights_only=True)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*.pt"), reverse=True)


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of all global random generators of this process, in types that ``weights_only`` can read.

    Training itself uses its own generators, seeded by seed and step. A user's update operator may use the global ones.
    """
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 (a user's operator may use it)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": (kind, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, gauss),
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore the global random generators of this process to a state from :func:`random_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(state["python"])
