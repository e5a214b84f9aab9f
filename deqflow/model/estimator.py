"""The flow estimator: images -> features -> correlation -> fixed point -> flow (paper section 3.1).

The state of the fixed point is hidden (B, Ch, h, w) and flow (B, 2, h, w) at 1/8 size, packed in one float32
tensor (B, Ch + 2, h, w). The same class is the equilibrium model and its recurrent counterpart (RAFT): they
differ in the gradient mode, in where the hidden state starts, and in what supervises them.
"""

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deqflow.equilibrium import Equilibrium
from deqflow.model.correlation import Correlation, CorrelationName, correlate
from deqflow.model.encoders import checkpointed
from deqflow.model.flow_map import FlowMap
from deqflow.model.geometry import Padding, upsample_bilinear, upsample_convex
from deqflow.model.sizes import EstimatorConfig
from deqflow.model.updates import UpdateOperator
from deqflow.solvers import FixedPointMap, OnEval, Rule, SolverResult, Status, Stop, rescue, rms
from deqflow.solvers.loop import per_sample

STRIDE = 8
SMALLEST_SIDE = 16
TOO_BRIGHT = 512  # well above 255, where images may overshoot that were made larger or sharper
ONE_AT_A_TIME = 2**20  # pixels of a batch of images; larger ones are encoded singly, for their activations' sake


@dataclass(frozen=True)
class FlowState:
    """A state at 1/8 size: hidden (B, Ch, h, w) and flow (B, 2, h, w), the latter in 1/8-size pixels."""

    hidden: Tensor
    flow: Tensor


@dataclass(frozen=True)
class FlowOutput:
    """What an estimator returns, in training and in evaluation alike.

    Attributes:
        flow: (B, 2, H, W), from the first image to the second, x right, y down, in pixels.
        flows: the flow at each correction, oldest first; the last is ``flow``. One entry in evaluation.
        state: hidden state and flow at 1/8 size, from f(z): what a next solve may start from.
        solve: the solver's account; its residual is the RMS change of the flow in full-size pixels, (B,).
    """

    flow: Tensor
    flows: tuple[Tensor, ...]
    state: FlowState
    solve: SolverResult

    @property
    def hidden_residual(self) -> Tensor:
        """RMS change of the hidden state in the reported evaluation, (B,), no unit."""
        return rms((self.solve.fz - self.solve.z)[:, :-2])

    @property
    def residual_map(self) -> Tensor:
        """How far the reported evaluation moved the flow at each pixel, (B, H, W), in full-size pixels.

        Bilinear between the 1/8-size pixels; its root mean square there is ``solve.residual`` times the root of 2,
        which counts both components as one length.
        """
        moved = STRIDE * torch.linalg.vector_norm((self.solve.fz - self.solve.z)[:, -2:], dim=1, keepdim=True)
        fine = F.interpolate(moved, scale_factor=STRIDE, mode="bilinear", align_corners=False)
        height, width = self.flow.shape[-2:]
        return Padding(height, width, STRIDE).crop(fine)[:, 0]


def flow_residual(difference: Tensor) -> Tensor:
    """RMS of the flow part of a packed state, in full-size pixels: (B, Ch + 2, h, w) -> (B,)."""
    return STRIDE * rms(difference[:, -2:])


