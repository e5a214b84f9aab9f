"""The fixed-point problem of two images, in one call: what many tests begin with."""

from torch import Tensor

from deqflow.model.estimator import FlowEstimator
from deqflow.model.problem import FlowProblem
from deqflow.solvers import FixedPointMap


def problem_of(estimator: FlowEstimator, image1: Tensor, image2: Tensor, **options) -> FlowProblem:
    return estimator.problem(estimator.encode(image1), estimator.encode(image2), **options)


def map_of(estimator: FlowEstimator, image1: Tensor, image2: Tensor, **options) -> tuple[FixedPointMap, Tensor]:
    problem = problem_of(estimator, image1, image2, **options)
    return problem.f, problem.z0
