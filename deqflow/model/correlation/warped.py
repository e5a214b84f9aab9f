"""Warped features in place of correlation (Wang and Deng, WAFT, ICLR 2026): memory grows with the pixels.

The update operator gets the features of both images, those of the second fetched at the end of the flow, and compares
them by itself. There is no window around the end of the flow, so that the state can be finer.
"""

import torch
from torch import Tensor

from deqflow.model.correlation.windows import positions, windows_around
from deqflow.model.geometry import sample_bilinear


class WarpedFeatures:
    """The features of the first image, and those of the second at the end of the flow.

    Args:
        features1, features2: (B, C, h, w), any size from 1x1.
    """

    def __init__(self, features1: Tensor, features2: Tensor) -> None:
        self.features1 = features1
        self.features2 = features2.to(torch.promote_types(features2.dtype, torch.float32))  # half loses fractions

    @property
    def channels(self) -> int:
        """Number of channels of a lookup: 2 C."""
        return self.features1.shape[1] + self.features2.shape[1]

    def lookup(self, flow: Tensor) -> Tensor:
        """Flow (B, 2, h, w) in feature pixels -> (B, 2 C, h, w); the second half is bilinear, zero outside the image.

        A vector that ends far outside gives zeros, and a NaN vector gives NaN.
        """
        # With a graph to the flow, a Jacobian penalty needs second derivatives, and grid_sample has only first ones.
        # An exported graph for images of any size can't divide by a size that it does not know.
        exactly = (flow.requires_grad and torch.is_grad_enabled()) or torch.compiler.is_exporting()
        fetched = fetch_exactly(self.features2, flow) if exactly else fetch(self.features2, flow)
        return torch.cat([self.features1, fetched.to(self.features1.dtype)], 1)

    def subset(self, rows: Tensor) -> "WarpedFeatures":
        """The features of some of the samples, (b,) integers."""
        return WarpedFeatures(self.features1[rows], self.features2[rows])


def fetch(features: Tensor, flow: Tensor) -> Tensor:
    """Features (B, C, h, w) at the end of each vector of a flow (B, 2, h, w)."""
    height, width = flow.shape[-2:]
    x, y = (places.view(-1, height, width) for places in positions(flow.to(features.dtype)))
    points = torch.stack([x.clamp(-2, width + 1), y.clamp(-2, height + 1)], 1)
    fetched = sample_bilinear(features, points.nan_to_num())
    return fetched.masked_fill(points.isnan().any(1, keepdim=True), torch.nan)


def fetch_exactly(features: Tensor, flow: Tensor) -> Tensor:
    """As :func:`fetch`, but by gathering whole pixels: it has second derivatives and takes four times the memory."""
    batch, channels, height, width = features.shape
    windows = windows_around(*positions(flow.to(features.dtype)), 0, (height, width))
    steps = torch.arange(2, device=flow.device)
    columns, rows = windows.left[..., None] + steps, windows.top[..., None] + steps  # (B, h w, 2)
    inside = ((columns >= 0) & (columns < width))[..., :, None] & ((rows >= 0) & (rows < height))[..., None, :]
    index = columns.clamp(0, width - 1)[..., :, None] + width * rows.clamp(0, height - 1)[..., None, :]
    index = index.view(batch, 1, -1).expand(-1, channels, -1)  # (B, C, 4 h w), x-major
    pixels = features.flatten(2).gather(2, index).view(batch, channels, height * width, 2, 2) * inside[:, None]
    across, down = (offset[:, None, :, None] for offset in (windows.across, windows.down))
    lines = torch.lerp(pixels[..., 0], pixels[..., 1], down)  # (B, C, h w, 2 in x)
    return torch.lerp(lines[..., 0], lines[..., 1], across[..., 0]).view(batch, channels, height, width)
