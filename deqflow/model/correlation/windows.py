"""The windows of a lookup: where they are, and their bilinear interpolation; shared by all kinds of lookup."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Windows of (2 r + 2)^2 whole pixels around points of an image, and the points' fractional offsets.

    All samples of a window share one fractional offset, so whole pixels are fetched once and interpolated. There is
    no division by the image's size, so no image is too small.

    Attributes:
        left, top: the first column and row of each window, any shape, integers, perhaps outside the image.
        across, down: the points' fractional offsets, of the same shape, with a graph to their positions.
        radius: of the windows.
    """

    left: Tensor
    top: Tensor
    across: Tensor
    down: Tensor
    radius: int

    @property
    def side(self) -> int:
        """Pixels along a side of the fetched window."""
        return 2 * self.radius + 2

    def interpolate(self, pixels: Tensor) -> Tensor:
        """Fetched pixels (..., 2 r + 2 in x, 2 r + 2 in y) -> samples (..., (2 r + 1)^2), x-major."""
        across, down = (offset.to(pixels.dtype)[..., None, None] for offset in (self.across, self.down))
        lines = torch.lerp(pixels[..., :-1], pixels[..., 1:], down)
        return torch.lerp(lines[..., :-1, :], lines[..., 1:, :], across).flatten(-2)


def windows_around(x: Tensor, y: Tensor, radius: int, size: tuple[int, int]) -> Windows:
    """Place windows around points (x, y), any shape, in pixels of an image of ``size`` (height, width).

    A point far away gives zeros, wherever it is: it is moved to where its window just misses the image, so that its
    index stays inside the integers' range. A NaN coordinate stays NaN in the offsets, and so in the result.
    """
    height, width = size
    # Whole numbers: an exported graph for any size can't store a fraction that depends on the size.
    x, y = x.clamp(-radius - 2, width + radius + 1), y.clamp(-radius - 2, height + radius + 1)
    column, row = x.detach().floor(), y.detach().floor()
    left, top = column.nan_to_num().long() - radius, row.nan_to_num().long() - radius
    return Windows(left, top, x - column, y - row, radius)


def positions(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Where a flow (B, 2, h, w) points in the second image: x and y, (B, h w) each, in its pixels."""
    height, width = flow.shape[-2:]
    columns = torch.arange(width, device=flow.device).expand(height, width)
    rows = torch.arange(height, device=flow.device)[:, None].expand(height, width)
    return (flow[:, 0] + columns).flatten(1), (flow[:, 1] + rows).flatten(1)
