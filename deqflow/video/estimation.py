"""Flow of a video, each solve started from the last one (paper section 3.4)."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deqflow.model.estimator import STRIDE, FlowEstimator, FlowOutput, FlowState, check_images, flow_residual
from deqflow.model.geometry import Padding
from deqflow.model.scales import (
    carry_to_scale,
    check_scales,
    estimate_at_scales,
    resize_flow,
    resize_images,
    stop_at_scale,
)
from deqflow.solvers import FixedPointMap, Rule, Stop
from deqflow.video.policies import DEFAULT_CUT, CutDetector, CutRule, Policy, carry, check_policy, photometric_error


@dataclass(frozen=True, kw_only=True)
class VideoStep:
    """The flow from a frame to the next one, and what it cost.

    Attributes:
        flow: (1, 2, H, W), in pixels.
        output: of the solve, at the last scale.
        evaluations: calls of f in all, those of a refused start and of coarser scales included.
        start_residual: how far the first evaluation moved the flow, RMS in full-size pixels.
        photometric: mean difference of brightness along the flow at 1/8 size, in grey levels.
        reset: whether the solve began at the model's own start.
        cut: whether a jump was taken for a cut between the two frames, or before them.
        seconds: wall clock.
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


class _Begun:
    """A map whose value at the start is known already, so that it is not computed a second time."""

    def __init__(self, f: FixedPointMap, start: Tensor, value: Tensor) -> None:
        self.f, self.start, self.value = f, start, value

    def __call__(self, z: Tensor) -> Tensor:
        return self.value if z is self.start else self.f(z)


class VideoFlow:
    """Estimates the flow of consecutive frames; remembers the last state, and nothing older.

    Args:
        estimator: of the flow; used without gradients, in evaluation mode as it should be.
        policy: what a solve starts from, see :func:`deqflow.video.carry`.
        stop: budget and tolerance of each solve, the latter in full-size pixels; the model's own if not given.
        rule: solver; the model's own if not given.
        cut: when a jump is taken for a cut, after which nothing is carried over; None never does.
        scales: factors by which the frames are resized, see :func:`deqflow.model.scales.estimate_at_scales`. A solve
            that starts from the last state is at the last of them alone.

    Raises:
        ValueError: there is no such policy, or the scales do not ascend.
    """

    def __init__(
        self,
        estimator: FlowEstimator,
        *,
        policy: Policy = "warp",
        stop: Stop | None = None,
        rule: Rule | None = None,
        cut: CutRule | None = DEFAULT_CUT,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        check_policy(policy)
        check_scales(scales)
        self.scales = tuple(scales)
        self.estimator, self.stop, self.rule = estimator, stop, rule
        self.policy: Policy = policy
        self.detector = None if cut is None or policy == "reset" else CutDetector(cut)
        self.state: FlowState | None = None

    def reset(self) -> None:
        """Forget the last frames: the next pair belongs to another scene."""
        self.state = None
        if self.detector is not None:
            self.detector.forget()

    @torch.no_grad()
    def step(self, image1: Tensor, image2: Tensor) -> VideoStep:
        """Estimate the flow from a frame to the next one; ``image1`` is the ``image2`` of the call before.

        Args:
            image1, image2: (1, 3, H, W), RGB, 0..255, floating point, at least 16x16.

        Raises:
            TypeError, ValueError: as the estimator has it, or there is more than one pair.
        """
        started = time.perf_counter()
        check_images(image1, image2)
        if len(image1) != 1:
            raise ValueError(f"VideoFlow expects one pair at a time, (1, 3, H, W), got {tuple(image1.shape)}.")
        height, width = image1.shape[-2:]
        check_scales(self.scales, height, width)
        scale = self.scales[-1]
        fine1, fine2 = resize_images(image1, scale), resize_images(image2, scale)
        padding = Padding(fine1.shape[-2], fine1.shape[-1], STRIDE)
        first, second = padding.pad(fine1), padding.pad(fine2)
        f, own_start = self.estimator.fixed_point_map(first, second)
        z0, begun, cut, spent = self._carried(own_start), f, False, 0
        if z0 is not None:
            begun, cut, spent = self._begin(f, z0, first, second)
        fresh = z0 is None or cut
        if z0 is None or cut:
            z0, more = self._cold(image1, image2, own_start)
            spent += more
        stop = stop_at_scale(self.stop or self.estimator.equilibrium.eval_stop, scale)
        output = self.estimator.solve_map(begun, z0, rule=self.rule, stop=stop, padding=padding)
        photometric = photometric_error(first, second, output.state.flow)
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
        """The flow of each frame but the last, with the frame; in constant memory.

        Args:
            frames: (1, 3, H, W) each, as in :meth:`step`.
        """
        last: Tensor | None = None
        for image in frames:
            if last is not None:
                yield last, self.step(last, image)
            last = image

    def _begin(self, f: FixedPointMap, start: Tensor, first: Tensor, second: Tensor) -> tuple[FixedPointMap, bool, int]:
        """The map to solve, whether its carried start belongs to another scene, and evaluations lost on finding out."""
        if self.detector is None:
            return f, False, 0
        if self.detector.is_new_scene(photometric_error(first, second, start[:, -2:])):
            return f, True, 0
        value = f(start)
        if self.detector.is_lost(float(flow_residual(value - start)) / self.scales[-1]):
            return f, True, 1
        return _Begun(f, start, value), False, 0

    def _cold(self, image1: Tensor, image2: Tensor, own_start: Tensor) -> tuple[Tensor, int]:
        """Where a solve begins that has no state to start from, and the evaluations at coarser scales that it took."""
        *coarser, scale = self.scales
        if not coarser:
            return own_start, 0
        found = estimate_at_scales(self.estimator, image1, image2, coarser, rule=self.rule, stop=self.stop).outputs
        start = carry_to_scale(found[-1].state, resize_images(image1, scale))
        return torch.cat([start.hidden, start.flow], 1).to(own_start), sum(int(each.solve.evals) for each in found)

    def _carried(self, like: Tensor) -> Tensor | None:
        """The packed start from the last state; None for the first pair, or one of another size."""
        start = None if self.state is None else carry(self.state, self.policy)
        if start is None or start.hidden.shape[-2:] != like.shape[-2:]:
            return None
        return torch.cat([start.hidden, start.flow], 1).to(like)

    def _remember(self, output: FlowOutput, photometric: float, residual: float | None, cut: bool) -> None:
        if cut or not bool(torch.isfinite(output.solve.fz).all()):
            # What comes next belongs to the new scene, of which this pair has seen one frame only.
            self.reset()
            return
        self.state = output.state
        if self.detector is not None:
            self.detector.remember(photometric, residual)
