"""Files that hold a video's flow: a film, one file per frame, statistics."""

import io
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

import cv2
import numpy as np
import torch
from torch import Tensor

from deqflow.data.colors import flow_to_rgb
from deqflow.data.flow_files import write_flow
from deqflow.data.writing import not_written, unfinished_name, write_whole
from deqflow.video.containers import is_whole
from deqflow.video.estimation import VideoStep

CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG", ".webm": "VP90"}
Drawing = Literal["colors", "arrows", "side"]
RATES = (0.002, 65535.0)  # the range of frames per second that every format can hold
LARGEST_NUMERATOR = 65535  # MPEG-4 stores the rate as a fraction: its largest numerator in lowest terms


def draw_flow(image: Tensor, flow: Tensor, drawing: Drawing = "colors", *, largest: float | None = None) -> np.ndarray:
    """An image of a flow field.

    Args:
        image: (3, H, W) in 0..255, the frame that the flow starts from.
        flow: (2, H, W) in pixels.
        drawing: "colors"; "arrows" over the darkened frame; "side", the frame and the colours side by side.
        largest: length in pixels that gets the full colour; if not given, that of the longest vector, at least 2 px.

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
    """A video file that is always whole: it is written under a temporary name and renamed when it is closed.

    A ``with`` block closes it, even if the block ends with an error or Ctrl-C: what was written until then can be
    played. If the disk is full, or was full for a while, closing raises an error, and an earlier file of that name
    stays.

    Args:
        path: path of the file; the suffix gives the format, one of .mp4, .mov, .mkv, .avi, .webm.
        rate: frames per second, from 0.002 to 65535. The film gets the nearest rate that its format can hold, which is
            stored in the attribute ``rate``.

    Raises:
        ValueError: the suffix is not one of these, or the rate is out of range.
    """

    def __init__(self, path: str | Path, *, rate: float = 24.0) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in CODECS:
            known = ", ".join(CODECS)
            raise ValueError(f"Can't write {path}: a film expects a suffix of {known}, got {self.path.suffix!r}.")
        if not RATES[0] <= rate <= RATES[1]:
            least, most = (f"{bound:g}" for bound in RATES)
            raise ValueError(
                f"A film expects a positive number of frames a second, from {least} to {most}, got {rate!r}."
            )
        self.rate = _nearest_rate(rate) if CODECS[self.path.suffix.lower()] == "mp4v" else rate
        self.count = 0
        self._unfinished = unfinished_name(self.path)
        self._writer: cv2.VideoWriter | None = None
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, image: np.ndarray) -> None:
        """Append an image, (H, W, 3) uint8, RGB. Odd sides grow by one pixel, since video formats need even ones.

        Raises:
            ValueError: the array has another shape or type, another size than the first image, or a size that OpenCV
                can't write in this format.
            OSError: the file can't be written.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(f"A film expects images (H, W, 3) uint8, got {image.dtype} {image.shape}.")
        if self._writer is None:
            self._open(image)
        if self._writer is None or image.shape != self._shape:
            raise ValueError(f"All images of a film have one size, got {image.shape} after {self._shape}.")
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        height, width = image.shape[:2]
        self._writer.write(cv2.copyMakeBorder(bgr, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE))
        self.count += 1

    def close(self) -> None:
        """Finish the file and give it its name. If no image was added, no file is left.

        Raises:
            OSError: the disk is full, or the folder can no longer be written to. The unfinished file is removed.
        """
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.release()
        finally:  # even if Ctrl-C is pressed again meanwhile
            self._finish()

    def _finish(self) -> None:
        try:
            if not is_whole(self._unfinished):
                raise OSError("only a part of the film was written")
            os.replace(self._unfinished, self.path)
        except OSError as error:
            self._discard()
            raise not_written(self.path, error) from error

    def _discard(self) -> None:
        with suppress(OSError):
            self._unfinished.unlink()

    def _open(self, image: np.ndarray) -> None:
        height, width = image.shape[:2]
        size = (width + width % 2, height + height % 2)
        code = cv2.VideoWriter.fourcc(*CODECS[self.path.suffix.lower()])
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._unfinished.touch()  # OpenCV would fail without saying why
            writer = cv2.VideoWriter(str(self._unfinished), code, self.rate, size)
            if not writer.isOpened():
                self._unfinished.write_bytes(bytes(2**16))  # raises if the disk is full
        except OSError as error:
            self._discard()
            raise not_written(self.path, error) from error
        if not writer.isOpened():
            self._discard()
            raise ValueError(
                f"OpenCV can't write {self.path} with {width}x{height} px at {self.rate:g} frames a second: its format "
                "does not hold this size, or this OpenCV lacks its codec. Try .avi, or smaller images."
            )
        self._writer, self._shape = writer, image.shape


def _nearest_rate(rate: float) -> float:
    """The nearest rate that is a whole number of thousandths and that MPEG-4 can hold."""
    wanted = round(1000 * rate)
    near = range(max(1, wanted - 1000), wanted + 1001)  # one of these is a multiple of 1000
    held = (n for n in near if n // math.gcd(n, 1000) <= LARGEST_NUMERATOR)
    return min(held, key=lambda n: abs(n - 1000 * rate)) / 1000


class FlowFolder:
    """One file for each frame: frame_000001.flo and so on, or KITTI's 16-bit .png.

    Args:
        folder: the folder; it is created if needed.
        suffix: ".flo", ".png" (KITTI), or another suffix that :func:`deqflow.write_flow` knows.
    """

    def __init__(self, folder: str | Path, suffix: str = ".flo") -> None:
        self.folder, self.suffix, self.count = Path(folder), suffix, 0

    def add(self, flow: Tensor) -> Path:
        """Write the next frame's flow, (2, H, W) in pixels."""
        self.count += 1
        return write_flow(self.folder / f"frame_{self.count:06d}{self.suffix}", flow)


class Statistics:
    """The numbers of each pair; they take some bytes per frame."""

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
        """Add a pair."""
        self.rows.append(tuple(quantity(step) for quantity in self.QUANTITIES.values()))

    def __getitem__(self, quantity: str) -> np.ndarray:
        """The values of a quantity for all pairs, (pairs,)."""
        column = list(self.QUANTITIES).index(quantity)
        return np.array([row[column] for row in self.rows])

    def save(self, path: str | Path) -> Path:
        """Write an .npz file with an array, (pairs,), for each quantity. The file is written whole or not at all.

        Raises:
            ValueError: the suffix is not .npz.
            OSError: the folder can't be written to, or the disk is full.
        """
        path = Path(path)
        if path.suffix.lower() != ".npz":
            raise ValueError(f"Statistics are written as .npz, got {path}.")
        content, arrays = io.BytesIO(), dict[str, Any]((name, self[name]) for name in self.QUANTITIES)
        np.savez(content, **arrays)
        return write_whole(path, content.getvalue())
