"""Correlation of all pairs of pixels, at several scales, and its windowed lookup (RAFT, section 3.2)."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deqflow.model.correlation.windows import positions, windows_around


def all_pairs(features1: Tensor, features2: Tensor) -> Tensor:
    """Inner product of every pixel of one feature map with every pixel of the other, over sqrt(C).

    Args:
        features1, features2: (B, C, h, w).

    Returns:
        (B, h w, h, w): for each pixel of the first map, an image of the second.
    """
    batch, channels, height, width = features1.shape
    volume = (features1.flatten(2).mT / channels**0.5) @ features2.flatten(2)
    return volume.view(batch, height * width, height, width)


def halve(pictures: Tensor) -> Tensor:
    """2x2 average pooling of images (..., H, W); a side of one pixel stays as it is."""
    height, width = pictures.shape[-2:]
    return F.avg_pool2d(pictures, (min(2, height), min(2, width)))


class CorrelationPyramid:
    """All-pairs correlation at 1, 1/2, 1/4, ... of the second image's resolution, made once a pair.

    Args:
        features1, features2: (B, C, h, w), any size from 1x1.
        levels: number of scales.
        radius: of the window, in pixels of each scale.

    Attributes:
        gathers: whether whole pixels are fetched and interpolated (:func:`window`), which is fast on a CPU. On other
            devices the number of operations decides, and :func:`sample_windows` has a tenth of them. It needs images
            and places of one precision, so it is not used in half precision, which would lose the places' fractions.
    """

    def __init__(self, features1: Tensor, features2: Tensor, *, levels: int = 4, radius: int = 4) -> None:
        self.radius = radius
        self.volumes = [all_pairs(features1, features2)]
        for _ in range(levels - 1):
            self.volumes.append(halve(self.volumes[-1]))
        self.gathers = features1.device.type == "cpu" or features1.element_size() < 4
        self._rows: Tensor | None = None
        self._grid: WindowGrid | None = None

    @property
    def channels(self) -> int:
        """Number of channels of a lookup: levels (2 r + 1)^2."""
        return len(self.volumes) * (2 * self.radius + 1) ** 2

    def lookup(self, flow: Tensor) -> Tensor:
        """Correlation in a window around where the flow points, bilinear, zero outside the image.

        Args:
            flow: (B, 2, h, w) in feature pixels.

        Returns:
            (B, levels (2 r + 1)^2, h, w). The window is x-major: its slow index moves in x.
        """
        # With a graph to the flow, a Jacobian penalty needs second derivatives, and grid_sample has only first ones.
        # A graph to the features alone may use grid_sample. For backward it keeps the pyramid, of which pooling keeps
        # all but the coarsest level anyway, and the places, which take less memory than the indices of a gather.
        if not (self.gathers or (flow.requires_grad and torch.is_grad_enabled())):
            if self._grid is None:
                self._grid = WindowGrid(self.volumes, (flow.shape[2], flow.shape[3]), self.radius)
            return sample_windows(self.volumes, flow, self._grid)
        batch, _, height, width = flow.shape
        x, y = positions(flow)
        found = [
            window(volume, x / 2**level, y / 2**level, self.radius, self._rows)
            for level, volume in enumerate(self.volumes)
        ]
        return torch.cat(found, dim=-1).view(batch, height, width, -1).permute(0, 3, 1, 2)

    def subset(self, rows: Tensor) -> "CorrelationPyramid":
        """The correlation of some of the samples, (b,) integers. If pixels are gathered, nothing is copied."""
        part = copy.copy(self)
        if self.gathers:
            part._rows = rows if self._rows is None else self._rows[rows]
        else:  # grid_sample takes whole images: one copy now, or one in each lookup
            part.volumes = [volume[rows] for volume in self.volumes]
        return part


class WindowGrid:
    """Computes from a flow the places for F.grid_sample, at all scales at once; its constants are made once a pair.

    Places are normalised as for ``align_corners=False``, (2 x + 1) / W - 1: no size is too small for it, and it does
    not use cuDNN, whose sampler refuses 65,536 images and more.

    Args:
        volumes: the volumes of the L scales, (B, h w, H, W) each.
        size: h and w.
        radius: radius of the windows.
    """

    def __init__(self, volumes: Sequence[Tensor], size: tuple[int, int], radius: int) -> None:
        like = {"dtype": volumes[0].dtype, "device": volumes[0].device}
        sides = torch.tensor([[volume.shape[3], volume.shape[2]] for volume in volumes], **like)  # (L, 2): W, H
        scale = 0.5 ** torch.arange(len(volumes), **like)
        down, right = torch.meshgrid(*(torch.arange(side, **like) for side in size), indexing="ij")
        pixels = torch.stack([right, down], -1).view(1, -1, 2)  # (1, h w, 2)
        steps = torch.arange(-radius, radius + 1, **like)
        window = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)  # (S, S, 2), x-major
        self._scale = scale.view(-1, 1, 1, 1)
        self._pixels = self._scale * pixels  # (L, 1, h w, 2)
        self._highest = (sides + (radius + 1)).view(-1, 1, 1, 2)
        self._lowest = torch.full_like(self._highest, -radius - 2)
        self._gain = (2 / sides).view(-1, 1, 1, 1, 1, 2)
        self._window = (2 * window + 1) / sides.view(-1, 1, 1, 1, 1, 2) - 1  # (L, 1, 1, S, S, 2)

    def __call__(self, flow: Tensor) -> tuple[Tensor, Tensor]:
        """Flow (B, 2, h, w) in pixels -> normalised places (L, B, h w, S, S, 2), and centres (L, B, h w, 2) in pixels.

        As in :func:`~deqflow.model.correlation.windows.windows_around`, a centre far away is moved to where its window
        just misses the image, and NaN stays NaN.
        """
        flow = flow.flatten(2).mT.to(self._pixels.dtype)  # (B, h w, 2)
        centres = torch.addcmul(self._pixels, flow, self._scale).clamp(self._lowest, self._highest)
        return torch.addcmul(self._window, centres[..., None, None, :], self._gain), centres


def sample_windows(volumes: Sequence[Tensor], flow: Tensor, grid: WindowGrid) -> Tensor:
    """The values of :func:`window` at all scales, up to rounding, in as few operations as possible.

    Args:
        volumes: the volumes of the L scales, (B, h w, H, W) each, in float32 or float64.
        flow: (B, 2, h, w) in pixels.
        grid: the grid of these volumes.

    Returns:
        (B, L (2 r + 1)^2, h, w), x-major, zero outside the images. It has first derivatives only.
    """
    batch, _, height, width = flow.shape
    places, centres = grid(flow)
    found = torch.cat(
        [
            F.grid_sample(volume.flatten(0, 1)[:, None], where.flatten(0, 1), align_corners=False).view(
                batch, height, width, -1
            )
            for volume, where in zip(volumes, places, strict=True)
        ],
        dim=-1,
    )
    # On a GPU the sampler treats a NaN place as one outside the image. 0 * NaN is NaN: this makes the result NaN.
    found += (0 * centres[0].sum(-1)).view(batch, height, width, 1)
    return found.permute(0, 3, 1, 2)


def window(volume: Tensor, x: Tensor, y: Tensor, radius: int, rows: Tensor | None = None) -> Tensor:
    """Bilinear samples on a (2 r + 1)^2 window around a point of each image.

    Args:
        volume: (B, N, H, W), N images a sample.
        x, y: (B, N), the centres, in pixels of the images.
        radius: of the window.
        rows: if given, the samples of the volume that the b rows of ``x`` and ``y`` belong to, (b,) integers.

    Returns:
        (B, N, (2 r + 1)^2), x-major, zero outside the images.
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
    """Entries of flat images (B, N, H W) at (b, N, k) indices."""
    if rows is None:
        return _Gather.apply(pictures, index)
    count, size = pictures.shape[1:]
    first = size * (count * rows[:, None] + torch.arange(count, device=rows.device))  # (b, N)
    return torch.take(pictures, index + first[..., None])


class _Gather(torch.autograd.Function):
    """torch.gather along the last dimension; for backward it does not keep the tensor it gathered from."""

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
