"""Fitting a confidence on procedural pairs, and its evaluation on real ones."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deqflow.data.datasets import FlowDataset, FlowSample, available_benchmarks, motorcycle
from deqflow.data.metrics import endpoint_error
from deqflow.data.synthetic import RICH_SCENES, SceneConfig, SyntheticPairs
from deqflow.evidence.confidence.consistency import estimate_both_ways
from deqflow.evidence.confidence.logistic import CONSISTENCY_ALONE, FEATURES, ConfidenceModel, features, fit
from deqflow.evidence.diagnostics import sparsification
from deqflow.evidence.provenance import digest, provenance
from deqflow.model.estimator import FlowEstimator

BINS = 10
ON_PAIR = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """The data that a confidence is fitted on.

    Attributes:
        pairs: number of procedural pairs; the flow of each is estimated both ways.
        pixels: number of pixels drawn from each pair.
        seed: of the pairs and of the drawn pixels. Training and validation use other seeds.
        evals: budgets of the pairs, in turn, so that the fit also sees solves that ended too early. 0 stands for the
            estimator's own budget and tolerance.
        threshold_px: an end-point error under it counts as right.
        scenes: configuration of the pairs.
    """

    pairs: int = 120
    pixels: int = 1500
    seed: int = 2_000_003
    evals: tuple[int, ...] = (0, 0, 12, 6)
    threshold_px: float = 1.0
    scenes: SceneConfig = field(
        default_factory=lambda: replace(RICH_SCENES, height=256, width=320, packages=("scikit-image",))
    )

    def __post_init__(self) -> None:
        if min(self.pairs, self.pixels) < 1 or not self.evals or min(self.evals) < 0:
            raise ValueError(
                "FitConfig expects at least 1 pair, 1 pixel and one budget of 0 or more, got "
                f"{self.pairs}, {self.pixels} and {self.evals}."
            )


@dataclass(frozen=True)
class Fitted:
    """Two models fitted on the same pixels: with all features, and with the forward-backward error alone."""

    model: ConfidenceModel
    alone: ConfidenceModel


def fit_confidence(
    estimator: FlowEstimator, name: str, config: FitConfig | None = None, on_pair: ON_PAIR | None = None
) -> Fitted:
    """Fit the confidence of an estimator on procedural pairs with exact flow.

    Args:
        estimator: the estimator whose confidence is fitted.
        name: of the estimator, stored with the models.
        config: the data of the fit.
        on_pair: called with a line of text after each pair.

    Raises:
        ValueError: the estimator's flow is right everywhere, or wrong everywhere.
    """
    config = config or FitConfig()
    rows, errors = [], []
    pairs = SyntheticPairs(config.pairs, seed=config.seed, config=config.scenes)
    for i in range(len(pairs)):
        value, error = _features_and_errors(estimator, pairs[i], config.evals[i % len(config.evals)])
        rng = np.random.default_rng([config.seed, i])
        chosen = rng.choice(len(error), min(config.pixels, len(error)), replace=False)
        rows.append(value[chosen])
        errors.append(error[chosen])
        if on_pair is not None:
            on_pair(f"pair {i + 1} of {len(pairs)}: mean end-point error {error.mean():.2f} px")
    recipe = {
        "model": name,
        "weights_sha256": digest(estimator),
        "fit": asdict(config),
        "provenance": provenance(Path(__file__).parent),
    }
    together = np.concatenate(rows), np.concatenate(errors)
    model, alone = (
        fit(*together, threshold_px=config.threshold_px, names=names, recipe=recipe)
        for names in (None, CONSISTENCY_ALONE)
    )
    return Fitted(model, alone)


@torch.no_grad()
def _features_and_errors(estimator: FlowEstimator, pair: FlowSample, evals: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, F) and end-point errors (N,) of the N pixels with known flow; ``evals`` of 0 is the own budget."""
    stop = estimator.equilibrium.eval_stop
    if evals:
        stop = replace(stop, max_evals=evals, atol=0.0)
    device = next(estimator.parameters()).device
    image1, image2, flow, valid, _ = (tensor[None].to(device) for tensor in pair)
    forward, backward = estimate_both_ways(estimator, image1, image2, stop=stop)
    error = endpoint_error(forward.flow, flow)[valid]
    return features(forward, backward).movedim(1, -1)[valid].cpu().numpy(), error.cpu().numpy()


class Calibration:
    """Counts for each bin, a tenth of 0..1, how often a confidence in it was right.

    Attributes:
        pixels, right: numbers of all pixels and of right pixels of each bin, (BINS,).
        confidence: sum of the confidences of each bin, (BINS,).
    """

    def __init__(self) -> None:
        self.pixels, self.right, self.confidence = np.zeros(BINS), np.zeros(BINS), np.zeros(BINS)

    def add(self, confidence: np.ndarray, right: np.ndarray) -> None:
        """Add pixels: confidences in 0..1 and booleans, (N,) each.

        Raises:
            ValueError: a confidence is not in 0..1.
        """
        if not ((confidence >= 0) & (confidence <= 1)).all():
            raise ValueError("Calibration.add expects confidences from 0 to 1, got others.")
        bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
        for total, weights in ((self.pixels, None), (self.right, right), (self.confidence, confidence)):
            total += np.bincount(bins, weights, BINS)

    def summary(self) -> dict[str, Any]:
        """The figures of all added pixels, as json can hold them.

        Returns:
            ``right``, the share of right pixels; ``confidence``, the mean confidence;
            ``expected_calibration_error``, the mean distance of the two over the bins, weighted by pixels (Guo et al.
            2017, On Calibration of Modern Neural Networks); ``reliability``, for each bin the share of all pixels,
            the mean confidence and the share of right pixels; the last two are None if the bin is empty.

        Raises:
            ValueError: nothing was added.
        """
        total = self.pixels.sum()
        if not total:
            raise ValueError("Calibration.summary expects at least one pixel, got none.")
        bins = zip(self.pixels, self.confidence, self.right, strict=True)
        return {
            "right": float(self.right.sum() / total),
            "confidence": float(self.confidence.sum() / total),
            "expected_calibration_error": float(np.abs(self.confidence - self.right).sum() / total),
            "reliability": [
                {
                    "pixels": float(count / total),
                    "confidence": float(mean / count) if count else None,
                    "right": float(right / count) if count else None,
                }
                for count, mean, right in bins
            ],
        }


