"""The confidence of each pixel, from 0 to 1: the probability that its flow is right, computed from two solves."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import optimize, special
from torch import Tensor

from deqflow.data.writing import write_whole
from deqflow.evidence.confidence.consistency import fetch, forward_backward
from deqflow.model.output import FlowOutput

Array = np.ndarray
SHIPPED_CONFIDENCE = Path(str(resources.files("deqflow") / "weights" / "confidence.json"))
SMALLEST = 0.01  # px: added before the logarithm, since smaller differences do not matter
FEATURES = (
    "log consistency error",
    "log residual",
    "log residual of the way back",
    "log length",
    "leaves the frame",
    "occluded",
)
OF_A_MIXTURE = "log expected error"  # one more feature, of models that have a mixture
CONSISTENCY_ALONE = ("log consistency error",)


def features(forward: FlowOutput, backward: FlowOutput) -> Tensor:
    """The features of each pixel, (B, F, H, W), in the order of :func:`feature_names`.

    Four are natural logarithms of a length plus 0.01 px, in pixels: the consistency error (:func:`forward_backward`);
    how far the last evaluation moved the flow (:attr:`FlowOutput.residual_map`) at the pixel; the same of the flow
    back at the end of the vector; the length of the flow. Two are 0 or 1: whether the vector leaves the frame, and
    whether the pixel counts as occluded. Where the model has a mixture, the logarithm of the error that it expects
    (:attr:`FlowOutput.expected_error`) comes last.
    """
    consistency = forward_backward(forward.flow, backward.flow)
    back_residual, _ = fetch(backward.residual_map[:, None], forward.flow)
    lengths = (
        consistency.error,
        forward.residual_map,
        back_residual[:, 0],
        torch.linalg.vector_norm(forward.flow, dim=1),
    )
    flags = (consistency.outside.to(forward.flow), consistency.occluded.to(forward.flow))
    expected = () if forward.expected_error is None else ((forward.expected_error + SMALLEST).log(),)
    return torch.stack([*((length + SMALLEST).log() for length in lengths), *flags, *expected], 1)


def feature_names(count: int) -> tuple[str, ...]:
    """The names of so many features: ``FEATURES``, and one more of models that have a mixture."""
    return (*FEATURES, OF_A_MIXTURE)[:count]


@dataclass(frozen=True, kw_only=True)
class ConfidenceModel:
    """A logistic model of how likely the end-point error is under a threshold.

    Attributes:
        threshold_px: an error under it counts as right.
        weights: one for each feature, by its name (:func:`feature_names`).
        bias: added to the weighted sum of the features.
        recipe: how the model was fitted, as json can hold it; ``model`` is the name of its estimator.
    """

    threshold_px: float
    weights: dict[str, float]
    bias: float
    recipe: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = (*FEATURES, OF_A_MIXTURE)
        unknown = sorted(set(self.weights) - set(known))
        if unknown or not self.weights:
            raise ValueError(
                f"ConfidenceModel expects weights for some of {', '.join(known)}, got "
                f"{', '.join(unknown) or 'none'}: fit it again, with python -m deqflow confidence."
            )
        if not self.threshold_px > 0:
            raise ValueError(f"ConfidenceModel expects a threshold of more than 0 px, got {self.threshold_px!r}.")

    def __call__(self, forward: FlowOutput, backward: FlowOutput) -> Tensor:
        """The confidence of the forward flow, (B, H, W), from 0 to 1.

        It is the probability that the end-point error is under ``threshold_px``, for scenes like those of the fit.
        It is 0 where the flow is not finite.

        Args:
            forward, backward: the outputs for a pair and for the pair in reverse order, as
                :func:`estimate_both_ways` returns them.

        Raises:
            ValueError: the outputs are of different sizes, or have no mixture where the fit had one.
        """
        return self.predict(features(forward, backward))

    def predict(self, values: Tensor) -> Tensor:
        """The same from :func:`features`, (B, F, ...) -> (B, ...)."""
        names = feature_names(values.shape[1])
        if OF_A_MIXTURE in self.weights and OF_A_MIXTURE not in names:
            raise ValueError(
                "This confidence was fitted to a model that expects its own error (a mixture), got one that does not: "
                "fit it again, with python -m deqflow confidence."
            )
        weights = values.new_tensor([self.weights.get(name, 0.0) for name in names])
        logits = values.movedim(1, -1) @ weights + self.bias
        return torch.where(torch.isfinite(logits), logits.sigmoid(), 0.0)

    def save(self, path: str | Path) -> None:
        """Write the model as json: whole, or not at all."""
        write_whole(path, json.dumps(asdict(self), indent=1) + "\n")


def load_confidence(path: str | Path = SHIPPED_CONFIDENCE) -> ConfidenceModel:
    """Read a confidence model. Without a path it is the shipped one, which belongs to deqflow-small.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or is not a confidence model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No confidence model at {path}: fit one, with python -m deqflow confidence.")
    try:
        stored = json.loads(path.read_text())
        weights = {str(name): float(weight) for name, weight in stored["weights"].items()}
        threshold, bias = float(stored["threshold_px"]), float(stored["bias"])
        return ConfidenceModel(threshold_px=threshold, weights=weights, bias=bias, recipe=stored["recipe"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or is not a confidence model ({error}): fit it again.") from error


def fit(
    values: Array,
    errors: Array,
    *,
    threshold_px: float = 1.0,
    names: Sequence[str] | None = None,
    ridge: float = 1e-4,
    recipe: dict[str, Any] | None = None,
) -> ConfidenceModel:
    """Fit by maximum likelihood, with a small ridge on the weights of standardised features.

    Args:
        values: features of N pixels, (N, F), as :func:`features` gives them.
        errors: end-point errors of these pixels, (N,), in pixels.
        threshold_px: an error under it counts as right.
        names: of the features that the model may use; all that are there if not given.
        ridge: factor of the squared weights, which are added to the negative mean log likelihood.
        recipe: stored with the model.

    Raises:
        ValueError: the shapes do not match, a value is not finite, or all pixels are right or all are wrong.
    """
    least = len(FEATURES)
    if values.ndim != 2 or len(values) != len(errors) or values.shape[1] not in (least, least + 1):
        raise ValueError(
            f"fit expects values (N, {least}) and errors (N,), got {values.shape} and {errors.shape}; a model with a "
            "mixture has one column more."
        )
    found_names = feature_names(values.shape[1])
    names = found_names if names is None else names
    if not (np.isfinite(values).all() and np.isfinite(errors).all()):
        raise ValueError("fit expects finite values and errors: leave out the pixels of solves that failed.")
    right = errors < threshold_px
    if right.all() or not right.any():
        raise ValueError(f"fit expects pixels on both sides of {threshold_px} px, got all on one: take other pairs.")
    x = values[:, [found_names.index(name) for name in names]].astype(np.float64)
    mean, scale = x.mean(0), x.std(0) + 1e-9
    x, signs = (x - mean) / scale, np.where(right, 1.0, -1.0)

    def loss(parameters: Array) -> tuple[float, Array]:
        margins = signs * (x @ parameters[1:] + parameters[0])
        slopes = -signs * special.expit(-margins) / len(x)
        gradient = np.concatenate([[slopes.sum()], x.T @ slopes + 2 * ridge * parameters[1:]])
        return float(np.logaddexp(0, -margins).mean() + ridge * (parameters[1:] ** 2).sum()), gradient

    found = optimize.minimize(loss, np.zeros(1 + x.shape[1]), jac=True, method="L-BFGS-B").x
    weights = found[1:] / scale
    return ConfidenceModel(
        threshold_px=threshold_px,
        weights={name: float(weight) for name, weight in zip(names, weights, strict=True)},
        bias=float(found[0] - weights @ mean),
        recipe=recipe or {},
    )
