"""Training with sparse fixed-point correction and inexact gradients, on one device or many (paper section 3)."""

from .config import HELD_OUT_SEED as HELD_OUT_SEED
from .config import TrainConfig as TrainConfig
from .devices import Processes as Processes
from .equilibrating import Convergence as Convergence
from .equilibrating import as_equilibrium as as_equilibrium
from .equilibrating import equilibrate as equilibrate
from .equilibrating import measure_convergence as measure_convergence
from .files import published_stage as published_stage
from .files import read_config as read_config
from .logs import Progress as Progress
from .logs import say as say
from .objective import make_estimator as make_estimator
from .stages import PUBLISHED as PUBLISHED
from .trainer import Trainer as Trainer
from .validation import Validation as Validation
