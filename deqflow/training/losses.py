"""Training losses."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deqflow.model.mixture import components

LARGEST_FLOW = 400.0


def correction_loss(
    flows: Sequence[Tensor], target: Tensor, valid: Tensor, *, gamma: float = 0.8, largest: float = LARGEST_FLOW
) -> Tensor:
    """Fixed-point correction loss: ``sum_i gamma^(n-1-i) * mean |flow_i - target|`` (paper section 3.3).

    As published, the mean runs over all pixels and both components; pixels whose target does not count add zero.

    Args:
        flows: n predictions, oldest first, (B, 2, H, W) in pixels.
        target: true flow, (B, 2, H, W) in pixels.
        valid: (B, H, W) booleans, true where the target is known.
        gamma: weight of each correction relative to the next one.
        largest: length in pixels; longer target vectors do not count.

    Returns:
        A scalar.
    """
    counts = (valid & (torch.linalg.vector_norm(target, dim=1) < largest))[:, None]
    return _weighted([torch.where(counts, (flow - target).abs(), 0.0).mean() for flow in flows], gamma)


def mixture_loss(
    flows: Sequence[Tensor],
    mixtures: Sequence[Tensor],
    target: Tensor,
    valid: Tensor,
    *,
    gamma: float = 0.85,
    largest: float = LARGEST_FLOW,
) -> Tensor:
    """SEA-RAFT's loss: ``sum_i gamma^(n-1-i) * mean -log p_i(target)``, p_i a mixture of two Laplace distributions.

    Each component of the flow is distributed around the prediction by the mixture of its pixel
    (:mod:`deqflow.model.mixture`). As published, the mean runs over both components of the pixels that count.

    Args:
        flows: n predictions, oldest first, (B, 2, H, W) in pixels.
        mixtures: the mixture of each prediction, (B, 4, H, W): two logits and two log scales, unclamped.
        target: true flow, (B, 2, H, W) in pixels.
        valid: (B, H, W) booleans, true where the target is known.
        gamma: weight of each prediction relative to the next one.
        largest: length in pixels; longer target vectors do not count.

    Returns:
        A scalar; 0 where no pixel counts.

    Raises:
        ValueError: there is not one mixture for each prediction.
    """
    if len(flows) != len(mixtures):
        raise ValueError(
            f"mixture_loss expects a mixture for each of {len(flows)} predictions, got {len(mixtures)}: "
            "build the model with mixture=True."
        )
    counts = (valid & (torch.linalg.vector_norm(target, dim=1) < largest))[:, None]
    known = torch.where(counts, target, 0.0)
    total = 2 * counts.sum().clamp_min(1)
    losses = []
    for flow, mixture in zip(flows, mixtures, strict=True):
        log_weights, log_scales = (part[:, None] for part in components(mixture))  # (B, 1, 2, H, W)
        error = (known - flow).abs()[:, :, None]  # (B, 2, 1, H, W)
        log_density = log_weights - math.log(2) - log_scales - error * (-log_scales).exp()
        losses.append(torch.where(counts, -log_density.logsumexp(2), 0.0).sum() / total)
    return _weighted(losses, gamma)


def _weighted(losses: Sequence[Tensor], gamma: float) -> Tensor:
    """``sum_i gamma^(n-1-i) * loss_i``: the last of n losses has weight 1."""
    return torch.stack([gamma ** (len(losses) - 1 - i) * loss for i, loss in enumerate(losses)]).sum()


def jacobian_penalty(f: Callable[[Tensor], Tensor], z: Tensor, generator: torch.Generator) -> Tensor:
    """Estimate ``|J|_F^2`` per element of the state, where J = df/dz. A large Jacobian makes solvers slow.

    This is Hutchinson's estimate from one random v: ``E |v^T J|^2 = |J|_F^2`` (Bai, Koltun and Kolter, *Stabilizing
    Equilibrium Models by Jacobian Regularization*, 2021). It costs one evaluation of f and is differentiable with
    respect to whatever f depends on; z is detached.

    Args:
        f: the map, (B, ...) -> (B, ...); each row of its value depends on the same row of z only.
        z: the state to take J at, (B, ...), usually the fixed point.
        generator: draws v.

    Returns:
        A scalar: the mean of ``|J|_F^2`` over samples, divided by the number of elements of a sample.
    """
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        fz = f(z)
        v = torch.randn(z.shape, generator=generator, device=generator.device, dtype=z.dtype).to(z.device)
        (product,) = torch.autograd.grad(fz, z, v, create_graph=True)
        return product.square().mean()


def coarse_loss(states: Sequence[Tensor], truth: Tensor, known: Tensor, *, stride: int, gamma: float = 0.8) -> Tensor:
    """The correction loss on the state's coarse flow, which shows the fine noise that upsampling averages away.

    Args:
        states: n flows at the state's size, oldest first, (B, 2, h, w) in coarse pixels.
        truth: true flow, (B, 2, h, w) in coarse pixels.
        known: (B, h, w) booleans, true where the truth is known.
        stride: image pixels per coarse pixel.
        gamma: weight of each correction relative to the next one.

    Returns:
        A scalar, in full-size pixels.
    """
    return stride * correction_loss(states, truth, known, gamma=gamma, largest=LARGEST_FLOW / stride)


def way_back(
    f: Callable[[Tensor], Tensor], z: Tensor, disturbance: Tensor, evals: int, norm: Callable[[Tensor], Tensor]
) -> Tensor:
    """The share of a disturbance of the flow that is left after some evaluations: a small one means that z attracts.

    The disturbed state is compared with the undisturbed one after equally many evaluations, which is detached.

    Args:
        f: the map, (B, Ch + 2, h, w) -> the same.
        z: the state to disturb, usually the end of a solve; it is detached.
        disturbance: what is added to the flow, (B, 2, h, w) in coarse pixels.
        evals: number of evaluations.
        norm: (B, Ch + 2, h, w) -> (B,).

    Returns:
        (B,), 1 where the disturbance is as large as before.
    """
    z = z.detach()
    added = torch.cat([torch.zeros_like(z[:, :-2]), disturbance.to(z)], 1)
    disturbed = z + added
    for _ in range(evals):
        disturbed = f(disturbed)
        with torch.no_grad():
            z = f(z)
    return norm(disturbed - z) / norm(added)


def consistency(f: Callable[[Tensor], Tensor], states: Sequence[Tensor], end: Tensor, *, stride: int) -> Tensor:
    """The distance between the end of a solve and one evaluation from each of its earlier states.

    As a loss it distils the solve: one evaluation learns to go where many would.

    Args:
        f: the map.
        states: earlier states of the solve, (B, Ch + 2, h, w) each; they are detached.
        end: the state in which the solve ended, (B, Ch + 2, h, w); it is detached.
        stride: image pixels per coarse pixel.

    Returns:
        A scalar: the mean absolute difference of the flow, in full-size pixels.
    """
    end = end.detach()[:, -2:]
    return torch.stack([stride * (f(z.detach())[:, -2:] - end).abs().mean() for z in states]).mean()
