"""What the solve of the next pair starts from (policies of reuse), and when that start is rejected (cuts)."""

import statistics
from collections import deque
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from deqflow.model.geometry import fill_holes, project_forward, warp
from deqflow.model.state import FlowState

Policy = Literal["reset", "reuse", "warp", "flow"]
ARRIVED = 0.25  # share of a pixel's weight; weaker arrivals come from a neighbour's border


def carry(state: FlowState, policy: Policy, own: FlowState | None = None) -> FlowState | None:
    """The start for the next pair from the state of the last one.

    A state belongs to the pixels of its pair's first frame. The next pair begins with the second frame, in which each
    pixel has moved to the end of its flow vector, so its values are moved there.

    Args:
        state: hidden (B, Ch, h, w) and flow (B, 2, h, w).
        policy: "reset", the model's own start; "reuse", the flow moved forward and the hidden state as it was (the
            paper's section 3.4); "warp", both moved forward; "flow", the flow moved forward and the hidden state of
            the model's own start (RAFT's warm start). Holes get the values of the nearest pixel.
        own: the model's own start for the next pair; only "flow" needs it.

    Returns:
        The start, or None for the model's own.

    Raises:
        ValueError: the policy is "flow" and ``own`` is not given.
    """
    if policy == "reset":
        return None
    if policy == "flow" and own is None:
        raise ValueError('The policy "flow" expects own, the model\'s own start for the next pair; got None.')
    moved, weight = project_forward(state.pack() if policy == "warp" else state.flow, state.flow)
    moved = fill_holes(moved, weight > ARRIVED)
    if policy == "warp":
        return FlowState.unpack(moved)
    return FlowState(state.hidden if own is None or policy == "reuse" else own.hidden, moved)


def photometric_error(image1: Tensor, image2: Tensor, flow: Tensor) -> float:
    """Mean difference of brightness along a flow, in grey levels, over the pixels that stay in the frame.

    The images are compared at the size of the flow.

    Args:
        image1, image2: (B, 3, s h, s w), -1..1, as :class:`deqflow.model.estimator.Features` holds them.
        flow: (B, 2, h, w) in coarse pixels.
    """
    stride = image1.shape[-1] // flow.shape[-1]
    coarse1, coarse2 = (F.avg_pool2d(127.5 * image.to(flow.dtype), stride) for image in (image1, image2))
    inside = warp(torch.ones_like(coarse2[:, :1]), flow) > 0.99
    if not bool(inside.any()):
        inside = torch.ones_like(inside)
    difference = (warp(coarse2, flow) - coarse1).abs().mean(1, keepdim=True)
    return float(difference[inside].mean())


@dataclass(frozen=True, kw_only=True)
class CutRule:
    """When a jump of a value counts as a cut: it exceeds the usual value by both a factor and a margin.

    The usual value is the median of the last ``memory`` pairs since the last cut.

    Attributes:
        photometric_times, photometric_above: factor and margin for the brightness error of the carried flow, in grey
            levels.
        residual_times, residual_above: factor and margin for the residual of the start, in full-size pixels.
        memory: number of pairs that are remembered.

    Raises:
        ValueError: a factor is below 1, a margin negative, or the memory less than 1.
    """

    photometric_times: float = 2.5
    photometric_above: float = 8.0
    residual_times: float = 5.0
    residual_above: float = 4.0
    memory: int = 7

    def __post_init__(self) -> None:
        if min(self.photometric_times, self.residual_times) < 1:
            raise ValueError(f"CutRule expects factors of at least 1, got {self}.")
        if min(self.photometric_above, self.residual_above) < 0 or self.memory < 1:
            raise ValueError(f"CutRule expects margins of 0 or more and a memory of at least 1, got {self}.")


DEFAULT_CUT = CutRule()


class CutDetector:
    """Remembers the values since the last cut, and decides whether a new one jumps."""

    def __init__(self, rule: CutRule) -> None:
        self.rule = rule
        self.photometric: deque[float] = deque(maxlen=rule.memory)
        self.residuals: deque[float] = deque(maxlen=rule.memory)

    def is_new_scene(self, photometric: float) -> bool:
        """Whether the brightness error of the carried flow, in grey levels, is so large that the pair spans a cut."""
        rule = self.rule
        return _jumps(photometric, self.photometric, rule.photometric_times, rule.photometric_above)

    def is_lost(self, residual: float) -> bool:
        """Whether the residual of a carried start, in full-size pixels, is so large that the start is rejected."""
        return _jumps(residual, self.residuals, self.rule.residual_times, self.rule.residual_above)

    def remember(self, photometric: float, residual: float | None) -> None:
        """Remember a pair: the brightness error of its solution, and the residual of its start if it was carried."""
        self.photometric.append(photometric)
        if residual is not None:
            self.residuals.append(residual)

    def forget(self) -> None:
        """Forget all values, as after a cut."""
        self.photometric.clear()
        self.residuals.clear()


def _jumps(value: float, before: deque[float], times: float, above: float) -> bool:
    if not before:
        return False
    usual = statistics.median(before)
    return value > times * usual and value > usual + above
