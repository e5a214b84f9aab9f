"""The loss of a batch, and the model that a configuration describes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deqflow.data.datasets import FlowSample
from deqflow.equilibrium import Phantom
from deqflow.model import checkpoints
from deqflow.model.build import build
from deqflow.model.estimator import FlowEstimator
from deqflow.model.output import FlowOutput
from deqflow.solvers import SolverResult, Stop
from deqflow.training.config import TrainConfig
from deqflow.training.losses import correction_loss, jacobian_penalty


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
        gradient=None if config.recurrent else Phantom(steps=config.phantom_steps),
        corrections=None if config.recurrent else config.corrections,
        train_evals=config.evals[1],
    )
    if config.start_from:
        start = checkpoints.load(config.start_from)
        try:
            estimator.load_state_dict(start.state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"start_from expects a checkpoint of size {config.size!r}, got {config.start_from} with {start.config}."
            ) from error
    return estimator.train()


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


def autocast(device: torch.device, config: TrainConfig) -> torch.autocast:
    """Automatic mixed precision as configured."""
    dtype = torch.float16 if config.float16 else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=config.float16 or config.bfloat16)


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
    """

    def __init__(self, estimator: FlowEstimator, config: TrainConfig) -> None:
        super().__init__()
        self.estimator, self.config = estimator, config

    def forward(self, batch: FlowSample, draw: Draw) -> tuple[Tensor, SolverResult]:
        """Return the loss of a batch, a weighted mean of absolute errors in px, and the solver's account.

        Sparse fixed-point correction (paper section 3.3), and the Jacobian penalty where it has a weight.
        """
        with autocast(batch.flow.device, self.config):
            output, penalty = self._solve(batch.image1, batch.image2, draw)
        loss = correction_loss(output.flows, batch.flow, batch.valid, gamma=self.config.gamma) + penalty
        return loss, output.solve

    def _solve(self, image1: Tensor, image2: Tensor, draw: Draw) -> tuple[FlowOutput, Tensor | float]:
        """The estimator's output, and what the Jacobian at its fixed point adds to the loss."""
        generator = torch.Generator().manual_seed(draw.masks)
        both = self.estimator.encode(torch.cat([image1, image2]))
        problem = self.estimator.problem(both[: len(image1)], both[len(image1) :], generator=generator)
        output = problem.solve(stop=draw.stop)
        weight = self.config.jacobian_weight
        return output, weight * jacobian_penalty(problem.f, output.solve.z, generator) if weight else 0.0


def origin(config: TrainConfig) -> dict[str, object]:
    """What is known of the weights that a run began with: their recipe, or the shipped model's name."""
    if not config.start_from:
        return {}
    path = Path(config.start_from)
    return checkpoints.read_recipe(path) if path.is_file() else {"name": config.start_from}
