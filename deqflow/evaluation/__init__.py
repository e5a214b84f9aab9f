"""Measuring models and classical methods on held-out pairs: on what, how, and what came out."""

from deqflow.evaluation.config import EvaluationConfig
from deqflow.evaluation.estimates import estimate_pair
from deqflow.evaluation.measuring import evaluate, evaluate_set, report_lines
from deqflow.evaluation.sets import SUBSETS, EvaluationSet, evaluation_sets, procedural_pairs, subset

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
