"""Put estimators together: every size, with every update operator, as an equilibrium or recurrently."""

from collections.abc import Callable
from typing import get_args

from deqflow.equilibrium import Equilibrium, GradientMode, Phantom, Unrolled
from deqflow.model.attraction import AttractionName, make_attraction
from deqflow.model.correlation import CorrelationName
from deqflow.model.encoders import Encoder
from deqflow.model.estimator import FlowEstimator
from deqflow.model.sizes import SIZES, EstimatorConfig, Size, UpdateName
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
    correlation: CorrelationName = "auto",
    checkpoint_encoders: bool = False,
) -> FlowEstimator:
    """Build an estimator with random weights (use ``torch.manual_seed``), in training mode.

    Args:
        size: "tiny", "base", "large", "huge", "gigantic" (paper, table of sizes), "small" (RAFT-small's
            widths and update operator) or "mini" (the shipped model's).
        update: the update operator, "raft", "raft-small" or "gma" (global motion aggregation); the one that the
            size was published with if not given. Or your own: a function of the :class:`Size`, usually a class,
            that returns an :class:`deqflow.model.updates.UpdateOperator`.
        recurrent: build RAFT itself, the recurrent baseline: unrolled gradients, every update supervised,
            hidden state started from the context.
        weight_norm: on the update operator; on for equilibrium models, off for recurrent ones if not given. Your
            own operator brings its own.
        all_gradients: do not detach the flow inside the update (paper section 4).
        damping: of the solver's steps and of phantom gradients, in (0, 1]; for the defaults of rule and gradient.
        dropout: share of channels of lookup and context that training hides (variational: one mask a solve).
        flow_head: width of the flow head; the size's own if not given.
        gradient: how to differentiate; one-step phantom, or unrolled if recurrent, if not given.
        corrections: states supervised in training, evenly placed; 1, or all if recurrent, if not given.
        rule: the solver; Picard if not given.
        train_evals: evaluations in training, without early stop; 24, or 12 if recurrent, if not given.
        max_evals: budget in evaluation; 40, or 12 if recurrent, if not given.
        atol: tolerance in evaluation, RMS change of the flow in full-size pixels; 0.02, or 0 (no early stop)
            if recurrent, if not given.
        attraction: what draws the flow back before each evaluation: "mean" or "context", a smoothness term with fixed
            weights; "learned", one read off the hidden state; "leak", towards a flow predicted from the hidden state;
            "none", as the published models have it (:mod:`deqflow.model.attraction`).
        attraction_strength, attraction_temperature: of it; what it begins with where it is learned.
        correlation: "volume", "sampled", or "auto" (:func:`deqflow.model.correlation.correlate`); not stored.
        checkpoint_encoders: trade time for memory in training (:class:`FlowEstimator`); not stored in checkpoints.

    Raises:
        ValueError: size or update is not known, or a number is out of its range.
    """
    if size not in SIZES:
        raise ValueError(f"Unknown size {size!r}: expected one of {', '.join(SIZES)}.")
    if not callable(update) and update not in (None, *get_args(UpdateName)):
        known = ", ".join(get_args(UpdateName))
        raise ValueError(f"Unknown update {update!r}: expected one of {known}, or a function of a Size.")
    config = EstimatorConfig(
        size=size,
        update=None if callable(update) or update == SIZES[size].update else update,
        recurrent=recurrent,
        weight_norm=not recurrent if weight_norm is None else weight_norm,
        all_gradients=all_gradients,
        damping=damping,
        dropout=dropout,
        flow_head=None if flow_head == SIZES[size].flow_head else flow_head,
        max_evals=(12 if recurrent else 40) if max_evals is None else max_evals,
        atol=(0.0 if recurrent else 0.02) if atol is None else atol,
        attraction=attraction,
        attraction_strength=attraction_strength,
        attraction_temperature=attraction_temperature,
    )
    default_evals = 12 if recurrent else 24
    equilibrium = Equilibrium(
        rule=rule or Picard(damping=damping),
        stop=Stop(max_evals=default_evals if train_evals is None else train_evals, atol=0.0),
        gradient=gradient or (Unrolled() if recurrent else Phantom(steps=1, damping=damping)),
        corrections=(None if recurrent else 1) if corrections is None else corrections,
        eval_stop=Stop(max_evals=config.max_evals, atol=config.atol),
    )
    estimator = _assemble(config, equilibrium, update if callable(update) else None)
    estimator.correlation, estimator.checkpoint_encoders = correlation, checkpoint_encoders
    return estimator


def _assemble(config: EstimatorConfig, equilibrium: Equilibrium, factory: UpdateFactory | None) -> FlowEstimator:
    """The architecture that a configuration names, or the same around another update operator."""
    size = SIZES[config.size]
    encoded_context = size.context + (size.hidden if config.recurrent else 0)
    shared = size.context_norm == "shared"
    context_encoder = None
    if size.context_norm != "shared":
        context_encoder = Encoder(
            widths=size.encoder, outputs=encoded_context, norm=size.context_norm, block=size.block, depths=size.depths
        )
    feature_encoder = Encoder(
        widths=size.encoder,
        outputs=size.features + (encoded_context if shared else 0),
        norm="instance",
        block=size.block,
        depths=size.depths,
    )
    convex = size.upsampling == "convex"
    return FlowEstimator(
        feature_encoder=feature_encoder,
        context_encoder=context_encoder,
        update=factory(size) if factory else make_update(config),
        upsampler=ConvexUpsampler(size.hidden, size.mask_head) if convex else BilinearUpsampler(),
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
        config=None if factory else config,
    )


def make_update(config: EstimatorConfig) -> RaftUpdate:
    """The update operator that a configuration names."""
    size = SIZES[config.size]
    name = config.update or size.update
    operator = GmaUpdate if name == "gma" else RaftUpdate
    return operator(
        hidden=size.hidden,
        context=size.context,
        motion=size.motion,
        correlation=size.lookup,
        correlation_widths=size.correlation,
        flow_widths=size.flow,
        head=config.flow_head or size.flow_head,
        separable=name != "raft-small",
        weight_norm=config.weight_norm,
    )
