"""The flow of two images in one call, :func:`deqflow.flow`; it also reads image files, which the model does not."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from deqflow.data.images import ImageLike, as_images
from deqflow.model.checkpoints import load
from deqflow.model.estimator import FlowEstimator
from deqflow.model.output import FlowOutput
from deqflow.model.precision import choose_device
from deqflow.model.scales import estimate_at_scales
from deqflow.solvers import Rule


@torch.no_grad()
def flow(
    image1: ImageLike,
    image2: ImageLike,
    *,
    model: str | Path | FlowEstimator = "deqflow-small",
    scales: Sequence[float] = (1.0,),
    device: str | torch.device = "auto",
    max_evals: int | None = None,
    atol: float | None = None,
    rule: Rule | None = None,
) -> FlowOutput:
    """Estimate the flow from one image to another, without gradients.

    Args:
        image1, image2: paths, PIL images, NumPy arrays or tensors, one image or a batch, of any layout that
            :func:`deqflow.data.images.as_images` knows.
        model: name of a shipped model, path of a checkpoint, or an estimator. One in training mode is used in
            evaluation mode, so that its running statistics do not change; it is left in training mode.
        scales: factors by which the images are resized, ascending. Each solve starts from the solution of the last
            one, see :func:`deqflow.estimate_at_scales`.
        device: device to estimate on; "auto" takes a GPU where there is one. An estimator given as ``model`` is not
            moved: its own device, or "auto".
        max_evals, atol: budget in evaluations, and tolerance in pixels; the model's own if not given.
        rule: the solver; the model's own if not given.

    Returns:
        The output at the last scale; its ``flow``, (B, 2, H, W), is in pixels of the given images.

    Raises:
        TypeError, ValueError, FileNotFoundError: the images, the scales or the model cannot be used; or the device is
            not that of the estimator.
    """
    images = (as_images(image1, "image1"), as_images(image2, "image2"))
    estimator = model if isinstance(model, FlowEstimator) else load(model).to(choose_device(device))
    there = next(estimator.parameters()).device
    if str(device) != "auto" and choose_device(device) not in (there, torch.device(there.type)):
        raise ValueError(
            f"device expects that of the given estimator, {there}, got {device}: move the estimator with "
            "estimator.to(device), or leave device out."
        )
    stop = estimator.equilibrium.eval_stop.with_changes(max_evals=max_evals, atol=atol)
    with in_evaluation_mode(estimator):
        first, second = (image.to(there) for image in images)
        return estimate_at_scales(estimator, first, second, scales, rule=rule, stop=stop).output


@contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module and all its parts into evaluation mode; at the end each part has the mode that it had before."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
