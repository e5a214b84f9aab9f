"""Forward-backward consistency: following one flow and then the flow back should lead to the same pixel."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deqflow.data.synthetic import out_of_frame
from deqflow.model.estimator import FlowEstimator
from deqflow.model.geometry import pixel_grid, sample_bilinear
from deqflow.model.images import check_images, not_finite
from deqflow.model.output import FlowOutput
from deqflow.solvers import Rule, Stop


@dataclass(frozen=True)
class Consistency:
    """The comparison of a flow with the flow of the other direction.

    Attributes:
        error: length of F(x) + B(x + F(x)), (B, H, W), in pixels. Where x + F(x) is out of frame, B is taken at the
            nearest pixel of the border.
        occluded: where the criterion fails, or the flow leaves the frame, or is not finite, (B, H, W) booleans.
        outside: where x + F(x) is out of frame, or not finite, (B, H, W) booleans.
    """

    error: Tensor
    occluded: Tensor
    outside: Tensor


def forward_backward(
    forward: Tensor, backward: Tensor, *, relative: float = 0.01, absolute: float = 0.5
) -> Consistency:
    """Compare a flow with the flow of the other direction.

    A pixel counts as occluded unless ``|F + B(x + F)|^2 < relative (|F|^2 + |B(x + F)|^2) + absolute``
    (Sundaram, Brox, Keutzer 2010, Dense Point Trajectories by GPU-Accelerated Large Displacement Optical Flow, section
    3.2).

    Args:
        forward, backward: (B, 2, H, W), from the first to the second image and back, in pixels.
        relative, absolute: numbers of the criterion, without unit and in px^2; the defaults are the paper's.

    Raises:
        ValueError: the shapes differ or are not those of a flow, or a number is negative.
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
    """Sample values (B, C, H, W) at the end of each vector of a flow (B, 2, H, W).

    Returns:
        The samples, (B, C, H, W), and where the end is out of frame or not finite, (B, H, W) booleans. There, the
        sample is that of the nearest pixel of the border.
    """
    height, width = flow.shape[-2:]
    ends = pixel_grid(height, width, device=flow.device).to(flow) + flow
    last = ends.new_tensor([width - 1, height - 1]).view(1, 2, 1, 1)
    within = torch.minimum(ends.nan_to_num().clamp(min=0), last)
    return sample_bilinear(values, within), out_of_frame(flow) | ~torch.isfinite(flow).all(1)


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
