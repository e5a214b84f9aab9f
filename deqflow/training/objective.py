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

_NEW_PARTS = ("mixture_head.", "attraction.")  # what a run may add to the model that it starts from


def make_estimator(config: TrainConfig) -> FlowEstimator:
    """Build the model of a run, with random weights or those of ``start_from``.

    Raises:
        ValueError: ``start_from`` has another architecture, or is not given although the encoders are frozen.
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
        least_gate=config.least_gate,
        mixture=config.loss == "mixture",
    )
    estimator.equilibrium.corrections_from = config.corrections_from
    if config.start_from:
        start = checkpoints.load(config.start_from)
        try:
            missing, unknown = estimator.load_state_dict(start.state_dict(), strict=False)
            if unknown or any(not name.startswith(_NEW_PARTS) for name in missing):
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
    """Apply the settings that fit any model: frozen encoders, encoders that are computed twice, compiled parts."""
    if config.freeze_encoders:
        for encoder in encoders_of(estimator):
            encoder.requires_grad_(False)
    if config.checkpoint_encoders:
        estimator.checkpoint_encoders = True
    if config.compile:
        for part in (estimator.feature_encoder, estimator.context_encoder, estimator.update):
            if isinstance(part, nn.Module):
                part.compile(backend=config.compile)  # in place: the names in checkpoints stay the same
    return estimator


def set_training(estimator: FlowEstimator, config: TrainConfig) -> None:
    """Set the model to training mode, except for the parts that are frozen."""
    estimator.train()
    if config.freeze_encoders:
        for encoder in encoders_of(estimator):
            encoder.eval()
    if config.freeze_batch_norm:
        for module in estimator.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def encoders_of(estimator: FlowEstimator) -> list[nn.Module]:
    """The encoders of features and context, which may be one."""
    return [part for part in (estimator.feature_encoder, estimator.context_encoder) if part is not None]


def training_precision(device: torch.device, config: TrainConfig) -> torch.dtype:
    """The precision of convolutions in training: as configured, or the one that the device is fast in."""
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
    """The random choices of a step.

    They depend only on the run's seed and the step, so a run that is continued draws what it would have drawn anyway.

    Attributes:
        stop: holds the number of evaluations, which is the same for all processes.
        masks: seed of whatever is drawn per sample, such as dropout's masks; it differs between processes and parts.
    """

    stop: Stop
    masks: int


def draw_step(config: TrainConfig, step: int, part: int = 0) -> Draw:
    """Make the random choices of a step; ``part`` is the index of a share of its batch, over processes and parts."""
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
    """The loss of a batch as a module, because data parallelism works on modules.

    Args:
        estimator: the model to train.
        config: the run's configuration.
        teacher: a model in evaluation mode whose flow is a second target, weighted by ``teacher_weight``.
    """

    def __init__(self, estimator: FlowEstimator, config: TrainConfig, teacher: FlowEstimator | None = None) -> None:
        super().__init__()
        self.estimator, self.config = estimator, config
        self._teacher = [teacher] if teacher is not None else []  # in a list, so that it is no submodule to train

    def forward(self, batch: FlowSample, draw: Draw) -> tuple[Tensor, SolverResult]:
        """Return the loss of a batch and the solver's result.

        The loss is that of sparse fixed-point correction (paper section 3.3), a weighted sum of mean absolute errors in
        px (or of the mixture's negative log-likelihoods), plus each further term that has a weight.
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
            terms = list(self._terms(problem, states, solve, (truth, known), generator))  # inside the autocast
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
        """The true flow, and where it is known, at the size of the padded images; in the padding it is unknown."""
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
        """The further terms of the loss that have a weight."""
        config, stride = self.config, problem.estimator.stride
        if config.jacobian_weight:
            yield config.jacobian_weight * jacobian_penalty(problem.f, solve.z, generator)
        if config.coarse_weight:
            flows = [FlowState.unpack(state).flow for state in states]
            yield config.coarse_weight * coarse_loss(flows, *truth, stride=stride, gamma=config.gamma)
        if config.return_weight:
            added = disturbance(FlowState.unpack(solve.fz).flow, stride, generator)
            evals = int(torch.randint(1, 4, (1,), generator=generator))
            left = way_back(problem.f, solve.fz, added, evals, problem.residual)
            # Bounded, so that no sample outweighs the others wherever a disturbance may throw it.
            yield config.return_weight * (left / (1 + left)).mean()
        if config.consistency_weight:
            on_the_way = [solve.kept[at].z for at in sorted(solve.kept)]
            yield config.consistency_weight * consistency(problem.f, on_the_way, solve.fz, stride=stride)


def origin(config: TrainConfig) -> dict[str, object]:
    """The origin of the weights that a run began with: their recipe, or the name of the shipped model."""
    if not config.start_from:
        return {}
    path = Path(config.start_from)
    return checkpoints.read_recipe(path) if path.is_file() else {"name": config.start_from}
