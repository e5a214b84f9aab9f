"""Panels for notebooks: live in JupyterLab, stills in reports."""

from deqflow.widgets.base import Background, LiveFigure, StillPanel
from deqflow.widgets.playground import SolverPlayground
from deqflow.widgets.runs import SolverBench, SolverRun
from deqflow.widgets.settings import RunSettings

__all__ = [
    "Background",
    "LiveFigure",
    "RunSettings",
    "SolverBench",
    "SolverPlayground",
    "SolverRun",
    "StillPanel",
]
