"""Build estimators: every size, with every update operator, as an equilibrium or a recurrent model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

from deqflow.equilibrium import Equilibrium, GradientMode, Phantom, Unrolled
from deqflow.model.attraction import AttractionName, make_attraction
from deqflow.model.correlation import CorrelationName
from deqflow.model.encoders import Encoder
from deqflow.model.estimator import FlowEstimator
from deqflow.model.mixture import MixtureHead
from deqflow.model.sea import PairContext, SeaUpdate
from deqflow.model.sizes import SIZES, EstimatorConfig, Size, UpdateName
from deqflow.model.start import FromBoth, FromContext, FromZero, OwnStart
from deqflow.model.updates import GmaUpdate, RaftUpdate, UpdateOperator
from deqflow.model.upsampling import BilinearUpsampler, ConvexUpsampler
from deqflow.solvers import Picard, Rule, Stop

UpdateFactory = Callable[[Size], UpdateOperator]


def build(
    size: str = "base",
    update: UpdateName | UpdateFactory | None = None,
    *,
    recurrent: bool = False,
    weight_norm: bool | None = None,
    all_gradients: bool = False,
    damping: float = 1.0,
    dropout: float = 0.0,
    flow_head: int | None = None,
    gradient: GradientMode | None = None,
    corrections: int | None = None,
    rule: Rule | None = None,
    train_evals: int | None = None,
    max_evals: int | None = None,
    atol: float | None = None,
    attraction: AttractionName = "none",
    attraction_strength: float = 0.3,
    attraction_temperature: float = 1.0,
    least_gate: float = 0.0,
    mixture: bool = False,
    correlation: CorrelationName | None = None,
    checkpoint_encoders: bool = False,
) -> FlowEstimator:
    """Build an estimator with random weights (use ``torch.manual_seed``), in training mode.

    Args:
        size: "tiny", "base", "large", "huge", "gigantic" (paper, table of sizes), "small" (RAFT-small's
            widths and update operator), "sea-s" or "sea-m" (SEA-RAFT's), "mini" (the shipped model's) or
            "mini-warp" (the same with warped features, its state at 1/4 of the image).
        update: the update operator, "raft", "raft-small", "gma" (global motion aggregation) or "sea" (SEA-RAFT's
            ConvNeXt blocks); the one that the size was published with if not given. Or your own: a function of the
            :class:`Size`, for instance a class, that returns a :class:`deqflow.model.updates.UpdateOperator`.
        recurrent: build RAFT itself, the recurrent baseline: unrolled gradients, every update supervised,
            hidden state started from the context.
        weight_norm: whether the update operator has weight normalisation; if not given, equilibrium models have it
            and recurrent ones do not. It does not change an operator of your own.
        all_gradients: do not detach the flow inside the update (paper section 4).
        damping: damping of the solver's steps and of phantom gradients, in (0, 1]; used where ``rule`` and
            ``gradient`` are not given.
        dropout: share of channels of lookup and context that training hides (variational: one mask a solve).
        flow_head: width of the flow head; the size's own if not given.
        gradient: how to differentiate; if not given, one-step phantom, or unrolled for a recurrent model.
        corrections: states supervised in training, evenly placed; if not given, 1, or all for a recurrent model.
        rule: the solver; Picard if not given.
        train_evals: evaluations in training, without early stop; if not given, 24, or as published (12; SEA-RAFT: 4)
            for a recurrent model.
        max_evals: budget in evaluation mode; if not given, 40, or as published for a recurrent model.
        atol: tolerance in evaluation mode, RMS change of the flow in full-size pixels; if not given, 0.02, or 0 (no
            early stop) for a recurrent model.
        attraction: what draws the flow back before each evaluation: "mean" or "context", a smoothness term with fixed
            weights; "learned", one predicted from the hidden state; "leak", towards a flow predicted from it;
            "none", as the published models have it (:mod:`deqflow.model.attraction`).
        attraction_strength, attraction_temperature: of the attraction; initial values where it is learned.
        least_gate: smallest value of the update gates: raises the speed of slow channels of the hidden state, and with
            one gated recurrent unit leaves fixed points where they are (:class:`deqflow.model.updates.ConvGRU`).
        mixture: predict the expected error of each pixel (:mod:`deqflow.model.mixture`); SEA-RAFT's update always
            does.
        correlation: what the update sees at the end of the flow: "warped" for warped features; or how the correlation
            there is computed: "volume", "sampled" or "auto" (:func:`deqflow.model.correlation.correlate`), which is
            not stored in checkpoints; the size's own if not given.
        checkpoint_encoders: trade time for memory in training (:class:`FlowEstimator`); not stored in checkpoints.

    Raises:
        ValueError: size or update is not known, or a number is out of its range or without effect.
    """
    if size not in SIZES:
        raise ValueError(f"Unknown size {size!r}: expected one of {', '.join(SIZES)}.")
    if not callable(update) and update not in (None, *get_args(UpdateName)):
        known = ", ".join(get_args(UpdateName))
        raise ValueError(f"Unknown update {update!r}: expected one of {known}, or a function of a Size.")
    if least_gate and (callable(update) or (update or SIZES[size].update) == "sea"):
        raise ValueError(f"least_gate={least_gate} has no effect on an update operator without gates: leave it out.")
    config = EstimatorConfig(
        size=size,
        update=None if callable(update) or update == SIZES[size].update else update,
        recurrent=recurrent,
        weight_norm=not recurrent if weight_norm is None else weight_norm,
        all_gradients=all_gradients,
        damping=damping,
        dropout=dropout,
        flow_head=None if flow_head == SIZES[size].flow_head else flow_head,
        max_evals=(SIZES[size].updates if recurrent else 40) if max_evals is None else max_evals,
        atol=(0.0 if recurrent else 0.02) if atol is None else atol,
        attraction=attraction,
        attraction_strength=attraction_strength,
        attraction_temperature=attraction_temperature,
        least_gate=least_gate,
        mixture=mixture,
        correlation=_stored(correlation, SIZES[size]),
    )
    default_evals = SIZES[size].updates if recurrent else 24
    equilibrium = Equilibrium(
        rule=rule or Picard(damping=damping),
        stop=Stop(max_evals=default_evals if train_evals is None else train_evals, atol=0.0),
        gradient=gradient or (Unrolled() if recurrent else Phantom(steps=1, damping=damping)),
        corrections=(None if recurrent else 1) if corrections is None else corrections,
        eval_stop=Stop(max_evals=config.max_evals, atol=config.atol),
    )
    estimator = _assemble(config, equilibrium, update if callable(update) else None)
    estimator.correlation, estimator.checkpoint_encoders = correlation or estimator.correlation, checkpoint_encoders
    return estimator


def _stored(correlation: CorrelationName | None, size: Size) -> CorrelationName | None:
    """What a configuration stores of the correlation: what differs from the size's own, not how it is computed."""
    if correlation is None or (correlation == "warped") == (size.found == "warped"):
        return None
    return "warped" if correlation == "warped" else "auto"


