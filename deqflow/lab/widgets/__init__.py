"""Panels for notebooks, which are live in JupyterLab and stills in reports."""

from deqflow.lab.widgets.base import Background, CaptionedImage, Choice, StillPanel
from deqflow.lab.widgets.evaluations import EvaluationPanel
from deqflow.lab.widgets.playground import SolverPlayground
from deqflow.lab.widgets.runs import SolverBench, SolverRun
from deqflow.lab.widgets.settings import RunSettings

__all__ = [
    "Background",
    "CaptionedImage",
    "Choice",
    "EvaluationPanel",
    "RunSettings",
    "SolverBench",
    "SolverPlayground",
    "SolverRun",
    "StillPanel",
]
