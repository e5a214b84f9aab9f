"""Figures: in matplotlib images, flow and errors; in plotly, which is interactive, curves and paths.

Each function returns a figure, which a notebook shows when it ends a cell.
"""

from deqflow.lab.plots.curves import lines, sparsifications, spreads, traces, tradeoff
from deqflow.lab.plots.images import errors, features, flows, images
from deqflow.lab.plots.paths import film, trajectories

__all__ = [
    "errors",
    "features",
    "film",
    "flows",
    "images",
    "lines",
    "sparsifications",
    "spreads",
    "traces",
    "tradeoff",
    "trajectories",
]