def _size(config: EstimatorConfig) -> Size:
    """The size of a configuration, with the lookup that the configuration has instead of the size's own."""
    size = SIZES[config.size]
    if config.correlation is None:
        return size
    return replace(size, found="warped" if config.correlation == "warped" else "correlation")


def _assemble(config: EstimatorConfig, equilibrium: Equilibrium, factory: UpdateFactory | None) -> FlowEstimator:
    """The architecture that a configuration names, or the same around another update operator."""
    size = _size(config)
    own_start = _own_start(size, config.recurrent)
    feature_encoder, context_encoder = _encoders(size, size.context + (size.hidden if own_start.gives_hidden else 0))
    update = factory(size) if factory else make_update(config)
    upsampler = BilinearUpsampler(size.stride)
    if size.upsampling == "convex":
        upsampler = ConvexUpsampler(size.hidden, size.mask_head, size.stride)
    own_mixture = hasattr(update, "mixture_of")
    return FlowEstimator(
        feature_encoder=feature_encoder,
        context_encoder=context_encoder,
        update=update,
        upsampler=upsampler,
        equilibrium=equilibrium,
        context_channels=size.context,
        levels=size.levels,
        radius=size.radius,
        recurrent=config.recurrent,
        all_gradients=config.all_gradients,
        dropout=config.dropout,
        attraction=make_attraction(
            config.attraction,
            hidden=size.hidden,
            strength=config.attraction_strength,
            temperature=config.attraction_temperature,
        ),
        correlation="warped" if size.found == "warped" else "auto",
        stride=size.stride,
        own_start=own_start,
        mixture_head=MixtureHead(size.hidden, size.flow_head) if config.mixture and not own_mixture else None,
        config=None if factory else config,
    )


def _own_start(size: Size, recurrent: bool) -> OwnStart:
    if size.context_of == "both":
        return FromBoth()
    return FromContext() if recurrent else FromZero()


def _encoders(size: Size, context_outputs: int) -> tuple[Encoder, Encoder | None]:
    """The feature encoder and the context network, which is None where the encoder's last channels are the context."""
    widths: dict[str, Any] = {
        "widths": size.encoder,
        "block": size.block,
        "depths": size.depths,
        "stride": size.stride,
    }
    if size.context_norm == "shared":
        return Encoder(outputs=size.features + context_outputs, norm=size.feature_norm, **widths), None
    context_encoder = PairContext if size.context_of == "both" else Encoder
    context = context_encoder(outputs=context_outputs, norm=size.context_norm, **widths)
    return Encoder(outputs=size.features, norm=size.feature_norm, **widths), context


def make_update(config: EstimatorConfig) -> RaftUpdate | SeaUpdate:
    """The update operator that a configuration names."""
    size = _size(config)
    name = config.update or size.update
    widths: dict[str, Any] = {
        "hidden": size.hidden,
        "context": size.context,
        "motion": size.motion,
        "correlation": size.lookup,
        "correlation_widths": size.correlation,
        "flow_widths": size.flow,
        "head": config.flow_head or size.flow_head,
        "weight_norm": config.weight_norm,
    }
    if name == "sea":
        return SeaUpdate(**widths)
    kind = GmaUpdate if name == "gma" else RaftUpdate
    return kind(separable=name != "raft-small", least_gate=config.least_gate, **widths)
