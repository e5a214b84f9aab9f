"""What reuse saves, and what it costs: each policy on the same videos, to the same residual (claim C5)."""

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
class Clip:
    """Consecutive frames, (3, H, W) in 0..255, and what is known of them.

    Attributes:
        images: T frames.
        flows: true flow from each to the next, (2, H, W), NaN where unknown; None for a pair without. Empty if none is.
        cuts: frames that begin a new scene.
    """

    images: Sequence[Tensor]
    flows: Sequence[Tensor | None] = ()
    cuts: tuple[int, ...] = ()

    @classmethod
    def of(cls, video: SyntheticVideo) -> "Clip":
        """A procedural video, all frames at once."""
        frames: list[VideoFrame] = [video[i] for i in range(len(video))]
        flows = [frame.flow if bool(frame.valid.all()) else None for frame in frames]
        return cls([frame.image for frame in frames], flows, video.cuts)

    @classmethod
    def from_files(cls, paths: Sequence[Path], shrink: int = 1) -> "Clip":
        """Pictures, made smaller by a whole number."""
        return cls([F.avg_pool2d(read_image(path), shrink)[0] for path in paths])


def flicker(flow: Tensor, following: Tensor) -> float:
    """How much the flow changes along its own trajectories, in pixels: mean of ``|following(p + flow(p)) - flow(p)|``.

    Args:
        flow, following: (1, 2, H, W), of a frame and of the next one. Pixels that leave the frame don't count.
    """
    inside = warp(torch.ones_like(flow[:, :1]), flow)[:, 0] > 0.99
    change = torch.linalg.vector_norm(warp(following, flow) - flow, dim=1)
    return float(change[inside].mean()) if bool(inside.any()) else 0.0


@torch.no_grad()
def run_clip(estimator: FlowEstimator, clip: Clip, policy: Policy, stop: Stop) -> list[VideoStep]:
    """The flow of each frame but the last."""
    video = VideoFlow(estimator, policy=policy, stop=stop)
    return [step for _, step in video.run(image[None] for image in clip.images)]


def summarise(clip: Clip, steps: Sequence[VideoStep]) -> dict[str, list[float]]:
    """Numbers of the pairs that a policy has a say in: all but the first, and those that span a cut.

    Returns:
        ``evaluations``, ``start_residual_px`` and ``residual_px`` of each such pair; ``error_px`` where the truth is
        known; ``flicker_px`` of those that go on in the next one.
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
        if truth is not None:
            known = torch.isfinite(truth).all(0)[None]
            numbers["error_px"].append(float(mean_endpoint_error(step.flow, truth[None], known)[0]))
        if i + 1 < len(steps) and i + 2 not in clip.cuts:
            numbers["flicker_px"].append(flicker(step.flow, steps[i + 1].flow))
    return numbers


def at_cuts(clip: Clip, steps: Sequence[VideoStep], cold: Sequence[VideoStep]) -> dict[str, int]:
    """How cuts were taken: found, false alarms, and evaluations beyond those of ``cold``, the policy "reset".

    Returns:
        ``cuts``, ``found``, ``false_alarms``, and ``most_extra``, the largest excess in a pair that spans a cut or
        follows it.
    """
    spanning = {cut - 1 for cut in clip.cuts}
    alarms = {i for i, step in enumerate(steps) if step.cut}
    around = sorted({i for at in spanning for i in (at, at + 1) if i < len(steps)})
    extra = [steps[i].evaluations - cold[i].evaluations for i in around]
    found, false = len(alarms & spanning), len(alarms - spanning)
    return {"cuts": len(spanning), "found": found, "false_alarms": false, "most_extra": max(extra, default=0)}


def procedural_clips(
    *, length: int = 10, seeds: Sequence[int] = (100, 101), height: int = 128, width: int = 160
) -> dict[str, list[Clip]]:
    """Clips with exact flow, by name: slow, ordinary and fast motion, and ordinary motion with a cut or two."""
    scenes = SceneConfig(height=height, width=width)
    clips: dict[str, list[Clip]] = {}
    for speed in ("slow", "ordinary", "fast"):
        clips[speed] = [Clip.of(SyntheticVideo(length, seed=seed, config=scenes, speed=speed)) for seed in seeds]
    cuts = (length // 2,) if length < 9 else (length // 3 + 1, 2 * length // 3 + 1)
    clips["with cuts"] = [Clip.of(SyntheticVideo(length, seed=seed, config=scenes, cuts=cuts)) for seed in seeds]
    return clips


def real_clips(data: Path) -> dict[str, list[Clip]]:
    """Sintel's alley_1, frames 16 to 25 at half size, and Middlebury's RubberWhale, where the folder has them."""
    sintel = [data / SINTEL / f"frame_{number:04d}.png" for number in range(16, 26)]
    whale = [data / RUBBERWHALE / f"frame{number:02d}.png" for number in range(7, 15)]
    clips: dict[str, list[Clip]] = {}
    if all(path.is_file() for path in sintel):
        clips["Sintel alley_1"] = [Clip.from_files(sintel, shrink=2)]
    if all(path.is_file() for path in whale):
        clip = Clip.from_files(whale)
        if (data / RUBBERWHALE_FLOW).is_file():
            flow, valid = read_flow(data / RUBBERWHALE_FLOW)
            known = torch.where(valid, flow, torch.nan)
            clip = replace(clip, flows=[known if path.stem == "frame10" else None for path in whale])
        clips["RubberWhale"] = [clip]
    return clips


def compare(
    estimator: FlowEstimator, clips: Sequence[Clip], *, atol: float, max_evals: int = 60
) -> dict[str, dict[str, Any]]:
    """Each policy on the same clips, to the same residual: means over pairs, and how cuts were taken.

    Args:
        estimator: of the flow.
        clips: what to run on.
        atol: tolerance, RMS movement of the flow in full-size pixels.
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
    clips: Mapping[str, Sequence[Clip]] | None = None,
    tolerances: Sequence[float] = TOLERANCES,
    on_row: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Compare the policies on procedural clips and on the real ones in ``data``; write a results file after each.

    Args:
        out: the results file (json).
        model: a shipped model's name, or a checkpoint of deqflow's.
        data: folder of data sets.
        clips: to run on instead.
        tolerances: in full-size pixels.
        on_row: sees each entry.
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
