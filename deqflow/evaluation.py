"""Measuring models and classical methods on held-out pairs: errors, evaluations, milliseconds.

The sets are procedural pairs, scikit-image's motorcycle, and every benchmark that lies under a folder. A benchmark
is also measured on the few pairs of it that everyone has at hand, its *subsets*, so that figures can be compared.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from deqflow.baselines import dis_flow
from deqflow.datasets import FlowDataset, FlowSample, available_benchmarks, motorcycle
from deqflow.estimator import FlowEstimator, FlowOutput, FlowState, flow_residual
from deqflow.geometry import Padding
from deqflow.metrics import FlowErrors
from deqflow.provenance import provenance
from deqflow.solvers import Evaluation, Stop, solve
from deqflow.synthetic import RICH_SCENES, SceneConfig, SyntheticPairs
from deqflow.training import HELD_OUT_SEED

STRIDE = 8
POOLED = ("sintel", "spring", "things")  # benchmarks whose end-point error is the mean over all pixels, not of pairs

# Name of a subset: its benchmark, and the pairs of it, by the names of their flow files.
SUBSETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "chairs-9": ("chairs-samples", tuple(f"{number:07d}-gt.flo" for number in range(9))),
    "sintel-alley_1-1-clean": ("sintel-clean", ("alley_1/frame_0001.flo",)),
    "sintel-alley_1-1-final": ("sintel-final", ("alley_1/frame_0001.flo",)),
    "kitti-000010": ("kitti-2015", ("000010_10.png",)),
    "middlebury-4": ("middlebury", tuple(f"{s}/flow10.flo" for s in ("RubberWhale", "Dimetrodon", "Venus", "Grove2"))),
}


class Pairs(Protocol):
    """Samples by index: a list, or a data set."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> FlowSample: ...


class EvaluationSet(NamedTuple):
    """Pairs to measure on.

    Attributes:
        pairs: the samples.
        pooled: whether its end-point error is the mean over all pixels of all pairs (Sintel), or that of the pairs'
            own means (KITTI).
    """

    pairs: Pairs
    pooled: bool = False


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How to measure.

    Attributes:
        evals: numbers of evaluations to measure the error at, without early stop.
        precision: of the encoders and the update; bfloat16 is by autocast.
        device: to run models on; "auto" takes a GPU where there is one.
        procedural: how many pairs in each procedural set.
        most: of a benchmark's pairs, evenly spread over it; all if not given.
    """

    evals: tuple[int, ...] = (12, 24, 48, 96)
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    procedural: int = 32
    most: int | None = None

    def __post_init__(self) -> None:
        if not self.evals or min(self.evals) < 1 or list(self.evals) != sorted(set(self.evals)):
            raise ValueError(f"evals expects numbers of evaluations in ascending order, from 1, got {self.evals}.")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision expects float32 or bfloat16, got {self.precision!r}.")
        if self.procedural < 1 or (self.most is not None and self.most < 1):
            raise ValueError(f"Expected at least 1 pair, got procedural={self.procedural} and most={self.most}.")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"No device {self.device}: torch finds no GPU here. Use auto, or cpu.")

    @property
    def torch_device(self) -> torch.device:
        """The device that is meant."""
        chosen = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        return torch.device(chosen)

    def autocast(self) -> AbstractContextManager[object]:
        """The context of the chosen precision."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.torch_device.type, torch.bfloat16)


def evaluation_sets(root: str | Path, config: EvaluationConfig | None = None) -> dict[str, EvaluationSet]:
    """Every set that can be measured on: two procedural ones, the motorcycle, the benchmarks under a root.

    A benchmark comes after its subset; one of which nothing but the subset is there goes by the subset's name.

    Raises:
        FileNotFoundError, ValueError: as for :func:`deqflow.datasets.available_benchmarks`.
    """
    config = config or EvaluationConfig()
    sets = {
        "procedural": EvaluationSet(procedural_pairs(config.procedural)),
        "procedural-rich": EvaluationSet(procedural_pairs(config.procedural, RICH_SCENES)),
        "motorcycle": EvaluationSet([motorcycle()]),
    }
    for name, pairs in available_benchmarks(root).items():
        pooled = name.startswith(POOLED)
        chosen = {label: subset(pairs, files) for label, (benchmark, files) in SUBSETS.items() if benchmark == name}
        sets |= {label: EvaluationSet(part, pooled) for label, part in chosen.items() if part}
        if all(len(part or ()) < len(pairs) for part in chosen.values()):
            sets[name] = EvaluationSet(_spread(pairs, config.most), pooled)
    return sets


