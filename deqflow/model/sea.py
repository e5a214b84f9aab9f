"""SEA-RAFT's parts (Wang, Lipson and Deng, ECCV 2024): ConvNeXt blocks instead of gated units, context of both images.

Its feature pyramid halves features bilinearly. At half size that is the mean of 2x2 pixels, and correlation is linear
in the features, so the result equals the pooled volume of :mod:`deqflow.model.correlation`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deqflow.model.encoders import Encoder
from deqflow.model.mixture import MIXTURE_CHANNELS
from deqflow.model.updates import FlowHead, MotionEncoder, Prepared, Step, as_fixed, fixed, normalise_weights


class PairContext(Encoder):
    """A context network that sees both images: an encoder of (B, 6, H, W), and a 3x3 convolution.

    It takes the arguments of :class:`~deqflow.model.encoders.Encoder` except ``inputs``.
    """

    def __init__(self, *, outputs: int, **options) -> None:
        super().__init__(outputs=outputs, inputs=6, **options)
        self.mix = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 6, H, W) in -1..1 -> (B, outputs, H/8, W/8)."""
        return self.mix(super().forward(images))


class ConvNextBlock(nn.Module):
    """A ConvNeXt block (Liu et al. 2022) on [hidden, context, motion], and a 1x1 convolution to the next hidden state.

    A 7x7 convolution of each channel, layer normalisation over the channels, and two 1x1 convolutions around a GELU
    make a correction, which ``gamma`` scales and which is added to the inputs.

    Args:
        hidden, context, motion: channels of the inputs; the first also of the result.
        inner: channels between the two 1x1 convolutions; four times the hidden state's as published.
    """

    def __init__(self, hidden: int, context: int, motion: int, inner: int) -> None:
        super().__init__()
        width = hidden + context + motion
        self.hidden, self.context = hidden, context
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.widen = nn.Conv2d(width, inner, 1)
        self.narrow = nn.Conv2d(inner, width, 1)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))
        self.merge = nn.Conv2d(width, hidden, 1)

    def prepare(self, context: Tensor) -> Step:
        """Return the map (hidden, motion) -> hidden for a solve.

        The context's shares are computed here. All operations after the GELU are linear, so that ``narrow``,
        ``gamma`` and ``merge`` become one convolution, ``through``.
        """
        own, after = slice(self.hidden, self.hidden + self.context), slice(self.hidden + self.context, None)
        on_hidden, on_motion = (fixed(self.depthwise, outputs=rows) for rows in (slice(self.hidden), after))
        spread_context = fixed(self.depthwise, outputs=own)(context)
        widen = fixed(self.widen)
        assert self.merge.bias is not None
        assert self.narrow.bias is not None
        scaled = self.merge.weight.flatten(1) * self.gamma  # (Ch, width)
        through = as_fixed((scaled @ self.narrow.weight.flatten(1))[..., None, None], None)
        offset = self.merge.bias + scaled @ self.narrow.bias
        constant = as_fixed(self.merge.weight[:, own], offset)(context)
        kept = torch.cat([self.merge.weight[:, : self.hidden], self.merge.weight[:, after]], 1)
        direct = as_fixed(kept, None)

        def step(hidden: Tensor, motion: Tensor) -> Tensor:
            hidden = hidden.to(motion.dtype)
            spread = torch.cat([on_hidden(hidden), spread_context, on_motion(motion)], 1)
            normed = self.norm(spread.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # over the channels
            return through(F.gelu(widen(normed))) + direct(torch.cat([hidden, motion], 1)) + constant

        return step


class SeaUpdate(nn.Module):
    """SEA-RAFT's update: motion encoder, ConvNeXt blocks, and a head of six channels, the flow and a mixture.

    Args:
        hidden, context, motion: channels of the state, of the context, of the motion features.
        correlation: channels of the correlation lookup.
        correlation_widths, flow_widths: widths of the motion encoder.
        head: width of the head.
        weight_norm: parametrise each convolution by length and direction.
        blocks: number of ConvNeXt blocks.
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
        weight_norm: bool,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        self.hidden_channels = hidden
        self.motion = MotionEncoder(correlation, correlation_widths, flow_widths, motion)
        self.blocks = nn.ModuleList([ConvNextBlock(hidden, context, motion, 4 * hidden) for _ in range(blocks)])
        self.head = FlowHead(hidden, head, outputs=2 + MIXTURE_CHANNELS)
        if weight_norm:
            normalise_weights(self)

    def prepare(self, context: Tensor) -> Prepared:
        """Fix weights and the context's share for a solve; context is (B, C, h, w)."""
        blocks = tuple(block.prepare(context) for block in self.blocks if isinstance(block, ConvNextBlock))
        return Prepared(self.motion.prepare(), blocks, self.head.prepare(slice(0, 2)))

    def forward(self, hidden: Tensor, flow: Tensor, found: Tensor, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """One update: see :class:`deqflow.model.updates.UpdateOperator`."""
        return prepared.update(hidden, flow, found)

    def first_flow(self, hidden: Tensor) -> Tensor:
        """The flow that a hidden state implies by itself: (B, Ch, h, w) -> (B, 2, h, w)."""
        return self.head.prepare(slice(0, 2))(hidden)

    def mixture_of(self, hidden: Tensor) -> Tensor:
        """The mixture of a hidden state, (B, Ch, h, w) -> (B, 4, h, w): see :mod:`deqflow.model.mixture`."""
        return self.head.prepare(slice(2, None))(hidden)
