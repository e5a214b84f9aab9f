"""The published way to compute DEQ-Flow's and RAFT's flow, transcribed plainly: what ours is measured against.

All-pairs volume, lookups by grid_sample, a convolution for each gate on [hidden, context, motion], one memory layout
and one precision throughout. It computes with the weights of one of our estimators and must give the same flow.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deqflow import FlowEstimator
from deqflow.model.encoders import InstanceNorm


class PlainFlow:
    """The flow of an estimator with gated recurrent units and convex upsampling.

    Args:
        estimator: whose weights to compute with. Its context comes from an encoder of its own, or from the last
            channels of the only one.
    """

    def __init__(self, estimator: FlowEstimator) -> None:
        self.estimator = estimator
        self.hidden = estimator.update.hidden_channels
        # Weight norm is computed once, which is kind to the published way.
        self.units = [(*gates(unit.gates, self.hidden), unit.least_gate) for unit in estimator.update.units]

    def __call__(self, image1: Tensor, image2: Tensor, evals: int) -> Tensor:
        """Flow (B, 2, H, W) after so many evaluations; the sides of the images divide by 8."""
        z, f = self.start(image1, image2)
        for _ in range(evals):
            z = f(z)
        return self.upsample(*z)

    def start(self, image1: Tensor, image2: Tensor):
        """The state (hidden, flow) to begin with, and f on such states."""
        model = self.estimator
        features1, features2 = encode(model.feature_encoder, torch.cat([image1, image2]) * (2 / 255) - 1).chunk(2)
        if model.context_encoder is None:
            shared = [features1.shape[1] - model.context_channels, model.context_channels]
            (features1, context), (features2, _) = features1.split(shared, 1), features2.split(shared, 1)
        else:
            context = encode(model.context_encoder, image1 * (2 / 255) - 1)
        hidden = features1.new_zeros(len(image1), self.hidden, *features1.shape[-2:])
        if model.recurrent:
            hidden, context = context.split([self.hidden, model.context_channels], 1)
            hidden = hidden.tanh()
        context = context.relu()
        pyramid = make_pyramid(features1, features2, model.levels)
        flow = features1.new_zeros(len(image1), 2, *features1.shape[-2:])

        draw = (lambda _, flow: flow) if model.attraction is None else model.attraction.prepare(context)

        def f(z):
            hidden, flow = z[0], draw(*z)
            return self.update(hidden, flow, context, look_up(pyramid, flow.detach(), model.radius))

        return (hidden, flow), f

    def update(self, hidden: Tensor, flow: Tensor, context: Tensor, correlation: Tensor) -> tuple[Tensor, Tensor]:
        """One update: motion encoder, gated recurrent units, flow head."""
        flow = flow.detach()
        parts = self.estimator.update
        for conv in parts.motion.correlation:
            correlation = conv(correlation).relu()
        moved = flow
        for conv in parts.motion.flow:
            moved = conv(moved).relu()
        motion = torch.cat([parts.motion.merge(torch.cat([correlation, moved], 1)).relu(), flow], 1)
        for (update, reset, candidate), padding, least in self.units:
            both = torch.cat([hidden, context, motion], 1)
            z = F.conv2d(both, *update, padding=padding).sigmoid().clamp_min(least)
            r = F.conv2d(both, *reset, padding=padding).sigmoid()
            q = F.conv2d(torch.cat([r * hidden, context, motion], 1), *candidate, padding=padding).tanh()
            hidden = (1 - z) * hidden + z * q
        return hidden, flow + parts.head.conv2(parts.head.conv1(hidden).relu())

    def upsample(self, hidden: Tensor, flow: Tensor) -> Tensor:
        """Convex combination of 3x3 neighbours (RAFT, section 3.3)."""
        batch, _, height, width = flow.shape
        mask = 0.25 * self.estimator.upsampler.mask(hidden)
        mask = mask.view(batch, 1, 9, 8, 8, height, width).softmax(2)
        neighbours = F.unfold(8 * flow, 3, padding=1).view(batch, 2, 9, 1, 1, height, width)
        fine = (mask * neighbours).sum(2).permute(0, 1, 4, 2, 5, 3)
        return fine.reshape(batch, 2, 8 * height, 8 * width)


def gates(conv: nn.Conv2d, hidden: int):
    """Weights and biases of the update gate, the reset gate and the candidate, apart; and the padding."""
    weights, biases = conv.weight.split(hidden), conv.bias.split(hidden)
    return list(zip((w.contiguous() for w in weights), biases, strict=True)), conv.padding


def encode(encoder: nn.Module, images: Tensor) -> Tensor:
    """The encoder in the layout that the images come in."""
    x = normalise(encoder.stem_norm, encoder.stem(images.contiguous())).relu()
    for block in (block for stage in encoder.stages for block in stage):
        y = normalise(block.norm1, block.conv1(x)).relu()
        y = normalise(block.norm2, block.conv2(y)).relu()
        if not isinstance(block.shortcut, nn.Identity):
            conv, norm = block.shortcut
            x = normalise(norm, conv(x))
        x = (x + y).relu()
    return encoder.head(x)


def normalise(norm: nn.Module, x: Tensor) -> Tensor:
    """Instance normalisation by PyTorch's own function; any other by its module."""
    return F.instance_norm(x) if isinstance(norm, InstanceNorm) else norm(x)


def make_pyramid(features1: Tensor, features2: Tensor, levels: int) -> list[Tensor]:
    """The all-pairs volume, (B h w, 1, h, w), and its halves."""
    batch, channels, height, width = features1.shape
    volume = features1.flatten(2).mT @ features2.flatten(2) / channels**0.5
    pyramid = [volume.view(batch * height * width, 1, height, width)]
    for _ in range(levels - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2, stride=2))
    return pyramid


def look_up(pyramid: list[Tensor], flow: Tensor, radius: int) -> Tensor:
    """Windows around where the flow points, by grid_sample with aligned corners, x-major."""
    batch, _, height, width = flow.shape
    y, x = torch.meshgrid(torch.arange(height).to(flow), torch.arange(width).to(flow), indexing="ij")
    centre = (flow + torch.stack([x, y])).permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
    steps = torch.arange(-radius, radius + 1).to(flow)
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)
    found = []
    for level, volume in enumerate(pyramid):
        where = centre / 2**level + offsets
        size = torch.tensor([volume.shape[-1] - 1, volume.shape[-2] - 1]).to(flow)
        window = F.grid_sample(volume, 2 * where / size - 1, align_corners=True)
        found.append(window.view(batch, height, width, -1))
    return torch.cat(found, -1).permute(0, 3, 1, 2).contiguous()
