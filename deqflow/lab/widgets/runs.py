"""The computations of the playground, without any widgets: they turn settings into a run."""

import copy
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from deqflow.data.datasets import FlowSample
from deqflow.data.metrics import endpoint_error
from deqflow.evidence.diagnostics import KeptForBackward
from deqflow.lab.widgets.settings import RunSettings, require
from deqflow.model.estimator import FlowEstimator
from deqflow.model.images import check_images
from deqflow.model.problem import FlowProblem
from deqflow.model.state import FlowState
from deqflow.solvers import Evaluation, OutsideSolver, Rule, Status, StepRule, solve
from deqflow.training.starts import coarse_truth


@dataclass(frozen=True)
class SolverRun:
    """The result of a run.

    Attributes:
        settings: its choices.
        pair: its pair, at the size at which it was solved.
        flow: (2, H, W) in pixels.
        error: end-point error, (H, W) in pixels, NaN where the truth is not known; None if it is known nowhere.
        trace: residual after each evaluation, in pixels.
        outcome: how the solve ended, in words.
        milliseconds: time of the solve, without encoders and upsampling.
        solver_bytes: most memory that the solver held between two evaluations; None for SciPy's solvers, which do not
            report it.
        training_bytes: memory that autograd would keep if the run were a training step: for an equilibrium model
            (one-step gradient) that of the encoders and one evaluation, for a recurrent one that of all evaluations.
        state: the final state, (1, ...).
    """

    settings: RunSettings
    pair: FlowSample
    flow: Tensor
    error: Tensor | None
    trace: tuple[float, ...]
    outcome: str
    milliseconds: float
    solver_bytes: int | None
    training_bytes: int
    state: FlowState

    @property
    def evaluations(self) -> int:
        """The number of evaluations of f."""
        return len(self.trace)

    @property
    def epe_px(self) -> float | None:
        """Mean end-point error over the pixels whose truth is known."""
        return None if self.error is None else float(self.error[self.error.isfinite()].mean())

    def row(self) -> dict[str, str]:
        """The run as a row of a table, with units in the names."""
        return {
            "run": self.settings.label,
            "model": self.settings.model,
            "pair": self.settings.pair,
            "outcome": self.outcome,
            "evaluations": str(self.evaluations),
            "solve (ms)": f"{self.milliseconds:.0f}",
            "residual (px)": f"{self.trace[-1]:.2g}",
            "end-point error (px)": "unknown" if self.epe_px is None else f"{self.epe_px:.2f}",
            "solver memory": "not known" if self.solver_bytes is None else size_text(self.solver_bytes),
            "kept for backward": size_text(self.training_bytes),
        }


@dataclass(frozen=True)
class _Prepared:
    """The problem of a pair, and the bytes that autograd would keep: with one evaluation, and for each further one."""

    pair: FlowSample
    problem: FlowProblem
    first_bytes: int
    further_bytes: int


class SolverBench:
    """Pairs and models to run solvers on. It keeps the last problem, so that another solver gives a result quickly.

    Args:
        pairs: pairs by name; their sizes may differ.
        models: models by name, in evaluation mode or not; they are not changed.

    Raises:
        ValueError: there is no pair or no model.
    """

    def __init__(self, pairs: Mapping[str, FlowSample], models: Mapping[str, FlowEstimator]) -> None:
        if not pairs or not models:
            raise ValueError(f"A bench expects pairs and models, got {len(pairs)} and {len(models)} of them.")
        self.pairs, self.models = dict(pairs), dict(models)
        self._last: tuple[tuple[str | int | None, ...], _Prepared] | None = None

    def add_pair(self, name: str, pair: FlowSample) -> None:
        """Add a pair; it replaces another one of the same name."""
        self.pairs[name] = pair
        self._last = None

    def run(
        self,
        settings: RunSettings,
        *,
        previous: SolverRun | None = None,
        stop: threading.Event | None = None,
        on_eval: Callable[[int, float], None] | None = None,
    ) -> SolverRun:
        """Solve, and measure.

        Args:
            settings: the choices.
            previous: the run whose solution "previous solution" starts from.
            stop: once it is set, the run ends after the evaluation in progress, with the result so far.
            on_eval: called with the number and the residual in pixels of each evaluation.

        Raises:
            ValueError: a pair or model is not known, the images are too small, or there is no such start.
        """
        require("pair", settings.pair, self.pairs)
        require("model", settings.model, self.models)
        with torch.no_grad(), _precision(settings, self.models[settings.model]):
            prepared = self._prepared(settings)
            pair, problem = prepared.pair, prepared.problem
            z0 = _start(pair, problem, settings, previous)
            rule = settings.rule
            weighed = None if isinstance(rule, OutsideSolver) else WeighedRule(rule)

            def follow(evaluation: Evaluation) -> bool:
                """Hand the residual on; the solve ends when this returns True."""
                if on_eval is not None:
                    on_eval(evaluation.number, float(evaluation.residual[0]))
                return stop is not None and stop.is_set()

            def stretched(z: Tensor) -> Tensor:
                """Return the end of a longer step towards f(z); this map has the fixed points of f."""
                return torch.lerp(z, problem.f(z), settings.stretch)

            synchronize(z0)
            started = time.perf_counter()
            f = problem.f if settings.stretch == 1 else stretched
            result = solve(f, z0, cast("Rule", weighed or rule), settings.stop, on_eval=follow)
            synchronize(z0)
            milliseconds = 1e3 * (time.perf_counter() - started)
            fz = torch.lerp(result.z, result.fz, 1 / settings.stretch)  # f(z), from the end of the stretched step
            flow = problem.flow(fz)[0].float().cpu()
        error = endpoint_error(flow[None], pair.flow[None])[0].where(pair.valid, torch.nan)
        recorded = len(result.trace) if problem.estimator.recurrent else 1
        return SolverRun(
            settings=settings,
            pair=pair,
            flow=flow,
            error=error if bool(error.isfinite().any()) else None,
            trace=tuple(result.trace[:, 0].tolist()),
            outcome=_OUTCOMES[Status(int(result.status[0]))],
            milliseconds=milliseconds,
            solver_bytes=weighed and weighed.most,
            training_bytes=prepared.first_bytes + (recorded - 1) * prepared.further_bytes,
            state=FlowState.unpack(fz),
        )

    def _prepared(self, settings: RunSettings) -> _Prepared:
        key = (settings.pair, settings.model, settings.precision, settings.width)
        if self._last is None or self._last[0] != key:
            pair, model = self.pairs[settings.pair], self.models[settings.model]
            self._last = (key, _prepare(reduced(pair, settings.width), model, settings.precision))
        return self._last[1]


