"""Fixed-point reuse from scale to scale: a solve on enlarged images starts from the solution on smaller images.

The state has an eighth of the images' size, which blurs motion at edges and small motion altogether. On images made
twice as large it has a quarter. The coarse solve finds motion that is too large for the fine one.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from deqflow.model.estimator import FlowEstimator
from deqflow.model.geometry import Padding, pixel_grid, sample_bilinear
from deqflow.model.images import SMALLEST_SIDE, check_images
from deqflow.model.output import FlowOutput
from deqflow.model.state import FlowResidual, FlowState
from deqflow.solvers import Rule, Stop


@dataclass(frozen=True)
class ScaledOutput:
    """The flow, and how it was found.

    Attributes:
        flow: (B, 2, H, W), at the size of the given images, in their pixels.
        outputs: the estimator's output at each scale. Its flow is in pixels of the images at that scale, but the
            solver's residuals are in pixels of the given images.
        scale: the last scale.
    """

    flow: Tensor
    outputs: tuple[FlowOutput, ...]
    scale: float = 1.0

    @property
    def output(self) -> FlowOutput:
        """The last output, with its flow and its mixture (if there is one) at the size of the given images."""
        last, size = self.outputs[-1], list(self.flow.shape[-2:])
        mixtures = last.mixtures
        if self.scale != 1:
            mixtures = tuple(F.interpolate(mixture, size, mode="bilinear", align_corners=False) for mixture in mixtures)
        return dataclasses.replace(last, flow=self.flow, flows=(self.flow,), mixtures=mixtures, scale=self.scale)


def estimate_at_scales(
    estimator: FlowEstimator,
    image1: Tensor,
    image2: Tensor,
    scales: Sequence[float] = (1.0, 2.0),
    *,
    rule: Rule | None = None,
    stop: Stop | None = None,
) -> ScaledOutput:
    """Estimate the flow of resized images, one scale after another; each solve starts from the state of the last.

    Args:
        estimator: in evaluation mode. Gradients reach only the last solve.
        image1, image2: as the estimator takes them.
        scales: factors by which the images are resized, ascending. Time and memory grow with their squares.
        rule: solver; the model's own if not given.
        stop: budget and tolerance at each scale, a tolerance in pixels of the given images; the model's own if not
            given.

    Raises:
        TypeError, ValueError: as for the estimator; or ``scales`` are not ascending, or leave less than 16 px.
    """
    check_images(image1, image2, warn=False)  # the estimator does
    height, width = image1.shape[-2:]
    check_scales(scales, height, width)
    outputs: list[FlowOutput] = []
    for scale in scales:
        first, second = resize_images(image1, scale), resize_images(image2, scale)
        start = carry_to_scale(outputs[-1], first) if outputs else None
        here = stop_at_scale(stop or estimator.equilibrium.eval_stop, scale, estimator.stride)
        outputs.append(estimator(first, second, start=start, rule=rule, stop=here))
    return ScaledOutput(resize_flow(outputs[-1].flow, height, width), tuple(outputs), scales[-1])


def check_scales(scales: Sequence[float], height: int | None = None, width: int | None = None) -> None:
    """Raise unless scales ascend from above zero and leave images of this size, if given, large enough."""
    factors = list(scales) if isinstance(scales, Sequence) else []
    positive = all(isinstance(factor, Real) and 0 < factor < math.inf for factor in factors)
    if not factors or not positive or factors != sorted(set(factors)):
        raise ValueError(
            f"scales expects one or more positive factors in ascending order, such as 1 2, got {scales!r}."
        )
    if height and width and round(min(height, width) * scales[0]) < SMALLEST_SIDE:
        raise ValueError(
            f"scales expects at least {SMALLEST_SIDE} px a side at each scale, got {scales[0]} times {width}x{height} "
            "(width x height): begin with a larger one."
        )


def resize_images(images: Tensor, scale: float) -> Tensor:
    """(B, 3, H, W) -> (B, 3, round(scale H), round(scale W)), bilinear; half precision becomes single."""
    if scale == 1:
        return images
    size = [round(scale * side) for side in images.shape[-2:]]
    images = images if images.dtype == torch.float64 else images.float()
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=scale < 1)


def resize_flow(flow: Tensor, height: int, width: int) -> Tensor:
    """(B, 2, h, w) -> (B, 2, height, width), vectors in pixels of the new size."""
    if flow.shape[-2:] == (height, width):
        return flow
    factors = flow.new_tensor([width / flow.shape[-1], height / flow.shape[-2]]).view(1, 2, 1, 1)
    shrinks = height < flow.shape[-2]
    return factors * F.interpolate(flow, size=[height, width], mode="bilinear", align_corners=False, antialias=shrinks)


def carry_to_scale(output: FlowOutput, images: Tensor) -> FlowState:
    """The state of an output as a start for the same images, resized to ``images`` (B, 3, H, W).

    The state is sampled where each coarse pixel of the new images lies in the old ones. Its flow is scaled by the
    ratio of the images' sizes, not of their padded sizes. It is zero where the old state is not finite.
    """
    old, stride = output.state.pack().detach().float().nan_to_num(0.0, 0.0, 0.0), output.stride
    (height, width), (old_height, old_width) = images.shape[-2:], output.flow.shape[-2:]
    ratios = old.new_tensor([width / old_width, height / old_height]).view(1, 2, 1, 1)
    new = Padding(height, width, stride)
    corner, old_corner = (old.new_tensor([p.left, p.top]).view(1, 2, 1, 1) for p in (new, output.padding))
    centres = stride * (pixel_grid(-(-height // stride), -(-width // stride), device=old.device) + 0.5) - corner
    places = (centres / ratios + old_corner) / stride - 0.5  # in coarse pixels of the old images
    last = old.new_tensor([old.shape[-1] - 1, old.shape[-2] - 1]).view(1, 2, 1, 1)
    moved = sample_bilinear(old, places.clamp(torch.zeros_like(last), last).expand(len(old), -1, -1, -1))
    state = FlowState.unpack(moved)
    return FlowState(state.hidden, state.flow * ratios)


def stop_at_scale(stop: Stop, scale: float, stride: int) -> Stop:
    """The same stop for resized images: if its norm is the flow's, residuals are in pixels of the given images."""
    if scale == 1 or not (stop.norm is None or isinstance(stop.norm, FlowResidual)):
        return stop
    return dataclasses.replace(stop, norm=FlowResidual(stride, scale))
