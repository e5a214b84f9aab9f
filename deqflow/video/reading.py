"""The frames of a video file or of a folder of images, and the threads that read ahead and write behind."""

import queue
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

import cv2
import torch
from torch import Tensor

from deqflow.data.flow_files import IMAGE_SUFFIXES, image_files, read_image
from deqflow.video.containers import FORMATS, is_whole

T = TypeVar("T")
ESTIMATED = (".mkv", ".webm")  # files that give a length in seconds but no number of frames


class ShortVideoError(ValueError):
    """The frames of a video file end before the number of frames that the file gives."""


class Frames:
    """Frames, (1, 3, H, W) float32, RGB, 0..255; each loop over them reads them again.

    Attributes:
        count: number of frames according to the file; 0 if it does not give one.
        rate: frames per second.
    """

    def __init__(self, frames: Callable[[], Iterator[Tensor]], count: int, rate: float) -> None:
        self._frames, self.count, self.rate = frames, count, rate

    def __iter__(self) -> Iterator[Tensor]:
        return self._frames()


def read_frames(source: str | Path | Sequence[str | Path], *, rate: float = 24.0) -> Frames:
    """Open a video file, a folder of images in the order of the numbers in their names, or a list of images.

    Files in a folder whose names begin with a dot are left out.

    Args:
        source: such as clip.mp4, frames/, or a list of paths.
        rate: frames per second for images, whose files do not give a rate.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: OpenCV can't read the file as a video, or there are fewer than two images. While reading: an image
            is damaged, or has another size than the first.
        ShortVideoError: while reading, a video file ends before the number of frames that it gives. All frames that
            can be read come before this error.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"No video and no folder at {path}: check the path and the working folder.")
        if path.is_file():
            return _open_video(path)
        images = sorted(image_files(path), key=_natural)
        where = f"images in {path}"
    else:
        images, where = [Path(p) for p in source], "images"
    if len(images) < 2:
        raise ValueError(f"Expected at least two {where}, got {len(images)}: flow is from each one to the next.")
    return Frames(lambda: _read_images(images), len(images), rate)


def ahead(items: Iterable[T], *, buffer: int = 2) -> Generator[T, None, None]:
    """Iterate over ``items`` on a thread of its own, which reads up to ``buffer`` items ahead of the caller.

    An error of ``items`` is raised in place of the item it prevents. The thread ends with the iterator.
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
        except BaseException as error:  # raised again in the caller's thread
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
            yield item  # pyright: ignore[reportReturnType] (None and errors come with good=False)
    finally:
        stopped.set()
        thread.join()


class Behind(Generic[T]):
    """Calls a function with each item, in order, on a thread of its own, while the caller goes on.

    At most ``buffer`` items wait; a caller with one more has to wait itself. An error of the function is raised by the
    next call or at the end of the ``with`` block, and the items after it are dropped. At its end the block waits until
    all items are done, even if it ends with an error or Ctrl-C. A Ctrl-C during this wait drops all items but the
    one in progress.

    Args:
        work: the function, called with each item.
        buffer: largest number of items that wait.
    """

    def __init__(self, work: Callable[[T], object], *, buffer: int = 2) -> None:
        self._work = work
        self._box: queue.Queue[list[T]] = queue.Queue(
            max(1, buffer)
        )  # a list of one item; an empty one ends the thread
        self._error: BaseException | None = None
        self._dropping = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="frames behind")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __call__(self, item: T) -> None:
        """Hand over an item."""
        if self._error is not None:
            raise self._error
        self._box.put([item])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._box.put([])
            self._thread.join()
        except KeyboardInterrupt:
            self._dropping = True
            self._box.put([])
            self._thread.join()
            raise
        if self._error is not None and error is not self._error:
            raise self._error

    def _run(self) -> None:
        while item := self._box.get():
            if self._dropping:  # items are taken but not worked on, so that no caller waits for room
                continue
            try:
                self._work(item[0])
            except BaseException as error:  # raised again in the caller's thread
                self._error, self._dropping = error, True


def _natural(path: Path) -> tuple[list[str | tuple[int, str]], str]:
    """A key that sorts names by the numbers in them: frame9 comes before frame10."""
    parts = re.split(r"(\d+)", path.name)
    # Text and numbers alternate, so text is only compared with text, and a number with a number.
    return [(int(part), part) if i % 2 else part for i, part in enumerate(parts)], path.name


def _read_images(paths: Sequence[Path]) -> Iterator[Tensor]:
    first: Tensor | None = None
    for path in paths:
        image = read_image(path)
        if first is not None and image.shape != first.shape:
            got, expected = (f"{x.shape[3]}x{x.shape[2]}" for x in (image, first))
            raise ValueError(f"{path} has {got} px, the frames before it {expected}: resize it, or remove it.")
        first = image
        yield image


def _open_video(path: Path) -> Frames:
    reader = cv2.VideoCapture(str(path))
    opened = reader.isOpened() and reader.grab()
    count, rate = int(reader.get(cv2.CAP_PROP_FRAME_COUNT)), reader.get(cv2.CAP_PROP_FPS)
    reader.release()
    if not opened or path.suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(f"{path} can't be read as a video: expected a file such as .mp4, or a folder of images.")
    count = max(count, 0)
    return Frames(lambda: _read_video(path, count), count, rate if 0 < rate < 1000 else 24.0)


def _read_video(path: Path, count: int) -> Iterator[Tensor]:
    reader, read = cv2.VideoCapture(str(path)), 0
    try:
        while True:
            good, pixels = reader.read()
            if not good:
                break
            read += 1
            yield torch.from_numpy(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)[None].float()
    finally:
        reader.release()
    if _ends_early(path, read, count):
        of = "" if path.suffix.lower() == ".gif" else f" of its {count}"  # a .gif does not give their number
        raise ShortVideoError(f"{path} is cut short or damaged: {read}{of} frames can be read.")


def _ends_early(path: Path, read: int, count: int) -> bool:
    """Whether frames are missing. OpenCV reports the same at the last frame and at the first that it can't read."""
    suffix = path.suffix.lower()
    if suffix == ".gif":
        return not is_whole(path)
    if read >= count:
        return False
    if suffix in FORMATS and not is_whole(path):
        return True
    # An intact file may have some frames fewer than it says, for instance if it was trimmed without re-encoding.
    return suffix not in ESTIMATED and count - read > max(1, count // 50)
