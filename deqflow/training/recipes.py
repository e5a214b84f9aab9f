"""The training of the shipped models, stage by stage, so that anyone can reproduce it."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deqflow.data.synthetic import RICH_SCENES
from deqflow.model.checkpoints import load, read_metadata, save
from deqflow.training import Progress, TrainConfig, Trainer

# All kinds of content, as in RICH_SCENES. Half of the scenes have little motion, and a few have none.
SCENES = replace(RICH_SCENES, motion_scales=(0.0, 0.05, 0.15, 0.4, 0.4, 1.0, 1.0, 1.0, 1.6))
_CLEAR = replace(SCENES, photometric=0.7)

_COMMON = TrainConfig(workers=14, bfloat16=True, attraction="none", validate_every=400, validation_pairs=12)
_CONVERGING = replace(_COMMON, evals_spread="log", all_gradients=True, scenes=_CLEAR)
_ATTRACTING = replace(
    _CONVERGING,
    lr=3e-4,
    corrections=2,
    corrections_from=0.5,
    phantom_steps=6,
    other_starts=0.3,
    freeze_encoders=True,
    workers=0,
    attraction="mean",
)
_LARGE = replace(
    _ATTRACTING,
    batch=4,
    evals=(12, 48),
    least_gate=0.1,
    scenes=replace(_CLEAR, height=256, width=352, largest=200.0, tail=0.2),
)

# Stage 1 learns to match, with one-step gradients. Stage 2, on larger and clearer images, draws the number of
# evaluations from a wide range and differentiates two of them, flow included, so that the model converges instead of
# counting evaluations. Stage 3, with frozen encoders, makes more evaluations and differentiates eight of them: it
# trains the state in which the solver ends, whose slow directions a gradient through two evaluations hardly sees.
# Stage 4 adds the smoothness term, which makes that state unique, and trains it from mixed starts, with corrections
# only in the second half of the evaluations. Stage 5 goes on in larger images with displacements of up to 200 px, with
# a stronger term and a least gate, so that disturbances fade sooner; stage 6 trains the way back from them.
_EQUILIBRIUM = (
    replace(_COMMON, steps=2000, batch=48, lr=1e-3, evals=(6, 18), seed=10, scenes=SCENES),
    replace(
        _CONVERGING,
        steps=1800,
        batch=40,
        lr=6e-4,
        evals=(8, 64),
        phantom_steps=2,
        seed=11,
        scenes=replace(_CLEAR, height=288, width=384),
    ),
    replace(
        _CONVERGING,
        steps=480,
        batch=6,
        lr=2e-4,
        evals=(24, 96),
        corrections=2,
        phantom_steps=8,
        freeze_encoders=True,
        seed=12,
        workers=1,
        validate_every=120,
    ),
    replace(_ATTRACTING, steps=600, batch=6, evals=(12, 64), seed=13, validate_every=100),
    replace(_LARGE, steps=1000, seed=15, attraction_strength=0.5, validate_every=200),
    replace(_LARGE, steps=300, lr=1.5e-4, seed=16, attraction_strength=0.7, return_weight=0.6, validate_every=100),
)


def _twin(stage: TrainConfig) -> TrainConfig:
    """The same stage for the recurrent twin: 12 unrolled updates, all of them supervised."""
    return replace(
        stage,
        recurrent=True,
        evals=(12, 12),
        evals_spread="uniform",
        phantom_steps=1,
        all_gradients=False,
        other_starts=0.0,
        corrections_from=0.0,
    )


RECIPES: dict[str, tuple[TrainConfig, ...]] = {
    "deqflow-small": _EQUILIBRIUM,
    "raft-small-twin": tuple(_twin(stage) for stage in _EQUILIBRIUM),
}

# Set after training; no weight changes.
SETTINGS: dict[str, dict[str, float]] = {
    "deqflow-small": {"max_evals": 60, "atol": 0.005},  # the tolerance: make bench, part "default stop"
    "raft-small-twin": {},
}


def reproduce(
    stages: Sequence[TrainConfig],
    folder: str | Path,
    *,
    settings: Mapping[str, float] | None = None,
    device: str = "auto",
    on_progress: Callable[[Progress], None] | None = None,
) -> Path:
    """Train the stages in order, each from the weights of the one before, and return the path of the last checkpoint.

    A stage in bfloat16 runs in float32 where the device only emulates bfloat16.

    Args:
        stages: the stages in order; their ``start_from`` is filled in.
        folder: gets a folder for each stage. Finished stages are kept, and an interrupted one is continued.
        settings: fields of the model's configuration that are set after training, in a further checkpoint.
        device: device to train on; "auto" takes a GPU where there is one.
        on_progress: called with each log entry.

    Raises:
        ValueError: there are no stages, or the folder holds a run of another configuration.
    """
    if not stages:
        raise ValueError("reproduce expects at least one stage, got none.")
    before = ""
    for number, stage in enumerate(stages, 1):
        place = Path(folder) / f"stage-{number}"
        finished = place / "model.safetensors"
        if not finished.exists():
            workers = min(stage.workers, os.cpu_count() or 1)
            bfloat16 = None if stage.bfloat16 else stage.bfloat16  # None: only where the device is fast in it
            run = replace(stage, start_from=before, workers=workers, bfloat16=bfloat16)
            Trainer(run, place, device=device).run(on_progress)
        before = str(finished)
    return configure(before, Path(folder) / "model.safetensors", settings) if settings else Path(before)


def configure(checkpoint: str | Path, out: Path, settings: Mapping[str, Any]) -> Path:
    """Write a checkpoint again with other values of some fields of its :class:`EstimatorConfig`; return ``out``."""
    estimator, (config, recipe) = load(checkpoint), read_metadata(checkpoint)
    estimator.config = replace(config, **settings)
    return save(estimator, out, recipe=recipe)
