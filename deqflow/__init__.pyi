"""The names of the package, for :mod:`lazy_loader` and for type checkers."""

from . import solvers
from .data.colors import flow_to_rgb
from .data.flow_files import read_flow, read_image, write_flow, write_image
from .model.build import build
from .model.checkpoints import CheckpointError, load, save
from .model.estimator import FlowEstimator
from .model.output import FlowOutput
from .model.published import load_published
from .model.scales import ScaledOutput, estimate_at_scales
from .model.state import FlowState
from .video.pair import flow

__version__: str
__all__ = [
    "CheckpointError",
    "FlowEstimator",
    "FlowOutput",
    "FlowState",
    "ScaledOutput",
    "build",
    "estimate_at_scales",
    "flow",
    "flow_to_rgb",
    "load",
    "load_published",
    "read_flow",
    "read_image",
    "save",
    "solvers",
    "write_flow",
    "write_image",
]
