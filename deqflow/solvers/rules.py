"""Step rules: given z and f(z), where to evaluate f next."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


def _check_unit_interval(rule: object, name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{type(rule).__name__} expects 0 < {name} <= 1, got {value!r}.")


def _check_history(rule: object, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{type(rule).__name__} expects history to be a whole number of at least 1, got {value!r}.")


@dataclass(frozen=True, kw_only=True)
class Picard:
    """Plain or damped iteration, ``z + damping * (f(z) - z)``. It reports the newest finite pair."""

    damping: float = 1.0
    reports_best: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_unit_interval(self, "damping", self.damping)

    def init(self, z0: Tensor) -> None:
        """Plain iteration needs no memory."""

    def step(self, z: Tensor, fz: Tensor, memory: None) -> tuple[Tensor, None]:
        """Return the damped step."""
        return (fz if self.damping == 1.0 else torch.lerp(z, fz, self.damping)), memory


@dataclass(frozen=True, kw_only=True)
class Anderson:
    """Anderson acceleration, type II (Walker and Ni 2011, eq. 2.2), each sample with its own history.

    With g = f(z) - z and differences of the last ``history`` states and residuals, gamma minimises
    ``|g - dG gamma|^2 + ridge * mean(diag(dG^T dG)) * |gamma|^2`` and the next state is
    ``z + mixing * g - (dZ + mixing * dG) gamma``. The ridge is relative to the trace, so that it means the
    same at every scale and keeps the small system regular; the system is solved in float32 or better.
    """

    history: int = 5
    mixing: float = 1.0
    ridge: float = 1e-5
    reports_best: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_history(self, self.history)
        _check_unit_interval(self, "mixing", self.mixing)
        if not self.ridge >= 0:
            raise ValueError(f"Anderson expects ridge of 0 or more, got {self.ridge!r}.")

    def init(self, z0: Tensor) -> tuple[Tensor, ...]:
        """The memory is (z, g, dz_1, dg_1, dz_2, dg_2, ...), empty at first."""
        return ()

    def step(self, z: Tensor, fz: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the accelerated step; the first step is plain damped iteration."""
        flat, g = _flat(z), _flat(fz) - _flat(z)
        if not memory:
            return (flat + self.mixing * g).to(z.dtype).view_as(z), (flat, g)
        differences = (*memory[2:], flat - memory[0], g - memory[1])[-2 * self.history :]
        dz, dg = torch.stack(differences[::2], 1), torch.stack(differences[1::2], 1)  # (B, m, N)
        # Sums instead of batched matrix products, whose rounding depends on the size of the batch.
        gram = torch.stack([(dg * dg[:, i : i + 1]).sum(-1) for i in range(dg.shape[1])], 1)  # (B, m, m)
        gamma = _ridge_solve(gram, (dg * g[:, None]).sum(-1), self.ridge)
        correction = (gamma[..., None] * (dz + self.mixing * dg)).sum(1)
        proposal = flat + self.mixing * g - correction
        return proposal.to(z.dtype).view_as(z), (flat, g, *differences)


@dataclass(frozen=True, kw_only=True)
class Broyden:
    """Limited-memory "good" Broyden (1965) on g(z) = f(z) - z, each sample with its own memory.

    The inverse Jacobian is held as ``-I + sum_i u_i v_i^T`` with at most ``history`` terms, so memory is
    bounded. Once all terms are in use it begins again from ``-I``: each term corrects the sum of those before it,
    so that slow problems would diverge if only the oldest were dropped. From ``-I``, the first step is Picard's.
    """

    history: int = 8
    damping: float = 1.0
    reports_best: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_history(self, self.history)
        _check_unit_interval(self, "damping", self.damping)

    def init(self, z0: Tensor) -> tuple[Tensor, ...]:
        """The memory is (z, g, u_1, v_1, u_2, v_2, ...), empty at first."""
        return ()

    def step(self, z: Tensor, fz: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the quasi-Newton step ``z - damping * B g``."""
        flat, g = _flat(z), _flat(fz) - _flat(z)
        terms: tuple[Tensor, ...] = ()
        if memory:
            dz, dg = flat - memory[0], g - memory[1]
            terms = memory[2:] if len(memory) - 2 < 2 * self.history else ()
            us, vs = terms[::2], terms[1::2]
            b_dg = _apply_low_rank(dg, us, vs)
            v = _apply_low_rank(dz, vs, us)  # B^T dz: the roles of u and v swap
            denominator = _dot(v, dg)
            # No secant information (dz or dg vanished): skip the update instead of dividing by zero.
            tiny = torch.finfo(flat.dtype).eps * v.norm(dim=1, keepdim=True) * dg.norm(dim=1, keepdim=True)
            safe = torch.isfinite(denominator) & (denominator.abs() > tiny)
            u = torch.where(safe, (dz - b_dg) / torch.where(safe, denominator, 1.0), 0.0)
            terms = (*terms, u, v)
        proposal = flat - self.damping * _apply_low_rank(g, terms[::2], terms[1::2])
        return proposal.to(z.dtype).view_as(z), (flat, g, *terms)


def _flat(z: Tensor) -> Tensor:
    """(B, ...) -> (B, N) in float32 or better: half precision is too coarse for the small systems."""
    flat = z.flatten(1)
    return flat if flat.dtype in (torch.float32, torch.float64) else flat.float()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Per-sample inner product, (B, N), (B, N) -> (B, 1)."""
    return (a * b).sum(1, keepdim=True)


def _apply_low_rank(x: Tensor, us: tuple[Tensor, ...], vs: tuple[Tensor, ...]) -> Tensor:
    """``-x + sum_i u_i (v_i . x)`` for each sample."""
    out = -x
    for u, v in zip(us, vs, strict=True):
        out = out + u * _dot(v, x)
    return out


def _ridge_solve(gram: Tensor, rhs: Tensor, ridge: float) -> Tensor:
    """Solve (gram + ridge * mean(diag) I) x = rhs, (B, m, m), (B, m) -> (B, m); zeros where that fails."""
    size = gram.shape[-1]
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    shift = ridge * scale + torch.finfo(gram.dtype).tiny
    system = gram + shift[:, None, None] * torch.eye(size, dtype=gram.dtype, device=gram.device)
    solution = torch.linalg.solve_ex(system, rhs[..., None])[0][..., 0]
    usable = torch.isfinite(solution).all(-1, keepdim=True)
    return torch.where(usable, solution, 0.0)
