"""Training with sparse fixed-point correction and inexact gradients, on one device or many (paper section 3)."""

from .config import HELD_OUT_SEED, TrainConfig
from .devices import Processes
from .equilibrating import Convergence, as_equilibrium, equilibrate, measure_convergence
from .files import published_stage, read_config
from .logs import Progress, say
from .objective import make_estimator
from .stages import PUBLISHED
from .trainer import Trainer
from .validation import Validation, validation_errors

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
