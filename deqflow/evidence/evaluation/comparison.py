"""Models beside classical methods on sets of pairs with known flow: errors, evaluations, milliseconds."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from deqflow.data.datasets import FlowSample
from deqflow.data.metrics import FlowErrors
from deqflow.evidence.baselines import dis_flow
from deqflow.evidence.evaluation.config import EvaluationConfig
from deqflow.evidence.evaluation.estimates import PairEstimates, estimate_pair
from deqflow.evidence.evaluation.sets import EvaluationSet
from deqflow.evidence.provenance import provenance
from deqflow.model.estimator import FlowEstimator
from deqflow.model.scales import estimate_at_scales
from deqflow.solvers import Stop

OnPair = Callable[[str, int, int], object]
Classical = Callable[[Tensor, Tensor], Tensor]
CLASSICAL: dict[str, Classical] = {"zero flow": lambda image1, _: torch.zeros_like(image1[:2]), "DIS": dis_flow}


def evaluate_set(
    models: Mapping[str, FlowEstimator],
    chosen: EvaluationSet,
    config: EvaluationConfig | None = None,
    on_pair: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Evaluate models, DIS and zero flow on a set.

    Args:
        models: by name, in evaluation mode, on the configuration's device.
        chosen: the set.
        config: how the evaluation is made.
        on_pair: called after each pair with the number of finished pairs and of all pairs.

    Returns:
        ``pairs``, their number; ``mean``, "pixels" or "pairs", what an end-point error of this set is the mean of;
        ``methods``: for zero flow and DIS a summary of :class:`deqflow.data.metrics.FlowErrors` with ``error_px``, that
        mean, and ``ms``, the median over the pairs. A model has ``at``, by number of evaluations, with the same and
        ``residual_px``, how far the last evaluation moved the flow; and ``stopped``, for solves to its own tolerance,
        with the mean number of ``evaluations``. Errors and shares are None if no pixel of the set has a known flow.

    Raises:
        ValueError: the set is empty.
    """
    config = config or EvaluationConfig()
    if len(chosen.pairs) == 0:
        raise ValueError("evaluate_set expects at least one pair, got an empty set.")
    tallies = {name: _Tally(chosen.pooled) for name in CLASSICAL}
    by_model = {name: _ModelTally(chosen.pooled, config) for name in models}
    where = chosen.place if config.padding == "published" else "centre"
    for index in range(len(chosen.pairs)):
        pair = chosen.pairs[index]
        for name, method in CLASSICAL.items():
            started = time.perf_counter()
            flow = method(pair.image1, pair.image2)
            tallies[name].add(flow[None], pair, time.perf_counter() - started)
        for name, estimator in models.items():
            if index == 0:
                _warm_up(estimator, pair, config)
            by_model[name].add(estimate_pair(estimator, pair, config, where), pair)
        if on_pair is not None:
            on_pair(index + 1, len(chosen.pairs))
    methods = {name: tally.summary() for name, tally in {**tallies, **by_model}.items()}
    return {"pairs": len(chosen.pairs), "mean": "pixels" if chosen.pooled else "pairs", "methods": methods}


class _Tally:
    def __init__(self, pooled: bool) -> None:
        self.pooled, self.errors, self.seconds = pooled, FlowErrors(), []

    def add(self, flow: Tensor, pair: FlowSample, seconds: float) -> None:
        self.errors.add(flow, pair.flow[None], pair.valid[None], pair.occluded[None])
        self.seconds.append(seconds)

    def summary(self) -> dict[str, Any]:
        errors = self.errors.summary()
        error = errors["epe_px" if self.pooled else "pair_epe_px"]
        return _rounded({"error_px": error, **errors, "ms": 1000 * median(self.seconds)})


class _ModelTally:
    def __init__(self, pooled: bool, config: EvaluationConfig) -> None:
        self.at = {k: _Tally(pooled) for k in config.evals}
        self.residuals: dict[int, list[float]] = {k: [] for k in config.evals}
        self.stopped = _Tally(pooled)
        self.evaluations: list[float] = []

    def add(self, estimates: PairEstimates, pair: FlowSample) -> None:
        for k, tally in self.at.items():
            tally.add(estimates.flows[k], pair, estimates.seconds[k])
            self.residuals[k].append(estimates.residuals[k])
        self.stopped.add(estimates.stopped, pair, estimates.stopped_seconds)
        self.evaluations.append(estimates.stopped_evaluations)

    def summary(self) -> dict[str, Any]:
        at = {
            str(k): tally.summary() | _rounded({"residual_px": fmean(self.residuals[k])})
            for k, tally in self.at.items()
        }
        return {"at": at, "stopped": self.stopped.summary() | _rounded({"evaluations": fmean(self.evaluations)})}


