"""Deep equilibrium optical flow: solve, differentiate, train and explore it.

The doors: :func:`build` a model, :func:`load` a shipped or saved one, :func:`load_published` weights of RAFT and
DEQ-Flow, :func:`read_image` pictures of your own. Solvers are in :mod:`deqflow.solvers`.

>>> estimator = deqflow.load("deqflow-small")
>>> output = estimator(deqflow.read_image("a.png"), deqflow.read_image("b.png"))
>>> output.flow  # (1, 2, H, W), in pixels
"""

from importlib.metadata import version

from deqflow import solvers
from deqflow.data.flow_files import read_flow, read_image, write_flow, write_image
from deqflow.model.build import build
from deqflow.model.checkpoints import CheckpointError, load, save
from deqflow.model.estimator import FlowEstimator, FlowOutput, FlowState
from deqflow.model.published import load_published
from deqflow.model.scales import ScaledOutput, estimate_at_scales

__version__ = version("deqflow")
__all__ = [
    "CheckpointError",
    "FlowEstimator",
    "FlowOutput",
    "FlowState",
    "ScaledOutput",
    "build",
    "estimate_at_scales",
    "load",
    "load_published",
    "read_flow",
    "read_image",
    "save",
    "solvers",
    "write_flow",
    "write_image",
]
