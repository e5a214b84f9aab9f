"""Errors and convergence on held-out procedural pairs."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from deqflow.data.datasets import FlowSample
from deqflow.data.metrics import mean_endpoint_error
from deqflow.model.budgets import flows_after
from deqflow.model.estimator import FlowEstimator

Context = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Means over held-out pairs.

    Attributes:
        errors: end-point error over valid pixels, in px, by number of evaluations.
        residuals: RMS movement of the flow in the last evaluation, in full-size px, by number of evaluations.
        evaluations: number of evaluations until the model's own tolerance is reached; a pair that does not reach it
            counts with the greatest number measured.
    """

    errors: dict[int, float]
    residuals: dict[int, float]
    evaluations: float


def measure_pairs(
    estimator: FlowEstimator,
    pairs: Iterable[FlowSample],
    evals: Sequence[int],
    device: torch.device | str = "cpu",
    autocast: Context = nullcontext,
) -> Tensor:
    """A row for each pair, for :func:`summarise`: its errors, its residuals, and the evaluations it needs."""
    training = estimator.training
    estimator.eval()
    with torch.no_grad():
        rows = [_measure_pair(estimator, pair, sorted(evals), device, autocast) for pair in pairs]
    estimator.train(training)
    return torch.tensor(rows, dtype=torch.float64).view(len(rows), 2 * len(evals) + 1)


def summarise(total: Tensor, pairs: int, evals: Sequence[int]) -> Validation:
    """Means from the sum over all rows of :func:`measure_pairs`."""
    means, count = (total / pairs).tolist(), len(evals)
    errors, residuals = (dict(zip(sorted(evals), part, strict=True)) for part in (means[:count], means[count:-1]))
    return Validation(errors=errors, residuals=residuals, evaluations=means[-1])


def _measure_pair(
    estimator: FlowEstimator, pair: FlowSample, evals: list[int], device: torch.device | str, autocast: Context
) -> list[float]:
    """Measure a pair for all numbers of evaluations in one solve."""
    image1, image2, flow, valid, _ = (tensor[None].to(device) for tensor in pair)
    with autocast():
        flows, solved = flows_after(estimator, image1, image2, evals)
    errors = [float(mean_endpoint_error(flows[k], flow, valid)) for k in evals]
    residuals = [float(solved.kept[k].residual) for k in evals]
    settled = (solved.trace[:, 0] <= estimator.equilibrium.eval_stop.atol).nonzero()
    return [*errors, *residuals, float(settled[0] + 1) if len(settled) else float(evals[-1])]
