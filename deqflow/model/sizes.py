"""The table of sizes, and the configuration that names an architecture."""

from dataclasses import dataclass, replace
from typing import Literal

CorrelationName = Literal["auto", "volume", "sampled", "warped"]
AttractionName = Literal["none", "mean", "context", "learned", "leak"]
UpdateName = Literal["raft", "raft-small", "gma", "sea"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """Widths of a model, in channels (published tables; RAFT's radius and levels).

    Attributes:
        hidden, context: channels of the hidden state and of the context.
        features: matching features of the encoder.
        motion: motion features, the flow itself included.
        correlation, flow: widths of the motion encoder's two branches.
        flow_head, mask_head: widths of the heads that read the hidden state.
        encoder: the stem and the three stages.
        depths: blocks in each stage.
        block: kind of residual block.
        context_norm: normalisation of the context encoder; "shared" has no such encoder: the context is the last
            channels of the feature encoder.
        radius, levels: window and scales of the correlation lookup.
        update: the update operator that the size was published with.
        upsampling: how the flow is upsampled to full size.
        feature_norm: normalisation of the feature encoder.
        context_of: what the context network sees: the first image, or both; if both, it gives the start too.
        updates: number of updates of the recurrent model, as published.
        stride: image pixels to a pixel of the state, 8 or 4.
        found: what the update sees at the end of the flow (:mod:`deqflow.model.correlation`).
    """

    hidden: int = 128
    context: int = 128
    features: int = 256
    motion: int = 128
    correlation: tuple[int, ...] = (256, 192)
    flow: tuple[int, int] = (128, 64)
    flow_head: int = 256
    mask_head: int = 256
    encoder: tuple[int, int, int, int] = (64, 64, 96, 128)
    depths: tuple[int, int, int] = (2, 2, 2)
    block: Literal["residual", "bottleneck"] = "residual"
    context_norm: Literal["batch", "none", "shared"] = "batch"
    radius: int = 4
    levels: int = 4
    update: UpdateName = "raft"
    upsampling: Literal["convex", "bilinear"] = "convex"
    feature_norm: Literal["instance", "batch"] = "instance"
    context_of: Literal["first", "both"] = "first"
    updates: int = 12
    stride: int = 8
    found: Literal["correlation", "warped"] = "correlation"

    @property
    def lookup(self) -> int:
        """Channels of the lookup at the end of the flow."""
        if self.found == "warped":
            return 2 * self.features
        return self.levels * (2 * self.radius + 1) ** 2


def _sea(depths: tuple[int, int, int]) -> Size:
    return Size(
        encoder=(64, 64, 128, 256), depths=depths, feature_norm="batch", context_of="both", update="sea", updates=4
    )


def _scaled(width: int, motion: int, correlation: tuple[int, int], flow: tuple[int, int], features: int = 256) -> Size:
    return Size(
        hidden=width,
        context=width,
        motion=motion,
        correlation=correlation,
        flow=flow,
        flow_head=2 * motion,
        features=features,
    )


# Our own size, for a laptop: one encoder whose output is split into features and context, convex upsampling.
MINI = Size(
    hidden=64,
    context=64,
    features=96,
    motion=64,
    correlation=(64,),
    flow=(32, 32),
    flow_head=64,
    mask_head=128,
    encoder=(32, 32, 64, 96),
    depths=(1, 2, 2),
    context_norm="shared",
    radius=3,
    update="raft-small",
)

SIZES: dict[str, Size] = {
    "tiny": _scaled(32, 32, (64, 48), (32, 16), features=64),
    "base": Size(),
    "large": _scaled(192, 192, (384, 288), (192, 96)),
    "huge": _scaled(256, 256, (512, 384), (256, 128)),
    "gigantic": _scaled(384, 320, (640, 480), (320, 160)),
    "small": Size(
        hidden=96,
        context=64,
        features=128,
        motion=82,
        correlation=(96,),
        flow=(64, 32),
        flow_head=128,
        encoder=(32, 32, 64, 96),
        block="bottleneck",
        context_norm="none",
        radius=3,
        update="raft-small",
        upsampling="bilinear",
    ),
    "sea-s": _sea((2, 2, 2)),
    "sea-m": _sea((3, 4, 6)),
    "mini": MINI,
    # The state at 1/4 of the image: features are warped along the flow, so that memory grows with the pixels.
    "mini-warp": replace(MINI, stride=4, found="warped"),
}


@dataclass(frozen=True, kw_only=True)
class EstimatorConfig:
    """What :func:`deqflow.build` needs to make the same architecture again; stored in checkpoints.

    Attributes:
        size: a key of ``SIZES``.
        update: the update operator; the size's own if None.
        recurrent: the hidden state starts at tanh of the context encoder's output (RAFT) instead of zero.
        weight_norm: every convolution of the update operator has weight normalisation.
        all_gradients: the flow is not detached inside the update.
        damping: damping of the solver's steps and of phantom gradients; 1 means none.
        dropout: share of channels that training hides from the update, the same ones throughout a solve.
        flow_head: width of the flow head; the size's own if None (DEQ-Flow version 1 had 256 in all sizes).
        max_evals, atol: stopping rule in evaluation mode, ``atol`` in full-size pixels.
        attraction: what draws the flow back before each evaluation (:mod:`deqflow.model.attraction`).
        attraction_strength, attraction_temperature: of the attraction; initial values where it is learned.
        least_gate: smallest value of the update gate of gated recurrent units (:class:`deqflow.model.updates.ConvGRU`).
        mixture: the model predicts its error (:mod:`deqflow.model.mixture`).
        correlation: "warped" for warped features in a size that has a correlation, "auto" for a correlation in a size
            that has warped features; else None.
    """

    size: str = "base"
    update: UpdateName | None = None
    recurrent: bool = False
    weight_norm: bool = True
    all_gradients: bool = False
    damping: float = 1.0
    dropout: float = 0.0
    flow_head: int | None = None
    max_evals: int = 40
    atol: float = 0.02
    attraction: AttractionName = "none"
    attraction_strength: float = 0.3
    attraction_temperature: float = 1.0
    least_gate: float = 0.0
    mixture: bool = False
    correlation: CorrelationName | None = None

    @property
    def description(self) -> str:
        """The architecture in a few words, such as "equilibrium huge with GMA"."""
        kind = "recurrent" if self.recurrent else "equilibrium"
        own = SIZES[self.size].update
        update = self.update or own
        return f"{kind} {self.size}" + ("" if update == own else f" with {update.upper()}")