class ConvexUpsampler(nn.Module):
    """Predicts from the hidden state how to combine coarse neighbours (RAFT, section 3.3)."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.mask = nn.Sequential(nn.Conv2d(hidden, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 9 * STRIDE**2, 1))

    def forward(self, state: FlowState) -> Tensor:
        """Return the flow at full size, (B, 2, 8 h, 8 w), in pixels."""
        # The factor balances the gradient that reaches the mask against the one that reaches the flow (RAFT).
        return upsample_convex(state.flow, 0.25 * self.mask(state.hidden).float(), STRIDE)


class BilinearUpsampler(nn.Module):
    """Upsampling without parameters (RAFT-small)."""

    def forward(self, state: FlowState) -> Tensor:
        """Return the flow at full size, (B, 2, 8 h, 8 w), in pixels."""
        return upsample_bilinear(state.flow, STRIDE)


class FlowEstimator(nn.Module):
    """Optical flow as the fixed point of an update operator.

    Args:
        feature_encoder: images -> matching features.
        context_encoder: first image -> context, and the hidden state's start if recurrent; None if the
            feature encoder's last channels are the context.
        update: the update operator.
        upsampler: state -> flow at full size.
        equilibrium: the implicit layer that solves and differentiates.
        context_channels: how many channels of the encoder's output are context.
        levels, radius: of the correlation lookup.
        recurrent, all_gradients, dropout: as in :class:`deqflow.model.sizes.EstimatorConfig`.
        correlation: how lookups are computed, see :func:`deqflow.model.correlation.correlate`; may be changed.
        checkpoint_encoders: keep the encoders' inputs for backward instead of their activations, which are computed
            again, an image at a time: less memory, more time. May be changed at any time.
        checkpoint_updates: the same for each evaluation that a graph is recorded of, and for each upsampling: their
            states are kept. Made for recurrent training, where all are. May be changed at any time.
        config: stored in checkpoints; None for a model put together by hand.
        origin: where published weights come from, in words.

    Raises:
        ValueError: dropout is not in [0, 1).
    """

    def __init__(
        self,
        *,
        feature_encoder: nn.Module,
        context_encoder: nn.Module | None,
        update: UpdateOperator,
        upsampler: nn.Module,
        equilibrium: Equilibrium,
        context_channels: int,
        levels: int = 4,
        radius: int = 4,
        recurrent: bool = False,
        all_gradients: bool = False,
        dropout: float = 0.0,
        correlation: CorrelationName = "auto",
        checkpoint_encoders: bool = False,
        checkpoint_updates: bool = False,
        config: EstimatorConfig | None = None,
        origin: str = "",
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"FlowEstimator expects a dropout of at least 0 and less than 1, got {dropout!r}.")
        self.feature_encoder, self.context_encoder = feature_encoder, context_encoder
        self.update, self.upsampler, self.equilibrium = update, upsampler, equilibrium
        self.context_channels, self.levels, self.radius = context_channels, levels, radius
        self.recurrent, self.all_gradients, self.dropout = recurrent, all_gradients, dropout
        self.correlation: CorrelationName = correlation
        self.checkpoint_encoders, self.checkpoint_updates = checkpoint_encoders, checkpoint_updates
        self.config, self.origin = config, origin

    def forward(
        self,
        image1: Tensor,
        image2: Tensor,
        *,
        start: FlowState | None = None,
        rule: Rule | None = None,
        stop: Stop | None = None,
        generator: torch.Generator | None = None,
        on_eval: OnEval | None = None,
    ) -> FlowOutput:
        """Estimate the flow from ``image1`` to ``image2``.

        Args:
            image1, image2: (B, 3, H, W), RGB, 0..255, floating point of any precision, any size from 16x16.
            start: state to solve from, for instance the last frame's; zero flow if not given.
            rule: solver for this call; the model's own if not given.
            stop: budget and tolerance for this call; a tolerance is in full-size pixels unless the ``stop``
                brings a norm of its own.
            generator: of dropout's masks in training, on the CPU; torch's own if not given.
            on_eval: told of each evaluation of a solve without a graph; the solve ends where it returns True
                (:func:`deqflow.solvers.solve`).

        A solve that diverges is tried again with damping, with a warning; see ``output.solve.status`` for how it ended.
        A sample whose images are not finite fails alone, with a warning: its flow is NaN and its status says so. The
        same goes for a sample in which NaN or infinity comes up later, as by overflow in float16.

        Raises:
            TypeError: an image is no floating-point tensor.
            ValueError: an image or the start has another shape; or images are not finite in training, where samples
                share statistics, or in all samples.
        """
        check_images(image1, image2)
        bad = not_finite(image1, image2)
        if bool(bad.any()):
            return self._without(bad, image1, image2, start=start, rule=rule, stop=stop, on_eval=on_eval)
        precision = next(self.parameters()).dtype
        image1, image2 = image1.to(precision), image2.to(precision)
        height, width = image1.shape[-2:]
        padding = Padding(height, width, STRIDE)
        f, z0 = self.fixed_point_map(padding.pad(image1), padding.pad(image2), generator=generator)
        if start is not None:
            z0 = self._pack_start(start, z0)
        return self.solve_map(f, z0, rule=rule, stop=stop, padding=padding, on_eval=on_eval)

    def _without(self, bad: Tensor, image1: Tensor, image2: Tensor, **options: Any) -> FlowOutput:
        """The output of a batch some of whose samples cannot be used: theirs is NaN."""
        numbers = ", ".join(str(int(i)) for i in bad.nonzero())
        if self.training or bool(bad.all()):
            raise ValueError(
                f"Images must be finite, got NaN or infinity in sample {numbers}: replace them, for instance with "
                "torch.nan_to_num."
            )
        warnings.warn(f"NaN or infinity in the images of sample {numbers}: its flow is NaN.", stacklevel=5)
        flags = per_sample(bad, image1)
        output = self(image1.masked_fill(flags, 0.0), image2.masked_fill(flags, 0.0), **options)
        solve = output.solve
        solve = dataclasses.replace(
            solve,
            z=solve.z.masked_fill(flags, torch.nan),
            fz=solve.fz.masked_fill(flags, torch.nan),
            residual=solve.residual.masked_fill(bad, torch.nan),
            status=solve.status.masked_fill(bad, int(Status.NON_FINITE)),
        )
        flow = output.flow.masked_fill(flags, torch.nan)
        return FlowOutput(flow, (flow,), self._unpack(solve.fz), solve)

    def solve_map(
        self,
        f: FixedPointMap,
        z0: Tensor,
        *,
        rule: Rule | None = None,
        stop: Stop | None = None,
        padding: Padding | None = None,
        on_eval: OnEval | None = None,
    ) -> FlowOutput:
        """Solve a map of :meth:`fixed_point_map` from a packed state; ``padding`` is what its images were padded by."""
        if stop is not None and stop.norm is rms:
            stop = dataclasses.replace(stop, norm=flow_residual)
        states, result = self.equilibrium(f, z0, rule=rule, stop=stop, on_eval=on_eval)
        remarks = []
        if not (self.training or self.recurrent or torch.is_grad_enabled()):
            first, result = result, rescue(f, z0, result)
            if result is not first:
                states = (result.fz,)
                remarks.append(f"A solve diverged and was tried again with damping: {result.summary()}")
        flows = tuple(self._upsample(self._unpack(state)) for state in states)
        if padding is not None:
            flows = tuple(padding.crop(flow) for flow in flows)
        if not self.training:
            result, remark = with_failures(result, flows[-1])
            remarks.append(remark)
        if any(remarks):
            warnings.warn(" ".join(filter(None, remarks)), stacklevel=5)
        return FlowOutput(flows[-1], flows, self._unpack(states[-1]), result)

    def fixed_point_map(
        self, image1: Tensor, image2: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[FlowMap, Tensor]:
        """Return the map f of a pair and the model's own start z0, both on packed states.

        The images are as in :meth:`forward`, with sides that divide by 8. Dropout's masks are drawn here, once.
        """
        correlation, hidden, context = self.encode(image1, image2)
        lookup_mask = self._dropout_mask(hidden, self.levels * (2 * self.radius + 1) ** 2, generator)
        context_mask = self._dropout_mask(hidden, self.context_channels, generator)
        f = FlowMap(
            correlation,
            context if context_mask is None else context * context_mask,
            self.update,
            all_gradients=self.all_gradients,
            mask=lookup_mask,
            checkpoint=self.checkpoint_updates,
        )
        flow = hidden.new_zeros(len(hidden), 2, *hidden.shape[-2:])
        return f, torch.cat([hidden, flow], 1)

    def encode(self, image1: Tensor, image2: Tensor) -> tuple[Correlation, Tensor, Tensor]:
        """Return the correlation, the hidden state's start and the context of a pair, the latter (B, C, h, w) each."""
        images = torch.cat([image1, image2]) * (2 / 255) - 1
        encoded = self._run_encoder(self.feature_encoder, images)
        if self.context_encoder is None:
            features, shared = encoded.tensor_split([encoded.shape[1] - self._encoded_context], 1)
            context = shared[: len(image1)]
        else:
            features, context = encoded, self._run_encoder(self.context_encoder, images[: len(image1)])
        if self.recurrent:
            hidden, context = context.split([self.update.hidden_channels, self.context_channels], 1)
            hidden = hidden.to(image1.dtype).tanh()
        else:
            hidden = image1.new_zeros(len(image1), self.update.hidden_channels, *context.shape[-2:])
        features1, features2 = features.to(image1.dtype).chunk(2)
        with torch.autocast(hidden.device.type, enabled=False):  # half precision costs too much here
            correlation = correlate(features1, features2, levels=self.levels, radius=self.radius, kind=self.correlation)
        return correlation, hidden, context.relu()

    def _run_encoder(self, encoder: nn.Module, images: Tensor) -> Tensor:
        if self.checkpoint_encoders and torch.is_grad_enabled():
            return checkpointed(encoder, images)
        exporting = torch.compiler.is_exporting()  # to a graph that takes all sizes alike
        if not (torch.is_grad_enabled() or exporting) and images[:, 0].numel() > ONE_AT_A_TIME:
            return torch.cat([encoder(image[None]) for image in images])
        return encoder(images)

    def _upsample(self, state: FlowState) -> Tensor:
        if self.checkpoint_updates and torch.is_grad_enabled():
            return checkpoint(self.upsampler, state, use_reentrant=False, preserve_rng_state=False)
        return self.upsampler(state)

    def _dropout_mask(self, like: Tensor, channels: int, generator: torch.Generator | None) -> Tensor | None:
        """Variational dropout (Gal and Ghahramani 2016): which channels stay, scaled to keep the mean, (B, C, 1, 1)."""
        if not self.training or self.dropout == 0:
            return None
        stays = torch.rand(len(like), channels, 1, 1, generator=generator) >= self.dropout
        return stays.to(like) / (1 - self.dropout)

    @property
    def _encoded_context(self) -> int:
        return self.context_channels + (self.update.hidden_channels if self.recurrent else 0)

    def _unpack(self, z: Tensor) -> FlowState:
        return FlowState(z[:, :-2], z[:, -2:])

    def _pack_start(self, start: FlowState, z0: Tensor) -> Tensor:
        expected = self._unpack(z0)
        if start.hidden.shape != expected.hidden.shape or start.flow.shape != expected.flow.shape:
            raise ValueError(
                f"start expects hidden {tuple(expected.hidden.shape)} and flow {tuple(expected.flow.shape)} "
                f"for these images, got {tuple(start.hidden.shape)} and {tuple(start.flow.shape)}: "
                "use the state of an output for images of the same size."
            )
        return torch.cat([start.hidden, start.flow], 1).to(z0)


