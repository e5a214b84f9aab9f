"""What becomes of a video's flow: a film, a file a frame, statistics."""

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

import cv2
import numpy as np
import torch
from torch import Tensor

from deqflow.data.colors import flow_to_rgb
from deqflow.data.flow_files import write_flow
from deqflow.data.writing import not_written, unfinished_name, whole
from deqflow.video.containers import is_whole
from deqflow.video.estimation import VideoStep

CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG", ".webm": "VP90"}
Drawing = Literal["colors", "arrows", "side"]


def draw_flow(image: Tensor, flow: Tensor, drawing: Drawing = "colors", *, largest: float | None = None) -> np.ndarray:
    """A picture of a flow field.

    Args:
        image: (3, H, W) in 0..255, the frame it starts from.
        flow: (2, H, W) in pixels.
        drawing: "colors"; "arrows" over the darkened frame; "side", the frame and the colours side by side.
        largest: length in pixels that gets the full colour; the longest vector's if not given.

    Returns:
        (H, W, 3) uint8, RGB; twice as wide for "side".
    """
    colors = flow_to_rgb(flow, largest=largest)
    if drawing == "colors":
        return colors
    frame = np.ascontiguousarray(image.detach().cpu().clamp(0, 255).byte().permute(1, 2, 0).numpy())
    if drawing == "side":
        return np.concatenate([frame, colors], 1)
    return _with_arrows(frame // 2, flow, colors)


def _with_arrows(canvas: np.ndarray, flow: Tensor, colors: np.ndarray) -> np.ndarray:
    height, width = canvas.shape[:2]
    apart = max(8, round(max(height, width) / 40))
    field = flow.detach().double().cpu().numpy()
    for y in range(apart // 2, height, apart):
        for x in range(apart // 2, width, apart):
            u, v = np.clip(np.nan_to_num(field[:, y, x]), -4 * width, 4 * width)
            end = (round(x + u), round(y + v))
            shade = tuple(int(c) for c in colors[y, x])
            cv2.arrowedLine(canvas, (x, y), end, shade, 1, cv2.LINE_AA, tipLength=0.3)
    return canvas


class Movie:
    """A video file that is whole whenever it is there: written under a temporary name, renamed when it is closed.

    It is closed by ``with``, also where an error or Ctrl-C ends the block: what was written until then can be played.
    On a disk that is full, or was on the way, closing raises, and the file that was there before stays.

    Args:
        path: where to; the suffix names the format, one of .mp4, .mov, .mkv, .avi, .webm.
        rate: frames a second.

    Raises:
        ValueError: another suffix, or a rate that is not positive.
    """

    def __init__(self, path: str | Path, *, rate: float = 24.0) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in CODECS:
            known = ", ".join(CODECS)
            raise ValueError(f"Can't write {path}: a film expects a suffix of {known}, got {self.path.suffix!r}.")
        if not rate > 0:
            raise ValueError(f"A film expects a positive number of frames a second, got {rate!r}.")
        self.rate, self.count = rate, 0
        self._unfinished = unfinished_name(self.path)
        self._writer: cv2.VideoWriter | None = None
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, picture: np.ndarray) -> None:
        """Append a picture, (H, W, 3) uint8, RGB; sides that are odd grow by one, as video formats need it.

        Raises:
            ValueError: no such array, or another size than the first one's.
            OSError: the file can't be written.
        """
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"A film expects pictures (H, W, 3) uint8, got {picture.dtype} {picture.shape}.")
        if self._writer is None:
            self._open(picture)
        if self._writer is None or picture.shape != self._shape:
            raise ValueError(f"All pictures of a film have one size, got {picture.shape} after {self._shape}.")
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        height, width = picture.shape[:2]
        self._writer.write(cv2.copyMakeBorder(bgr, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE))
        self.count += 1

    def close(self) -> None:
        """Finish the file and give it its name; without pictures there is none.

        Raises:
            OSError: the disk is full, or the folder can't be written to any more; no file is left.
        """
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.release()
        finally:  # also where Ctrl-C, pressed once more, comes meanwhile
            self._finish()

    def _finish(self) -> None:
        try:
            if not is_whole(self._unfinished):
                raise OSError("only a part of the film was written")
            os.replace(self._unfinished, self.path)
        except OSError as error:
            self._unfinished.unlink(missing_ok=True)
            raise not_written(self.path, error) from error

    def _open(self, picture: np.ndarray) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._unfinished.touch()  # OpenCV can't, either, but would not say why
        except OSError as error:
            raise not_written(self.path, error) from error
        height, width = picture.shape[:2]
        size = (width + width % 2, height + height % 2)
        code = cv2.VideoWriter.fourcc(*CODECS[self.path.suffix.lower()])
        writer = cv2.VideoWriter(str(self._unfinished), code, self.rate, size)
        if not writer.isOpened():
            self._unfinished.unlink(missing_ok=True)
            raise not_written(self.path, OSError("OpenCV can't begin it; try .avi"))
        self._writer, self._shape = writer, picture.shape


class FlowFolder:
    """A file for each frame: frame_000001.flo and so on, or KITTI's 16-bit .png.

    Args:
        folder: where to; made if it is not there.
        suffix: ".flo", ".png" (KITTI), or another of :func:`deqflow.write_flow`.
    """

    def __init__(self, folder: str | Path, suffix: str = ".flo") -> None:
        self.folder, self.suffix, self.count = Path(folder), suffix, 0

    def add(self, flow: Tensor) -> Path:
        """Write the next frame's flow, (2, H, W) in pixels."""
        self.count += 1
        return write_flow(self.folder / f"frame_{self.count:06d}{self.suffix}", flow)


class Statistics:
    """Numbers of each pair, some bytes a frame."""

    QUANTITIES: ClassVar[dict[str, Callable[[VideoStep], float]]] = {
        "evaluations": lambda step: step.evaluations,
        "residual_px": lambda step: step.residual,
        "start_residual_px": lambda step: step.start_residual,
        "photometric": lambda step: step.photometric,
        "reset": lambda step: step.reset,
        "cut": lambda step: step.cut,
        "seconds": lambda step: step.seconds,
        "mean_length_px": lambda step: float(torch.linalg.vector_norm(step.flow, dim=1).mean()),
    }

    def __init__(self) -> None:
        self.rows: list[tuple[float, ...]] = []

    def add(self, step: VideoStep) -> None:
        """Take in a pair."""
        self.rows.append(tuple(quantity(step) for quantity in self.QUANTITIES.values()))

    def __getitem__(self, quantity: str) -> np.ndarray:
        """A quantity of all pairs, (pairs,)."""
        column = list(self.QUANTITIES).index(quantity)
        return np.array([row[column] for row in self.rows])

    def save(self, path: str | Path) -> Path:
        """Write an .npz with an array, (pairs,), for each quantity: whole, or not at all.

        Raises:
            ValueError: another suffix.
            OSError: the folder can't be written to, or the disk is full.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"Statistics are written as .npz, got {path}.")
        arrays: dict[str, Any] = {name: self[name] for name in self.QUANTITIES}
        try:
            with whole(path) as unfinished:
                np.savez(unfinished, **arrays)
        except OSError as error:
            raise not_written(path, error) from error
        return path
