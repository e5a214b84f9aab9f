"""Training with sparse fixed-point correction and inexact gradients, on one device or many (paper section 3)."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from deqflow.training.config import HELD_OUT_SEED, TrainConfig
    from deqflow.training.devices import Processes
    from deqflow.training.equilibrating import Convergence, as_equilibrium, equilibrate, measure_convergence
    from deqflow.training.files import published_stage, read_config
    from deqflow.training.logs import Progress, say
    from deqflow.training.objective import make_estimator
    from deqflow.training.stages import PUBLISHED
    from deqflow.training.trainer import Trainer
    from deqflow.training.validation import Validation, validation_errors

__all__ = [
    "HELD_OUT_SEED",
    "PUBLISHED",
    "Convergence",
    "Processes",
    "Progress",
    "TrainConfig",
    "Trainer",
    "Validation",
    "as_equilibrium",
    "equilibrate",
    "make_estimator",
    "measure_convergence",
    "published_stage",
    "read_config",
    "say",
    "validation_errors",
]
# Each name is imported when it is used, so that the command line's help is fast.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["HELD_OUT_SEED", "TrainConfig"],
        "devices": ["Processes"],
        "equilibrating": ["Convergence", "as_equilibrium", "equilibrate", "measure_convergence"],
        "files": ["published_stage", "read_config"],
        "logs": ["Progress", "say"],
        "objective": ["make_estimator"],
        "stages": ["PUBLISHED"],
        "trainer": ["Trainer"],
        "validation": ["Validation", "validation_errors"],
    },
)
