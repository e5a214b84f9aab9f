"""The flow that a model estimates for one pair after several numbers of evaluations, and the time it takes."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from deqflow.data.datasets import FlowSample
from deqflow.evidence.evaluation.config import EvaluationConfig, Place
from deqflow.model.budgets import solve_budgets
from deqflow.model.estimator import FlowEstimator
from deqflow.model.geometry import Padding
from deqflow.model.scales import carry_to_scale, estimate_at_scales, resize_flow, resize_images, stop_at_scale


@dataclass(frozen=True)
class PairEstimates:
    """The flows that a model estimated for one pair.

    Attributes:
        flows: by number of evaluations, without early stop, (1, 2, H, W) in pixels on the CPU.
        residuals: by number of evaluations, how far the last of them moved the flow, RMS in px.
        seconds: by number of evaluations, from two images to the flow.
        stopped: the flow of a solve to the model's own tolerance.
        stopped_evaluations: how many evaluations that took at the last scale.
        stopped_seconds: from two images to that flow.
    """

    flows: dict[int, Tensor]
    residuals: dict[int, float]
    seconds: dict[int, float]
    stopped: Tensor
    stopped_evaluations: float
    stopped_seconds: float


@torch.no_grad()
def estimate_pair(
    estimator: FlowEstimator, pair: FlowSample, config: EvaluationConfig | None = None, where: Place = "centre"
) -> PairEstimates:
    """Run a model on a pair twice: to the largest number of evaluations, and to its own tolerance.

    The images are encoded once, and all numbers of evaluations are seen in one solve
    (:func:`deqflow.model.budgets.solve_budgets`).

    Args:
        estimator: in evaluation mode, on the configuration's device.
        pair: on the CPU.
        config: how to measure.
        where: how the images are padded, see :class:`deqflow.model.geometry.Padding`.
    """
    config = config or EvaluationConfig()
    clock = _Clock(config.torch_device)
    image1, image2 = (image[None].to(config.torch_device) for image in (pair.image1, pair.image2))
    height, width = pair.flow.shape[-2:]
    *coarser, scale = config.scales

    def full_size(flow: Tensor) -> Tensor:
        return resize_flow(flow, height, width).float().cpu()

    with config.autocast():
        clock.start()
        images = [resize_images(image, scale) for image in (image1, image2)]
        start = None
        if coarser:
            found = estimate_at_scales(estimator, image1, image2, coarser).outputs[-1].state
            start = carry_to_scale(found, images[0], estimator.stride)
        padding = Padding(images[0].shape[-2], images[0].shape[-1], estimator.stride, where)
        problem = estimator.problem(*(estimator.encode(image, padding=padding) for image in images))
        before = clock.start()
        solved = solve_budgets(
            problem, config.evals, start=start, scale=scale, on_eval=lambda evaluation: clock.note(evaluation.number)
        )
        flows, seconds = {}, {}
        for k in config.evals:
            clock.start()
            flows[k] = full_size(problem.flow(solved.kept[k].fz))
            reached = min(k, len(solved.trace))  # a solve may end early, see solve_budgets
            seconds[k] = before + clock.noted[reached] + clock.start()
        own_stop = stop_at_scale(estimator.equilibrium.eval_stop, scale, estimator.stride)
        stopped = problem.solve(start=start, stop=own_stop)
        stopped_flow = full_size(stopped.flow)
        stopped_seconds = before + clock.start()
    residuals = {k: float(solved.kept[k].residual) for k in config.evals}
    return PairEstimates(flows, residuals, seconds, stopped_flow, float(stopped.solve.evals[0]), stopped_seconds)


class _Clock:
    """Wall-clock seconds. A GPU finishes its work before the clock is read.

    Attributes:
        noted: seconds from the start to the end of each evaluation, by its number.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.started = device, 0.0
        self.noted: dict[int, float] = {}

    def start(self) -> float:
        """Start again; return the seconds since the last start."""
        before, self.started = self.started, self._now()
        return self.started - before

    def note(self, number: int) -> None:
        """Note the seconds since the last start as those of an evaluation."""
        self.noted[number] = self._now() - self.started

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
