"""The flow of a video, where each solve starts from the solution of the last one (paper section 3.4)."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from deqflow.model.estimator import Features, FlowEstimator
from deqflow.model.images import check_images
from deqflow.model.output import FlowOutput
from deqflow.model.problem import FlowProblem
from deqflow.model.scales import (
    carry_to_scale,
    check_scales,
    estimate_at_scales,
    resize_flow,
    resize_images,
    stop_at_scale,
)
from deqflow.model.state import FlowState
from deqflow.solvers import Evaluation, Rule, Stop
from deqflow.video.policies import (
    DEFAULT_CUT,
    CutDetector,
    CutRule,
    Policy,
    carry,
    photometric_error,
)


@dataclass(frozen=True, kw_only=True)
class VideoStep:
    """The flow from a frame to the next one, and what it cost.

    Attributes:
        flow: (1, 2, H, W), in pixels.
        output: the model's output at the last scale.
        evaluations: number of all evaluations, including those of a rejected start and of coarser scales.
        start_residual: RMS movement of the flow in the first evaluation, in full-size pixels.
        photometric: mean difference of brightness along the flow at 1/8 size, in grey levels.
        reset: whether the solve began at the model's own start.
        cut: whether a cut was detected between the two frames, or before them.
        seconds: wall-clock time.
    """

    flow: Tensor
    output: FlowOutput
    evaluations: int
    start_residual: float
    photometric: float
    reset: bool
    cut: bool
    seconds: float

    @property
    def residual(self) -> float:
        """RMS change of the flow in the last evaluation, in full-size pixels."""
        return float(self.output.solve.residual.max())


class VideoFlow:
    """Estimates the flow of consecutive frames. It remembers only the last state.

    Args:
        estimator: the model, which should be in evaluation mode; it is used without gradients.
        policy: what a solve starts from, see :func:`deqflow.video.carry`. If not given, it is "flow" for recurrent
            models and "warp" for others.
        stop: budget and tolerance of each solve, the latter in full-size pixels; the model's own if not given.
        rule: the solver; the model's own if not given.
        cut: the rule that detects cuts, over which no state is carried; None detects none.
        scales: factors by which the frames are resized, see :func:`deqflow.model.scales.estimate_at_scales`. A solve
            that starts from the last state uses only the last of them.

    Raises:
        ValueError: there is no such policy, or the scales do not ascend.
    """

    def __init__(
        self,
        estimator: FlowEstimator,
        *,
        policy: Policy | None = None,
        stop: Stop | None = None,
        rule: Rule | None = None,
        cut: CutRule | None = DEFAULT_CUT,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        if policy is None:  # a recurrent model's hidden state comes from the image
            policy = "flow" if estimator.recurrent else "warp"
        if policy not in get_args(Policy):
            raise ValueError(f"Unknown policy {policy!r}: expected one of {', '.join(get_args(Policy))}.")
        check_scales(scales)
        self.scales = tuple(scales)
        self.estimator, self.stop, self.rule = estimator, stop, rule
        self.policy: Policy = policy
        self.detector = None if cut is None or policy == "reset" else CutDetector(cut)
        self.state: FlowState | None = None
        self._last: tuple[Tensor, Features] | None = None  # the second frame of the last pair, and its features

    def reset(self) -> None:
        """Forget the last frames: the next pair belongs to another scene."""
        self.state = None
        self._last = None
        if self.detector is not None:
            self.detector.forget()

    @torch.no_grad()
    def step(self, image1: Tensor, image2: Tensor) -> VideoStep:
        """Estimate the flow from a frame to the next one; ``image1`` is the ``image2`` of the call before.

        Args:
            image1, image2: (1, 3, H, W), RGB, 0..255, floating point, at least 16x16.

        Raises:
            TypeError, ValueError: the estimator cannot use the images, or there is more than one pair.
        """
        started = time.perf_counter()
        check_images(image1, image2)
        if len(image1) != 1:
            raise ValueError(f"VideoFlow expects one pair at a time, (1, 3, H, W), got {tuple(image1.shape)}.")
        height, width = image1.shape[-2:]
        check_scales(self.scales, height, width)
        features1, features2 = self._encode_first(image1), self._encode(image2)
        problem = self.estimator.problem(features1, features2)
        self._last = (image2, features2)
        output, spent, cut = self._continued(problem, features1, features2)
        fresh = output is None
        if output is None:
            start, more = self._coarser(image1, image2)
            spent += more
            output = problem.solve(start=start, rule=self.rule, stop=self._stop)
        photometric = photometric_error(features1.images, features2.images, output.state.flow)
        start_residual = float(output.solve.trace[0])
        self._remember(output, photometric, None if fresh else start_residual, cut)
        return VideoStep(
            flow=resize_flow(output.flow, height, width),
            output=output,
            evaluations=int(output.solve.evals) + spent,
            start_residual=start_residual,
            photometric=photometric,
            reset=fresh,
            cut=cut,
            seconds=time.perf_counter() - started,
        )

    def run(self, frames: Iterable[Tensor]) -> Iterator[tuple[Tensor, VideoStep]]:
        """Yield each frame but the last together with its flow. The memory used is constant.

        Args:
            frames: (1, 3, H, W) each, as in :meth:`step`.
        """
        last: Tensor | None = None
        for image in frames:
            if last is not None:
                yield last, self.step(last, image)
            last = image

    @property
    def _stop(self) -> Stop:
        return stop_at_scale(self.stop or self.estimator.equilibrium.eval_stop, self.scales[-1], self.estimator.stride)

    def _encode(self, image: Tensor) -> Features:
        return self.estimator.encode(resize_images(image, self.scales[-1]))

    def _encode_first(self, image: Tensor) -> Features:
        """The features of the first frame; they are reused if it is, or equals, the second frame of the last call."""
        if self._last is not None:
            before, features = self._last
            if before is image or (before.shape == image.shape and torch.equal(before, image)):
                return features
        return self._encode(image)

    def _continued(
        self, problem: FlowProblem, features1: Features, features2: Features
    ) -> tuple[FlowOutput | None, int, bool]:
        """Solve from the carried state.

        Returns:
            The output, or None if there is no state to carry or it belongs to another scene; the number of evaluations
            spent before the state was rejected; and whether it belongs to another scene.
        """
        own = FlowState.unpack(problem.z0)
        if self.state is None or self.state.hidden.shape != own.hidden.shape:
            return None, 0, False
        start = carry(self.state, self.policy, own)
        if start is None:
            return None, 0, False
        detector = self.detector
        if detector is None:
            return problem.solve(start=start, rule=self.rule, stop=self._stop), 0, False
        if detector.is_new_scene(photometric_error(features1.images, features2.images, start.flow)):
            return None, 0, True
        lost: list[bool] = []

        def first_evaluation_is_lost(evaluation: Evaluation) -> bool:
            if not lost:
                lost.append(detector.is_lost(float(evaluation.residual.max())))
            return lost[0]

        output = problem.solve(start=start, rule=self.rule, stop=self._stop, on_eval=first_evaluation_is_lost)
        return (None, 1, True) if lost[0] else (output, 0, False)

    def _coarser(self, image1: Tensor, image2: Tensor) -> tuple[FlowState | None, int]:
        """The start of a solve without a carried state, and the number of evaluations spent on it at coarser scales."""
        *coarser, scale = self.scales
        if not coarser:
            return None, 0
        found = estimate_at_scales(self.estimator, image1, image2, coarser, rule=self.rule, stop=self.stop).outputs
        return carry_to_scale(found[-1], resize_images(image1, scale)), sum(int(each.solve.evals) for each in found)

    def _remember(self, output: FlowOutput, photometric: float, residual: float | None, cut: bool) -> None:
        if cut or not bool(torch.isfinite(output.solve.fz).all()):
            # The next pair belongs to the new scene, of which this pair has only one frame.
            last = self._last
            self.reset()
            self._last = last  # the features of the frame itself stay valid
            return
        self.state = output.state
        if self.detector is not None:
            self.detector.remember(photometric, residual)
