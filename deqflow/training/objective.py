"""The loss of a batch, and the model that a configuration describes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deqflow.data.datasets import FlowSample
from deqflow.equilibrium import GradientMode, Implicit, Phantom, Reversible, Unrolled
from deqflow.model import checkpoints
from deqflow.model.build import build
from deqflow.model.estimator import FlowEstimator
from deqflow.model.precision import fast_precision
from deqflow.model.problem import FlowProblem
from deqflow.model.state import FlowState
from deqflow.solvers import SolverResult, Stop
from deqflow.training.config import TrainConfig
from deqflow.training.losses import (
    coarse_loss,
    consistency,
    correction_loss,
    jacobian_penalty,
    mixture_loss,
    way_back,
)
from deqflow.training.starts import coarse_truth, disturbance, draw_starts


def make_estimator(config: TrainConfig) -> FlowEstimator:
    """Build the model of a run, with random weights or those of ``start_from``.

    Raises:
        ValueError: ``start_from`` is of another architecture, or not given where the encoders are frozen.
    """
    if config.freeze_encoders and not config.start_from:
        raise ValueError("freeze_encoders expects start_from, the checkpoint that the encoders come from; got none.")
    torch.manual_seed(config.seed)
    estimator = build(
        config.size,
        config.update or None,
        recurrent=config.recurrent,
        all_gradients=config.all_gradients,
        dropout=config.dropout,
        gradient=None if config.recurrent else make_gradient(config),
        corrections=None if config.recurrent else config.corrections,
        train_evals=config.evals[1],
        attraction=config.attraction,
        attraction_strength=config.attraction_strength,
        mixture=config.loss == "mixture",
    )
    estimator.equilibrium.corrections_from = config.corrections_from
    if config.start_from:
        start = checkpoints.load(config.start_from)
        try:
            missing, unknown = estimator.load_state_dict(start.state_dict(), strict=config.loss != "mixture")
            if unknown or any(not name.startswith("mixture_head.") for name in missing):
                raise RuntimeError(f"{len(missing)} tensors are missing and {len(unknown)} are unknown")
        except RuntimeError as error:
            raise ValueError(
                f"start_from expects a checkpoint of size {config.size!r}, got {config.start_from} with {start.config}."
            ) from error
    return estimator.train()


def make_gradient(config: TrainConfig) -> GradientMode:
    """The gradient mode that a configuration names."""
    modes: dict[str, Callable[[], GradientMode]] = {
        "phantom": lambda: Phantom(steps=config.phantom_steps),
        "reversible": Reversible,
        "implicit": Implicit,
        "unrolled": Unrolled,
    }
    return modes[config.gradient]()


def prepare(estimator: FlowEstimator, config: TrainConfig) -> FlowEstimator:
    """Set what a configuration asks of any model: compiled parts, encoders that are computed twice, or frozen."""
    if config.freeze_encoders:
        for encoder in _encoders(estimator):
            encoder.requires_grad_(False)
    if config.checkpoint_encoders:
        estimator.checkpoint_encoders = True
    if config.compile:
        for part in (estimator.feature_encoder, estimator.context_encoder, estimator.update):
            if isinstance(part, nn.Module):
                part.compile(backend=config.compile)  # in place: names in checkpoints stay
    return estimator


def set_training(estimator: FlowEstimator, config: TrainConfig) -> None:
    """Training mode, but for what is frozen."""
    estimator.train()
    if config.freeze_encoders:
        for encoder in _encoders(estimator):
            encoder.eval()
    if config.freeze_batch_norm:
        for module in estimator.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def _encoders(estimator: FlowEstimator) -> list[nn.Module]:
    return [part for part in (estimator.feature_encoder, estimator.context_encoder) if part is not None]


def training_precision(device: torch.device, config: TrainConfig) -> torch.dtype:
    """The precision of convolutions in training: as configured, or what the device is fast in."""
    if config.float16:
        return torch.float16
    if config.bfloat16 is None:
        return fast_precision(device)
    return torch.bfloat16 if config.bfloat16 else torch.float32


def autocast(device: torch.device, config: TrainConfig) -> torch.autocast:
    """Automatic mixed precision as configured."""
    dtype = training_precision(device, config)
    mixed = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if mixed else torch.bfloat16, enabled=mixed)


@dataclass(frozen=True)
class Draw:
    """What chance decides in a step, by seed and step alone: a run that goes on draws what it would have drawn.

    Attributes:
        stop: the number of evaluations, the same for all processes.
        masks: seed of dropout's masks and of the Jacobian penalty, another one for each process and part.
    """

    stop: Stop
    masks: int


def draw_step(config: TrainConfig, step: int, part: int = 0) -> Draw:
    """Draw for a step; ``part`` numbers the shares of its batch, over processes and parts."""
    draw = np.random.default_rng([config.seed, step])
    least, greatest = config.evals
    if config.evals_spread == "log":
        evals = int(least * ((greatest + 1) / least) ** draw.random())
    else:
        evals = int(draw.integers(least, greatest + 1))
    stop = Stop(max_evals=evals, atol=0.0)
    source = draw if part == 0 else np.random.default_rng([config.seed, step, part])
    return Draw(stop, int(source.integers(2**63)))


class Objective(nn.Module):
    """The loss of a batch as one module, as data parallelism wants it.

    Args:
        estimator: to train.
        config: of the run.
        teacher: a model whose flow is a second target, with ``teacher_weight``, in evaluation mode.
    """

    def __init__(self, estimator: FlowEstimator, config: TrainConfig, teacher: FlowEstimator | None = None) -> None:
        super().__init__()
        self.estimator, self.config = estimator, config
        self._teacher = [teacher] if teacher is not None else []  # not a part of the module: it has nothing to learn

    def forward(self, batch: FlowSample, draw: Draw) -> tuple[Tensor, SolverResult]:
        """Return the loss of a batch, a weighted mean of absolute errors in px, and the solver's account.

        Sparse fixed-point correction (paper section 3.3), and each further term that has a weight.
        """
        config, generator = self.config, torch.Generator().manual_seed(draw.masks)
        with autocast(batch.flow.device, config):
            both = self.estimator.encode(torch.cat([batch.image1, batch.image2]))
            first, second = both[: len(batch.image1)], both[len(batch.image1) :]
            problem = self.estimator.problem(first, second, generator=generator)
            truth, known = coarse_truth(*self._padded(batch, problem), problem.estimator.stride)
            start = draw_starts(problem, truth, config.other_starts, generator)
            states, solve = self._solve(problem, start, draw.stop)
            flows, mixtures = zip(*(problem.flow_and_mixture(state) for state in states), strict=True)
            terms = self._terms(problem, states, solve, (truth, known), generator)
            taught = [teacher(batch.image1, batch.image2).flow for teacher in self._teacher if config.teacher_weight]
        if config.loss == "mixture":
            said = [mixture for mixture in mixtures if mixture is not None]
            loss = mixture_loss(flows, said, batch.flow, batch.valid, gamma=config.gamma)
        else:
            loss = correction_loss(flows, batch.flow, batch.valid, gamma=config.gamma)
        for flow in taught:
            everywhere = torch.ones_like(batch.valid)
            loss = loss + config.teacher_weight * correction_loss(flows, flow, everywhere, gamma=config.gamma)
        return loss + torch.stack([loss.new_zeros(()), *terms]).sum(), solve

    def _solve(self, problem: FlowProblem, start: Tensor, stop: Stop) -> tuple[tuple[Tensor, ...], SolverResult]:
        return self.estimator.equilibrium(problem.f, start, stop=stop.measured_by(problem.residual))

    def _padded(self, batch: FlowSample, problem: FlowProblem) -> tuple[Tensor, Tensor]:
        """The truth and where it is known, at the padded images' size; unknown in the padding."""
        known = problem.padding.pad(batch.valid[:, None].to(batch.flow.dtype))[:, 0] > 0
        return problem.padding.pad(batch.flow), known

    def _terms(
        self,
        problem: FlowProblem,
        states: Sequence[Tensor],
        solve: SolverResult,
        truth: tuple[Tensor, Tensor],
        generator: torch.Generator,
    ) -> Iterator[Tensor]:
        """The further terms of the loss, those that have a weight."""
        config, stride = self.config, problem.estimator.stride
        if config.jacobian_weight:
            yield config.jacobian_weight * jacobian_penalty(problem.f, solve.z, generator)
        if config.coarse_weight:
            flows = [FlowState.unpack(state).flow for state in states]
            yield config.coarse_weight * coarse_loss(flows, *truth, stride=stride, gamma=config.gamma)
        if config.return_weight:
            added = disturbance(FlowState.unpack(solve.fz).flow, stride, generator)
            evals = int(torch.randint(1, 4, (1,), generator=generator))
            yield config.return_weight * way_back(problem.f, solve.fz, added, evals, problem.residual)
        if config.consistency_weight:
            on_the_way = [solve.kept[at].z for at in sorted(solve.kept)]
            yield config.consistency_weight * consistency(problem.f, on_the_way, solve.fz, stride=stride)


def origin(config: TrainConfig) -> dict[str, object]:
    """What is known of the weights that a run began with: their recipe, or the shipped model's name."""
    if not config.start_from:
        return {}
    path = Path(config.start_from)
    return checkpoints.read_recipe(path) if path.is_file() else {"name": config.start_from}
