"""Deep equilibrium optical flow: solve, differentiate, train and explore it."""

from . import solvers as solvers
from .data.colors import flow_to_rgb as flow_to_rgb
from .data.flow_files import read_flow as read_flow
from .data.flow_files import read_image as read_image
from .data.flow_files import write_flow as write_flow
from .data.flow_files import write_image as write_image
from .model.build import build as build
from .model.checkpoints import load as load
from .model.checkpoints import load_published as load_published
from .model.checkpoints import save as save
from .model.estimator import FlowEstimator as FlowEstimator
from .model.output import FlowOutput as FlowOutput
from .model.scales import ScaledOutput as ScaledOutput
from .model.scales import estimate_at_scales as estimate_at_scales
from .model.state import FlowState as FlowState
from .model.tensor_files import CheckpointError as CheckpointError
from .video.pair import flow as flow

__version__: str
