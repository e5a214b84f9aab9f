"""How well a map of uncertainty predicts the error: rank correlation and sparsification."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from torch import Tensor

Values = Tensor | npt.NDArray[np.floating]


def rank_correlation(uncertainty: Values, error: Values) -> float:
    """Spearman's rank correlation: 1 if uncertainty and error put the pixels in the same order.

    Args:
        uncertainty, error: of the same pixels, of any shape and unit, since only the order of the pixels matters.

    Returns:
        A number in -1..1; NaN if one of the two has the same value everywhere.

    Raises:
        ValueError: shapes differ, there are fewer than two pixels, or a value is not finite.
    """
    uncertainty, error = _checked("rank_correlation", uncertainty, error)
    if np.ptp(uncertainty) == 0 or np.ptp(error) == 0:
        return float("nan")
    found: Any = stats.spearmanr(uncertainty, error)  # its stubs know no attribute
    return float(found.statistic)


@dataclass(frozen=True)
class Sparsification:
    """Mean error of the remaining pixels when the most uncertain ones are removed first.

    Attributes:
        removed: shares of the pixels that were removed, from 0, (S,).
        remaining: mean error of the other pixels, relative to that of all pixels, (S,); starts at 1.
        oracle: the same when the largest errors are removed first, which is the best order.
    """

    removed: np.ndarray
    remaining: np.ndarray
    oracle: np.ndarray

    @property
    def area(self) -> float:
        """AUSE, area under the sparsification error ``remaining - oracle``: 0 for the oracle's order."""
        return float(np.trapezoid(self.remaining - self.oracle, self.removed))

    @property
    def area_of_chance(self) -> float:
        """The area of a random order, whose curve stays at 1: a useful uncertainty has a smaller one."""
        return float(np.trapezoid(1 - self.oracle, self.removed))


def sparsification(uncertainty: Values, error: Values, *, steps: int = 50) -> Sparsification:
    """Sparsification curve of an uncertainty (Ilg et al. 2018, Uncertainty Estimates ... for Optical Flow).

    Pixels of the same uncertainty have no order among them: each counts with the mean error of all of them.

    Args:
        uncertainty, error: of the same pixels, of any shape; errors are 0 or more.
        steps: number of shares to remove: 0, 1/steps, ..., 1 - 1/steps.

    Raises:
        ValueError: shapes differ, there are fewer than two pixels, a value is not finite, an error is negative, all
            errors are 0, or steps is less than 2.
    """
    uncertainty, error = _checked("sparsification", uncertainty, error)
    if steps < 2:
        raise ValueError(f"sparsification expects at least 2 steps, got {steps!r}.")
    if error.min() < 0 or error.max() == 0:
        raise ValueError("sparsification expects errors of 0 or more, and not all of them 0.")
    _, group = np.unique(uncertainty, return_inverse=True)
    in_group = np.bincount(group, error) / np.bincount(group)
    removed = np.arange(steps) / steps
    kept = np.maximum(np.round((1 - removed) * error.size).astype(int), 1)
    return Sparsification(
        1 - kept / error.size, _means_of_least(in_group[np.sort(group)], kept), _means_of_least(np.sort(error), kept)
    )


def _means_of_least(errors: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Mean of the first k errors for each k of ``kept``, relative to the mean of all."""
    return np.cumsum(errors)[kept - 1] / kept / errors.mean()


def _checked(caller: str, uncertainty: Values, error: Values) -> tuple[np.ndarray, np.ndarray]:
    """Both as flat float64 arrays; a ValueError says what is wrong with them."""
    a, b = (
        (values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)).astype(np.float64)
        for values in (uncertainty, error)
    )
    if a.shape != b.shape or a.size < 2:
        raise ValueError(
            f"{caller} expects uncertainty and error of the same pixels, at least two, got {a.shape} and {b.shape}."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(f"{caller} expects finite values: select the pixels that are known, as with error[valid].")
    return a.ravel(), b.ravel()
