"""What a training run is made of."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from deqflow.data.synthetic.scenes import HELD_OUT_SEED, SceneConfig
from deqflow.model.sizes import AttractionName

Stage = Literal["", "chairs", "things", "sintel", "kitti"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run. The same configuration gives the same weights on the same machine.

    Attributes:
        size: of the model, such as mini, small or base.
        update: the update operator; the size's own if empty.
        recurrent: train the recurrent counterpart (RAFT): each evaluation supervised and differentiated, so that
            corrections and phantom_steps do not count.
        start_from: checkpoint to begin with, the name or path of a model; random weights if empty.
        seed: of weights, data and numbers of evaluations.
        steps, batch: optimiser steps, and pairs a step, over all processes.
        accumulate: parts that a step's pairs are taken in, one after the other, where memory is short.
        lr, weight_decay, clip: AdamW under a one-cycle schedule with linear ramps; largest gradient norm.
        cycle_momentum: AdamW's first beta falls while the rate rises; the published recipes leave it alone.
        evals: least and greatest number of evaluations; one is drawn each step, so that the model has to
            converge instead of counting steps.
        evals_spread: how that number is spread over its range; "log" draws large ones rarely, so that a wide range
            costs little.
        attraction, attraction_strength: what draws the flow back before each evaluation
            (deqflow/model/attraction.py).
        corrections: states supervised, spread evenly.
        corrections_from: share of the evaluations before the corrections begin; 0 spreads them over all.
        gradient: how each correction is differentiated; "reversible" and "unrolled" through all evaluations,
            "implicit" at the state itself, "phantom" through phantom_steps.
        other_starts: share of the samples whose solve starts elsewhere than the model does: from random states, the
            disturbed truth, another sample's flow (deqflow/training/starts.py).
        coarse_weight: of the loss on the state's own flow, beside that at full size.
        return_weight: of what is left of a disturbance at the end after 1 to 3 evaluations, as a ratio.
        teacher_weight: of the difference from a teacher's flow, after as many updates as it was trained for, where
            the run has a teacher, as equilibrate does.
        consistency_weight: of how far one evaluation from states on the way falls short of the end.
        loss: at full size, the absolute error, or SEA-RAFT's mixture of two Laplace distributions, for which the model
            gets a head that says at each pixel what error is expected.
        gamma: weight of a correction relative to the next.
        phantom_steps: differentiated steps at each correction; 1 is the one-step gradient.
        all_gradients: do not detach the flow inside the update.
        dropout: share of channels of lookup and context that are hidden from the update, one mask a solve.
        jacobian_weight: of the Jacobian penalty at the fixed point in the loss; 0 leaves it out.
        freeze_encoders: train what comes after the encoders alone, which must then come from start_from: a step
            costs little, and what the solver converges to can be trained for.
        freeze_batch_norm: keep the running statistics of the start (published: in all stages but the first).
        bfloat16: automatic mixed precision; None takes it where the device is fast in it, float32 where the device
            emulates it.
        float16: automatic mixed precision in float16 instead, with a gradient scaler.
        compile: backend of torch.compile for encoders and update operator, such as inductor; none if empty.
        checkpoint_encoders: compute the encoders a second time in the backward pass instead of keeping them.
        workers: processes that make pairs, for each process that trains.
        validate_every, validation_pairs: how often, and on how many held-out procedural pairs.
        stage: published data to train on; procedural pairs if empty.
        data_root: folder with the published data sets, laid out as data/README.md says.
        crop: height and width that published data are cut to, in pixels.
        scenes: what the procedural pairs look like, those that are held out at any rate.
    """

    size: str = "mini"
    update: Literal["", "raft", "raft-small", "gma"] = ""
    recurrent: bool = False
    start_from: Annotated[str, tyro.conf.arg(aliases=["--from"])] = ""
    seed: int = 0
    steps: int = 1500
    batch: int = 6
    accumulate: int = 1
    lr: float = 8e-4
    weight_decay: float = 1e-5
    clip: float = 1.0
    cycle_momentum: bool = True
    evals: tuple[int, int] = (6, 18)
    evals_spread: Literal["uniform", "log"] = "uniform"
    attraction: AttractionName = "mean"
    attraction_strength: float = 0.3
    corrections: int = 3
    corrections_from: float = 0.0
    gradient: Literal["phantom", "reversible", "implicit", "unrolled"] = "phantom"
    other_starts: float = 0.0
    coarse_weight: float = 0.0
    return_weight: float = 0.0
    teacher_weight: float = 0.0
    consistency_weight: float = 0.0
    loss: Literal["absolute", "mixture"] = "absolute"
    gamma: float = 0.8
    phantom_steps: int = 1
    all_gradients: bool = False
    dropout: float = 0.0
    jacobian_weight: float = 0.0
    freeze_encoders: bool = False
    freeze_batch_norm: bool = False
    bfloat16: bool | None = None
    float16: bool = False
    compile: str = ""
    checkpoint_encoders: bool = False
    workers: int = 1
    validate_every: int = 250
    validation_pairs: int = 24
    stage: Stage = ""
    data_root: str = "data"
    crop: tuple[int, int] = (368, 496)
    scenes: SceneConfig = field(default_factory=SceneConfig)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"TrainConfig expects at least 1 step and 1 pair, got {self.steps} and {self.batch}.")
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise ValueError(
                f"TrainConfig expects accumulate of at least 1 that divides batch={self.batch}, got {self.accumulate}."
            )
        if self.validate_every < 1 or self.validation_pairs < 1:
            raise ValueError(
                f"TrainConfig expects validate_every and validation_pairs of at least 1, got {self.validate_every} "
                f"and {self.validation_pairs}."
            )
        if self.seed < 0 or self.seed == HELD_OUT_SEED:
            raise ValueError(
                f"TrainConfig expects a seed of 0 or more other than {HELD_OUT_SEED}, which makes the held-out pairs, "
                f"got {self.seed}."
            )
        if not self.corrections <= self.evals[0] <= self.evals[1]:
            raise ValueError(
                f"TrainConfig expects evals as (least, greatest), the least no smaller than corrections="
                f"{self.corrections}, got {self.evals}."
            )
        if self.evals_spread not in ("uniform", "log"):
            raise ValueError(f"TrainConfig expects evals_spread as uniform or log, got {self.evals_spread!r}.")
        for name in ("jacobian_weight", "coarse_weight", "return_weight", "teacher_weight", "consistency_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"TrainConfig expects a {name} of 0 or more, got {getattr(self, name)}.")
        if not 0 <= self.other_starts <= 1 or not 0 <= self.corrections_from < 1:
            raise ValueError(
                "TrainConfig expects other_starts as a share from 0 to 1 and corrections_from as one below 1, got "
                f"{self.other_starts} and {self.corrections_from}."
            )
        if self.float16 and self.bfloat16:
            raise ValueError("TrainConfig expects bfloat16 or float16, got both.")
        if self.gradient != "phantom" and (self.recurrent or self.phantom_steps != 1):
            raise ValueError(
                f"TrainConfig expects phantom_steps=1 and an equilibrium model where gradient is {self.gradient!r}: "
                "neither phantom steps nor a recurrent model's unrolling go together with it."
            )
