"""Evaluation of models and classical methods on pairs with known flow."""

from deqflow.evidence.evaluation.comparison import evaluate, evaluate_set, report_lines
from deqflow.evidence.evaluation.config import EvaluationConfig
from deqflow.evidence.evaluation.estimates import estimate_pair
from deqflow.evidence.evaluation.sets import SUBSETS, EvaluationSet, evaluation_sets, procedural_pairs, subset

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
