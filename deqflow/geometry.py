"""Pixel grids, bilinear sampling, warping, upsampling and padding. Flow is (B, 2, H, W): x right, y down."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_grid(height: int, width: int, *, device: torch.device | str | None = None) -> Tensor:
    """Coordinates of the pixel centres, (1, 2, height, width) float32: channel 0 is x, channel 1 is y."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=device),
        torch.arange(width, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack([x, y])[None]


def sample_bilinear(image: Tensor, points: Tensor) -> Tensor:
    """Sample an image at points in pixels, zero outside.

    Args:
        image: (B, C, H, W).
        points: (B, 2, h, w), x and y in pixels of ``image``.

    Returns:
        (B, C, h, w).
    """
    height, width = image.shape[-2:]
    # grid_sample without align_corners maps pixel i to (2 i + 1) / size - 1, which has no size - 1 to divide by:
    # an image one pixel wide is sampled like any other.
    scale = points.new_tensor([2 / width, 2 / height]).view(1, 2, 1, 1)
    grid = ((points + 0.5) * scale - 1).permute(0, 2, 3, 1)
    return F.grid_sample(image, grid.to(image.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Fetch ``image`` at the end of each flow vector: ``out(p) = image(p + flow(p))``, zero outside.

    Args:
        image: (B, C, H, W), usually the second image of a pair.
        flow: (B, 2, H, W) in pixels.
    """
    return sample_bilinear(image, pixel_grid(*flow.shape[-2:], device=flow.device) + flow)


def upsample_bilinear(flow: Tensor, factor: int = 8) -> Tensor:
    """Enlarge a flow field with corners aligned and scale its vectors: (B, 2, h, w) -> (B, 2, f h, f w).

    Source: RAFT (Teed and Deng 2020), small model.
    """
    size = [factor * flow.shape[-2], factor * flow.shape[-1]]
    return factor * F.interpolate(flow, size=size, mode="bilinear", align_corners=True)


def upsample_convex(flow: Tensor, mask: Tensor, factor: int = 8) -> Tensor:
    """Enlarge a flow field, each fine pixel a convex combination of 3x3 coarse neighbours.

    Source: RAFT (Teed and Deng 2020), section 3.3.

    Args:
        flow: (B, 2, h, w) in coarse pixels.
        mask: (B, 9 f^2, h, w), the logits of the weights.

    Returns:
        (B, 2, f h, f w) in fine pixels.
    """
    batch, _, height, width = flow.shape
    weights = mask.view(batch, 1, 9, factor, factor, height, width).softmax(dim=2)
    neighbours = F.unfold(factor * flow, 3, padding=1).view(batch, 2, 9, 1, 1, height, width)
    fine = (weights * neighbours).sum(dim=2)  # (B, 2, f, f, h, w)
    return fine.permute(0, 1, 4, 2, 5, 3).reshape(batch, 2, factor * height, factor * width)


class Padding:
    """Replicates the border so that both sides divide by ``multiple``; shared out as RAFT does, centred.

    Args:
        height, width: of the images to come.
        multiple: what the padded sides divide by.
    """

    def __init__(self, height: int, width: int, multiple: int = 8) -> None:
        extra_y, extra_x = -height % multiple, -width % multiple
        self.left, self.top = extra_x // 2, extra_y // 2
        self.right, self.bottom = extra_x - self.left, extra_y - self.top

    def pad(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W') with H' and W' divisible."""
        if not (self.left or self.right or self.top or self.bottom):
            return image
        return F.pad(image, [self.left, self.right, self.top, self.bottom], mode="replicate")

    def crop(self, image: Tensor) -> Tensor:
        """(B, C, H', W') -> (B, C, H, W), undoing :meth:`pad`."""
        height, width = image.shape[-2:]
        return image[..., self.top : height - self.bottom, self.left : width - self.right]
