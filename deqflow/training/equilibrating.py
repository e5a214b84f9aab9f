"""Turn a recurrent model into an equilibrium model by a short training of its update operator.

A recurrent model is trained for a fixed number of updates, beyond which its flow drifts. Here its encoders are kept as
they are, and the update operator is trained from mixed starts over a wide range of evaluations, with corrections late
in each solve. The targets are the exact flow and the model's own flow after the number of updates that it was trained
for.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from deqflow.data.datasets import FlowSample
from deqflow.data.metrics import mean_endpoint_error
from deqflow.equilibrium import Equilibrium
from deqflow.model.attraction import MeanSmoothing
from deqflow.model.budgets import flows_after
from deqflow.model.estimator import FlowEstimator
from deqflow.solvers import Picard, Stop
from deqflow.training.config import TrainConfig
from deqflow.training.logs import Progress
from deqflow.training.objective import make_gradient
from deqflow.training.recipes import SCENES
from deqflow.training.trainer import Trainer

EVALS = (12, 24, 96)
TOLERANCE = 0.05  # px, the tolerance of the equilibrium model that is made

RECIPE = TrainConfig(
    steps=600,
    batch=4,
    lr=1.5e-4,
    evals=(12, 64),
    evals_spread="log",
    corrections=2,
    corrections_from=0.5,
    phantom_steps=6,
    all_gradients=True,
    other_starts=0.3,
    teacher_weight=1.0,
    freeze_encoders=True,
    attraction="none",
    validate_every=100,
    validation_pairs=12,
    scenes=dataclasses.replace(SCENES, height=256, width=352, photometric=0.7),
)


class Pairs(Protocol):
    """Samples by index: a list, or a data set."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> FlowSample: ...


@dataclass(frozen=True)
class Convergence:
    """How a model converges on some pairs.

    Attributes:
        errors: mean end-point error in px, by number of evaluations.
        movement: RMS movement of the flow in the last of these evaluations, in px; the median over the pairs.
        reached: share of the pairs whose residual falls to ``TOLERANCE`` or below.
        evaluations: mean number of evaluations until then; a pair that does not get there counts with the greatest
            number measured.
    """

    errors: dict[int, float]
    movement: float
    reached: float
    evaluations: float

    def __str__(self) -> str:
        """These numbers in one line."""
        errors = ", ".join(f"{error:.3f} px after {k}" for k, error in self.errors.items())
        return (
            f"error {errors}; the last evaluation moves the flow by {self.movement:.2g} px; {self.reached:.0%} of the "
            f"pairs reach {TOLERANCE:g} px, after {self.evaluations:.1f} evaluations in the mean"
        )


def equilibrate(
    estimator: FlowEstimator,
    folder: str | Path,
    *,
    config: TrainConfig = RECIPE,
    device: str | torch.device = "cpu",
    smoothing: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> FlowEstimator:
    """Train a copy of a recurrent model into an equilibrium model. An interrupted run in the same folder is continued.

    Args:
        estimator: a recurrent model with its trained weights; it is not changed.
        folder: folder of the run (:class:`deqflow.training.Trainer`); its ``model.safetensors`` holds the model that
            is returned.
        config: the run's configuration; ``size``, ``recurrent`` and ``start_from`` are ignored, since the model is
            given.
        device: device to train on.
        smoothing: strength of a smoothness term on the coarse flow (:class:`deqflow.model.attraction.MeanSmoothing`);
            the model keeps its own if not given.
        on_progress: called with each log entry.

    Raises:
        ValueError: the model is not recurrent, or the folder holds a run of another configuration.
    """
    student = as_equilibrium(estimator, config, smoothing=smoothing)
    teacher = copy.deepcopy(estimator).eval().requires_grad_(False)
    trainer = Trainer(config, folder, device=device, estimator=student, teacher=teacher)
    return trainer.run(on_progress)


def as_equilibrium(
    estimator: FlowEstimator, config: TrainConfig = RECIPE, *, smoothing: float | None = None
) -> FlowEstimator:
    """A copy of a recurrent model with the same weights that is solved and differentiated as an equilibrium model.

    The hidden state still starts from the context.

    Raises:
        ValueError: the model is not recurrent.
    """
    if not estimator.recurrent:
        raise ValueError("equilibrate expects a recurrent model such as RAFT's, got an equilibrium model.")
    made = copy.deepcopy(estimator)
    most, least = config.evals[1], config.evals[0]
    made.equilibrium = Equilibrium(
        rule=Picard(),
        stop=Stop(max_evals=most, atol=0.0),
        gradient=make_gradient(config),
        corrections=min(config.corrections, least),
        corrections_from=config.corrections_from,
        eval_stop=Stop(max_evals=60, atol=TOLERANCE),
    )
    made.all_gradients = config.all_gradients
    if smoothing is not None:
        made.attraction = MeanSmoothing(smoothing) if smoothing else None
    if made.config is not None:
        made.config = dataclasses.replace(
            made.config,
            all_gradients=config.all_gradients,
            max_evals=60,
            atol=TOLERANCE,
        )
        if smoothing is not None:
            kind = {"attraction": "mean" if smoothing else "none", "attraction_strength": smoothing}
            made.config = dataclasses.replace(made.config, **kind)
    return made


@torch.no_grad()
def measure_convergence(estimator: FlowEstimator, pairs: Pairs, evals: Sequence[int] = EVALS) -> Convergence:
    """Measure the errors after given numbers of evaluations, without early stop, and how soon solves converge.

    Args:
        estimator: the model, in evaluation mode.
        pairs: pairs with known flow.
        evals: numbers of evaluations.
    """
    errors, moves, spent = dict.fromkeys(evals, 0.0), [], []
    for i in range(len(pairs)):
        pair = pairs[i]
        image1, image2, truth, valid = (tensor[None] for tensor in pair[:4])
        flows, solve = flows_after(estimator, image1, image2, evals)
        for k in evals:
            errors[k] += float(mean_endpoint_error(flows[k], truth, valid)) / len(pairs)
        moves.append(float(solve.kept[max(evals)].residual))
        below = (solve.trace[:, 0] <= TOLERANCE).nonzero()
        spent.append(int(below[0]) + 1 if len(below) else None)
    reached = [number for number in spent if number is not None]
    return Convergence(
        errors=errors,
        movement=sorted(moves)[len(moves) // 2],
        reached=len(reached) / len(pairs),
        evaluations=sum(number if number is not None else max(evals) for number in spent) / len(pairs),
    )
