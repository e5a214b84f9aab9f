"""Errors of a flow field against the truth."""

import math
from collections.abc import Mapping
from typing import Any

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


# Ranges of the length of the true flow, in px, as in Sintel's table of results.
SPEED_RANGES: dict[str, tuple[float, float]] = {"s0-10": (0.0, 10.0), "s10-40": (10.0, 40.0), "s40+": (40.0, math.inf)}


# A pixel counts as right if its end-point error is at most this, in px. Tables of results give these shares.
THRESHOLDS = (1, 3, 5)


class FlowErrors:
    """Adds up the errors of pairs over their valid pixels. A pixel without truth has no effect.

    Errors are summed in float64, so the order and the number of pairs do not affect the result.

    Attributes:
        sums: the running totals by name: sums of errors in px, and numbers of pixels and pairs.
    """

    def __init__(self) -> None:
        means = ("all", "of_pairs", *SPEED_RANGES, "matched", "unmatched")
        counts = ("outliers", *(f"within_{threshold}" for threshold in THRESHOLDS))
        self.sums: dict[str, float] = {f"{name}_px": 0.0 for name in means}
        self.sums |= dict.fromkeys((*(f"{name}_count" for name in means), *counts), 0)

    def add(self, flow: Tensor, target: Tensor, valid: Tensor, occluded: Tensor | None = None) -> None:
        """Add pairs.

        Args:
            flow, target: (B, 2, H, W) in pixels.
            valid: (B, H, W) booleans. A pair without a valid pixel adds nothing.
            occluded: (B, H, W) booleans, true where a pixel is known to be hidden or out of frame; false everywhere if
                not given.

        Raises:
            ValueError: the shapes do not match each other.
        """
        if flow.dim() != 4 or flow.shape != target.shape or valid.shape != flow[:, 0].shape:
            raise ValueError(
                "FlowErrors.add expects flow and target (B, 2, H, W) and valid (B, H, W), got "
                f"{tuple(flow.shape)}, {tuple(target.shape)} and {tuple(valid.shape)}."
            )
        errors = endpoint_error(flow, target)
        for b in range(len(flow)):
            known = valid[b]
            if not bool(known.any()):
                continue
            error, length = errors[b][known].double(), torch.linalg.vector_norm(target[b][:, known], dim=0)
            self._add_mean("all", error)
            self._add_mean("of_pairs", error.mean()[None])
            # The condition is negated so that a NaN counts as an outlier: every comparison with NaN is false.
            self.sums["outliers"] += int((~((error <= 3) | (error <= 0.05 * length))).sum())
            for threshold in THRESHOLDS:
                self.sums[f"within_{threshold}"] += int((error <= threshold).sum())
            for name, (low, high) in SPEED_RANGES.items():
                self._add_mean(name, error[(length >= low) & (length < high)])
            hidden = torch.zeros_like(known) if occluded is None else occluded[b]
            self._add_mean("matched", error[~hidden[known]])
            self._add_mean("unmatched", error[hidden[known]])

    def add_sums(self, sums: Mapping[str, float]) -> None:
        """Add the ``sums`` of another ``FlowErrors``. They are plain numbers, which json stores exactly."""
        for name in self.sums:
            self.sums[name] += sums[name]

    def summary(self) -> dict[str, Any]:
        """The results in types that json can store. None stands for a mean or a share of no pixels.

        Returns:
            ``pairs`` and ``pixels``, the numbers of those that counted; ``epe_px``, the mean end-point error of all
            pixels (Sintel); ``pair_epe_px``, the mean of the pairs' means (KITTI); ``f1_all``, the share of pixels
            whose error is more than 3 px and more than 5 % of the true displacement (KITTI); ``within``, the shares of
            pixels whose error is at most 1, 3 and 5 px, with that number as the key; ``outliers_1px``, the share of
            pixels whose error is more than 1 px (Spring's 1px); ``by_speed_px``, the mean end-point error in each range
            of the true displacement (:data:`SPEED_RANGES`), and ``speed_share``, the share of pixels in each;
            ``matched_px`` and ``unmatched_px``, the mean end-point errors of pixels that are not occluded and of those
            that are, and ``unmatched_share``, the share of occluded pixels.
        """
        return {
            "pairs": self.sums["of_pairs_count"],
            "pixels": self.sums["all_count"],
            "epe_px": self._mean("all"),
            "pair_epe_px": self._mean("of_pairs"),
            "f1_all": self._share(self.sums["outliers"]),
            "within": {str(threshold): self._share(self.sums[f"within_{threshold}"]) for threshold in THRESHOLDS},
            "outliers_1px": self._share(self.sums["all_count"] - self.sums["within_1"]),
            "by_speed_px": {name: self._mean(name) for name in SPEED_RANGES},
            "speed_share": {name: self._share(self.sums[f"{name}_count"]) for name in SPEED_RANGES},
            "matched_px": self._mean("matched"),
            "unmatched_px": self._mean("unmatched"),
            "unmatched_share": self._share(self.sums["unmatched_count"]),
        }

    def _add_mean(self, name: str, values: Tensor) -> None:
        self.sums[f"{name}_px"] += float(values.sum())
        self.sums[f"{name}_count"] += values.numel()

    def _mean(self, name: str) -> float | None:
        count = self.sums[f"{name}_count"]
        return self.sums[f"{name}_px"] / count if count else None

    def _share(self, count: float) -> float | None:
        return count / self.sums["all_count"] if self.sums["all_count"] else None
