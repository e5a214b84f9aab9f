"""What several commands need: models by name, devices, paths that must not be overwritten, progress."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deqflow.model.estimator import FlowEstimator


def load_model(model: str, device: str = "cpu") -> "FlowEstimator":
    """Load the model that a command line names, on a device. This is the one place that decides how it is loaded.

    Args:
        model: the name of a shipped model, or the path of a checkpoint: one of deqflow's own or a published one, with
            any suffix.
        device: such as cpu or cuda; auto takes a GPU where there is one.

    Raises:
        FileNotFoundError: it is neither a known name nor a file.
        CheckpointError: the file is not a checkpoint, is damaged, or fits no known model.
        ValueError: there is no such device.
    """
    from deqflow.model.checkpoints import SHIPPED, load, load_published
    from deqflow.model.precision import choose_device

    chosen = choose_device(device)
    missing = model not in SHIPPED and Path(model).suffix != "" and not Path(model).is_file()
    return (load_published(model) if missing else load(model)).to(chosen)  # a path is named as such if it is missing


def refuse_overwriting(out: Path, *inputs: Path, option: str = "--out") -> None:
    """Raise unless a file to write is another one than each input, whatever links lead to it.

    Raises:
        ValueError: it is an input.
    """
    from deqflow.data.writing import is_same_file

    for path in inputs:
        if is_same_file(out, path):
            raise ValueError(f"{option} {out} would replace the input {path}: choose another {option}.")


def refuse_without_effect(options: dict[str, object], why: str) -> None:
    """Raise if an option was given that has no effect.

    Args:
        options: the value of each, by its name on the command line; None or False if it was not given.
        why: it has none, and what to do.

    Raises:
        ValueError: one was given.
    """
    for name, value in options.items():
        if value is not None and value is not False:
            raise ValueError(f"{name} has no effect {why}.")


def require_suffix(path: Path | None, *suffixes: str, option: str = "--out") -> None:
    """Raise unless a path, if there is one, ends in one of the suffixes.

    Raises:
        ValueError: it ends in another.
    """
    if path is not None and path.suffix.lower() not in suffixes:
        raise ValueError(f"{option} expects a name that ends in {' or '.join(suffixes)}, got {path}.")


def require_data_folder(folder: Path, option: str) -> None:
    """Raise if a folder of data sets was named that is not there. The default need not be: not everyone has data.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if folder != Path("data") and not folder.is_dir():
        raise FileNotFoundError(f"{option} {folder} is not a folder: check the path and the working folder.")


def print_line(text: str) -> None:
    """Print at once, also if the output goes into a file: runs take hours, and somebody may follow them."""
    print(text, flush=True)


class PairProgress:
    """Says on the error output how much of a set is done: at first, at the end, and every ten seconds.

    Args:
        every: seconds between two lines.
        clock: seconds since some moment.
    """

    def __init__(self, every: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.every, self.clock, self.last = every, clock, -float("inf")

    def __call__(self, name: str, done: int, total: int, kind: str = "pairs") -> None:
        """Take in that ``done`` of ``total`` pairs, or what else it is of, of the set ``name`` are done."""
        now = self.clock()
        if done == total or now - self.last >= self.every:
            self.last = now
            print(f"{name}: {done} of {total} {kind}", file=sys.stderr, flush=True)


def repeated(names: Sequence[str]) -> list[str]:
    """The names that come more than once."""
    return [name for i, name in enumerate(names) if name in names[:i]]
