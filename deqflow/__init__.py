"""Deep equilibrium optical flow: solve, differentiate, train and explore it.

The doors: :func:`flow` of two images, :func:`build` a model, :func:`load` a shipped or saved one,
:func:`load_published` weights of RAFT and DEQ-Flow, :func:`read_image` images of your own. Solvers are in
:mod:`deqflow.solvers`. Each is imported when it is first used, so that the command line's help is fast.

>>> output = deqflow.flow("a.png", "b.png")
>>> output.flow  # (1, 2, H, W), in pixels
>>> output.save("flow.flo")
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from deqflow import solvers
    from deqflow.data.colors import flow_to_rgb
    from deqflow.data.flow_files import read_flow, read_image, write_flow, write_image
    from deqflow.model.build import build
    from deqflow.model.checkpoints import load, load_published, save
    from deqflow.model.estimator import FlowEstimator
    from deqflow.model.output import FlowOutput
    from deqflow.model.scales import ScaledOutput, estimate_at_scales
    from deqflow.model.state import FlowState
    from deqflow.model.tensor_files import CheckpointError
    from deqflow.video.pair import flow

__version__ = version("deqflow")
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
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submodules=["solvers"],
    submod_attrs={
        "data.colors": ["flow_to_rgb"],
        "data.flow_files": ["read_flow", "read_image", "write_flow", "write_image"],
        "model.build": ["build"],
        "model.checkpoints": ["load", "load_published", "save"],
        "model.estimator": ["FlowEstimator"],
        "model.output": ["FlowOutput"],
        "model.scales": ["ScaledOutput", "estimate_at_scales"],
        "model.state": ["FlowState"],
        "model.tensor_files": ["CheckpointError"],
        "video.pair": ["flow"],
    },
)