def procedural_pairs(count: int, scenes: SceneConfig | None = None) -> SyntheticPairs:
    """Procedural pairs that no training has seen; their photographs are scikit-image's, which every one has."""
    return SyntheticPairs(
        count, seed=HELD_OUT_SEED, config=replace(scenes or SceneConfig(), packages=("scikit-image",))
    )


def subset(pairs: FlowDataset, files: Sequence[str]) -> FlowDataset | None:
    """The pairs of a benchmark with these flow files, in their order; None if it lacks one of them.

    Args:
        pairs: the benchmark.
        files: how the paths of the flow files end, whole names.
    """
    found = []
    for name in files:
        parts = tuple(name.split("/"))
        found += [pair for pair in pairs.files if pair.flow.parts[-len(parts) :] == parts][:1]
    return _with_files(pairs, found) if len(found) == len(files) else None


def _spread(pairs: FlowDataset, most: int | None) -> FlowDataset:
    if most is None or len(pairs) <= most:
        return pairs
    return _with_files(pairs, [pairs.files[round((i + 0.5) * len(pairs) / most - 0.5)] for i in range(most)])


def _with_files(pairs: FlowDataset, files: Iterable[Any]) -> FlowDataset:
    chosen = type(pairs).__new__(type(pairs))  # what the set is told beside its files stays as it is
    chosen.__dict__.update(pairs.__dict__, files=tuple(files))
    return chosen


@dataclass(frozen=True)
class PairEstimates:
    """What a model made of one pair.

    Attributes:
        flows: by number of evaluations, (1, 2, H, W) in pixels on the CPU, without early stop.
        residuals: by number of evaluations, how far the last of them moved the flow, RMS in px.
        seconds: by number of evaluations, from two images to the flow.
        stopped: the model's own output, stopped by its own tolerance.
        stopped_seconds: from two images to that.
    """

    flows: dict[int, Tensor]
    residuals: dict[int, float]
    seconds: dict[int, float]
    stopped: FlowOutput
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
    padding = Padding(height, width, STRIDE)
    with config.autocast():
        clock.start()
        f, z0 = estimator.fixed_point_map(padding.pad(image1), padding.pad(image2))
        encoding = clock.start()
        solved = solve(
            f,
            z0,
            estimator.equilibrium.rule,
            Stop(max_evals=max(config.evals), atol=0.0, norm=flow_residual),
            keep=config.evals,
            on_eval=lambda evaluation: clock.note(evaluation, config.evals),
        )
        flows, seconds = {}, {}
        for k in config.evals:
            clock.start()
            z = solved.kept[k].fz
            flows[k] = padding.crop(estimator.upsampler(FlowState(z[:, :-2], z[:, -2:])))
            # A map with an exact fixed point, or a sample that failed, ends a solve early.
            seconds[k] = encoding + clock.noted.get(k, max(clock.noted.values(), default=0.0)) + clock.start()
        stopped = estimator.solve_map(f, z0, padding=padding)
        stopped_seconds = encoding + clock.start()
    residuals = {k: float(solved.kept[k].residual) for k in config.evals}
    return PairEstimates(
        {k: flow.float().cpu() for k, flow in flows.items()}, residuals, seconds, stopped, stopped_seconds
    )


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


Classical = Callable[[Tensor, Tensor], Tensor]
CLASSICAL: dict[str, Classical] = {"zero flow": lambda image1, _: torch.zeros_like(image1[:2]), "DIS": dis_flow}


