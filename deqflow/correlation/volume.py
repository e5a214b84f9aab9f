"""Correlation of all pairs of pixels, at several scales, and its windowed lookup (RAFT, section 3.2)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deqflow.correlation.windows import positions, windows_around


def all_pairs(features1: Tensor, features2: Tensor) -> Tensor:
    """Inner product of every pixel of one feature map with every pixel of the other, over sqrt(C).

    Args:
        features1, features2: (B, C, h, w).

    Returns:
        (B, h w, h, w): for each pixel of the first map, a picture of the second.
    """
    batch, channels, height, width = features1.shape
    volume = (features1.flatten(2).mT / channels**0.5) @ features2.flatten(2)
    return volume.view(batch, height * width, height, width)


def halve(pictures: Tensor) -> Tensor:
    """2x2 average pooling, (..., H, W), that leaves a side of one pixel as it is."""
    height, width = pictures.shape[-2:]
    return F.avg_pool2d(pictures, (min(2, height), min(2, width)))


class CorrelationPyramid:
    """All-pairs correlation at 1, 1/2, 1/4, ... of the second image's resolution, made once a pair.

    Args:
        features1, features2: (B, C, h, w), any size from 1x1.
        levels: number of scales.
        radius: of the window, in pixels of each scale.
    """

    def __init__(self, features1: Tensor, features2: Tensor, *, levels: int = 4, radius: int = 4) -> None:
        self.radius = radius
        self.volumes = [all_pairs(features1, features2)]
        for _ in range(levels - 1):
            self.volumes.append(halve(self.volumes[-1]))
        self._rows: Tensor | None = None

    def lookup(self, flow: Tensor) -> Tensor:
        """Correlation in a window around where the flow points, bilinear, zero outside the image.

        Args:
            flow: (B, 2, h, w) in feature pixels.

        Returns:
            (B, levels (2 r + 1)^2, h, w). The window is x-major: its slow index moves in x.
        """
        batch, _, height, width = flow.shape
        x, y = positions(flow)
        found = [
            window(volume, x / 2**level, y / 2**level, self.radius, self._rows)
            for level, volume in enumerate(self.volumes)
        ]
        return torch.cat(found, dim=-1).view(batch, height, width, -1).permute(0, 3, 1, 2)

    def subset(self, rows: Tensor) -> "CorrelationPyramid":
        """The correlation of some of the samples, (b,) integers. Nothing is copied."""
        part = object.__new__(CorrelationPyramid)
        part.radius, part.volumes = self.radius, self.volumes
        part._rows = rows if self._rows is None else self._rows[rows]
        return part


def window(volume: Tensor, x: Tensor, y: Tensor, radius: int, rows: Tensor | None = None) -> Tensor:
    """Bilinear samples on a (2 r + 1)^2 window around a point of each picture.

    Args:
        volume: (B, N, H, W), N pictures a sample.
        x, y: (B, N), the centres, in pixels of the pictures.
        radius: of the window.
        rows: if given, of which samples of the volume the b rows of ``x`` and ``y`` are, (b,) integers.

    Returns:
        (B, N, (2 r + 1)^2), x-major, zero outside the pictures.
    """
    height, width = volume.shape[-2:]
    windows = windows_around(x, y, radius, (height, width))
    steps = torch.arange(windows.side, device=volume.device)
    columns, lines = windows.left[..., None] + steps, windows.top[..., None] + steps  # (B, N, 2 r + 2)
    inside_x = (columns >= 0) & (columns < width)
    inside_y = (lines >= 0) & (lines < height)
    index = columns.clamp(0, width - 1)[..., :, None] + width * lines.clamp(0, height - 1)[..., None, :]
    pixels = _fetch(volume.flatten(2), index.flatten(2), rows).view(index.shape)  # (B, N, 2 r + 2 in x, in y)
    return windows.interpolate(pixels * (inside_x[..., :, None] & inside_y[..., None, :]))


def _fetch(pictures: Tensor, index: Tensor, rows: Tensor | None) -> Tensor:
    """Entries of flat pictures (B, N, H W) at (b, N, k) indices."""
    if rows is None:
        return _Gather.apply(pictures, index)
    count, size = pictures.shape[1:]
    first = size * (count * rows[:, None] + torch.arange(count, device=rows.device))  # (b, N)
    return torch.take(pictures, index + first[..., None])


class _Gather(torch.autograd.Function):
    """torch.gather along the last dimension, whose backward does not keep what it gathered from."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = source.shape
        return source.gather(-1, index)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (grad,) = grad_outputs
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).scatter_add(-1, index, grad), None
