"""The state of the fixed point, hidden state and flow, and how far an evaluation moves it (paper section 3.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deqflow.solvers import rms

STRIDE = 8  # image pixels to a pixel of the state, unless a model has another stride


@dataclass(frozen=True)
class FlowState:
    """A state at the model's coarse size: hidden (B, Ch, h, w) and flow (B, 2, h, w), the latter in coarse pixels."""

    hidden: Tensor
    flow: Tensor

    def pack(self) -> Tensor:
        """The packed state, as solvers take it: one tensor (B, Ch + 2, h, w)."""
        return torch.cat([self.hidden, self.flow], 1)

    @classmethod
    def unpack(cls, z: Tensor) -> "FlowState":
        """The state in a packed tensor (B, Ch + 2, h, w)."""
        return cls(z[:, :-2], z[:, -2:])


@dataclass(frozen=True)
class FlowResidual:
    """A norm for :class:`deqflow.solvers.Stop`: RMS of the flow part of a packed state, in pixels of the images given.

    Attributes:
        stride: image pixels to a pixel of the state.
        scale: factor by which the given images were resized before they were encoded.
    """

    stride: int = STRIDE
    scale: float = 1.0

    def __call__(self, difference: Tensor) -> Tensor:
        """(B, Ch + 2, h, w) -> (B,)."""
        return self.stride / self.scale * rms(difference[:, -2:])


flow_residual = FlowResidual()