def check_images(image1: Tensor, image2: Tensor) -> None:
    """Raise unless both are (B, 3, H, W), floating point, of one shape, at least 16 px a side."""
    for name, image in (("image1", image1), ("image2", image2)):
        if not isinstance(image, Tensor) or not image.is_floating_point():
            kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(
                f"{name} expects a floating-point tensor (B, 3, H, W) with values 0..255, got {kind}: "
                "convert with .float(), or read files with deqflow.read_image."
            )
        if image.dim() != 4 or image.shape[1] != 3:
            raise ValueError(
                f"{name} expects shape (B, 3, H, W) with three colour channels (RGB), got {tuple(image.shape)}: "
                "add a batch dimension with image[None], repeat a grey channel three times, leave out transparency, or "
                "move channels that come last with image.movedim(-1, -3)."
            )
    if image1.shape != image2.shape:
        raise ValueError(
            f"Both images must have one size, got {tuple(image1.shape)} and {tuple(image2.shape)}: crop or resize one."
        )
    height, width = image1.shape[-2:]
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(
            f"Images must be at least {SMALLEST_SIDE} px a side, got {width}x{height} (width x height): enlarge them."
        )
    highest = float(torch.maximum(image1.max(), image2.max()))
    if 0 < highest <= 1 or TOO_BRIGHT < highest < torch.inf:
        advice = "multiply by 255 if they are 0..1" if highest <= 1 else "divide by 257 if they have 16 bits"
        warnings.warn(
            f"Images are expected in 0..255, but the largest value is {highest:.3g}: {advice}.",
            stacklevel=5,  # past forward and two frames of nn.Module, to the line that calls the estimator
        )


def not_finite(image1: Tensor, image2: Tensor) -> Tensor:
    """Which samples have NaN or infinity in an image, (B,) booleans."""
    return ~(torch.isfinite(image1) & torch.isfinite(image2)).flatten(1).all(1)


def with_failures(result: SolverResult, flow: Tensor) -> tuple[SolverResult, str]:
    """The result with a status for samples whose flow (B, 2, H, W) is not finite, and a sentence on all that failed."""
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