def evaluate_confidence(
    estimator: FlowEstimator, fitted: Fitted, pairs: Iterable[FlowSample], on_pair: ON_PAIR | None = None
) -> dict[str, Any] | None:
    """Calibration and sparsification over the pixels with known flow, with the estimator's own budget.

    Pairs without a known flow do not count.

    Returns:
        ``pairs``, ``error_px``, and for ``confidence`` and ``consistency`` (the forward-backward error alone): the
        summary of :class:`Calibration` and ``ause``, the area under the sparsification error. ``chance`` has the
        ``ause`` of a random order. Areas are means over pairs, relative to the pair's mean error. ``occlusion`` is
        the result of :func:`occlusion_scores` for the forward-backward criterion. None if no pair has a known flow.
    """
    ways = {"confidence": (fitted.model, Calibration()), "consistency": (fitted.alone, Calibration())}
    areas: dict[str, list[float]] = {name: [] for name in (*ways, "chance")}
    means: list[float] = []
    counts = np.zeros(4, int)
    for pair in pairs:
        if not bool(pair.valid.any()):
            continue
        values, error = _features_and_errors(estimator, pair)
        predicted, occluded = values[:, FEATURES.index("occluded")] > 0, pair.occluded[pair.valid].numpy()
        counts += [len(occluded), occluded.sum(), predicted.sum(), (predicted & occluded).sum()]
        means.append(float(error.mean()))
        for name, (model, calibration) in ways.items():
            confidence = model.predict(torch.from_numpy(values)).double().numpy()
            calibration.add(confidence, error < model.threshold_px)
            areas[name].append(sparsification(-confidence, error).area)
        areas["chance"].append(sparsification(error, error).area_of_chance)
        if on_pair is not None:
            on_pair(f"{values.shape[0]} pixels, mean end-point error {means[-1]:.2f} px")
    if not means:
        return None
    parts = {name: calibration.summary() for name, (_, calibration) in ways.items()}
    return {
        "pairs": len(means),
        "error_px": float(np.mean(means)),
        **{name: part | {"ause": float(np.mean(areas[name]))} for name, part in parts.items()},
        "chance": {"ause": float(np.mean(areas["chance"]))},
        "occlusion": occlusion_scores(*counts.tolist()),
    }


def occlusion_scores(pixels: int, occluded: int, predicted: int, both: int) -> dict[str, float] | None:
    """How well occlusion is predicted; None if no pixel is marked as occluded, since then the set does not tell.

    Args:
        pixels: number of all pixels.
        occluded: number of occluded pixels.
        predicted: number of pixels that are predicted to be occluded.
        both: number of pixels that are occluded and predicted.

    Returns:
        ``share``, the share of occluded pixels; ``precision``, the share of the predicted pixels that are occluded;
        ``recall``, the share of the occluded pixels that are predicted.
    """
    if not occluded:
        return None
    return {"share": occluded / pixels, "precision": both / max(predicted, 1), "recall": both / occluded}


def _in_order(pairs: FlowDataset | SyntheticPairs) -> Iterator[FlowSample]:
    return (pairs[i] for i in range(len(pairs)))


def real_pairs(root: str | Path) -> Iterator[tuple[str, Iterable[FlowSample]]]:
    """The sets of real pairs under a root by name, and the motorcycle pair, which is always available."""
    for name, dataset in available_benchmarks(root).items():
        yield name, _in_order(dataset)
    yield "motorcycle", [motorcycle()]


def run_confidence(
    estimator: FlowEstimator,
    name: str,
    root: str | Path,
    config: FitConfig | None = None,
    on_pair: ON_PAIR | None = None,
) -> tuple[Fitted, dict[str, Any]]:
    """Fit a confidence, evaluate it on held-out procedural pairs and on the real sets under a root; return both.

    Sets without a known flow are left out of the results' rows.
    """
    config = config or FitConfig()
    fitted = fit_confidence(estimator, name, config, on_pair)
    held_out = SyntheticPairs(max(1, config.pairs // 6), seed=config.seed + 1, config=config.scenes)
    sets = [("procedural, held out", _in_order(held_out)), *real_pairs(root)]
    rows = []
    for title, pairs in sets:
        figures = evaluate_confidence(estimator, fitted, pairs, on_pair)
        if figures is not None:
            rows.append({"set": title} | figures)
        elif on_pair is not None:
            on_pair(f"{title}: no pixel with known flow, left out")
    return fitted, {
        "experiment": "confidence",
        "threshold_px": config.threshold_px,
        "model": asdict(fitted.model),
        "consistency_alone": {"weights": fitted.alone.weights, "bias": fitted.alone.bias},
        "rows": rows,
        "provenance": provenance(Path(__file__).parent),
    }
