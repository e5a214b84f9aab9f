"""Submission files for the benchmarks whose test truth is not public: Sintel and KITTI."""

import tempfile
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from deqflow.data.datasets.benchmarks import KITTI_FRAMES
from deqflow.data.datasets.files import ADVICE, expected_files, one_of
from deqflow.data.flow_files import KITTI_LARGEST, read_image, write_flow
from deqflow.data.writing import whole

Estimate = Callable[[Tensor, Tensor], Tensor]
KITTI_PLACES = {2012: "", 2015: "flow/"}  # folder in the archive where the server looks for 000000_10.png


def write_sintel_submission(
    root: str | Path,
    folder: str | Path,
    estimate: Estimate,
    *,
    renders: tuple[str, ...] = ("clean", "final"),
    on_pair: Callable[[Path], None] | None = None,
) -> Path:
    """Estimate the flow of Sintel's test part and write it as ``folder/clean/ambush_1/frame_0001.flo`` and so on.

    The benchmark's own ``bundler``, which comes with the set, makes one file of the folder:
    ``bundler folder/clean folder/final submission.lzma``. Existing files are kept, so that an interrupted run can
    resume. Use an empty folder for another model.

    Args:
        root: Sintel's folder, which holds ``test``.
        folder: the folder to write to.
        estimate: takes two images (1, 3, H, W), RGB in 0..255, and returns the flow (1, 2, H, W) in pixels.
        renders: the render passes, "clean", "final" or both.
        on_pair: called with each path once it is written.

    Raises:
        FileNotFoundError: the test part, or a frame of it, is missing.
        ValueError: a render is unknown, or the estimate is not a finite flow of the images' size.
    """
    for render in renders:
        one_of(render, ("clean", "final"), "each render")
    pairs = [pair for render in renders for pair in _sintel_pairs(Path(root) / "test" / render)]
    for image1, image2 in pairs:
        scene = image1.parent
        path = Path(folder) / scene.parent.name / scene.name / f"{image1.stem}.flo"
        if not path.is_file():
            write_flow(path, _estimated(estimate, image1, image2))
            if on_pair is not None:
                on_pair(path)
    return Path(folder)


def write_kitti_submission(
    root: str | Path,
    archive: str | Path,
    estimate: Estimate,
    *,
    year: int = 2015,
    on_pair: Callable[[Path], None] | None = None,
) -> Path:
    """Estimate the flow of KITTI's test part and write the archive that its server takes.

    Components outside the range of the format, -512 to 511.98 px, are clamped to it.

    Args:
        root: KITTI's folder of that year, which holds ``testing``.
        archive: the path of the archive to write, which ends in .zip.
        estimate: takes two images (1, 3, H, W), RGB in 0..255, and returns the flow (1, 2, H, W) in pixels.
        year: 2012 or 2015.
        on_pair: called with the first image's path once its flow is estimated.

    Raises:
        FileNotFoundError: the test part, or an image of it, is missing.
        ValueError: the year or the suffix is not supported, or the estimate is not a finite flow of the images' size.
    """
    one_of(str(year), ("2012", "2015"), "year")
    archive = Path(archive)
    if archive.suffix.lower() != ".zip":
        raise ValueError(f"write_kitti_submission expects a path that ends in .zip, got {archive}.")
    what = f"KITTI {year}'s test pictures, 000000_10.png and so on,"
    firsts = expected_files(Path(root) / "testing" / KITTI_FRAMES[year], "*_10.png", what)
    pairs = [(first, _there(first.with_name(first.name.replace("_10.", "_11.")))) for first in firsts]
    with (
        whole(archive) as unfinished,
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(unfinished, "w") as file,
    ):
        for image1, image2 in pairs:
            flow = _estimated(estimate, image1, image2).clamp(-512, KITTI_LARGEST)
            file.write(write_flow(Path(folder) / image1.name, flow), KITTI_PLACES[year] + image1.name)
            if on_pair is not None:
                on_pair(image1)
    return archive


def _sintel_pairs(frames: Path) -> Iterator[tuple[Path, Path]]:
    """Each frame of a scene with the next frame."""
    scenes: dict[Path, list[Path]] = {}
    what = "Sintel's test frames, a folder a scene with frame_0001.png and so on,"
    for path in expected_files(frames, "*/frame_*.png", what):
        scenes.setdefault(path.parent, []).append(path)
    for scene, paths in scenes.items():
        numbers = [int(path.stem.removeprefix("frame_")) for path in paths]
        for number in range(min(numbers), max(numbers)):
            _there(scene / f"frame_{number:04d}.png")
        yield from pairwise(paths)


def _there(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"No file at {path}: the test part is incomplete. Unpack or copy it again. {ADVICE}")
    return path


@torch.no_grad()
def _estimated(estimate: Estimate, image1: Path, image2: Path) -> Tensor:
    """Estimate the flow of a pair, (2, H, W), and check its shape and that it is finite."""
    first, second = read_image(image1), read_image(image2)
    flow = estimate(first, second).detach().float().cpu()
    expected = (1, 2, *first.shape[2:])
    if flow.shape != expected:
        raise ValueError(f"Expected estimate to return a flow {expected} for {image1}, got {tuple(flow.shape)}.")
    if not bool(torch.isfinite(flow).all()):
        raise ValueError(f"Expected estimate to return a finite flow for {image1}, got NaN or infinity.")
    return flow[0]
