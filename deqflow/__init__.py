"""Deep equilibrium optical flow: solve, differentiate, train and explore it.

The doors: :func:`flow` of two images, :func:`build` a model, :func:`load` a shipped or saved one,
:func:`load_published` weights of RAFT and DEQ-Flow, :func:`read_image` images of your own. Solvers are in
:mod:`deqflow.solvers`.

>>> output = deqflow.flow("a.png", "b.png")
>>> output.flow  # (1, 2, H, W), in pixels
>>> output.save("flow.flo")
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from deqflow import solvers
from deqflow.data.colors import flow_to_rgb
from deqflow.data.flow_files import read_flow, read_image, write_flow, write_image
from deqflow.data.images import ImageLike, as_images
from deqflow.model.build import build
from deqflow.model.checkpoints import load, load_published, save
from deqflow.model.estimator import FlowEstimator
from deqflow.model.output import FlowOutput
from deqflow.model.scales import ScaledOutput, estimate_at_scales
from deqflow.model.state import FlowState
from deqflow.model.tensor_files import CheckpointError

FlowOutput.write_flow, FlowOutput.draw_flow = staticmethod(write_flow), staticmethod(flow_to_rgb)

__version__ = version("deqflow")


def flow(
    image1: ImageLike,
    image2: ImageLike,
    *,
    model: str | Path | FlowEstimator = "deqflow-small",
    scales: Sequence[float] = (1.0,),
    device: str | torch.device = "auto",
    max_evals: int | None = None,
    atol: float | None = None,
    rule: solvers.Rule | None = None,
) -> FlowOutput:
    """Estimate the flow from one image to another; no graph is recorded.

    Args:
        image1, image2: paths, PIL images, NumPy arrays or tensors, one image or a batch, of any layout that
            :func:`deqflow.data.images.as_images` knows.
        model: name of a shipped model, path of a checkpoint, or an estimator.
        scales: factors by which the images are resized, ascending, see :func:`deqflow.estimate_at_scales`: each solve
            starts from the last one's.
        device: to estimate on; "auto" takes a GPU where there is one. An estimator given as ``model`` stays where it
            is.
        max_evals, atol: budget in evaluations, and tolerance in pixels; the model's own if not given.
        rule: solver; the model's own if not given.

    Returns:
        The output at the last scale; its ``flow``, (B, 2, H, W), is in pixels of the images given.

    Raises:
        TypeError, ValueError, FileNotFoundError: the images, the scales or the model cannot be used.
    """
    images = (as_images(image1, "image1"), as_images(image2, "image2"))
    if isinstance(model, FlowEstimator):
        estimator = model
    else:
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        estimator = load(model).to(auto if device == "auto" else device)
    where = next(estimator.parameters()).device
    first, second = (image.to(where) for image in images)
    stop = estimator.equilibrium.eval_stop
    stop = solvers.Stop(
        max_evals=stop.max_evals if max_evals is None else max_evals, atol=stop.atol if atol is None else atol
    )
    with torch.no_grad():
        return estimate_at_scales(estimator, first, second, scales, rule=rule, stop=stop).output


__all__ = [
    "CheckpointError",
    "FlowEstimator",
    "FlowOutput",
    "FlowState",
    "ScaledOutput",
    "build",
    "estimate_at_scales",
    "flow",
    "load",
    "load_published",
    "read_flow",
    "read_image",
    "save",
    "solvers",
    "write_flow",
    "write_image",
]
