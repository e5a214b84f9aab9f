"""Panels for notebooks: live in JupyterLab, stills in reports."""

from deqflow.lab.widgets.base import Background, LiveFigure, StillPanel
from deqflow.lab.widgets.playground import SolverPlayground
from deqflow.lab.widgets.runs import SolverBench, SolverRun
from deqflow.lab.widgets.settings import RunSettings

__all__ = [
    "Background",
    "LiveFigure",
    "RunSettings",
    "SolverBench",
    "SolverPlayground",
    "SolverRun",
    "StillPanel",
]
