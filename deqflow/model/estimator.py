"""The flow estimator: images -> features -> correlation -> fixed point -> flow (paper section 3.1).

The state of the fixed point is hidden (B, Ch, h, w) and flow (B, 2, h, w) at 1/8 size, packed in one float32
tensor (B, Ch + 2, h, w). The same class is the equilibrium model and its recurrent counterpart (RAFT, SEA-RAFT): they
differ in the gradient mode, in where the state starts, and in what supervises them.

The flow of a pair is estimated in three steps, which all callers use::

    features1, features2 = estimator.encode(image1), estimator.encode(image2)
    problem = estimator.problem(features1, features2)
    output = problem.solve()
"""

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deqflow.equilibrium import Equilibrium
from deqflow.model.attraction import Attraction
from deqflow.model.correlation import CorrelationName, correlate
from deqflow.model.encoders import checkpointed
from deqflow.model.flow_map import FlowMap
from deqflow.model.geometry import Padding
from deqflow.model.images import check_images, not_finite
from deqflow.model.output import FlowOutput
from deqflow.model.problem import FlowProblem
from deqflow.model.sizes import EstimatorConfig
from deqflow.model.start import FromContext, FromZero, OwnStart
from deqflow.model.state import STRIDE, FlowState
from deqflow.model.updates import UpdateOperator
from deqflow.model.upsampling import Upsampler
from deqflow.solvers import OnEval, Rule, Status, Stop
from deqflow.solvers.loop import check_stop, per_sample

ONE_AT_A_TIME = 2**20  # pixels of a batch of images; larger ones are encoded one at a time to save memory


@dataclass
class Features:
    """A batch of encoded images: all that an image needs to be the first or the second of a pair.

    Attributes:
        matching: (B, C, h, w), what is correlated.
        images: (B, 3, 8 h, 8 w), padded, -1..1.
        padding: the padding of the images.
        context: (B, C, h, w), what the first image tells the update operator. If a second network computes it, it is
            None until it is needed (:meth:`FlowEstimator.problem`), and always if that network sees both images.
    """

    matching: Tensor
    images: Tensor
    padding: Padding
    context: Tensor | None = field(default=None, repr=False)

    def __getitem__(self, rows: slice) -> "Features":
        """The features of some of the images."""
        context = None if self.context is None else self.context[rows]
        return Features(self.matching[rows], self.images[rows], self.padding, context)

    def __len__(self) -> int:
        return len(self.matching)


