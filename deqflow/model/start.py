"""Where a solve begins: the hidden state, the flow and the context of a pair, from the context network's output.

An equilibrium model starts from zero, because its fixed point does not depend on the start. RAFT's hidden state starts
from the context. SEA-RAFT's context network sees both images, so that its hidden state already implies a first flow.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from deqflow.model.state import FlowState


class OwnStart(Protocol):
    """How a :class:`deqflow.model.estimator.FlowEstimator` starts if it is not given a state.

    Attributes:
        gives_hidden: whether the first channels of the context network are a hidden state.
        sees_both: whether the context network takes both images, (B, 6, H, W).
    """

    gives_hidden: bool
    sees_both: bool

    def __call__(self, encoded: Tensor, like: Tensor, update: Any) -> tuple[FlowState, Tensor]:
        """Return the state and the context of a pair.

        Args:
            encoded: (B, C, h, w), the context network's output.
            like: a tensor from which the state takes its device and its precision (see :func:`state_dtype`).
            update: the update operator.
        """
        ...


class FromZero:
    """Hidden state and flow start at zero; all of the network's channels are context (DEQ-Flow)."""

    gives_hidden = sees_both = False

    def __call__(self, encoded: Tensor, like: Tensor, update: Any) -> tuple[FlowState, Tensor]:
        """See :class:`OwnStart`."""
        shape = (encoded.shape[0], update.hidden_channels, *encoded.shape[-2:])
        hidden = like.new_zeros(shape, dtype=state_dtype(like))
        return FlowState(hidden, zero_flow(hidden)), encoded.relu()


class FromContext:
    """The hidden state starts at tanh of the network's first channels, the flow at zero (RAFT)."""

    gives_hidden, sees_both = True, False

    def __call__(self, encoded: Tensor, like: Tensor, update: Any) -> tuple[FlowState, Tensor]:
        """See :class:`OwnStart`."""
        hidden, context = encoded.tensor_split([update.hidden_channels], 1)
        hidden = hidden.to(state_dtype(like)).tanh()
        return FlowState(hidden, zero_flow(hidden)), context.relu()


class FromBoth:
    """A network that sees both images gives hidden state and context as they are, and a first flow (SEA-RAFT).

    The first flow is what the update operator's head predicts from the hidden state. It is zero for an operator that
    has no method ``first_flow(hidden)``.
    """

    gives_hidden = sees_both = True

    def __call__(self, encoded: Tensor, like: Tensor, update: Any) -> tuple[FlowState, Tensor]:
        """See :class:`OwnStart`."""
        hidden, context = encoded.tensor_split([update.hidden_channels], 1)
        first_flow = getattr(update, "first_flow", zero_flow)
        dtype = state_dtype(like)
        return FlowState(hidden.to(dtype), first_flow(hidden).to(dtype)), context


def zero_flow(hidden: Tensor) -> Tensor:
    """(B, Ch, h, w) -> zeros (B, 2, h, w)."""
    return hidden.new_zeros(hidden.shape[0], 2, *hidden.shape[-2:])  # len() would fix the batch size in a graph


def state_dtype(like: Tensor) -> torch.dtype:
    """The state's precision: float32 or better, because half precision is too coarse far from the image's corner."""
    return torch.promote_types(like.dtype, torch.float32)
