"""Forward-backward consistency: there along one flow and back along the other should lead to where one was."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deqflow.model.estimator import FlowEstimator
from deqflow.model.geometry import pixel_grid, sample_bilinear
from deqflow.model.images import check_images, not_finite
from deqflow.model.output import FlowOutput
from deqflow.solvers import Rule, Stop


@dataclass(frozen=True)
class Consistency:
    """What two flows say of each other.

    Attributes:
        error: length of F(x) + B(x + F(x)), (B, H, W), in pixels. Where x + F(x) is out of frame, B is taken at the
            nearest pixel of the border.
        occluded: where the criterion fails, or the flow leaves the frame, or is not finite, (B, H, W) booleans.
        outside: where x + F(x) is out of frame, (B, H, W) booleans.
    """

    error: Tensor
    occluded: Tensor
    outside: Tensor


def forward_backward(
    forward: Tensor, backward: Tensor, *, relative: float = 0.01, absolute: float = 0.5
) -> Consistency:
    """Compare a flow with the flow of the other direction.

    A pixel is held to be occluded unless ``|F + B(x + F)|^2 < relative (|F|^2 + |B(x + F)|^2) + absolute``
    (Sundaram, Brox, Keutzer 2010, Dense Point Trajectories by GPU-Accelerated Large Displacement Optical Flow, section
    3.2).

    Args:
        forward, backward: (B, 2, H, W), from the first to the second image and back, in pixels.
        relative, absolute: of the criterion, no unit and px^2, with the paper's values.

    Raises:
        ValueError: shapes differ or are no flow's, or a number is negative.
    """
    if forward.dim() != 4 or forward.shape[1] != 2 or forward.shape != backward.shape:
        raise ValueError(
            "forward_backward expects two flows of one shape (B, 2, H, W), got "
            f"{tuple(forward.shape)} and {tuple(backward.shape)}."
        )
    if not (relative >= 0 and absolute >= 0):
        raise ValueError(f"forward_backward expects numbers of 0 or more, got {relative!r} and {absolute!r}.")
    back, outside = fetch(backward, forward)
    squared = (forward + back).square().sum(1)
    tolerance = relative * (forward.square().sum(1) + back.square().sum(1)) + absolute
    return Consistency(squared.sqrt(), ~(squared < tolerance) | outside, outside)


def fetch(values: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Values (B, C, H, W) at the end of each vector of a flow (B, 2, H, W), and where that is out of frame, (B, H, W).

    Out of frame, and where the flow is not finite, the nearest pixel of the border stands in.
    """
    height, width = flow.shape[-2:]
    ends = pixel_grid(height, width, device=flow.device).to(flow) + flow
    last = ends.new_tensor([width - 1, height - 1]).view(1, 2, 1, 1)
    kept = torch.minimum(ends.nan_to_num().clamp(min=0), last)
    # Half a pixel beyond the last centre is still inside, as for an image's own area.
    inside = ((ends >= -0.5) & (ends <= last + 0.5)).all(1)
    return sample_bilinear(values, kept), ~inside


def estimate_both_ways(
    estimator: FlowEstimator, image1: Tensor, image2: Tensor, *, rule: Rule | None = None, stop: Stop | None = None
) -> tuple[FlowOutput, FlowOutput]:
    """Estimate the flow from ``image1`` to ``image2`` and the flow back, each as ``estimator(...)`` does.

    Each image is encoded once.
    """
    check_images(image1, image2)
    if estimator.training or bool(not_finite(image1, image2).any()):
        return estimator(image1, image2, rule=rule, stop=stop), estimator(image2, image1, rule=rule, stop=stop)
    with torch.set_grad_enabled(torch.is_grad_enabled() and (image1.requires_grad or image2.requires_grad)):
        features1, features2 = estimator.encode(image1), estimator.encode(image2)
        there, back = ((features1, features2), (features2, features1))
        forward, backward = (estimator.problem(*pair).solve(rule=rule, stop=stop) for pair in (there, back))
    return forward, backward