def _warm_up(estimator: FlowEstimator, pair: FlowSample, config: EvaluationConfig) -> None:
    """Make one evaluation that is not timed, since the first one also sets up memory and kernels."""
    image1, image2 = (image[None].to(config.torch_device) for image in (pair.image1, pair.image2))
    with torch.no_grad(), config.autocast():
        estimate_at_scales(estimator, image1, image2, config.scales, stop=Stop(max_evals=1, atol=0.0))


def _rounded(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a results file with five digits after the point."""
    plain = {name: round(value, 5) if isinstance(value, float) else value for name, value in numbers.items()}
    return {name: _rounded(value) if isinstance(value, Mapping) else value for name, value in plain.items()}


def evaluate(
    models: Mapping[str, FlowEstimator],
    sets: Mapping[str, EvaluationSet],
    config: EvaluationConfig | None = None,
    on_set: Callable[[str, dict[str, Any]], None] | None = None,
    on_pair: OnPair | None = None,
) -> dict[str, Any]:
    """Evaluate models, DIS and zero flow on sets; return the content of a results file.

    Args:
        models: by name; they are moved to the configuration's device and put in evaluation mode.
        sets: by name, as from :func:`evaluation_sets`.
        config: how the evaluation is made.
        on_set: called after each set with its name and the results so far, for instance to save them.
        on_pair: called after each pair with the set's name, the number of finished pairs and of all pairs of the set.

    Raises:
        ValueError: a set is empty, or there is no model.
    """
    config = config or EvaluationConfig()
    if not models:
        raise ValueError("evaluate expects at least one model, got none.")
    for estimator in models.values():
        estimator.to(config.torch_device).eval()
    measured: dict[str, Any] = {}
    results = {
        "config": asdict(config)
        | {"device": config.torch_device.type, "precision": config.chosen_precision}
        | {"evals": list(config.evals), "scales": list(config.scales)},
        "models": {name: _describe(estimator) for name, estimator in models.items()},
        "sets": measured,
        "provenance": provenance(Path(__file__).parent),
    }
    for name, chosen in sets.items():
        progress = None if on_pair is None else partial(on_pair, name)
        measured[name] = evaluate_set(models, chosen, config, progress)
        if on_set is not None:
            on_set(name, results)
    return results


def _describe(estimator: FlowEstimator) -> dict[str, Any]:
    stop = estimator.equilibrium.eval_stop
    return {
        "parameters": sum(parameter.numel() for parameter in estimator.parameters()),
        "recurrent": estimator.recurrent,
        "origin": estimator.origin,
        "max_evals": stop.max_evals,
        "atol_px": stop.atol,
    }


def report_lines(name: str, measured: Mapping[str, Any]) -> list[str]:
    """The figures of a set, of :func:`evaluate_set`, as lines of text: one a method and number of evaluations."""
    lines = [f"{name}, {measured['pairs']} pair{'s' if measured['pairs'] > 1 else ''}, mean over {measured['mean']}"]
    for method, figures in measured["methods"].items():
        if "at" not in figures:
            lines.append(_figures(method, figures))
            continue
        for k, at_k in figures["at"].items():
            lines.append(_figures(f"{method}, {k} evaluations", at_k))
        lines.append(_figures(f"{method}, stopped after {figures['stopped']['evaluations']:.1f}", figures["stopped"]))
    return lines


def _figures(label: str, figures: Mapping[str, Any]) -> str:
    """A line of text: error, shares of pixels within 1, 3 and 5 px, outliers and time of a method."""
    if figures["error_px"] is None:
        errors = "no pixel with known flow"
    else:
        within = " / ".join(f"{100 * share:.1f}" for share in figures["within"].values())
        limits = ", ".join(figures["within"])
        errors = (
            f"{figures['error_px']:7.3f} px  within {limits} px: {within} %  F1-all {100 * figures['f1_all']:5.1f} %"
        )
    return f"  {label:<44} {errors}  {figures['ms']:8.0f} ms"
