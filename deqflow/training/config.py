"""The configuration of a training run."""

import math
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

import tyro

from deqflow.data.synthetic.scenes import HELD_OUT_SEED, SceneConfig
from deqflow.model.sizes import AttractionName

Stage = Literal["", "chairs", "things", "sintel", "kitti"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The configuration of a training run. The same configuration gives the same weights on the same machine.

    Attributes:
        size: size of the model, a key of the table in deqflow/model/sizes.py.
        update: the update operator; the size's own if empty.
        recurrent: train the recurrent counterpart (RAFT). Each of its updates is supervised and differentiated, so
            corrections and phantom_steps are ignored.
        start_from: checkpoint to begin with, a name or path for deqflow.load; random weights if empty.
        seed: seed of the weights, the data and the numbers of evaluations.
        steps, batch: number of optimiser steps, and pairs per step over all processes.
        accumulate: number of parts that a step's pairs are split into, one after the other, to save memory.
        lr, weight_decay, clip: settings of AdamW, whose rate follows a one-cycle schedule with linear ramps up to
            lr; clip is the largest gradient norm.
        cycle_momentum: lower AdamW's first beta while the rate rises; the published recipes keep it constant.
        evals: least and greatest number of evaluations. Each step draws a number between them, so that the model has
            to converge instead of counting evaluations.
        evals_spread: distribution of that number; "log" draws large ones rarely, so that a wide range costs little.
        attraction, attraction_strength: the term that pulls the flow before each evaluation, and its strength
            (deqflow/model/attraction.py).
        least_gate: smallest value of the update gate, which keeps any channel of the hidden state from being slow.
        corrections: number of states that are supervised, evenly spaced.
        corrections_from: share of the evaluations before the corrections begin; 0 spreads them over all.
        gradient: how each correction is differentiated: "reversible" and "unrolled" through all evaluations,
            "implicit" at the state itself, "phantom" through phantom_steps.
        other_starts: share of the samples whose solve does not begin at the model's own start but at a random state,
            the disturbed truth or another sample's flow (deqflow/training/starts.py).
        coarse_weight: weight of a loss on the state's coarse flow, added to the loss at full size.
        return_weight: weight of the share r of a disturbance of the final state that is left after 1 to 3 evaluations,
            as r / (1 + r), so that no sample outweighs the others wherever a disturbance may throw it.
        teacher_weight: weight of the difference from a teacher's flow, where the run has a teacher, as equilibrate
            does. The teacher makes as many updates as it was trained for.
        consistency_weight: weight of the distance between the final flow and one evaluation from each earlier state.
        loss: the loss at full size: the absolute error, or SEA-RAFT's mixture of two Laplace distributions, for which
            the model gets a head that predicts the error at each pixel.
        gamma: weight of a correction relative to the next.
        phantom_steps: number of evaluations that are differentiated at each correction; 1 is the one-step gradient.
        all_gradients: do not detach the flow inside the update.
        dropout: share of the channels of lookup and context that are hidden from the update; each solve has one mask.
        jacobian_weight: weight of the Jacobian penalty at the fixed point; 0 leaves it out.
        freeze_encoders: train only what comes after the encoders, whose weights must come from start_from. A step
            then costs little, so that solves can be long enough to train what the solver converges to.
        freeze_batch_norm: keep the running statistics of the start (published: in all stages but the first).
        bfloat16: automatic mixed precision. None takes it where the device is fast in it, and float32 where the device
            only emulates it.
        float16: automatic mixed precision in float16 instead, with a gradient scaler.
        compile: backend of torch.compile for encoders and update operator, such as inductor; none if empty.
        checkpoint_encoders: compute the encoders a second time in the backward pass instead of keeping activations.
        workers: number of processes that make pairs, for each process that trains.
        validate_every, validation_pairs: steps between validations, and the number of held-out procedural pairs.
        stage: published data to train on; procedural pairs if empty.
        data_root: folder with the published data sets, arranged as data/README.md describes.
        crop: height and width that published data are cropped to, in pixels.
        scenes: what the procedural pairs look like; the held-out pairs are always procedural.
    """

    size: str = "mini"
    update: Literal["", "raft", "raft-small", "gma", "sea"] = ""
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
    least_gate: float = 0.0
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
        if not (0 < self.lr < math.inf and self.clip > 0 and 0 <= self.weight_decay < math.inf):
            raise ValueError(
                "TrainConfig expects lr and clip above 0 and weight_decay of 0 or more, got "
                f"{self.lr}, {self.clip} and {self.weight_decay}."
            )
        if self.float16 and self.bfloat16:
            raise ValueError("TrainConfig expects bfloat16 or float16, got both.")
        if self.gradient != "phantom" and (self.recurrent or self.phantom_steps != 1):
            raise ValueError(
                f"TrainConfig expects phantom_steps=1 and an equilibrium model where gradient is {self.gradient!r}: "
                "neither phantom steps nor a recurrent model's unrolling go together with it."
            )

    def without_effect(self) -> list[str]:
        """The settings that differ from the defaults and have no effect beside the others, each with the reason."""
        reasons = {
            ("corrections", "corrections_from", "phantom_steps"): "on a recurrent model, whose updates all count"
            if self.recurrent
            else "",
            ("attraction_strength",): "with attraction none" if self.attraction == "none" else "",
            ("crop", "data_root"): "" if self.stage else "on procedural pairs, without a stage",
            ("scenes",): f"on the published data of stage {self.stage}" if self.stage else "",
        }
        default = TrainConfig()
        given = {entry.name for entry in fields(self) if getattr(self, entry.name) != getattr(default, entry.name)}
        return [
            f"{name} has no effect {why}." for names, why in reasons.items() for name in names if why and name in given
        ]
