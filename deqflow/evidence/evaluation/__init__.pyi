"""Evaluation of models and classical methods on pairs with known flow."""

from .comparison import evaluate, evaluate_set, report_lines
from .config import EvaluationConfig
from .estimates import estimate_pair
from .sets import SUBSETS, EvaluationSet, evaluation_sets, procedural_pairs, subset

__all__ = [
    "SUBSETS",
    "EvaluationConfig",
    "EvaluationSet",
    "estimate_pair",
    "evaluate",
    "evaluate_set",
    "evaluation_sets",
    "procedural_pairs",
    "report_lines",
    "subset",
]
