"""Frames of a video file or of a folder of pictures, one at a time, read while the last ones are worked on."""

import queue
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import cv2
import torch
from torch import Tensor

from deqflow.data.flow_files import IMAGE_SUFFIXES, image_files, read_image

T = TypeVar("T")


class Frames:
    """Frames, (1, 3, H, W) float32, RGB, 0..255, read anew each time they are gone through.

    Attributes:
        count: how many there are, as the file says; 0 where it does not.
        rate: frames a second.
    """

    def __init__(self, frames: Callable[[], Iterator[Tensor]], count: int, rate: float) -> None:
        self._frames, self.count, self.rate = frames, count, rate

    def __iter__(self) -> Iterator[Tensor]:
        return self._frames()


def read_frames(source: str | Path | Sequence[str | Path], *, rate: float = 24.0) -> Frames:
    """Open a video file, a folder of pictures in the order of the numbers in their names, or a list of pictures.

    Args:
        source: such as clip.mp4, frames/, or paths.
        rate: of pictures, which don't say; in frames a second.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the file is no video that OpenCV can read, or there are fewer than two pictures. While reading:
            a damaged picture, or one of another size than the first.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"No video and no folder at {path}: check the path and the working folder.")
        if path.is_file():
            return _open_video(path)
        pictures = sorted(image_files(path), key=_natural)
        where = f"pictures in {path}"
    else:
        pictures, where = [Path(p) for p in source], "pictures"
    if len(pictures) < 2:
        raise ValueError(f"Expected at least two {where}, got {len(pictures)}: flow is from each one to the next.")
    return Frames(lambda: _read_pictures(pictures), len(pictures), rate)


def ahead(items: Iterable[T], *, buffer: int = 2) -> Generator[T, None, None]:
    """Go through ``items`` on a thread of their own, up to ``buffer`` ahead of who asks.

    An error comes out where the item would have. The thread ends with the iterator.
    """
    box: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(max(1, buffer))
    stopped = threading.Event()

    def put(good: bool, item: T | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return box.put((good, item), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(True, item)
                if stopped.is_set():
                    return
            put(False, None)
        except BaseException as error:  # raised again where the item was asked for
            put(False, error)

    thread = threading.Thread(target=work, daemon=True, name="frames ahead")
    thread.start()
    try:
        while True:
            good, item = box.get()
            if isinstance(item, BaseException):
                raise item
            if not good:
                return
            yield item  # pyright: ignore[reportReturnType] (None and errors are never good)
    finally:
        stopped.set()
        thread.join()


def _natural(path: Path) -> tuple[list[str | tuple[int, str]], str]:
    """frame9 before frame10."""
    parts = re.split(r"(\d+)", path.name)
    # Text and numbers alternate, so that like is compared with like.
    return [(int(part), part) if i % 2 else part for i, part in enumerate(parts)], path.name


def _read_pictures(paths: Sequence[Path]) -> Iterator[Tensor]:
    first: Tensor | None = None
    for path in paths:
        image = read_image(path)
        if first is not None and image.shape != first.shape:
            got, expected = (f"{x.shape[3]}x{x.shape[2]}" for x in (image, first))
            raise ValueError(f"{path} has {got} px, the frames before it {expected}: resize it, or take it out.")
        first = image
        yield image


def _open_video(path: Path) -> Frames:
    reader = cv2.VideoCapture(str(path))
    opened = reader.isOpened() and reader.grab()
    count, rate = int(reader.get(cv2.CAP_PROP_FRAME_COUNT)), reader.get(cv2.CAP_PROP_FPS)
    reader.release()
    if not opened or path.suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(f"{path} can't be read as a video: expected a file such as .mp4, or a folder of pictures.")
    return Frames(lambda: _read_video(path), max(count, 0), rate if 0 < rate < 1000 else 24.0)


def _read_video(path: Path) -> Iterator[Tensor]:
    reader = cv2.VideoCapture(str(path))
    try:
        while True:
            good, pixels = reader.read()
            if not good:
                return
            yield torch.from_numpy(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)[None].float()
    finally:
        reader.release()
