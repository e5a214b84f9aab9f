"""Diagnostics of a fixed point: contraction, path independence, accuracy and cost of gradients, calibration.

Throughout, f maps states (B, ...) to states, and each row of f(z) depends on the same row of z alone; z is a state,
usually a fixed point; J = df/dz is the Jacobian at z, one (N, N) matrix a sample. These functions know nothing of
flow: a distance is in pixels if the norm in the caller's ``Stop`` is. All of them keep z's dtype; use float64 where
many digits matter.
"""

from deqflow.evidence.diagnostics.calibration import Sparsification, rank_correlation, sparsification
from deqflow.evidence.diagnostics.gradients import (
    ALL,
    Audit,
    Comparison,
    Gradient,
    Reference,
    audit,
    compare,
    exact_gradient,
    measure_gradient,
)
from deqflow.evidence.diagnostics.jacobian import JacobianNorm, SpectralRadius, anchored, jacobian_norm, spectral_radius
from deqflow.evidence.diagnostics.memory import KeptForBackward, LiveTensors
from deqflow.evidence.diagnostics.paths import PathIndependence, SolvePath, path_independence
from deqflow.evidence.diagnostics.trajectories import (
    Projection,
    Recording,
    Trajectory,
    asymptotic_alignment,
    principal_components,
    record_trajectories,
    separation,
)

__all__ = [
    "ALL",
    "Audit",
    "Comparison",
    "Gradient",
    "JacobianNorm",
    "KeptForBackward",
    "LiveTensors",
    "PathIndependence",
    "Projection",
    "Recording",
    "Reference",
    "SolvePath",
    "Sparsification",
    "SpectralRadius",
    "Trajectory",
    "anchored",
    "asymptotic_alignment",
    "audit",
    "compare",
    "exact_gradient",
    "jacobian_norm",
    "measure_gradient",
    "path_independence",
    "principal_components",
    "rank_correlation",
    "record_trajectories",
    "separation",
    "sparsification",
    "spectral_radius",
]
