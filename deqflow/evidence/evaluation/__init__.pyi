"""Evaluation of models and classical methods on pairs with known flow."""

from .comparison import PairMeasurement, begin_results, evaluate, evaluate_set, report_lines, summarize
from .config import EvaluationConfig
from .estimates import estimate_pair
from .sets import SUBSETS, EvaluationSet, evaluation_sets, procedural_pairs, subset

__all__ = [
    "SUBSETS",
    "EvaluationConfig",
    "EvaluationSet",
    "PairMeasurement",
    "begin_results",
    "estimate_pair",
    "evaluate",
    "evaluate_set",
    "evaluation_sets",
    "procedural_pairs",
    "report_lines",
    "subset",
    "summarize",
]
