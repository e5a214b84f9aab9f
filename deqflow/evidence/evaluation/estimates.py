"""What a model makes of one pair, after each of some numbers of evaluations, and how long that takes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deqflow.data.datasets import FlowSample
from deqflow.evidence.evaluation.config import EvaluationConfig
from deqflow.model.estimator import FlowEstimator
from deqflow.model.problem import FlowProblem
from deqflow.model.scales import carry_to_scale, estimate_at_scales, resize_flow, resize_images, stop_at_scale
from deqflow.solvers import Evaluation, Stop, solve


@dataclass(frozen=True)
class PairEstimates:
    """What a model made of one pair.

    Attributes:
        flows: by number of evaluations, (1, 2, H, W) in pixels on the CPU, without early stop.
        residuals: by number of evaluations, how far the last of them moved the flow, RMS in px.
        seconds: by number of evaluations, from two images to the flow.
        stopped: the flow, stopped by the model's own tolerance.
        stopped_evaluations: how many that took, at the last scale.
        stopped_seconds: from two images to that.
    """

    flows: dict[int, Tensor]
    residuals: dict[int, float]
    seconds: dict[int, float]
    stopped: Tensor
    stopped_evaluations: float
    stopped_seconds: float


@torch.no_grad()
def estimate_pair(estimator: FlowEstimator, pair: FlowSample, config: EvaluationConfig | None = None) -> PairEstimates:
    """Run a model on a pair: once as far as the largest number of evaluations, once with its own early stop.

    What a solve returns after k evaluations is what one with that budget would; the images are encoded once.

    Args:
        estimator: in evaluation mode, on the configuration's device.
        pair: on the CPU.
        config: how to measure.
    """
    config = config or EvaluationConfig()
    clock = _Clock(config.torch_device)
    image1, image2 = (image[None].to(config.torch_device) for image in (pair.image1, pair.image2))
    height, width = pair.flow.shape[-2:]
    *coarser, scale = config.scales
    with config.autocast():
        clock.start()
        problem, start = _problem_at(estimator, image1, image2, coarser, scale)
        before = clock.start()
        solved = solve(
            problem.f,
            start,
            estimator.equilibrium.rule,
            stop_at_scale(Stop(max_evals=max(config.evals), atol=0.0, norm=problem.residual), scale, estimator.stride),
            keep=config.evals,
            on_eval=lambda evaluation: clock.note(evaluation, config.evals),
        )
        flows, seconds = {}, {}
        for k in config.evals:
            clock.start()
            flows[k] = resize_flow(problem.flow(solved.kept[k].fz), height, width).float().cpu()
            # A map with an exact fixed point, or a sample that failed, ends a solve early.
            seconds[k] = before + clock.noted.get(k, max(clock.noted.values(), default=0.0)) + clock.start()
        own_stop = stop_at_scale(estimator.equilibrium.eval_stop, scale, estimator.stride)
        stopped = problem.solve(start=start, stop=own_stop)
        stopped_flow = resize_flow(stopped.flow, height, width).float().cpu()
        stopped_seconds = before + clock.start()
    residuals = {k: float(solved.kept[k].residual) for k in config.evals}
    return PairEstimates(flows, residuals, seconds, stopped_flow, float(stopped.solve.evals[0]), stopped_seconds)


def _problem_at(
    estimator: FlowEstimator, image1: Tensor, image2: Tensor, coarser: Sequence[float], scale: float
) -> tuple[FlowProblem, Tensor]:
    """The problem of a pair at a scale, and where its solve starts after those at coarser scales."""
    first, second = resize_images(image1, scale), resize_images(image2, scale)
    problem = estimator.problem(estimator.encode(first), estimator.encode(second))
    if not coarser:
        return problem, problem.z0
    found = estimate_at_scales(estimator, image1, image2, coarser).outputs[-1]
    return problem, problem.start(carry_to_scale(found, first))


class _Clock:
    """Wall-clock seconds; a GPU has finished its work when it is read."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.noted, self.started = device, {}, 0.0

    def start(self) -> float:
        """Seconds since the last call, from which the next one counts."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        before, self.started = self.started, time.perf_counter()
        return self.started - before

    def note(self, evaluation: Evaluation, wanted: Sequence[int]) -> None:
        """Keep the seconds since the last start, if the evaluation's number is wanted."""
        if evaluation.number in wanted:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.noted[evaluation.number] = time.perf_counter() - self.started
