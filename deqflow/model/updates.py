"""Update operators: one evaluation of f at 1/8 size (RAFT, section 3.3; paper section 3.1).

An operator is a module with two methods. ``prepare(context)`` runs once a solve and returns whatever stays
constant in it: effective weights, and the context's share of each gate. Calling the operator with a hidden state, a
flow, the lookup at its end, and these constants gives the next hidden state and a flow increment.
Nothing in a call may depend on when it is made: f must stay the same map throughout a solve.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

Step = Callable[[Tensor, Tensor], Tensor]  # hidden (B, Ch, h, w), motion (B, C, h, w) -> hidden (B, Ch, h, w)


class UpdateOperator(Protocol):
    """What a :class:`deqflow.model.estimator.FlowEstimator` needs as its update; write your own as an ``nn.Module``.

    Two further methods are used if an operator has them: ``first_flow(hidden)`` gives the flow to start from
    (:mod:`deqflow.model.start`), ``mixture_of(hidden)`` a mixture (:mod:`deqflow.model.mixture`).
    """

    hidden_channels: int

    def prepare(self, context: Tensor) -> Any:
        """Return the constants of a solve, from the context features (B, C, h, w)."""
        ...

    def __call__(self, hidden: Tensor, flow: Tensor, correlation: Tensor, prepared: Any) -> tuple[Tensor, Tensor]:
        """Return the next hidden state (B, Ch, h, w) and the flow increment (B, 2, h, w) in 1/8-size pixels."""
        ...


@dataclass(frozen=True)
class FixedConv:
    """A convolution whose weights were computed, and cast for autocast, once for a whole solve."""

    weight: Tensor
    bias: Tensor | None
    padding: tuple[int, int]
    groups: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h, w)."""
        return F.conv2d(x, self.weight, self.bias, padding=self.padding, groups=self.groups)


def fixed(conv: nn.Conv2d, inputs: slice = slice(None), outputs: slice = slice(None)) -> FixedConv:
    """Fix a convolution for a solve, or the part of it between some inputs and some outputs (its bias left out).

    A depthwise convolution (with as many ``groups`` as channels) may be cut by its outputs only.
    """
    whole = inputs == slice(None)
    weight = conv.weight[outputs, inputs]
    bias = conv.bias[outputs] if whole and conv.bias is not None else None
    return as_fixed(weight, bias, groups=len(weight) if conv.groups > 1 else 1)


