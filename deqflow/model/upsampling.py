"""From the state to the flow at full size (RAFT, section 3.3)."""

from typing import Protocol

from torch import Tensor, nn

from deqflow.model.geometry import enlarge_bilinear, enlarge_convex
from deqflow.model.state import STRIDE, FlowState


class Upsampler(Protocol):
    """What :class:`deqflow.model.estimator.FlowEstimator` needs of an upsampler; write your own as an ``nn.Module``."""

    def __call__(self, state: FlowState) -> Tensor:
        """Return the flow at full size, (B, 2, s h, s w), in pixels."""
        ...

    def enlarge(self, hidden: Tensor, values: Tensor) -> Tensor:
        """Enlarge any field (B, C, h, w) as the flow of this hidden state is enlarged; used if there is a mixture."""
        ...


class ConvexUpsampler(nn.Module):
    """Predicts from the hidden state how to combine coarse neighbours (RAFT, section 3.3).

    Args:
        hidden: channels of the hidden state.
        width: channels of the layer before the mask.
        stride: image pixels to a coarse pixel.
        scale: factor of the mask; balances the gradient that reaches it against the one that reaches the flow (RAFT).
    """

    def __init__(self, hidden: int, width: int, stride: int = STRIDE, scale: float = 0.25) -> None:
        super().__init__()
        self.stride, self.scale = stride, scale
        self.mask = nn.Sequential(nn.Conv2d(hidden, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 9 * stride**2, 1))

    def forward(self, state: FlowState) -> Tensor:
        """Return the flow at full size, (B, 2, s h, s w), in pixels."""
        return self.enlarge(state.hidden, self.stride * state.flow)

    def enlarge(self, hidden: Tensor, values: Tensor) -> Tensor:
        """Enlarge any field (B, C, h, w) as the flow of this hidden state is enlarged: -> (B, C, s h, s w)."""
        hidden = hidden.to(next(self.mask.parameters()).dtype)  # the state may be more precise than the weights
        return enlarge_convex(values, self.scale * self.mask(hidden).float(), self.stride)


class BilinearUpsampler(nn.Module):
    """Upsampling without parameters (RAFT-small)."""

    def __init__(self, stride: int = STRIDE) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, state: FlowState) -> Tensor:
        """Return the flow at full size, (B, 2, s h, s w), in pixels."""
        return self.enlarge(state.hidden, self.stride * state.flow)

    def enlarge(self, hidden: Tensor, values: Tensor) -> Tensor:
        """Enlarge any field (B, C, h, w): -> (B, C, s h, s w); the hidden state is not needed."""
        return enlarge_bilinear(values, self.stride)