class WeighedRule:
    """A step rule that notes the most bytes held between two evaluations: z, f(z) and the rule's memory."""

    def __init__(self, rule: StepRule) -> None:
        self.rule, self.most = rule, 0

    @property
    def reports_best(self) -> bool:
        """Whether the rule itself reports its best state."""
        return self.rule.reports_best

    def init(self, z0: Tensor) -> Any:
        """The rule's own memory."""
        self.most = 2 * z0.nbytes
        return self.rule.init(z0)

    def step(self, z: Tensor, fz: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """The rule's own step."""
        proposal, memory = self.rule.step(z, fz, memory)
        storages = [tensor.untyped_storage() for tensor in (z, fz, *(memory or ()))]
        held = {storage.data_ptr(): storage.nbytes() for storage in storages}
        self.most = max(self.most, sum(held.values()))
        return proposal, memory


def reduced(pair: FlowSample, width: int | None) -> FlowSample:
    """The pair reduced to ``width`` pixels, with its flow scaled along; unchanged if it is no wider, or for None.

    The truth is sampled, not averaged: at the edge of an object the average is the motion of neither side.
    """
    old_height, old_width = pair.image1.shape[-2:]
    if width is None or old_width <= width:
        return pair
    size = (max(1, round(old_height * width / old_width)), width)
    image1, image2 = F.interpolate(torch.stack([pair.image1, pair.image2]), size, mode="area")
    maps = torch.cat([pair.flow, pair.valid[None].float(), pair.occluded[None].float()])
    maps = F.interpolate(maps[None], size, mode="nearest-exact")[0]
    flow = maps[:2] * torch.tensor([width / old_width, size[0] / old_height])[:, None, None]
    return FlowSample(image1, image2, flow, maps[2] > 0, maps[3] > 0)


def size_text(count: float) -> str:
    """A number of bytes as readable text, such as "1.2 MiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def synchronize(tensor: Tensor) -> None:
    """Wait for the tensor's GPU, if it is on one, so that a clock measures finished work."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


_OUTCOMES = {
    Status.CONVERGED: "converged",
    Status.MAX_EVALS: "budget spent",
    Status.NON_FINITE: "not finite",
    Status.INTERRUPTED: "stopped",
}


def _precision(settings: RunSettings, model: FlowEstimator) -> AbstractContextManager[Any]:
    device = next(model.parameters()).device.type
    return torch.autocast(device, torch.bfloat16, enabled=settings.precision == "bfloat16")


def _prepare(pair: FlowSample, model: FlowEstimator, precision: str) -> _Prepared:
    """Encode a pair, and measure how much autograd would keep for the backward pass."""
    dtype = torch.float64 if precision == "float64" else torch.float32
    model = copy.deepcopy(model).to(dtype).eval()  # the caller's model stays unchanged
    like = next(model.parameters())
    images = [image[None].to(like) for image in (pair.image1, pair.image2)]
    check_images(*images)
    with torch.enable_grad(), KeptForBackward(apart_from=model.parameters()) as kept:
        problem = model.problem(*(model.encode(image) for image in images))
        first = problem.f(problem.z0.detach())
        first_bytes = kept.bytes
        second = problem.f(first.detach())
        further_bytes = kept.bytes - first_bytes
    del problem, first, second  # this also frees what autograd keeps
    return _Prepared(pair, model.problem(*(model.encode(image) for image in images)), first_bytes, further_bytes)


def _start(pair: FlowSample, problem: FlowProblem, settings: RunSettings, previous: SolverRun | None) -> Tensor:
    z0 = problem.z0.clone()
    if settings.start == "random":
        generator = torch.Generator().manual_seed(settings.seed)
        z0 = torch.randn(z0.shape, generator=generator).to(z0)  # a flow of 1 px at 1/8 size: 8 px
        FlowState.unpack(z0).hidden.tanh_()
    elif settings.start == "true flow":
        if not bool(pair.valid.any()):
            raise ValueError(
                f"The true flow of {settings.pair!r} is not known: choose another start, or a pair that has one."
            )
        valid = problem.padding.pad(pair.valid[None, None].float())[:, 0] > 0
        truth, _ = coarse_truth(problem.padding.pad(pair.flow[None]), valid, problem.estimator.stride)
        FlowState.unpack(z0).flow.copy_(truth)
    elif settings.start == "previous solution":
        if previous is None:
            raise ValueError("There is no previous solution yet: run once from another start.")
        packed = previous.state.pack()
        if packed.shape != z0.shape:
            raise ValueError(
                f"The previous solution does not fit: its state has the shape {tuple(packed.shape[1:])}, this pair and "
                f"model need {tuple(z0.shape[1:])}. Run once from another start."
            )
        z0 = packed.to(z0)
    return z0
