"""Video: ten thousand frames in a loop, which must not grow the process, and frames a second from film to film."""

import gc
import os
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import deqflow
from bench.costs import alternate
from bench.setting import DATA, Row, device
from deqflow.data.metrics import mean_endpoint_error
from deqflow.data.synthetic import SceneConfig, SyntheticVideo
from deqflow.evidence.baselines import dis_flow
from deqflow.evidence.costs import MIB
from deqflow.solvers import Stop
from deqflow.video import Movie, VideoFlow, VideoStep, draw_flow, film_flow, read_frames

STATM = Path("/proc/self/statm")  # Linux's


def drifting(count: int, height: int = 64, width: int = 80) -> Iterator[Tensor]:
    """Frames of a texture that goes to and fro by a pixel a frame, (1, 3, height, width) each."""
    generator = torch.Generator().manual_seed(0)
    texture = 255 * torch.rand(1, 3, height, width + 64, generator=generator)
    for i in range(count):
        left = abs(i % 128 - 64)
        yield texture[..., left : left + width].clone().to(device())


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def frames(count: int = 10_000, warm: int = 500) -> list[Row]:
    """Growth of the process after its first frames, and time; the shipped model, six evaluations a frame."""
    video = VideoFlow(deqflow.load("deqflow-small").to(device()), stop=Stop(max_evals=6, atol=0.0))
    before, started = 0, time.perf_counter()
    for number, _ in enumerate(video.run(drifting(count))):
        if number == warm:
            before = resident()
    seconds = time.perf_counter() - started
    growth = (resident() - before) / MIB
    size = f"{count} frames of 64x80"
    return [
        Row(quantity=f"{size}: growth of the process after the first {warm}", value=growth, unit="MiB", at_most=16.0),
        Row(quantity=f"{size}: frames", value=(count - 1) / seconds, unit="1/s"),
    ]


SIZES = ((436, 1024), (720, 1280))  # height, width
RAFT_UPDATES = 12


class EncodesTwice(VideoFlow):
    """Encodes both images of each pair, as before frames were kept encoded."""

    def step(self, image1: Tensor, image2: Tensor) -> VideoStep:
        """Estimate the flow of a pair."""
        self._last = None
        return super().step(image1, image2)


def film_in_turn(source: Path, out: Path, flows: Iterator[tuple[Tensor, Tensor]]) -> None:
    """Read, solve, draw and write frame after frame, on one thread."""
    with Movie(out, rate=read_frames(source).rate) as movie:
        for image, flow in flows:
            movie.add(draw_flow(image[0], flow, largest=20.0))


def raft_small() -> tuple[deqflow.FlowEstimator, bool]:
    """RAFT-small, and whether it has the published weights; random ones of the same size give times alone."""
    path = DATA / "published" / "raft-small.pth"
    if path.exists():
        return deqflow.load_published(path).to(device()).eval(), True
    return deqflow.build("small", recurrent=True).to(device()).eval(), False


def dis_flows(source: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Flow of each frame but the last by DIS."""
    for image1, image2 in pairwise(read_frames(source)):
        yield image1, dis_flow(image1[0], image2[0])


def video_speed(repeats: int = 2, count: int = 5, sizes: Sequence[tuple[int, int]] = SIZES) -> list[Row]:
    """Frames a second of a film's flow, from file to file, and errors, beside DIS and RAFT-small."""
    rows = []
    with TemporaryDirectory() as name:
        for height, width in sizes:
            clip = SyntheticVideo(count, seed=5, config=SceneConfig(height=height, width=width))
            rows += video_rows(Path(name), clip, f"{height}x{width}", repeats)
    return rows


def video_rows(folder: Path, clip: SyntheticVideo, size: str, repeats: int) -> list[Row]:
    """The rows of one clip."""
    source, out, truth = folder / "clip.avi", folder / "flow.avi", []
    with Movie(source) as movie:
        for i in range(len(clip)):
            movie.add(clip[i].image.clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy())
            truth.append(clip[i].flow)
    model = deqflow.load("deqflow-small").to(device())
    raft, trained = raft_small()
    twelve = Stop(max_evals=RAFT_UPDATES, atol=0.0)
    ours, twice = VideoFlow(model), EncodesTwice(model)
    theirs = VideoFlow(raft, stop=twelve)

    def in_turn(video: VideoFlow) -> None:
        video.reset()
        frames = (image.to(device()) for image in read_frames(source))
        film_in_turn(source, out, ((image, step.flow[0]) for image, step in video.run(frames)))

    timings = alternate(
        {
            "deqflow-small": lambda: film_flow(source, out, ours, largest=20.0, progress=False),
            "without threads": lambda: in_turn(ours),
            "without threads, each frame encoded twice": lambda: in_turn(twice),
            f"RAFT-small, {RAFT_UPDATES} updates": lambda: film_flow(source, out, theirs, largest=20.0, progress=False),
            "DIS": lambda: film_in_turn(source, out, dis_flows(source)),
        },
        repeats=repeats,
        device=device(),
    )
    pairs = len(clip) - 1
    rows = [
        Row(quantity=f"film {size}, {name}: frames", value=pairs / timings.median(name), unit="1/s")
        for name in timings.seconds
    ]
    for name, target in (("without threads", None), ("without threads, each frame encoded twice", 2.5)):
        ratio = timings.ratio(name, "deqflow-small")
        rows.append(Row(quantity=f"film {size}: times the speed {name}", value=ratio, at_least=target))
    found = {"deqflow-small": ours, f"RAFT-small, {RAFT_UPDATES} updates": theirs if trained else None}
    flows = {name: warm_flows(video, source) for name, video in found.items() if video is not None}
    flows["DIS"] = [flow for _, flow in dis_flows(source)]
    for name, estimated in flows.items():
        errors = [float(mean_endpoint_error(a[None], b[None])) for a, b in zip(estimated, truth, strict=False)]
        error, rate = sum(errors) / pairs, pairs / timings.median(name)
        rows.append(Row(quantity=f"film {size}, {name}: error", value=error, unit="px"))
        rows.append(
            Row(quantity=f"film {size}, {name}: frames a second over error", value=rate / error, unit="1/(s px)")
        )
    return rows


def warm_flows(video: VideoFlow, source: Path) -> list[Tensor]:
    """Flow of each frame but the last, each solve started from the last one's end."""
    video.reset()
    return [step.flow[0].cpu() for _, step in video.run(image.to(device()) for image in read_frames(source))]
