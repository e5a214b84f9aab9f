"""Convolutional encoders: images (B, 3, H, W) in -1..1 -> features (B, C, H/8, W/8) or H/4, W/4 (RAFT, section 3.1)."""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Norm = Literal["instance", "batch", "none"]
EPS = 1e-5  # PyTorch's default, which the published programs use


class InstanceNorm(nn.Module):
    """Normalises each channel of each sample to mean 0 and variance 1, with no parameters.

    PyTorch's own layer gives up the channels-last layout, which costs more than the convolutions around it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        with torch.autocast(x.device.type, enabled=False):
            return _InstanceNorm.apply(x)


class _InstanceNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        half = x.element_size() == 2
        if half and x.device.type == "cpu":  # sums squares in float32: exact enough for half precision only
            y, mean, scale = torch.native_group_norm(x, None, None, batch, channels, height * width, channels, EPS)
            mean, scale = (value.view(batch, channels, 1, 1) for value in (mean, scale))
        else:  # full precision; or a GPU, whose group normalisation does not support channels-last
            wide = x.float() if half else x
            mean = _mean(wide)
            y = wide - mean
            scale = (_mean(y * y) + EPS).rsqrt()
            y = y.mul_(scale).to(x.dtype)
        mean, scale = mean.to(x.dtype), scale.to(x.dtype)
        ctx.save_for_backward(x, mean, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # mean and scale would be treated as constants
            raise RuntimeError("InstanceNorm gives first derivatives only, got create_graph=True.")
        x, mean, scale = ctx.saved_tensors
        (grad,) = grad_outputs
        with torch.autocast(x.device.type, enabled=False):
            y = (x - mean).mul_(scale)
            along = _mean(grad * y)
            return (grad - _mean(grad)).sub_(y.mul_(along)).mul_(scale)


def _mean(x: Tensor) -> Tensor:
    """Mean over the pixels, (B, C, H, W) -> (B, C, 1, 1): on a CPU by a matrix product, fast in channels-last."""
    if x.device.type != "cpu" or torch.compiler.is_exporting():  # a graph for any size can't store 1 / size
        return x.mean((2, 3), keepdim=True)
    rows = x.permute(0, 2, 3, 1)
    weights = x.new_full((1, x.shape[3]), 1 / x.shape[3])
    return (weights @ rows)[:, :, 0].mean(1)[..., None, None]


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Return the normalisation layer called ``norm``."""
    if norm == "instance":
        return InstanceNorm()
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.Identity()


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm1, self.norm2 = make_norm(norm, outputs), make_norm(norm, outputs)
        self.shortcut = make_shortcut(inputs, outputs, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        y = self.norm1(self.conv1(x)).relu_()
        y = self.norm2(self.conv2(y)).relu_()
        return (self.shortcut(x) + y).relu_()


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a quarter of the channels between them, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: Norm) -> None:
        super().__init__()
        inner = outputs // 4
        self.conv1 = nn.Conv2d(inputs, inner, 1)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1)
        self.conv3 = nn.Conv2d(inner, outputs, 1)
        self.norm1, self.norm2 = make_norm(norm, inner), make_norm(norm, inner)
        self.norm3 = make_norm(norm, outputs)
        self.shortcut = make_shortcut(inputs, outputs, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        y = self.norm1(self.conv1(x)).relu_()
        y = self.norm2(self.conv2(y)).relu_()
        y = self.norm3(self.conv3(y)).relu_()
        return (self.shortcut(x) + y).relu_()


def make_shortcut(inputs: int, outputs: int, stride: int, norm: Norm) -> nn.Module:
    """The identity if shapes agree, else a strided 1x1 convolution and a normalisation."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride), make_norm(norm, outputs))


class Encoder(nn.Module):
    """A 7x7 stem of stride 2, residual stages of strides 1, 2, 2 (or 1 at the last), and a 1x1 convolution.

    Args:
        widths: channels of the stem and of the three stages.
        outputs: channels of the result.
        norm: normalisation throughout.
        block: kind of residual block.
        depths: blocks in each stage.
        inputs: channels of the images.
        stride: image pixels to a pixel of the result, 8 or 4.
    """

    def __init__(
        self,
        *,
        widths: tuple[int, int, int, int],
        outputs: int,
        norm: Norm,
        block: Literal["residual", "bottleneck"] = "residual",
        depths: tuple[int, int, int] = (2, 2, 2),
        inputs: int = 3,
        stride: int = 8,
    ) -> None:
        super().__init__()
        make_block = ResidualBlock if block == "residual" else BottleneckBlock
        self.stem = nn.Conv2d(inputs, widths[0], 7, stride=2, padding=3)
        self.stem_norm = make_norm(norm, widths[0])
        stages = []
        for before, channels, depth, step in zip(widths[:-1], widths[1:], depths, (1, 2, stride // 4), strict=True):
            blocks = [
                make_block(before if i == 0 else channels, channels, stride=step if i == 0 else 1, norm=norm)
                for i in range(depth)
            ]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Conv2d(widths[-1], outputs, 1)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) in -1..1 -> (B, outputs, H / stride, W / stride)."""
        x = images.contiguous(memory_format=torch.channels_last)
        x = self.stem_norm(self.stem(x)).relu_()
        for stage in self.stages:
            x = stage(x)
        return self.head(x)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def checkpointed(encoder: nn.Module, images: Tensor) -> Tensor:
    """Encode and keep only the images for backward, which encodes them again (Chen et al. 2016).

    Images are encoded one at a time, so that only the activations of one are in memory; all together where batch
    normalisation needs the statistics of all. The running statistics are updated once, in forward.

    Args:
        encoder: a module (B, 3, H, W) -> (B, C, h, w).
        images: (B, 3, H, W).
    """
    together = any(isinstance(module, _BatchNorm) and module.training for module in encoder.modules())

    def encode(batch: Tensor) -> Tensor:
        return checkpoint(
            encoder,
            batch,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (contextlib.nullcontext(), _statistics_kept(encoder)),
        )

    return encode(images) if together else torch.cat([encode(image[None]) for image in images])


@contextlib.contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Within this context, batch normalisation leaves its running statistics as they are."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counts = [
        (norm.num_batches_tracked, int(norm.num_batches_tracked))
        for norm in norms
        if norm.num_batches_tracked is not None
    ]
    for norm in norms:
        norm.momentum = 0.0  # the weight of the new statistics in the running ones
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for count, before in counts:
            count.fill_(before)
