"""Models beside classical methods on sets of pairs with known flow: errors, evaluations, milliseconds."""

import time
from collections.abc import Callable, Mapping, Sequence
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
    measure = PairMeasurement(models, chosen, config)
    records = []
    for index in range(len(chosen.pairs)):
        records.append(measure(index))
        if on_pair is not None:
            on_pair(index + 1, len(chosen.pairs))
    return summarize(records, pooled=chosen.pooled)


class PairMeasurement:
    """Measures the pairs of a set one at a time, in any order and in any process.

    Args:
        models, chosen, config: as for :func:`evaluate_set`.

    Raises:
        ValueError: the set is empty.
    """

    def __init__(self, models: Mapping[str, FlowEstimator], chosen: EvaluationSet, config: EvaluationConfig) -> None:
        if len(chosen.pairs) == 0:
            raise ValueError("evaluate_set expects at least one pair, got an empty set.")
        self.models, self.chosen, self.config = models, chosen, config
        self._warm = False

    def __call__(self, index: int) -> dict[str, Any]:
        """The record of a pair, by method: plain numbers, which json holds exactly, for :func:`summarize`."""
        pair = self.chosen.pairs[index]
        where = self.chosen.place if self.config.padding == "published" else "centre"
        record: dict[str, Any] = {}
        for name, method in CLASSICAL.items():
            started = time.perf_counter()
            flow = method(pair.image1, pair.image2)
            record[name] = _measured(flow[None], pair, time.perf_counter() - started)
        for name, estimator in self.models.items():
            if not self._warm:
                _warm_up(estimator, pair, self.config)
            record[name] = _estimated(estimate_pair(estimator, pair, self.config, where), pair)
        self._warm = True
        return record


def _measured(flow: Tensor, pair: FlowSample, seconds: float) -> dict[str, Any]:
    errors = FlowErrors()
    errors.add(flow, pair.flow[None], pair.valid[None], pair.occluded[None])
    return {"errors": errors.sums, "seconds": seconds}


def _estimated(found: PairEstimates, pair: FlowSample) -> dict[str, Any]:
    at = {
        str(k): _measured(flow, pair, found.seconds[k]) | {"residual_px": found.residuals[k]}
        for k, flow in found.flows.items()
    }
    stopped = _measured(found.stopped, pair, found.stopped_seconds)
    return {"at": at, "stopped": stopped | {"evaluations": found.stopped_evaluations}}


def summarize(records: Sequence[Mapping[str, Any]], *, pooled: bool) -> dict[str, Any]:
    """The figures of a set, as :func:`evaluate_set` returns them.

    Args:
        records: of its pairs in their order, by :class:`PairMeasurement`.
        pooled: whether an end-point error is the mean over all pixels, or over pairs.
    """
    methods: dict[str, Any] = {}
    for name, first in records[0].items():
        parts = [record[name] for record in records]
        if "at" not in first:
            methods[name] = _summary(parts, pooled)
            continue
        at = {k: _summary([part["at"][k] for part in parts], pooled) for k in first["at"]}
        methods[name] = {"at": at, "stopped": _summary([part["stopped"] for part in parts], pooled)}
    return {"pairs": len(records), "mean": "pixels" if pooled else "pairs", "methods": methods}


def _summary(parts: Sequence[Mapping[str, Any]], pooled: bool) -> dict[str, Any]:
    """Sums of errors together; the median of the times; means of everything else."""
    total = FlowErrors()
    for part in parts:
        total.add_sums(part["errors"])
    errors = total.summary()
    others = {name: fmean(part[name] for part in parts) for name in parts[0] if name not in ("errors", "seconds")}
    error = errors["epe_px" if pooled else "pair_epe_px"]
    return _rounded({"error_px": error, **errors, "ms": 1000 * median(part["seconds"] for part in parts), **others})


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
    results = begin_results(models, config)
    for name, chosen in sets.items():
        progress = None if on_pair is None else partial(on_pair, name)
        results["sets"][name] = evaluate_set(models, chosen, config, progress)
        if on_set is not None:
            on_set(name, results)
    return results


def begin_results(models: Mapping[str, FlowEstimator], config: EvaluationConfig) -> dict[str, Any]:
    """The content of a results file before the first set; models are made ready to be measured.

    Raises:
        ValueError: there is no model.
    """
    if not models:
        raise ValueError("evaluate expects at least one model, got none.")
    for estimator in models.values():
        estimator.to(config.torch_device).eval()
    return {
        "config": asdict(config)
        | {"device": config.torch_device.type, "precision": config.chosen_precision}
        | {"evals": list(config.evals), "scales": list(config.scales)},
        "models": {name: _describe(estimator) for name, estimator in models.items()},
        "sets": {},
        "provenance": provenance(Path(__file__).parent),
    }


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
