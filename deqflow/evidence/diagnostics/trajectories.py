"""A solve as a path of states: recording paths, comparing them, and projecting them on principal components."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from deqflow.solvers import Evaluation, FixedPointMap, Rule, SolverResult, Stop, solve


class Recording:
    """Keeps the states of chosen evaluations: ``solve(..., on_eval=recording)``.

    A state is f(z). With :class:`Picard` it is what a solve that stopped there would return; with a rule that reports
    its best iterate it is the iterate of that evaluation, better or worse.

    Args:
        numbers: numbers of the evaluations to keep, from 1; all of them if not given.

    Raises:
        ValueError: a number is less than 1.
    """

    def __init__(self, numbers: Iterable[int] | None = None) -> None:
        self._wanted = None if numbers is None else frozenset(numbers)
        if self._wanted is not None and any(number < 1 for number in self._wanted):
            raise ValueError(f"Recording expects numbers of evaluations from 1, got {sorted(self._wanted)}.")
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, evaluation: Evaluation) -> None:
        """Take in one evaluation."""
        if self._wanted is None or evaluation.number in self._wanted:
            fz = evaluation.fz.detach()
            self._kept[evaluation.number] = (fz, fz - evaluation.z.detach())

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the kept evaluations. A solve that ended early made fewer than were asked for."""
        return tuple(self._kept)

    @property
    def states(self) -> Tensor:
        """f(z) at each kept evaluation, (T, B, ...)."""
        return torch.stack([state for state, _ in self._kept.values()])

    @property
    def movements(self) -> Tensor:
        """f(z) - z at each kept evaluation, (T, B, ...): the residual before its norm is taken."""
        return torch.stack([movement for _, movement in self._kept.values()])


@dataclass(frozen=True)
class Trajectory:
    """One recorded solve.

    Attributes:
        start, rule: names.
        numbers: of the T recorded evaluations.
        states: f(z) at each of them, (T, B, ...).
        result: the solver's account.
    """

    start: str
    rule: str
    numbers: tuple[int, ...]
    states: Tensor
    result: SolverResult


def record_trajectories(
    f: FixedPointMap,
    starts: Mapping[str, Tensor],
    rules: Mapping[str, Rule],
    stop: Stop,
    *,
    numbers: Iterable[int] | None = None,
) -> tuple[Trajectory, ...]:
    """Solve f(z) = z from each start, (B, ...), by each rule, and record the states on the way.

    Args:
        f: the map.
        starts, rules: by name.
        stop: of every solve; with ``atol=0`` all of them use the whole budget.
        numbers: of the evaluations to record; all if not given.

    Raises:
        ValueError: no start or no rule.
    """
    if not starts or not rules:
        raise ValueError(f"record_trajectories expects starts and rules, got {len(starts)} and {len(rules)} of them.")
    numbers = None if numbers is None else tuple(numbers)
    trajectories = []
    for start, z0 in starts.items():
        for name, rule in rules.items():
            recording = Recording(numbers)
            with torch.no_grad():
                result = solve(f, z0, rule, stop, on_eval=recording)
            trajectories.append(Trajectory(start, name, recording.numbers, recording.states, result))
    return tuple(trajectories)


def separation(trajectories: Sequence[Trajectory], norm: Callable[[Tensor], Tensor]) -> dict[int, float]:
    """Largest distance between two paths after the same number of evaluations, by that number.

    It goes to zero if all paths converge to one point, and to the distance between the points if there are several. A
    path that ended early keeps its last state.

    Args:
        trajectories: at least two, recorded at the same evaluations as far as they go.
        norm: per-sample norm, (B, ...) -> (B,); its unit is that of the distance.

    Raises:
        ValueError: fewer than two trajectories.
    """
    if len(trajectories) < 2:
        raise ValueError(f"separation expects at least two trajectories, got {len(trajectories)}.")
    longest = max((trajectory.numbers for trajectory in trajectories), key=len)
    return {
        number: max(
            float(norm(a.states[min(i, len(a.states) - 1)] - b.states[min(i, len(b.states) - 1)]).max())
            for a, b in combinations(trajectories, 2)
        )
        for i, number in enumerate(longest)
    }


def asymptotic_alignment(ends: Sequence[Tensor]) -> float:
    """Mean cosine of the angle between the end points of two solves from different starts.

    It is 1 for a path-independent map. The asymptotic alignment score of Anil et al. 2022 (Path Independent Equilibrium
    Models Can Better Exploit Test-Time Computation), over all pairs of ends and all samples.

    Args:
        ends: at least two, (B, ...) each.

    Raises:
        ValueError: fewer than two ends.
    """
    if len(ends) < 2:
        raise ValueError(f"asymptotic_alignment expects at least two end points, got {len(ends)}.")
    flat = [end.flatten(1).double() for end in ends]
    return float(torch.stack([F.cosine_similarity(a, b) for a, b in combinations(flat, 2)]).mean())


@dataclass(frozen=True)
class Projection:
    """Paths in the coordinates of the principal components of all their points.

    Attributes:
        paths: coordinates of each path's T points, (T, components), in the unit of the states: a distance between
            two points is at most the root mean square of the difference of the two states.
        explained: share of the variance of all points along each component, (components,), descending.
    """

    paths: tuple[Tensor, ...]
    explained: Tensor


def principal_components(paths: Sequence[Tensor], components: int = 3) -> Projection:
    """Project paths onto the directions in which all of their points together vary most.

    Args:
        paths: (T, ...) each, T may differ.
        components: number of directions.

    Raises:
        ValueError: the paths have too few points for so many components, or points of different sizes.
    """
    if sum(len(path) for path in paths) <= components or len({path[0].numel() for path in paths}) != 1:
        shapes = ", ".join(str(tuple(path.shape)) for path in paths)
        raise ValueError(
            f"principal_components expects points of one size, more than {components} of them, got paths of {shapes}."
        )
    points = torch.cat([path.flatten(1) for path in paths]).double()
    points = (points - points.mean(0)) / points.shape[1] ** 0.5
    # The exact decomposition: torch.pca_lowrank approximates it, from torch's global random numbers.
    left, singular, _ = torch.linalg.svd(points, full_matrices=False)
    missing = max(0, components - len(singular))  # where the points have fewer dimensions than were asked for
    coordinates = F.pad(left * singular, (0, missing))[:, :components]
    farthest = coordinates.gather(0, coordinates.abs().argmax(0, keepdim=True))
    coordinates = coordinates * torch.where(farthest < 0, -1.0, 1.0)  # the sign is arbitrary: make it reproducible
    variances = F.pad(singular, (0, missing))[:components].square()
    total = points.square().sum().clamp(min=torch.finfo(points.dtype).tiny)
    return Projection(coordinates.split([len(path) for path in paths]), variances / total)
