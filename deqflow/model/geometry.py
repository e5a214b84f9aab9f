"""Pixel grids, sampling, warping and its reverse, upsampling and padding. Flow is (B, 2, H, W): x right, y down."""

from typing import Literal

import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
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


def project_forward(values: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Carry values to the end of each flow vector, the reverse of :func:`warp`: ``out(p + flow(p)) = values(p)``.

    Bilinear splatting: each value is shared among the four pixels around its end, and each pixel takes the weighted
    mean of the values that arrived there. Values that end outside are lost.

    Args:
        values: (B, C, H, W).
        flow: (B, 2, H, W) in pixels; a vector that is not finite carries nothing.

    Returns:
        The values, (B, C, H, W), zero where nothing arrived, and how much arrived, (B, 1, H, W): 1 where the flow
        neither spreads nor crowds.
    """
    batch, channels, height, width = values.shape
    ends = (pixel_grid(height, width, device=flow.device).to(flow) + flow).flatten(2)  # (B, 2, H W)
    somewhere = torch.isfinite(ends).all(1, keepdim=True)
    carried = torch.cat([values, torch.ones_like(values[:, :1])], 1).flatten(2)
    carried = torch.where(somewhere, carried, 0.0)  # values may be the flow itself, and 0 * NaN is NaN
    # Ends far outside are moved to just outside, so that their whole numbers can't overflow.
    corner = ends.nan_to_num(-2.0).floor().clamp(-2, max(height, width))
    offset = torch.where(somewhere, ends - corner, 0.0)
    total = carried.new_zeros(batch, channels + 1, height * width)
    for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = (corner + corner.new_tensor([right, below]).view(1, 2, 1)).long().unbind(1)
        share = (offset[:, 0] if right else 1 - offset[:, 0]) * (offset[:, 1] if below else 1 - offset[:, 1])
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        place = torch.where(inside, y * width + x, 0)[:, None].expand(-1, channels + 1, -1)
        total.scatter_add_(2, place, torch.where(inside, share, 0.0)[:, None].to(carried.dtype) * carried)
    total = total.view(batch, channels + 1, height, width)
    weight = total[:, -1:]
    arrived = weight > 0
    return torch.where(arrived, total[:, :-1] / torch.where(arrived, weight, 1.0), 0.0), weight


def fill_holes(values: Tensor, known: Tensor) -> Tensor:
    """Give each unknown pixel the values of the nearest known one (Euclidean distance).

    Args:
        values: (B, C, H, W).
        known: (B, 1, H, W) booleans. A sample without known pixels stays as it is.
    """
    filled = values.clone()
    for i, mask in enumerate(known[:, 0]):
        if bool(mask.all()) or not bool(mask.any()):
            continue
        nearest = distance_transform_edt(~mask.cpu().numpy(), return_distances=False, return_indices=True)
        rows, columns = torch.from_numpy(nearest).long().to(values.device)
        filled[i] = values[i][:, rows, columns]
    return filled


def upsample_bilinear(flow: Tensor, factor: int = 8) -> Tensor:
    """Enlarge a flow field with corners aligned and scale its vectors: (B, 2, h, w) -> (B, 2, f h, f w).

    Source: RAFT (Teed and Deng 2020), small model.
    """
    return enlarge_bilinear(factor * flow, factor)


def enlarge_bilinear(values: Tensor, factor: int) -> Tensor:
    """Enlarge any field with corners aligned: (B, C, h, w) -> (B, C, f h, f w)."""
    size = [factor * values.shape[-2], factor * values.shape[-1]]
    return F.interpolate(values, size=size, mode="bilinear", align_corners=True)


def enlarge_convex(values: Tensor, mask: Tensor, factor: int) -> Tensor:
    """Enlarge any field; each fine pixel is a convex combination of 3x3 coarse neighbours.

    Source: RAFT (Teed and Deng 2020), section 3.3.

    Args:
        values: (B, C, h, w).
        mask: (B, 9 f^2, h, w), the logits of the weights.
        factor: f.

    Returns:
        (B, C, f h, f w).
    """
    batch, channels, height, width = values.shape
    weights = mask.view(batch, 1, 9, factor, factor, height, width).softmax(dim=2)
    neighbours = F.unfold(values, 3, padding=1).view(batch, channels, 9, 1, 1, height, width)
    fine = (weights * neighbours).sum(dim=2)  # (B, C, f, f, h, w)
    return fine.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels, factor * height, factor * width)


class Padding:
    """Replicates the border so that both sides divide by ``multiple``.

    Args:
        height, width: of the images to come.
        multiple: what the padded sides divide by.
        where: the place of the image in the padded one. "centre" splits the new rows and columns between both
            sides; RAFT and DEQ-Flow do so on Sintel. "top" splits only the columns and puts all new rows below the
            image; they do so on KITTI.
    """

    def __init__(self, height: int, width: int, multiple: int = 8, where: Literal["centre", "top"] = "centre") -> None:
        extra_y, extra_x = -height % multiple, -width % multiple
        self.left, self.top = extra_x // 2, 0 if where == "top" else extra_y // 2
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
