"""How the shipped models were trained, stage by stage, so that anyone can do it again."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from deqflow.synthetic import SceneConfig
from deqflow.training import Progress, TrainConfig, Trainer

_FIRST_SCENES = SceneConfig(plain=0.0, struts=0.0)

# Stage 1 learns to match with one-step gradients; 2 and 3 draw the number of evaluations from a wide range and
# differentiate two steps, flow included, so that the solver settles instead of counting steps. Stage 3 sees
# larger motion, more shapes, thin ones, and sharper textures. Stage 4 draws up to 80 evaluations, so that the error
# does not rise where training used to end.
RECIPES: dict[str, tuple[TrainConfig, ...]] = {
    "deqflow-small": (
        TrainConfig(steps=1400, lr=8e-4, evals=(6, 18), seed=0, scenes=_FIRST_SCENES),
        TrainConfig(
            steps=1800, lr=5e-4, evals=(8, 32), phantom_steps=2, all_gradients=True, seed=1, scenes=_FIRST_SCENES
        ),
        TrainConfig(
            steps=2200,
            lr=6e-4,
            evals=(8, 28),
            phantom_steps=2,
            all_gradients=True,
            seed=2,
            validate_every=200,
            scenes=SceneConfig(objects=(3, 12), texture_step=(0.5, 1.8), motion_scales=(0.1, 0.4, 1.0, 1.0, 1.0)),
        ),
        TrainConfig(
            steps=1600,
            lr=5e-4,
            evals=(8, 80),
            evals_spread="log",
            phantom_steps=2,
            all_gradients=True,
            seed=3,
            validate_every=100,
            validation_pairs=16,
            scenes=SceneConfig(objects=(3, 12), texture_step=(0.5, 1.8), motion_scales=(0.1, 0.3, 1.0, 1.0, 1.0)),
        ),
    )
}


def reproduce(
    stages: Sequence[TrainConfig],
    folder: str | Path,
    *,
    device: str = "auto",
    on_progress: Callable[[Progress], None] | None = None,
) -> Path:
    """Train stage after stage, each from the weights of the one before, and return the last one's checkpoint.

    Args:
        stages: in order; ``start_from`` is filled in.
        folder: gets a folder for each stage. Finished stages are kept, an interrupted one goes on.
        device: to train on; "auto" takes a GPU where there is one.
        on_progress: sees each log entry.

    Raises:
        ValueError: there is no stage, or the folder holds a run of another configuration.
    """
    if not stages:
        raise ValueError("reproduce expects at least one stage, got none.")
    before = ""
    for number, stage in enumerate(stages, 1):
        place = Path(folder) / f"stage-{number}"
        finished = place / "model.safetensors"
        if not finished.exists():
            Trainer(replace(stage, start_from=before), place, device=device).run(on_progress)
        before = str(finished)
    return Path(before)
