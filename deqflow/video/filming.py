"""Write the flow of a video to files, which are whole even after Ctrl-C.

Frames are read on one thread, their flow is estimated on the caller's thread, and a third thread draws and writes.
"""

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from deqflow.data.colors import SMALLEST_SCALE, add_key
from deqflow.data.writing import is_same_file
from deqflow.video.estimation import VideoFlow, VideoStep
from deqflow.video.reading import Behind, Frames, ShortVideoError, ahead, read_frames
from deqflow.video.writing import CODECS, Drawing, FlowFolder, Movie, Statistics, draw_flow

FileFormat = Literal["flo", "pfm", "kitti", "flo5", "npy", "npz"]
SUFFIXES: dict[FileFormat, str] = {
    "flo": ".flo",
    "pfm": ".pfm",
    "kitti": ".png",
    "flo5": ".flo5",
    "npy": ".npy",
    "npz": ".npz",
}


def film_flow(
    source: str | Path,
    out: str | Path,
    video: VideoFlow,
    *,
    drawing: Drawing = "colors",
    files: FileFormat = "flo",
    largest: float | None = None,
    key: bool = False,
    statistics: str | Path | None = None,
    progress: bool = True,
) -> tuple[Statistics, bool]:
    """Write the flow of a video: as a film, or as one file per frame if ``out`` has no suffix.

    Memory does not grow with the length, except for the statistics, which take some bytes per frame. Ctrl-C ends the
    run early; what was written until then is whole.

    Args:
        source: video file, or folder of images.
        out: path of the film (.mp4, .avi and others) or of the folder.
        video: estimates the flow; it is reset first.
        drawing: what the film shows: "colors", "arrows", or "side" by side.
        files: format of the files in a folder; "kitti" is KITTI's 16-bit .png.
        largest: length in px that gets the full colour in a film; if not given, 1.5 times the 99th percentile of the
            first pair's lengths, at least 2 px.
        key: add a key to the colours of a film.
        statistics: path of an .npz file for the numbers of each pair.
        progress: show a bar with frames per second and evaluations per frame.

    Returns:
        The statistics, and whether the run was interrupted.

    Raises:
        FileNotFoundError, ValueError, OSError: the source can't be read, ``out`` can't be written or is the source, or
            there are fewer than two frames.
        ShortVideoError: the video ends before the number of frames that its file gives; the flow of all frames that
            could be read is written.
    """
    out = Path(out)
    if statistics is not None and Path(statistics).suffix.lower() != ".npz":
        raise ValueError(f"Statistics are written as .npz, got {statistics}.")
    if is_same_file(out, source):
        raise ValueError(f"The flow of {source} would replace it: choose another --out.")
    if out.is_dir() if out.suffix else out.is_file():
        raise ValueError(
            f"{out} expects to be a {'film' if out.suffix else 'folder'}, but there is a "
            f"{'folder' if out.suffix else 'file'} of this name: choose another --out."
        )
    frames = read_frames(source)
    numbers, interrupted, short = Statistics(), False, None
    video.reset()
    try:
        with ExitStack() as stack:
            write = _writer(out, stack, frames, drawing, files, largest, key)
            _run(frames, video, write, numbers, stack, progress)
    except KeyboardInterrupt:
        interrupted = True
    except ShortVideoError as error:
        short = error
    if statistics is not None and numbers.rows:
        numbers.save(statistics)
    if short is not None:
        written = f" The flow of the {len(numbers.rows)} pairs before that is in {out}." if numbers.rows else ""
        raise ShortVideoError(f"{short}{written}") from short
    if not numbers.rows and not interrupted:
        raise ValueError(f"{source} has fewer than two frames: flow is from each one to the next.")
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
    evaluations, device = 0, next(video.estimator.parameters()).device

    def write_and_count(image: Tensor, step: VideoStep) -> None:
        nonlocal evaluations
        write(image, step)
        numbers.add(step)
        evaluations += step.evaluations
        bar.set_postfix_str(f"{evaluations / len(numbers.rows):.1f} evaluations a frame", refresh=False)
        bar.update()

    done = stack.enter_context(Behind[tuple[Tensor, VideoStep]](lambda pair: write_and_count(*pair)))
    for pair in video.run(image.to(device) for image in read):
        done(pair)


def _writer(
    out: Path, stack: ExitStack, frames: Frames, drawing: Drawing, files: FileFormat, largest: float | None, key: bool
) -> Callable[[Tensor, VideoStep], object]:
    """A function that writes the flow of a frame."""
    if not out.suffix:
        folder = FlowFolder(out, SUFFIXES[files])
        return lambda _, step: folder.add(step.flow[0])
    if out.suffix.lower() not in CODECS:
        known = ", ".join(CODECS)
        raise ValueError(f"Can't write {out}: expected a film ({known}), or a folder's name without a suffix.")
    movie = stack.enter_context(Movie(out, rate=frames.rate))
    scale = [] if largest is None else [largest]

    def write(image: Tensor, step: VideoStep) -> None:
        if not scale:  # one scale for the whole film, so that the same motion keeps its colour
            scale.append(_full_color(step.flow))
        drawn = draw_flow(image[0], step.flow[0], drawing, largest=scale[0])
        movie.add(add_key(drawn, scale[0]) if key else drawn)

    return write


def _full_color(flow: Tensor) -> float:
    lengths = torch.linalg.vector_norm(flow, dim=1).cpu().numpy()
    return max(1.5 * float(np.percentile(lengths, 99)), SMALLEST_SCALE)
