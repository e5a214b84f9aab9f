"""Training losses."""

from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST_FLOW = 400.0


def correction_loss(
    flows: Sequence[Tensor], target: Tensor, valid: Tensor, *, gamma: float = 0.8, largest: float = LARGEST_FLOW
) -> Tensor:
    """Fixed-point correction loss: ``sum_i gamma^(n-1-i) * mean |flow_i - target|`` (paper section 3.3).

    As published, the mean runs over all pixels and both components, with zero where the target does not count.

    Args:
        flows: n predictions, oldest first, (B, 2, H, W) in pixels.
        target: true flow, (B, 2, H, W) in pixels.
        valid: (B, H, W) booleans, where the target is known.
        gamma: weight of each correction relative to the next one.
        largest: longer target vectors, in pixels, do not count.

    Returns:
        A scalar.
    """
    counts = (valid & (torch.linalg.vector_norm(target, dim=1) < largest))[:, None]
    losses = [torch.where(counts, (flow - target).abs(), 0.0).mean() for flow in flows]
    weights = [gamma ** (len(flows) - 1 - i) for i in range(len(flows))]
    return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()
