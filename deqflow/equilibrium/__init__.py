"""Equilibrium layers: how to differentiate through a fixed point (paper section 3).

For z = f(z, theta) the implicit function theorem gives dL/dtheta = v^T (I - J)^-1 df/dtheta, with v = dL/dz and
J = df/dz at the fixed point. :class:`Implicit` solves for v^T (I - J)^-1 exactly, :class:`Phantom` takes a few
terms of its Neumann series, :class:`Unrolled` differentiates every evaluation of the solver, as recurrent models do.
A gradient mode owns the whole run: it decides what is solved without a graph, and where the graph begins.
"""

from deqflow.equilibrium.layer import Correction, Equilibrium
from deqflow.equilibrium.modes import GradientMode, Implicit, Phantom, States, Unrolled
from deqflow.equilibrium.reversible import Reversible, dependencies

__all__ = [
    "Correction",
    "Equilibrium",
    "GradientMode",
    "Implicit",
    "Phantom",
    "Reversible",
    "States",
    "Unrolled",
    "dependencies",
]
