"""Files are written whole or not at all: under a temporary name beside their own, and renamed at the end."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def unfinished_name(path: Path) -> Path:
    """The name that this process writes a file under. The suffix stays last: it may name the format."""
    return path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yield the temporary name to write to; once the block is through, the file there becomes ``path``.

    Where the block raises, what it wrote is deleted, and what was at ``path`` before stays. The folder is made if it is
    not there.
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
    """Write a file from memory, text as UTF-8.

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
    """The error to raise where a file could not be written, whatever kind of error the library at work has for it."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error).splitlines()[0]
    sentence = f"Writing {path} failed: check that its folder can be written to and the disk is not full ({reason})."
    number = error.errno if isinstance(error, OSError) else None
    return OSError(sentence) if number is None else OSError(number, sentence)