def as_fixed(weight: Tensor, bias: Tensor | None, *, groups: int = 1) -> FixedConv:
    """Fix weights (outputs, inputs, kh, kw) and a bias (outputs,) for a solve."""
    device = weight.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        weight, bias = weight.to(dtype), bias if bias is None else bias.to(dtype)
    height, width = weight.shape[-2:]
    # Copies: the loop of an exported graph takes no two views of one tensor.
    weight, bias = weight.clone(memory_format=torch.channels_last), bias if bias is None else bias.clone()
    return FixedConv(weight, bias, (height // 2, width // 2), groups)


class MotionEncoder(nn.Module):
    """Features of the flow and of the correlation around it; the flow itself is appended.

    Args:
        correlation: channels of the correlation lookup.
        correlation_widths: widths of one (RAFT-small) or two (RAFT) convolutions on the correlation.
        flow_widths: widths of two convolutions on the flow.
        outputs: channels of the result, the two of the flow included.
    """

    def __init__(
        self, correlation: int, correlation_widths: tuple[int, ...], flow_widths: tuple[int, int], outputs: int
    ) -> None:
        super().__init__()
        convs = [nn.Conv2d(correlation, correlation_widths[0], 1)]
        if len(correlation_widths) == 2:
            convs.append(nn.Conv2d(*correlation_widths, 3, padding=1))
        self.correlation = nn.ModuleList(convs)
        self.flow = nn.ModuleList([nn.Conv2d(2, flow_widths[0], 7, padding=3), nn.Conv2d(*flow_widths, 3, padding=1)])
        self.merge = nn.Conv2d(correlation_widths[-1] + flow_widths[-1], outputs - 2, 3, padding=1)

    def prepare(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the map (correlation, flow) -> (B, outputs, h, w) for a solve."""
        on_correlation = [fixed(conv) for conv in self.correlation if isinstance(conv, nn.Conv2d)]
        on_flow = [fixed(conv) for conv in self.flow if isinstance(conv, nn.Conv2d)]
        merge = fixed(self.merge)

        def encode(correlation: Tensor, flow: Tensor) -> Tensor:
            motion = flow
            for conv in on_correlation:
                correlation = conv(correlation).relu()
            for conv in on_flow:
                motion = conv(motion).relu()
            merged = merge(torch.cat([correlation, motion], 1)).relu()
            return torch.cat([merged, flow.to(merged.dtype)], 1)

        return encode


class ConvGRU(nn.Module):
    """Convolutional gated recurrent unit on [hidden, context, motion].

    The rows of its weights are those of the update gate, the reset gate and the candidate, in this order.

    Args:
        hidden, context, motion: channels of the inputs.
        kernel: height and width of the convolution.
        least_gate: smallest value of the update gate. The next state is (1 - gate) old + gate candidate, so that at a
            fixed point of one unit the state is the candidate, whatever the gate: a larger gate leaves fixed points
            where they are and brings slow channels there sooner.
    """

    def __init__(
        self, hidden: int, context: int, motion: int, kernel: tuple[int, int], least_gate: float = 0.0
    ) -> None:
        super().__init__()
        if not 0 <= least_gate <= 1:
            raise ValueError(f"least_gate expects a share from 0 to 1, got {least_gate!r}.")
        self.hidden, self.context, self.least_gate = hidden, context, least_gate
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.gates = nn.Conv2d(hidden + context + motion, 3 * hidden, kernel, padding=padding)

    def prepare(self, context: Tensor) -> Step:
        """Return the map (hidden, motion) -> hidden for a solve; the context's share of the gates is computed here."""
        h, c = self.hidden, self.context
        on_context = fixed(self.gates, inputs=slice(h, h + c))(context)
        if self.gates.bias is not None:
            on_context = on_context + self.gates.bias.to(on_context.dtype).view(1, -1, 1, 1)
        constant_gates, constant_candidate = (part.clone() for part in on_context.split([2 * h, h], 1))
        on_hidden = fixed(self.gates, inputs=slice(0, h))
        on_motion = fixed(self.gates, inputs=slice(h + c, None))
        # One convolution of [hidden, motion] is faster than two convolutions and a sum.
        gates, candidate = (
            FixedConv(torch.cat([on_hidden.weight[rows], on_motion.weight[rows]], 1), None, on_hidden.padding)
            for rows in (slice(0, 2 * h), slice(2 * h, None))
        )

        def step(hidden: Tensor, motion: Tensor) -> Tensor:
            old = hidden.to(motion.dtype)
            both = (gates(torch.cat([old, motion], 1)) + constant_gates).sigmoid()
            update, reset = both.chunk(2, 1)
            if self.least_gate:
                update = update.clamp_min(self.least_gate)
            new = (candidate(torch.cat([reset * old, motion], 1)) + constant_candidate).tanh()
            return torch.lerp(hidden, new.to(hidden.dtype), update.to(hidden.dtype))

        return step


class FlowHead(nn.Module):
    """Hidden state -> flow increment, and further outputs if a model has them."""

    def __init__(self, hidden: int, width: int, outputs: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, outputs, 3, padding=1)

    def prepare(self, outputs: slice = slice(None)) -> Callable[[Tensor], Tensor]:
        """Return the map (B, Ch, h, w) -> (B, outputs, h, w) for a solve, of all outputs or some."""
        conv1, conv2 = fixed(self.conv1), fixed(self.conv2, outputs=outputs)
        return lambda hidden: conv2(conv1(hidden).relu())


@dataclass(frozen=True)
class Prepared:
    """The parts of an update operator, fixed for one solve: motion encoder, units that change the state, flow head."""

    encode: Callable[[Tensor, Tensor], Tensor]
    units: tuple[Step, ...]
    head: Callable[[Tensor], Tensor]

    def update(self, hidden: Tensor, flow: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        """One update: see :class:`UpdateOperator`."""
        motion = self.encode(found, flow)
        for unit in self.units:
            hidden = unit(hidden, motion)
        return hidden, self.head(hidden)


class RaftUpdate(nn.Module):
    """RAFT's update: motion encoder, gated recurrent units, flow head.

    Args:
        hidden, context, motion: channels of the state, of the context, of the motion features.
        correlation: channels of the correlation lookup.
        correlation_widths, flow_widths: widths of the motion encoder.
        head: width of the flow head.
        separable: a 1x5 unit and then a 5x1 one (RAFT); else one 3x3 unit (RAFT-small).
        weight_norm: parametrise each convolution by length and direction (paper appendix: stabilises the solve).
        least_gate: smallest value of the update gates, see :class:`ConvGRU`.
        aggregated: further channels that a subclass appends to the motion features.
    """

    def __init__(
        self,
        *,
        hidden: int,
        context: int,
        motion: int,
        correlation: int,
        correlation_widths: tuple[int, ...],
        flow_widths: tuple[int, int],
        head: int,
        separable: bool,
        weight_norm: bool,
        least_gate: float = 0.0,
        aggregated: int = 0,
    ) -> None:
        super().__init__()
        self.hidden_channels = hidden
        self.motion = MotionEncoder(correlation, correlation_widths, flow_widths, motion)
        kernels = [(1, 5), (5, 1)] if separable else [(3, 3)]
        self.units = nn.ModuleList(
            [ConvGRU(hidden, context, motion + aggregated, kernel, least_gate) for kernel in kernels]
        )
        self.head = FlowHead(hidden, head)
        if weight_norm:
            normalise_weights(self)

    def prepare(self, context: Tensor) -> Prepared:
        """Fix weights and the context's share for a solve; context is (B, C, h, w)."""
        units = tuple(unit.prepare(context) for unit in self.units if isinstance(unit, ConvGRU))
        return Prepared(self.motion.prepare(), units, self.head.prepare())

    def forward(self, hidden: Tensor, flow: Tensor, correlation: Tensor, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """One update: see :class:`UpdateOperator`."""
        return prepared.update(hidden, flow, correlation)


class GmaUpdate(RaftUpdate):
    """RAFT's update with global motion aggregation (Jiang et al. 2021): pixels that look alike share their motion.

    Attention has one head, uses the context's content alone, and is computed once a solve. The arguments are those of
    :class:`RaftUpdate`; the gated recurrent units see [context, motion, aggregated motion].
    """

    def __init__(self, *, context: int, motion: int, weight_norm: bool, **widths: Any) -> None:
        super().__init__(context=context, motion=motion, weight_norm=weight_norm, aggregated=motion, **widths)
        self.attention = nn.Conv2d(context, 2 * context, 1, bias=False)  # queries and keys
        self.aggregation = Aggregation(motion, context)
        if weight_norm:
            normalise_weights(self.aggregation)

    def prepare(self, context: Tensor) -> Prepared:
        """As :meth:`RaftUpdate.prepare`, and the attention of all pairs of pixels: memory grows with their square."""
        prepared = super().prepare(context)
        queries, keys = fixed(self.attention)(context).flatten(2).chunk(2, 1)  # (B, C, h w) each
        attention = (queries.mT @ keys * queries.shape[1] ** -0.5).softmax(-1)  # (B, h w, h w)
        aggregate = self.aggregation.prepare(attention)

        def encode(correlation: Tensor, flow: Tensor) -> Tensor:
            motion = prepared.encode(correlation, flow)
            return torch.cat([motion, aggregate(motion)], 1)

        return replace(prepared, encode=encode)


class Aggregation(nn.Module):
    """Motion plus a learned share of the motion that attention gathers (GMA, eq. 5).

    Args:
        motion: channels of the motion features.
        width: channels of the attention's head; if it differs from ``motion``, a projection maps back.
    """

    def __init__(self, motion: int, width: int) -> None:
        super().__init__()
        self.values = nn.Conv2d(motion, width, 1, bias=False)
        self.projection = nn.Conv2d(width, motion, 1, bias=False) if width != motion else None
        self.gamma = nn.Parameter(torch.zeros(1))

    def prepare(self, attention: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the map (B, C, h, w) -> (B, C, h, w) for a solve; attention is (B, h w, h w)."""
        values = fixed(self.values)
        projection = fixed(self.projection) if self.projection is not None else None

        def aggregate(motion: Tensor) -> Tensor:
            valued = values(motion)
            gathered = (valued.flatten(2) @ attention.to(valued.dtype).mT).view_as(valued)
            if projection is not None:
                gathered = projection(gathered)
            return motion + self.gamma.to(motion.dtype) * gathered

        return aggregate


def normalise_weights(module: nn.Module) -> None:
    """Parametrise each convolution of a module by length and direction."""
    for conv in [m for m in module.modules() if isinstance(m, nn.Conv2d)]:
        parametrizations.weight_norm(conv)
