"""Evaluation of models and classical methods on pairs with known flow."""

from .comparison import PairMeasurement as PairMeasurement
from .comparison import begin_results as begin_results
from .comparison import evaluate as evaluate
from .comparison import evaluate_set as evaluate_set
from .comparison import report_lines as report_lines
from .comparison import summarize as summarize
from .config import EvaluationConfig as EvaluationConfig
from .estimates import estimate_pair as estimate_pair
from .sets import SUBSETS as SUBSETS
from .sets import EvaluationSet as EvaluationSet
from .sets import evaluation_sets as evaluation_sets
from .sets import procedural_pairs as procedural_pairs
from .sets import subset as subset
