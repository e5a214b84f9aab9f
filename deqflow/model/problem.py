"""The fixed-point problem of a pair of images: made once by an estimator, solved from any start by any rule."""

import dataclasses
import time
import warnings
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from deqflow.equilibrium import Equilibrium
from deqflow.model.flow_map import FlowMap
from deqflow.model.geometry import Padding
from deqflow.model.output import FlowOutput, movement_map
from deqflow.model.state import FlowResidual, FlowState
from deqflow.solvers import OnEval, Rule, SolverResult, Status, Stop, rescue


class Solves(Protocol):
    """What a problem needs of its estimator (:class:`deqflow.model.estimator.FlowEstimator`)."""

    equilibrium: Equilibrium
    training: bool
    recurrent: bool
    stride: int

    def upsample(self, state: FlowState) -> Tensor:
        """The flow of a state at the padded images' size."""
        ...

    def upsample_with_mixture(self, state: FlowState) -> tuple[Tensor, Tensor | None]:
        """The same, and the mixture, if the model has one."""
        ...


@dataclass(frozen=True)
class FlowProblem:
    """Find z with f(z) = z, where z is a packed state (B, Ch + 2, h, w); made by ``FlowEstimator.problem``.

    Attributes:
        estimator: the model: its equilibrium solves, its upsampler gives the flow at full size.
        f: the map.
        z0: the model's own start.
        padding: the padding of the images.
    """

    estimator: Solves
    f: FlowMap
    z0: Tensor
    padding: Padding

    @property
    def residual(self) -> FlowResidual:
        """The norm that tolerances refer to: RMS change of the flow in full-size pixels."""
        return FlowResidual(self.estimator.stride)

    def start(self, state: FlowState) -> Tensor:
        """Pack a state to solve from, in the precision and on the device of the problem.

        Raises:
            ValueError: its shapes are not those of the problem.
        """
        expected = FlowState.unpack(self.z0)
        if state.hidden.shape != expected.hidden.shape or state.flow.shape != expected.flow.shape:
            raise ValueError(
                f"start expects hidden {tuple(expected.hidden.shape)} and flow {tuple(expected.flow.shape)} "
                f"for these images, got {tuple(state.hidden.shape)} and {tuple(state.flow.shape)}: "
                "use the state of an output for images of the same size."
            )
        return state.pack().to(self.z0)

    def flow(self, z: Tensor) -> Tensor:
        """The flow of a packed state at the images' size, (B, 2, H, W), in pixels."""
        return self.padding.crop(self.estimator.upsample(FlowState.unpack(z)))

    def flow_and_mixture(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """As :meth:`flow`, and the mixture at the images' size, (B, 4, H, W); None where the model has none."""
        flow, mixture = self.estimator.upsample_with_mixture(FlowState.unpack(z))
        return self.padding.crop(flow), None if mixture is None else self.padding.crop(mixture)

    def movement(self, difference: Tensor) -> Tensor:
        """How far the flow moves at each pixel, computed from a difference of packed states: (B, H, W), in pixels."""
        return movement_map(FlowState.unpack(difference).flow, self.padding, self.estimator.stride)

    def solve(
        self,
        *,
        start: FlowState | Tensor | None = None,
        rule: Rule | None = None,
        stop: Stop | None = None,
        on_eval: OnEval | None = None,
    ) -> FlowOutput:
        """Solve the problem; options as of :meth:`FlowEstimator.forward`, and a start may be packed already.

        A graph is recorded if the caller's gradient mode is on.
        """
        output, remarks = self.solve_with_remarks(start=start, rule=rule, stop=stop, on_eval=on_eval)
        if remarks:
            warnings.warn(remarks, stacklevel=2)
        return output

    def solve_with_remarks(
        self,
        *,
        start: FlowState | Tensor | None = None,
        rule: Rule | None = None,
        stop: Stop | None = None,
        on_eval: OnEval | None = None,
    ) -> tuple[FlowOutput, str]:
        """As :meth:`solve`, but the text of warnings is returned and no warning is given; empty if there is none."""
        estimator, began = self.estimator, time.monotonic()
        stop = (stop or estimator.equilibrium.stop_in(estimator.training)).measured_by(self.residual)
        z0 = self.start(start) if isinstance(start, FlowState) else self.z0 if start is None else start
        states, result = estimator.equilibrium(self.f, z0, rule=rule, stop=stop, on_eval=on_eval)
        remarks = []
        if not (estimator.training or estimator.recurrent or torch.is_grad_enabled()):
            left = stop.max_seconds - (time.monotonic() - began)
            first, result = result, rescue(self.f, z0, result, on_eval=on_eval, max_seconds=left)
            if result is not first:
                states = (result.fz,)
                remarks.append(f"A solve diverged and was tried again with damping: {result.summary()}")
        ends = [self.flow_and_mixture(state) for state in states]
        flows = tuple(flow for flow, _ in ends)
        mixtures = tuple(mixture for _, mixture in ends if mixture is not None)
        if not estimator.training:
            result, remark = with_failures(result, flows[-1])
            remarks.append(remark)
        state = FlowState.unpack(states[-1])
        output = FlowOutput(flows[-1], flows, state, result, self.padding, estimator.stride, mixtures)
        return output, " ".join(filter(None, remarks))


def with_failures(result: SolverResult, flow: Tensor) -> tuple[SolverResult, str]:
    """The result with a status for samples whose flow (B, 2, H, W) is not finite, and a remark on all that failed."""
    lost = ~torch.isfinite(flow).flatten(1).all(1)
    result = dataclasses.replace(result, status=result.status.masked_fill(lost, int(Status.NON_FINITE)))
    failed = result.status == Status.NON_FINITE
    if not bool(failed.any()):
        return result, ""
    numbers = ", ".join(str(int(i)) for i in failed.nonzero())
    left = "its flow is not finite" if bool(lost.any()) else "its flow is that of the last finite state"
    return result, (
        f"NaN or infinity came up in sample {numbers}, {left}: check weights and start, and use bfloat16 or float32 "
        "instead of float16, which ends at 65504."
    )
