"""Fixed-point reuse on video (claim C5): each policy solves the same videos to the same residual."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deqflow.data.flow_files import read_flow, read_image
from deqflow.data.metrics import mean_endpoint_error
from deqflow.data.synthetic import SceneConfig, SyntheticVideo, VideoFrame
from deqflow.evidence.provenance import provenance
from deqflow.evidence.results import save_results
from deqflow.model import checkpoints
from deqflow.model.estimator import FlowEstimator
from deqflow.model.geometry import warp
from deqflow.solvers import Stop
from deqflow.video.estimation import VideoFlow, VideoStep
from deqflow.video.policies import Policy

POLICIES: tuple[Policy, ...] = ("reset", "reuse", "warp")
TOLERANCES = (1.0, 0.5, 0.2, 0.1, 0.05)  # px
SINTEL = "sintel/training/clean/alley_1"
RUBBERWHALE = "middlebury/other-data/RubberWhale"
RUBBERWHALE_FLOW = "middlebury/other-gt-flow/RubberWhale/flow10.flo"


@dataclass(frozen=True)
class VideoSample:
    """Consecutive frames, (3, H, W) in 0..255, with their true flow as far as it is known.

    Attributes:
        images: T frames.
        flows: true flow from each frame to the next, (2, H, W), NaN where unknown; None for a pair whose flow is
            unknown. Empty if no flow is known.
        cuts: numbers of the frames that begin a new scene.
    """

    images: Sequence[Tensor]
    flows: Sequence[Tensor | None] = ()
    cuts: tuple[int, ...] = ()

    @classmethod
    def of(cls, video: SyntheticVideo) -> "VideoSample":
        """All frames of a procedural video."""
        frames: list[VideoFrame] = [video[i] for i in range(len(video))]
        flows = [frame.flow if bool(frame.valid.all()) else None for frame in frames]
        return cls([frame.image for frame in frames], flows, video.cuts)

    @classmethod
    def from_files(cls, paths: Sequence[Path], shrink: int = 1) -> "VideoSample":
        """Image files; ``shrink`` is a whole number by which both sides are divided."""
        return cls([F.avg_pool2d(read_image(path), shrink)[0] for path in paths])


def flicker(flow: Tensor, following: Tensor) -> float:
    """Change of the flow along its own trajectories, in pixels: mean of ``|following(p + flow(p)) - flow(p)|``.

    Args:
        flow, following: (1, 2, H, W), of a frame and of the next one. Pixels that leave the frame do not count.
    """
    inside = warp(torch.ones_like(flow[:, :1]), flow)[:, 0] > 0.99
    change = torch.linalg.vector_norm(warp(following, flow) - flow, dim=1)
    return float(change[inside].mean()) if bool(inside.any()) else 0.0


@torch.no_grad()
def run_clip(estimator: FlowEstimator, clip: VideoSample, policy: Policy, stop: Stop) -> list[VideoStep]:
    """Estimate the flow of each frame but the last.

    Raises:
        ValueError: there are fewer than two frames.
    """
    if len(clip.images) < 2:
        raise ValueError(f"Expected at least two frames, got {len(clip.images)}: flow is from each one to the next.")
    video = VideoFlow(estimator, policy=policy, stop=stop)
    return [step for _, step in video.run(image[None] for image in clip.images)]


def summarise(clip: VideoSample, steps: Sequence[VideoStep]) -> dict[str, list[float]]:
    """Figures of the pairs that a policy affects: all but the first pair, and but those that span a cut.

    Returns:
        ``evaluations``, ``start_residual_px`` and ``residual_px`` of each such pair; ``error_px`` of those whose flow
        is known; ``flicker_px`` of those whose next pair belongs to the same scene.
    """
    numbers: dict[str, list[float]] = {
        name: [] for name in ("evaluations", "start_residual_px", "residual_px", "error_px", "flicker_px")
    }
    for i in range(1, len(steps)):
        if i + 1 in clip.cuts:
            continue
        step = steps[i]
        numbers["evaluations"].append(step.evaluations)
        numbers["start_residual_px"].append(step.start_residual)
        numbers["residual_px"].append(step.residual)
        truth = clip.flows[i] if clip.flows else None
        if truth is not None and bool(torch.isfinite(truth).all(0).any()):
            known = torch.isfinite(truth).all(0)[None]
            numbers["error_px"].append(float(mean_endpoint_error(step.flow, truth[None], known)[0]))
        if i + 1 < len(steps) and i + 2 not in clip.cuts:
            numbers["flicker_px"].append(flicker(step.flow, steps[i + 1].flow))
    return numbers


def at_cuts(clip: VideoSample, steps: Sequence[VideoStep], cold: Sequence[VideoStep]) -> dict[str, int]:
    """Cuts that were found and false alarms, and additional evaluations compared with ``cold``, the policy "reset".

    Returns:
        ``cuts``, ``found``, ``false_alarms``, and ``most_extra``, the greatest number of additional evaluations in a
        pair that spans a cut or follows it.
    """
    spanning = {cut - 1 for cut in clip.cuts}
    alarms = {i for i, step in enumerate(steps) if step.cut}
    around = sorted({i for at in spanning for i in (at, at + 1) if i < len(steps)})
    extra = [steps[i].evaluations - cold[i].evaluations for i in around]
    found, false = len(alarms & spanning), len(alarms - spanning)
    return {"cuts": len(spanning), "found": found, "false_alarms": false, "most_extra": max(extra, default=0)}


def procedural_clips(
    *, length: int = 10, seeds: Sequence[int] = (100, 101), height: int = 128, width: int = 160
) -> dict[str, list[VideoSample]]:
    """Clips with exact flow by name: slow, ordinary and fast motion, and ordinary motion with one or two cuts."""
    scenes = SceneConfig(height=height, width=width)
    clips: dict[str, list[VideoSample]] = {}
    for speed in ("slow", "ordinary", "fast"):
        clips[speed] = [VideoSample.of(SyntheticVideo(length, seed=seed, config=scenes, speed=speed)) for seed in seeds]
    cuts = (length // 2,) if length < 9 else (length // 3 + 1, 2 * length // 3 + 1)
    clips["with cuts"] = [VideoSample.of(SyntheticVideo(length, seed=seed, config=scenes, cuts=cuts)) for seed in seeds]
    return clips


def real_clips(data: Path) -> dict[str, list[VideoSample]]:
    """Sintel's alley_1, frames 16 to 25 at half size, and Middlebury's RubberWhale, if the folder has them."""
    sintel = [data / SINTEL / f"frame_{number:04d}.png" for number in range(16, 26)]
    whale = [data / RUBBERWHALE / f"frame{number:02d}.png" for number in range(7, 15)]
    clips: dict[str, list[VideoSample]] = {}
    if all(path.is_file() for path in sintel):
        clips["Sintel alley_1"] = [VideoSample.from_files(sintel, shrink=2)]
    if all(path.is_file() for path in whale):
        clip = VideoSample.from_files(whale)
        if (data / RUBBERWHALE_FLOW).is_file():
            flow, valid = read_flow(data / RUBBERWHALE_FLOW)
            known = torch.where(valid, flow, torch.nan)
            clip = replace(clip, flows=[known if path.stem == "frame10" else None for path in whale])
        clips["RubberWhale"] = [clip]
    return clips


def compare(
    estimator: FlowEstimator, clips: Sequence[VideoSample], *, atol: float, max_evals: int = 60
) -> dict[str, dict[str, Any]]:
    """Run each policy on the same clips, to the same residual; return means over pairs, and figures of the cuts.

    Args:
        estimator: of the flow.
        clips: the videos.
        atol: tolerance: how far one more evaluation may move the flow, RMS in full-size pixels.
        max_evals: budget of each pair.
    """
    stop = Stop(max_evals=max_evals, atol=atol)
    runs = {policy: [run_clip(estimator, clip, policy, stop) for clip in clips] for policy in POLICIES}
    rows: dict[str, dict[str, Any]] = {}
    for policy, steps in runs.items():
        parts = [summarise(clip, own) for clip, own in zip(clips, steps, strict=True)]
        pooled = {name: [value for part in parts for value in part[name]] for name in parts[0]}
        row: dict[str, Any] = {name: round(float(np.mean(v)), 4) for name, v in pooled.items() if v}
        cuts = [at_cuts(*item) for item in zip(clips, steps, runs["reset"], strict=True)]
        row |= {name: sum(part[name] for part in cuts) for name in ("cuts", "found", "false_alarms")}
        rows[policy] = row | {"most_extra": max(part["most_extra"] for part in cuts)}
    return rows


def run_benchmark(
    out: str | Path,
    *,
    model: str = "deqflow-small",
    data: str | Path = "data",
    clips: Mapping[str, Sequence[VideoSample]] | None = None,
    tolerances: Sequence[float] = TOLERANCES,
    on_row: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Compare the policies on procedural clips and on the real ones in ``data``; write the results file after each.

    Args:
        out: the results file (json).
        model: the name of a shipped model, or the path of one of deqflow's checkpoints.
        data: folder of data sets.
        clips: the videos by name; the procedural and real ones if not given.
        tolerances: in full-size pixels.
        on_row: called with each entry of the results.
    """
    estimator = checkpoints.load(model)
    if clips is None:
        clips = procedural_clips() | real_clips(Path(data))
    origin = provenance(Path(__file__).parent)
    results: dict[str, Any] = {"experiment": "video", "model": model, "provenance": origin, "rows": []}
    for name, group in clips.items():
        for atol in tolerances:
            for policy, numbers in compare(estimator, group, atol=atol).items():
                row = {"clip": name, "atol_px": atol, "policy": policy, **numbers}
                results["rows"].append(row)
                if on_row is not None:
                    on_row(row)
            save_results(results, out)
    return results
