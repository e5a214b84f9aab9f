"""Errors of a flow field against the truth."""

import torch
from torch import Tensor


def endpoint_error(flow: Tensor, target: Tensor) -> Tensor:
    """Length of the difference at each pixel: (B, 2, H, W), (B, 2, H, W) -> (B, H, W), in pixels."""
    return torch.linalg.vector_norm(flow - target, dim=1)


def mean_endpoint_error(flow: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean end-point error of each sample over its valid pixels only, (B,), in pixels.

    Args:
        flow, target: (B, 2, H, W) in pixels.
        valid: (B, H, W) booleans; all pixels if not given.

    Raises:
        ValueError: a sample has no valid pixel.
    """
    error = endpoint_error(flow, target)
    if valid is None:
        valid = torch.ones_like(error, dtype=torch.bool)
    counts = valid.flatten(1).sum(1)
    if bool((counts == 0).any()):
        raise ValueError("mean_endpoint_error expects at least one valid pixel in each sample, got none in one.")
    return torch.where(valid, error, 0.0).flatten(1).sum(1) / counts
