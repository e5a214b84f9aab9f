"""Measure a fixed point: how contractive the map is, whether it is one point, what its gradients are worth and cost.

Throughout, f maps states (B, ...) to states, each row a function of the same row alone; z is a state at which f is
looked at, usually a fixed point; J = df/dz is its Jacobian there, one (N, N) matrix a sample. Nothing here knows of
flow: what is "in pixels" is so because the norm in the caller's ``Stop`` says so. Every function keeps z's dtype;
work in float64 where digits matter.
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
from deqflow.evidence.diagnostics.paths import Path, PathIndependence, path_independence
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
    "Path",
    "PathIndependence",
    "Projection",
    "Recording",
    "Reference",
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