def evaluate_set(
    models: Mapping[str, FlowEstimator], chosen: EvaluationSet, config: EvaluationConfig | None = None
) -> dict[str, Any]:
    """Measure models, DIS and zero flow on a set.

    Args:
        models: by name, in evaluation mode, on the configuration's device.
        chosen: the set.
        config: how to measure.

    Returns:
        ``pairs``, how many; ``mean``, "pixels" or "pairs", what an end-point error of this set is the mean of;
        ``methods``: for zero flow and DIS a summary of :class:`deqflow.metrics.FlowErrors` with ``error_px``, that
        mean, and ``ms``, the median over the pairs. A model has ``at``, by number of evaluations, with the same and
        ``residual_px``, how far the last evaluation moved the flow; and ``stopped``, by its own tolerance, with the
        mean ``evaluations`` that took.

    Raises:
        ValueError: the set is empty.
    """
    config = config or EvaluationConfig()
    if len(chosen.pairs) == 0:
        raise ValueError("evaluate_set expects at least one pair, got an empty set.")
    tallies = {name: _Tally(chosen.pooled) for name in CLASSICAL}
    by_model = {name: _ModelTally(chosen.pooled, config) for name in models}
    for index in range(len(chosen.pairs)):
        pair = chosen.pairs[index]
        for name, method in CLASSICAL.items():
            started = time.perf_counter()
            flow = method(pair.image1, pair.image2)
            tallies[name].add(flow[None], pair, time.perf_counter() - started)
        for name, estimator in models.items():
            if index == 0:
                _warm_up(estimator, pair, config)
            by_model[name].add(estimate_pair(estimator, pair, config), pair)
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
        self.stopped.add(estimates.stopped.flow.float().cpu(), pair, estimates.stopped_seconds)
        self.evaluations.append(float(estimates.stopped.solve.evals[0]))

    def summary(self) -> dict[str, Any]:
        at = {
            str(k): tally.summary() | _rounded({"residual_px": fmean(self.residuals[k])})
            for k, tally in self.at.items()
        }
        return {"at": at, "stopped": self.stopped.summary() | _rounded({"evaluations": fmean(self.evaluations)})}


def _warm_up(estimator: FlowEstimator, pair: FlowSample, config: EvaluationConfig) -> None:
    """One evaluation that is not timed: the first of a size sets memory and kernels up."""
    image1, image2 = (image[None].to(config.torch_device) for image in (pair.image1, pair.image2))
    with torch.no_grad(), config.autocast():
        estimator(image1, image2, stop=Stop(max_evals=1, atol=0.0))


def _rounded(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Five digits after the point: what a results file needs."""
    plain = {name: round(value, 5) if isinstance(value, float) else value for name, value in numbers.items()}
    return {name: _rounded(value) if isinstance(value, Mapping) else value for name, value in plain.items()}


def evaluate(
    models: Mapping[str, FlowEstimator],
    sets: Mapping[str, EvaluationSet],
    config: EvaluationConfig | None = None,
    on_set: Callable[[str, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Measure models, DIS and zero flow on sets; return what a results file holds.

    Args:
        models: by name; they are moved to the configuration's device and put in evaluation mode.
        sets: by name, as from :func:`evaluation_sets`.
        config: how to measure.
        on_set: sees the name of each set once it is done, and the results so far, to be shown and saved.

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
        "config": asdict(config) | {"device": config.torch_device.type, "evals": list(config.evals)},
        "models": {name: _describe(estimator) for name, estimator in models.items()},
        "sets": measured,
        "provenance": provenance(Path(__file__).parent),
    }
    for name, chosen in sets.items():
        measured[name] = evaluate_set(models, chosen, config)
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
    outliers = f"  F1-all {100 * figures['f1_all']:5.1f} %" if figures["f1_all"] is not None else ""
    return f"  {label:<44} {figures['error_px']:7.3f} px{outliers}  {figures['ms']:8.0f} ms"