class FlowEstimator(nn.Module):
    """Optical flow as the fixed point of an update operator.

    Args:
        feature_encoder: images -> matching features.
        context_encoder: first image, or both -> context, with the hidden state's start if recurrent; None if the
            feature encoder's last channels are the context.
        update: the update operator.
        upsampler: state -> flow at full size.
        equilibrium: the implicit layer that solves and differentiates.
        context_channels: how many channels of the encoder's output are context.
        levels, radius: scales and window of the correlation lookup.
        recurrent, all_gradients, dropout: as in :class:`deqflow.model.sizes.EstimatorConfig`.
        correlation: what the lookup at the end of the flow returns and how it is computed, see
            :func:`deqflow.model.correlation.correlate`; may be changed, but not from or to "warped".
        checkpoint_encoders: keep the encoders' inputs for backward instead of their activations, which are computed
            again, an image at a time: less memory, more time. May be changed at any time.
        checkpoint_updates: the same for each evaluation that is recorded in a graph, and for each upsampling: only
            their states are kept. Meant for recurrent training, which records all. May be changed at any time.
        attraction: what draws the flow back before each evaluation, see :mod:`deqflow.model.attraction`; None for
            nothing, as the published models have it. May be changed at any time.
        stride: image pixels to a pixel of the state.
        own_start: where a solve begins if it is not given a state (:mod:`deqflow.model.start`); if None, at zero, or
            at the context for a recurrent model.
        mixture_head: hidden state -> mixture (:mod:`deqflow.model.mixture`); None if the update operator computes the
            mixture, or if there is none.
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
        upsampler: Upsampler,
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
        attraction: Attraction | None = None,
        stride: int = STRIDE,
        own_start: OwnStart | None = None,
        mixture_head: nn.Module | None = None,
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
        self._correlation: CorrelationName = correlation
        self.checkpoint_encoders, self.checkpoint_updates = checkpoint_encoders, checkpoint_updates
        self.attraction, self.stride = attraction, stride
        self.own_start: OwnStart = own_start or (FromContext() if recurrent else FromZero())
        self.mixture_head = mixture_head
        self.config, self.origin = config, origin

    @property
    def correlation(self) -> CorrelationName:
        """What the lookup returns and how it is computed, see :func:`deqflow.model.correlation.correlate`."""
        return self._correlation

    @correlation.setter
    def correlation(self, kind: CorrelationName) -> None:
        if (kind == "warped") != (self._correlation == "warped"):
            raise ValueError(
                f"This model was made for correlation={self._correlation!r}, whose update sees other channels than "
                f"those of {kind!r}: build a model for it, with deqflow.build(..., correlation={kind!r})."
            )
        self._correlation = kind

    def forward(
        self,
        image1: Tensor,
        image2: Tensor,
        *,
        start: FlowState | None = None,
        rule: Rule | None = None,
        stop: Stop | None = None,
        max_evals: int | None = None,
        atol: float | None = None,
        generator: torch.Generator | None = None,
        on_eval: OnEval | None = None,
        record_graph: bool | None = None,
    ) -> FlowOutput:
        """Estimate the flow from ``image1`` to ``image2``.

        A solve that diverges is tried again with damping, with a warning; see ``output.solve.status`` for how it ended.
        A sample whose images are not finite fails alone, with a warning: its flow is NaN and its status says so. A
        sample in which NaN or infinity appears later, for instance by overflow in float16, also fails alone.

        Args:
            image1, image2: (B, 3, H, W), RGB, 0..255, floating point of any precision or uint8, any size from 16x16.
            start: state to solve from, for instance the last frame's; the model's own if not given.
            rule: solver for this call; the model's own if not given.
            stop: budget and tolerance for this call; a tolerance is in full-size pixels unless the ``stop``
                brings a norm of its own.
            max_evals, atol: budget or tolerance (in full-size pixels) alone, in place of those of ``stop``.
            generator: draws dropout's masks in training, on the CPU; torch's own if not given.
            on_eval: called after each evaluation of a solve without a graph; the solve ends when it returns a true
                value (:func:`deqflow.solvers.solve`).
            record_graph: whether to record a graph to differentiate through. If None: in training, and if an image
                or the start requires gradients. Under ``torch.no_grad()`` none is recorded.

        Raises:
            TypeError: an image is not a tensor of floating point or uint8, or an option has another type.
            ValueError: an image or the start has another shape; or images are not finite in training, where samples
                share statistics, or in all samples; or ``on_eval`` is given and a graph is recorded.
        """
        check_images(image1, image2)
        stop = self._stop(stop, max_evals, atol)
        if start is not None and not isinstance(start, FlowState):
            raise TypeError(
                f"start expects a FlowState, such as the state of an output (output.state), got {type(start).__name__}."
            )
        given = [image1, image2] if start is None else [image1, image2, start.hidden, start.flow]
        if record_graph is None:
            record_graph = self.training or any(tensor.requires_grad for tensor in given)
        bad = not_finite(image1, image2)
        with torch.set_grad_enabled(record_graph and torch.is_grad_enabled()):
            if bool(bad.any()):
                output, remarks = self._without(bad, image1, image2, start=start, rule=rule, stop=stop, on_eval=on_eval)
            else:
                problem = self._pair(image1, image2, generator)
                output, remarks = problem.solve_with_remarks(start=start, rule=rule, stop=stop, on_eval=on_eval)
        if remarks:
            warnings.warn(remarks, stacklevel=4)  # past forward and two frames of nn.Module
        return output

    def encode(self, image: Tensor, *, padding: Padding | None = None) -> Features:
        """Encode a batch of images; each image needs it only once, for all pairs that it is in.

        Args:
            image: (B, 3, H, W), RGB, 0..255, floating point or uint8.
            padding: how the sides are made divisible by the stride; centred, by replicating the border, if not given.
        """
        if padding is None:
            padding = Padding(image.shape[-2], image.shape[-1], self.stride)
        images = padding.pad(image.to(next(self.parameters()).dtype)) * (2 / 255) - 1
        encoded = self._run_encoder(self.feature_encoder, images)
        if self.context_encoder is not None:
            return Features(encoded.to(images.dtype), images, padding)
        outputs = self.context_channels + (self.update.hidden_channels if self.own_start.gives_hidden else 0)
        matching, context = encoded.tensor_split([encoded.shape[1] - outputs], 1)
        return Features(matching.to(images.dtype), images, padding, context)

    def problem(
        self, features1: Features, features2: Features, *, generator: torch.Generator | None = None
    ) -> FlowProblem:
        """Return the fixed-point problem of a pair: the map f, the model's own start, and how states become a flow.

        Dropout's masks are drawn here, once, from ``generator`` in training.
        """
        encoded = self._encoded_context(features1, features2)
        start, context = self.own_start(encoded, features1.matching, self.update)
        with torch.autocast(start.flow.device.type, enabled=False):  # half precision costs too much here
            correlation = correlate(
                features1.matching,
                features2.matching,
                levels=self.levels,
                radius=self.radius,
                kind=self.correlation,
            )
        lookup_mask = self._dropout_mask(features1.matching, correlation.channels, generator)
        context_mask = self._dropout_mask(features1.matching, self.context_channels, generator)
        f = FlowMap(
            correlation,
            context if context_mask is None else context * context_mask,
            self.update,
            all_gradients=self.all_gradients,
            attraction=self.attraction,
            mask=lookup_mask,
            checkpoint=self.checkpoint_updates,
            dtype=features1.matching.dtype,
        )
        return FlowProblem(self, f, start.pack(), features1.padding)

    def upsample(self, state: FlowState) -> Tensor:
        """The flow of a state at the padded images' size, (B, 2, s h, s w), in pixels."""
        return self._checkpointed(self.upsampler, state)

    def upsample_with_mixture(self, state: FlowState) -> tuple[Tensor, Tensor | None]:
        """As :meth:`upsample`, and the mixture at the same size, (B, 4, s h, s w); None where the model has none."""
        head = self.mixture_head or getattr(self.update, "mixture_of", None)
        if head is None:
            return self.upsample(state), None

        def both(state: FlowState) -> Tensor:  # the convex mask is computed once
            values = torch.cat([self.stride * state.flow, head(state.hidden).to(state.flow.dtype)], 1)
            return self.upsampler.enlarge(state.hidden, values)

        flow, mixture = self._checkpointed(both, state).tensor_split([2], 1)
        return flow, mixture

    def _checkpointed(self, upsampler: Callable[[FlowState], Tensor], state: FlowState) -> Tensor:
        if self.checkpoint_updates and torch.is_grad_enabled():
            return checkpoint(upsampler, state, use_reentrant=False, preserve_rng_state=False)
        return upsampler(state)

    def _pair(self, image1: Tensor, image2: Tensor, generator: torch.Generator | None) -> FlowProblem:
        both = self.encode(torch.cat([image1, image2]))  # one pass through the encoder
        return self.problem(both[: len(image1)], both[len(image1) :], generator=generator)

    def _stop(self, stop: Stop | None, max_evals: int | None, atol: float | None) -> Stop | None:
        if stop is not None:
            check_stop(stop)
        own = stop or self.equilibrium.stop_in(self.training)
        return stop if max_evals is atol is None else own.with_changes(max_evals=max_evals, atol=atol)

    def _without(self, bad: Tensor, image1: Tensor, image2: Tensor, **options: Any) -> tuple[FlowOutput, str]:
        """The output of a batch in which the ``bad`` samples cannot be used: their flow is NaN; and remarks on it."""
        numbers = ", ".join(str(int(i)) for i in bad.nonzero())
        if self.training or bool(bad.all()):
            raise ValueError(
                f"Images must be finite, got NaN or infinity in sample {numbers}: replace them, for instance with "
                "torch.nan_to_num."
            )
        flags = per_sample(bad, image1)
        problem = self._pair(image1.masked_fill(flags, 0.0), image2.masked_fill(flags, 0.0), None)
        output, remarks = problem.solve_with_remarks(**options)
        solve = dataclasses.replace(
            output.solve,
            z=output.solve.z.masked_fill(flags, torch.nan),
            fz=output.solve.fz.masked_fill(flags, torch.nan),
            residual=output.solve.residual.masked_fill(bad, torch.nan),
            status=output.solve.status.masked_fill(bad, int(Status.NON_FINITE)),
        )
        flow = output.flow.masked_fill(flags, torch.nan)
        mixtures = tuple(mixture.masked_fill(flags, torch.nan) for mixture in output.mixtures)
        state = FlowState.unpack(solve.fz)
        output = dataclasses.replace(output, flow=flow, flows=(flow,), state=state, solve=solve, mixtures=mixtures)
        return output, f"NaN or infinity in the images of sample {numbers}: its flow is NaN. {remarks}".strip()

    def _encoded_context(self, features1: Features, features2: Features) -> Tensor:
        """The context network's output; that of one image is kept with the image's features."""
        if features1.context is not None:
            return features1.context
        assert self.context_encoder is not None  # without a context network, the features have their context
        if self.own_start.sees_both:
            return self._run_encoder(self.context_encoder, torch.cat([features1.images, features2.images], 1))
        features1.context = self._run_encoder(self.context_encoder, features1.images)
        return features1.context

    def _run_encoder(self, encoder: nn.Module, images: Tensor) -> Tensor:
        if self.checkpoint_encoders and torch.is_grad_enabled():
            return checkpointed(encoder, images)
        exporting = torch.compiler.is_exporting()  # the graph must treat all sizes alike
        if not (torch.is_grad_enabled() or exporting) and images[:, 0].numel() > ONE_AT_A_TIME:
            return torch.cat([encoder(image[None]) for image in images])
        return encoder(images)

    def _dropout_mask(self, like: Tensor, channels: int, generator: torch.Generator | None) -> Tensor | None:
        """Variational dropout (Gal and Ghahramani 2016): which channels stay, scaled to keep the mean, (B, C, 1, 1)."""
        if not self.training or self.dropout == 0:
            return None
        stays = torch.rand(len(like), channels, 1, 1, generator=generator) >= self.dropout
        return stays.to(like) / (1 - self.dropout)
