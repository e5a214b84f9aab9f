"""Correlation of all pairs of pixels, at several scales, and its windowed lookup (RAFT, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def all_pairs(features1: Tensor, features2: Tensor) -> Tensor:
    """Inner product of every pixel of one feature map with every pixel of the other, over sqrt(C).

    Args:
        features1, features2: (B, C, h, w).

    Returns:
        (B, h w, h, w): for each pixel of the first map, a picture of the second.
    """
    batch, channels, height, width = features1.shape
    volume = features1.flatten(2).mT @ features2.flatten(2)
    return (volume / channels**0.5).view(batch, height * width, height, width)


def _halve(volume: Tensor) -> Tensor:
    """2x2 average pooling that leaves a side of one pixel as it is."""
    height, width = volume.shape[-2:]
    return F.avg_pool2d(volume, (min(2, height), min(2, width)))


class CorrelationPyramid:
    """All-pairs correlation at 1, 1/2, 1/4, ... of the second image's resolution, made once a pair.

    Args:
        features1, features2: (B, C, h, w), any size from 1x1.
        levels: number of scales.
        radius: of the window, in pixels of each scale.
    """

    def __init__(self, features1: Tensor, features2: Tensor, *, levels: int = 4, radius: int = 4) -> None:
        self.radius = radius
        self.shape = features1.shape[-2:]
        volume = all_pairs(features1, features2)
        self.volumes = [volume]
        for _ in range(levels - 1):
            self.volumes.append(_halve(self.volumes[-1]))

    def lookup(self, flow: Tensor) -> Tensor:
        """Correlation in a window around where the flow points, bilinear, zero outside the image.

        Args:
            flow: (B, 2, h, w) in feature pixels.

        Returns:
            (B, levels (2 r + 1)^2, h, w). The window is x-major: its slow index moves in x.
        """
        batch, _, height, width = flow.shape
        y, x = torch.meshgrid(
            torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij"
        )
        x = (flow[:, 0] + x).flatten(1)  # (B, h w), absolute positions in the second image
        y = (flow[:, 1] + y).flatten(1)
        windows = [window(volume, x / 2**level, y / 2**level, self.radius) for level, volume in enumerate(self.volumes)]
        return torch.cat(windows, dim=-1).view(batch, height, width, -1).permute(0, 3, 1, 2)


def window(volume: Tensor, x: Tensor, y: Tensor, radius: int) -> Tensor:
    """Bilinear samples on a (2 r + 1)^2 window around a point of each picture.

    All samples of a window share one fractional offset, so (2 r + 2)^2 whole pixels are gathered once and
    interpolated first in y, then in x. There is no division by the picture's size, so none is too small.

    Args:
        volume: (B, N, H, W), N pictures a sample.
        x, y: (B, N), the centres, in pixels of the pictures.
        radius: of the window.

    Returns:
        (B, N, (2 r + 1)^2), x-major, zero outside the pictures.
    """
    height, width = volume.shape[-2:]
    # A point far away sees zeros wherever exactly it is; the clamp keeps its index inside the integers' range.
    # clamp hands NaN on, so a state that is not finite still shows in the result.
    x, y = x.clamp(-2.0 * radius - 4, width + 2.0 * radius + 4), y.clamp(-2.0 * radius - 4, height + 2.0 * radius + 4)
    left, top = x.detach().floor(), y.detach().floor()
    across, down = (x - left)[..., None, None], (y - top)[..., None, None]
    steps = torch.arange(-radius, radius + 2, device=volume.device)
    columns = left.nan_to_num().long()[..., None] + steps  # (B, N, 2 r + 2)
    rows = top.nan_to_num().long()[..., None] + steps
    inside_x = (columns >= 0) & (columns < width)
    inside_y = (rows >= 0) & (rows < height)
    index = columns.clamp(0, width - 1)[..., :, None] + width * rows.clamp(0, height - 1)[..., None, :]
    inside = inside_x[..., :, None] & inside_y[..., None, :]
    pixels = volume.flatten(2).gather(2, index.flatten(2)).view(index.shape)  # (B, N, 2 r + 2 in x, 2 r + 2 in y)
    pixels = pixels * inside
    lines = torch.lerp(pixels[..., :-1], pixels[..., 1:], down.to(pixels.dtype))
    return torch.lerp(lines[..., :-1, :], lines[..., 1:, :], across.to(pixels.dtype)).flatten(2)
