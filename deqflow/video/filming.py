"""From a video to its flow in files: read ahead, solve, draw, write; with a progress bar, and whole after Ctrl-C."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from deqflow.video.estimation import VideoFlow, VideoStep
from deqflow.video.reading import Frames, ahead, read_frames
from deqflow.video.writing import CODECS, Drawing, FlowFolder, Movie, Statistics, draw_flow

FileFormat = Literal["flo", "kitti"]
SUFFIXES: dict[FileFormat, str] = {"flo": ".flo", "kitti": ".png"}


def film_flow(
    source: str | Path,
    out: str | Path,
    video: VideoFlow,
    *,
    drawing: Drawing = "colors",
    files: FileFormat = "flo",
    largest: float | None = None,
    statistics: str | Path | None = None,
    progress: bool = True,
) -> tuple[Statistics, bool]:
    """Write the flow of a video: as a film, or as a file a frame where ``out`` has no suffix.

    Memory does not grow with the length but for the statistics, some bytes a frame. Ctrl-C ends it early: what was
    written until then is whole.

    Args:
        source: video file, or folder of pictures.
        out: film (.mp4, .avi and others), or folder.
        video: estimates; begins anew.
        drawing: of the film: "colors", "arrows", or "side" by side.
        files: in a folder: "flo", or "kitti" (16-bit .png).
        largest: length in px that gets the full colour; half above the first pair's 99th percentile if not given.
        statistics: .npz for the numbers of each pair.
        progress: show a bar, with frames a second and evaluations a frame.

    Returns:
        The statistics, and whether it was interrupted.

    Raises:
        FileNotFoundError, ValueError, OSError: the source can't be read, or ``out`` can't be written; there are fewer
            than two frames.
    """
    out = Path(out)
    if statistics is not None and Path(statistics).suffix != ".npz":
        raise ValueError(f"Statistics are written as .npz, got {statistics}.")
    if out.resolve() == Path(source).resolve():
        raise ValueError(f"The flow of {source} would take its place: choose another --out.")
    frames = read_frames(source)
    numbers, interrupted = Statistics(), False
    video.reset()
    try:
        with ExitStack() as stack:
            write = _writer(out, stack, frames, drawing, files, largest)
            _run(frames, video, write, numbers, stack, progress)
    except KeyboardInterrupt:
        interrupted = True
    if not numbers.rows and not interrupted:
        raise ValueError(f"{source} has fewer than two frames: flow is from each one to the next.")
    if statistics is not None and numbers.rows:
        numbers.save(statistics)
    return numbers, interrupted


def _run(
    frames: Frames,
    video: VideoFlow,
    write: Callable[[Tensor, VideoStep], object],
    numbers: Statistics,
    stack: ExitStack,
    progress: bool,
) -> None:
    read = stack.enter_context(closing(ahead(frames)))
    pairs = max(frames.count - 1, 0) or None
    layout = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
    bar = stack.enter_context(tqdm(total=pairs, unit=" frames", bar_format=layout, disable=not progress))
    evaluations = 0
    for image, step in video.run(read):
        write(image, step)
        numbers.add(step)
        evaluations += step.evaluations
        bar.set_postfix_str(f"{evaluations / len(numbers.rows):.1f} evaluations a frame", refresh=False)
        bar.update()


def _writer(
    out: Path, stack: ExitStack, frames: Frames, drawing: Drawing, files: FileFormat, largest: float | None
) -> Callable[[Tensor, VideoStep], object]:
    """What takes in a frame and its step."""
    if not out.suffix:
        folder = FlowFolder(out, SUFFIXES[files])
        return lambda _, step: folder.add(step.flow[0])
    if out.suffix.lower() not in CODECS:
        known = ", ".join(CODECS)
        raise ValueError(f"Can't write {out}: expected a film ({known}), or a folder's name without a suffix.")
    movie = stack.enter_context(Movie(out, rate=frames.rate))
    scale = [] if largest is None else [largest]

    def write(image: Tensor, step: VideoStep) -> None:
        if not scale:  # one for the whole film, or still things would change colour
            scale.append(_full_color(step.flow))
        movie.add(draw_flow(image[0], step.flow[0], drawing, largest=scale[0]))

    return write


def _full_color(flow: Tensor) -> float:
    lengths = torch.linalg.vector_norm(flow, dim=1).cpu().numpy()
    return max(1.5 * float(np.percentile(lengths, 99)), 2.0)
