"""The quality of a flow without the truth: forward-backward consistency, occlusion, and a calibrated confidence.

>>> forward, backward = estimate_both_ways(estimator, image1, image2)
>>> forward_backward(forward.flow, backward.flow).occluded  # (B, H, W) booleans
>>> load_confidence()(forward, backward)  # (B, H, W), the probability that the error is under 1 px
"""

from deqflow.evidence.confidence.consistency import Consistency, estimate_both_ways, forward_backward
from deqflow.evidence.confidence.fitting import (
    Calibration,
    FitConfig,
    Fitted,
    evaluate_confidence,
    fit_confidence,
    run_confidence,
)
from deqflow.evidence.confidence.logistic import (
    FEATURES,
    SHIPPED_CONFIDENCE,
    ConfidenceModel,
    features,
    fit,
    load_confidence,
)

__all__ = [
    "FEATURES",
    "SHIPPED_CONFIDENCE",
    "Calibration",
    "ConfidenceModel",
    "Consistency",
    "FitConfig",
    "Fitted",
    "estimate_both_ways",
    "evaluate_confidence",
    "features",
    "fit",
    "fit_confidence",
    "forward_backward",
    "load_confidence",
    "run_confidence",
]
