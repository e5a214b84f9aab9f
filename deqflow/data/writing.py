"""Files are written whole or not at all: each is written under a temporary name in the same folder, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_same_file(path: str | Path, other: str | Path) -> bool:
    """Whether two paths lead to the same file or folder; links are followed."""
    try:
        return os.path.samefile(path, other)
    except OSError:  # one of them does not exist
        return Path(path).resolve() == Path(other).resolve()


def unfinished_name(path: Path) -> Path:
    """The name under which this process writes a file. The suffix stays at the end, since it may name the format."""
    return path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name to write to; when the block ends, that file is renamed to ``path``.

    If the block raises an error, the temporary file is deleted, and a file that was at ``path`` before stays. The
    folder is made if it does not exist.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_name(path)
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: str | Path, content: bytes | str) -> Path:
    """Write a file from memory, whole or not at all. Text is encoded as UTF-8.

    Raises:
        OSError: the folder can't be written to, or the disk is full.
    """
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    try:
        with whole(path) as unfinished:
            unfinished.write_bytes(content)
    except OSError as error:
        raise not_written(path, error) from error
    return path


def not_written(path: Path, error: Exception) -> OSError:
    """The error to raise if a file could not be written. ``error`` is what the library raised, of any type."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error).splitlines()[0]
    advice = "check that its folder can be written to and the disk is not full"
    if path.is_dir():
        advice = "there is a folder of this name: choose another name"
    elif file := next((parent for parent in path.parents if parent.is_file()), None):
        advice = f"{file} is a file, where a folder is needed: choose another name"
    sentence = f"Writing {path} failed: {advice} ({reason})."
    number = error.errno if isinstance(error, OSError) else None
    return OSError(sentence) if number is None else OSError(number, sentence)
