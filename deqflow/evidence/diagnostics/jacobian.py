"""Spectral radius and norm of the Jacobian at a state, from vector-Jacobian products: J itself is never built."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deqflow.solvers import FixedPointMap


@dataclass(frozen=True)
class SpectralRadius:
    """The largest modulus of an eigenvalue of J, for each sample.

    Attributes:
        radius: (B,), in z's dtype. Plain iteration converges from close to z if and only if it is below 1.
        unsettled: (B,), how far the two vectors found are from spanning an invariant subspace, relative to
            the radius: 0 when the iteration has converged, near 1 when more steps are needed.
        steps: number of vector-Jacobian products.
    """

    radius: Tensor
    unsettled: Tensor
    steps: int


def spectral_radius(f: FixedPointMap, z: Tensor, *, generator: torch.Generator, steps: int = 100) -> SpectralRadius:
    """Spectral radius of J at z, (B, ...), by power iteration on ``v -> J^T v`` (J^T has J's eigenvalues).

    The leading eigenvalues of a real matrix are often a conjugate pair, for which a single vector rotates and never
    converges. Therefore J^T is projected onto the plane of the last two iterates (Rayleigh-Ritz; Saad, Numerical
    Methods for Large Eigenvalue Problems, sections 4.1 and 5.1).

    Args:
        f: the map.
        z: the state, (B, ...).
        generator: of the first vectors.
        steps: number of vector-Jacobian products, at least 2.

    Raises:
        ValueError: fewer than 2 steps.
    """
    if steps < 2:
        raise ValueError(f"spectral_radius expects at least 2 steps, got {steps!r}.")
    transposed = _transposed_jacobian(f, z)
    v = _normalise(
        torch.randn(z.shape, generator=generator, dtype=z.dtype, device=generator.device).to(z.device).flatten(1)
    )
    for _ in range(steps - 2):
        v = _normalise(transposed(v))
    # An orthonormal basis q of the plane of v and J^T v, and the 2x2 matrix h of J^T in it.
    image = transposed(v)
    h11 = torch.linalg.vecdot(v, image)
    off = image - h11[:, None] * v
    h21 = off.norm(dim=1)
    second = _normalise(off)
    image = transposed(second)
    h12, h22 = torch.linalg.vecdot(v, image), torch.linalg.vecdot(second, image)
    h = torch.stack([torch.stack([h11, h12], -1), torch.stack([h21, h22], -1)], -2)  # (B, 2, 2)
    outside = (image - h12[:, None] * v - h22[:, None] * second).norm(dim=1)
    # Where v alone is nearly an eigenvector, the second vector is arbitrary and its share of h means nothing.
    radius = torch.where(h21 <= outside, h11.abs(), torch.linalg.eigvals(h).abs().amax(-1))
    unsettled = torch.minimum(outside, h21) / radius.clamp(min=torch.finfo(z.dtype).tiny)
    return SpectralRadius(radius, unsettled, steps)


@dataclass(frozen=True)
class JacobianNorm:
    """Frobenius norm of J for each sample: ``norm`` (B,) and its standard error ``error`` (B,), both in z's dtype."""

    norm: Tensor
    error: Tensor


def jacobian_norm(f: FixedPointMap, z: Tensor, *, generator: torch.Generator, probes: int = 16) -> JacobianNorm:
    """Estimate the Frobenius norm of J at z, (B, ...): ``E |J^T v|^2 = |J|_F^2`` for random signs v (Hutchinson 1990).

    Args:
        f: the map.
        z: the state, (B, ...).
        generator: of the random vectors.
        probes: number of vector-Jacobian products, at least 2.

    Raises:
        ValueError: fewer than 2 probes.
    """
    if probes < 2:
        raise ValueError(f"jacobian_norm expects at least 2 probes, got {probes!r}.")
    transposed = _transposed_jacobian(f, z)
    squares = []
    for _ in range(probes):
        signs = torch.randint(0, 2, z.shape, generator=generator, device=generator.device) * 2 - 1
        squares.append(transposed(signs.to(z).flatten(1)).square().sum(1))
    square = torch.stack(squares)  # (probes, B)
    norm = square.mean(0).sqrt()
    # d sqrt(x) = dx / (2 sqrt(x))
    return JacobianNorm(norm, square.std(0) / probes**0.5 / (2 * norm).clamp(min=torch.finfo(z.dtype).tiny))


def anchored(f: FixedPointMap, anchor: Tensor, scale: float) -> FixedPointMap:
    """The map ``z -> (1 - scale) anchor + scale f(z)``, whose Jacobian is scale times that of f.

    It makes a map contractive whose spectral radius is too large. Damping, which mixes in z instead of the anchor,
    moves no fixed point; this map has the fixed point of f only if the anchor, (B, ...), is that fixed point.
    """
    return lambda z: torch.lerp(anchor, f(z), scale)


def _transposed_jacobian(f: FixedPointMap, z: Tensor) -> Callable[[Tensor], Tensor]:
    """The map v -> J^T v of flat vectors, (B, N) -> (B, N), from one evaluation of f."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        fz = f(z)

    def apply(v: Tensor) -> Tensor:
        if not fz.requires_grad:  # f does not depend on z
            return torch.zeros_like(v)
        (product,) = torch.autograd.grad(
            fz, z, v.view_as(fz), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return product.flatten(1)

    return apply


def _normalise(v: Tensor) -> Tensor:
    """Each row of (B, N) with length 1; a row of zeros stays zero."""
    return F.normalize(v, dim=1, eps=torch.finfo(v.dtype).tiny)
