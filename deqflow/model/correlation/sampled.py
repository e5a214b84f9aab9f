"""The lookup of all-pairs correlation without the volume: only the inner products that a window needs.

Memory and work grow with the number of pixels, while the volume's grow with its square. Neighbouring pixels look at
neighbouring places, so a tile of 8x8 pixels fetches one box of the other map's features and computes all of its inner
products as one matrix product. A tile whose pixels look at places far apart, as at an edge of motion, gets a larger
box, or is split into single pixels.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deqflow.model.correlation.volume import halve
from deqflow.model.correlation.windows import Windows, positions, windows_around

TILE = 8  # pixels a side
SLACKS = (3, 16)  # pixels by which a box may exceed what a uniform flow needs
CHUNK = 4 * 2**20  # elements of features fetched at a time: 16 MiB in float32


class SampledCorrelation:
    """The values of :class:`deqflow.model.correlation.CorrelationPyramid`, computed where a lookup needs them.

    Values and gradients are equal up to rounding. For backward it keeps features and positions, and computes the
    inner products again.

    Args:
        features1, features2: (B, C, h, w), any size from 1x1.
        levels: number of scales.
        radius: of the window, in pixels of each scale.
    """

    def __init__(self, features1: Tensor, features2: Tensor, *, levels: int = 4, radius: int = 4) -> None:
        self.radius = radius
        # (B, h, w, C): one pixel's channels lie side by side. Pooling features pools their inner products.
        self.queries = (features1 / features1.shape[1] ** 0.5).permute(0, 2, 3, 1).contiguous()
        pooled = [features2]
        for _ in range(levels - 1):
            pooled.append(halve(pooled[-1]))
        self.keys = [level.permute(0, 2, 3, 1).contiguous() for level in pooled]

    @property
    def channels(self) -> int:
        """Number of channels of a lookup: levels (2 r + 1)^2."""
        return len(self.keys) * (2 * self.radius + 1) ** 2

    def lookup(self, flow: Tensor) -> Tensor:
        """As :meth:`deqflow.model.correlation.CorrelationPyramid.lookup`."""
        batch, _, height, width = flow.shape
        x, y = positions(flow)
        found = []
        for level, keys in enumerate(self.keys):
            windows = windows_around(x / 2**level, y / 2**level, self.radius, (keys.shape[1], keys.shape[2]))
            where = windows.across, windows.down, windows.left, windows.top
            features = self.queries.view_as(self.queries), keys.view_as(keys)
            found.append(_SampledWindow.apply(*features, *where, self.radius))
        return torch.cat(found, dim=-1).view(batch, height, width, -1).permute(0, 3, 1, 2)

    def subset(self, rows: Tensor) -> "SampledCorrelation":
        """The correlation of some of the samples, (b,) integers."""
        part = copy.copy(self)
        part.queries, part.keys = self.queries[rows], [keys[rows] for keys in self.keys]
        return part


@dataclass(frozen=True)
class _Tiles:
    """T tiles of m pixels, and the box of the other map that each tile looks into.

    Attributes:
        pixels: (T, m), numbers of the pixels, counted through the batch.
        real: (T, m), which of them are real; a tile that reaches beyond the edge repeats pixels.
        left, top: (T,), the boxes' first columns and rows, perhaps outside the map.
        side: pixels along a side of the boxes.
    """

    pixels: Tensor
    real: Tensor
    left: Tensor
    top: Tensor
    side: int

    def chunks(self, size: int) -> Iterator["_Tiles"]:
        """Yield the tiles, ``size`` at a time."""
        parts = (tensor.split(size) for tensor in (self.pixels, self.real, self.left, self.top))
        for pixels, real, left, top in zip(*parts, strict=True):
            yield _Tiles(pixels, real, left, top, self.side)


class _SampledWindow(torch.autograd.Function):
    """Queries (B, h, w, C) and keys (B, H, W, C) -> windows (B, h w, (2 r + 1)^2); across ... top are (B, h w)."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, across: Tensor, down: Tensor, left: Tensor, top: Tensor, radius: int
    ) -> Tensor:
        ctx.save_for_backward(queries, keys, across, down, left, top)
        ctx.radius = radius
        out = queries.new_empty(left.numel(), (2 * radius + 1) ** 2)
        with torch.autocast(queries.device.type, enabled=False):
            for tiles in _tilings(queries.shape, keys.shape, left, top, radius):
                box, inside = _box_index(tiles, queries.shape, keys.shape)
                windows = _windows(tiles, across, down, left, top, radius)
                found = _sample(_rows(queries, tiles.pixels), _rows(keys, box), inside, windows, tiles)
                out[tiles.pixels[tiles.real]] = found[tiles.real]
        return out.view(*left.shape, -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, across, down, left, top = ctx.saved_tensors
        grad = grad_outputs[0].flatten(0, 1)
        totals = [torch.zeros_like(tensor).flatten(0, -2) for tensor in (queries, keys)]
        totals += [torch.zeros_like(tensor).flatten() for tensor in (across, down)]
        second = torch.is_grad_enabled()  # this backward pass is to be differentiated too
        with torch.autocast(queries.device.type, enabled=False), torch.enable_grad():
            for tiles in _tilings(queries.shape, keys.shape, left, top, ctx.radius):
                box, inside = _box_index(tiles, queries.shape, keys.shape)
                windows = _windows(tiles, across, down, left, top, ctx.radius)
                inputs = [_rows(queries, tiles.pixels), _rows(keys, box), windows.across, windows.down]
                if not second:
                    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
                windows = Windows(windows.left, windows.top, inputs[2], inputs[3], ctx.radius)
                found = _sample(inputs[0], inputs[1], inside, windows, tiles)
                ours = torch.where(tiles.real[..., None], grad[tiles.pixels], 0)
                places = tiles.pixels, box, tiles.pixels, tiles.pixels
                # If a graph is recorded, inputs are those of forward: frozen features have no gradient.
                wanted = [i for i, tensor in enumerate(inputs) if tensor.requires_grad]
                parts = torch.autograd.grad(found, [inputs[i] for i in wanted], ours, create_graph=second)
                for i, part in zip(wanted, parts, strict=True):
                    totals[i].index_add_(0, places[i].flatten(), part.flatten(0, places[i].dim() - 1))
        shaped = [total.view_as(like) for total, like in zip(totals, (queries, keys, across, down), strict=True)]
        return (*shaped, None, None, None)


def _rows(features: Tensor, index: Tensor) -> Tensor:
    """The pixels of (B, H, W, C) at an index, which counts through the batch: index (...) -> (..., C)."""
    flat = features.flatten(0, -2)
    return flat.index_select(0, index.flatten()).view(*index.shape, flat.shape[-1])


def _windows(tiles: _Tiles, across: Tensor, down: Tensor, left: Tensor, top: Tensor, radius: int) -> Windows:
    """The windows of the tiles' pixels, (T, m); ``left`` and ``top`` are counted from the corners of the boxes."""
    left, top = left.flatten()[tiles.pixels], top.flatten()[tiles.pixels]
    return Windows(
        left - tiles.left[:, None],
        top - tiles.top[:, None],
        across.flatten()[tiles.pixels],
        down.flatten()[tiles.pixels],
        radius,
    )


def _tilings(queries: torch.Size, keys: torch.Size, left: Tensor, top: Tensor, radius: int) -> Iterator[_Tiles]:
    """All pixels in tiles whose boxes are large enough, in chunks that bound the memory of the features fetched."""
    batch, height, width, channels = queries
    pixels, real = _tiles_of_a_grid(batch, height, width, left.device)
    left, top = left.flatten(), top.flatten()
    lefts, tops = left[pixels], top[pixels]  # (T, m)
    spread = torch.maximum(lefts.amax(1) - lefts.amin(1), tops.amax(1) - tops.amin(1))
    uniform = math.ceil((TILE - 1) * max(keys[1] / height, keys[2] / width))
    waiting = torch.ones_like(spread, dtype=torch.bool)
    for slack in SLACKS:
        fits = waiting & (spread <= uniform + slack)
        waiting = waiting & ~fits
        side = 2 * radius + 2 + uniform + slack
        tiles = _Tiles(pixels[fits], real[fits], lefts[fits].amin(1), tops[fits].amin(1), side)
        yield from tiles.chunks(max(1, CHUNK // (side**2 * channels)))
    alone = pixels[waiting][real[waiting]][:, None]  # each pixel a tile of its own
    side = 2 * radius + 2
    tiles = _Tiles(alone, torch.ones_like(alone, dtype=torch.bool), left[alone[:, 0]], top[alone[:, 0]], side)
    yield from tiles.chunks(max(1, CHUNK // (side**2 * channels)))


def _tiles_of_a_grid(batch: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The pixels of each tile, counted through the batch, and which of them are real: (T, TILE^2) each."""
    down, right = -(-height // TILE), -(-width // TILE)
    rows, columns = torch.arange(down * TILE, device=device), torch.arange(right * TILE, device=device)
    numbers = rows.clamp(max=height - 1)[:, None] * width + columns.clamp(max=width - 1)
    real = (rows < height)[:, None] & (columns < width)
    numbers, real = (
        tensor.view(down, TILE, right, TILE).transpose(1, 2).reshape(down * right, TILE**2)
        for tensor in (numbers, real)
    )
    first = height * width * torch.arange(batch, device=device)[:, None, None]
    return (first + numbers).flatten(0, 1), real.expand(batch, -1, -1).flatten(0, 1)


def _box_index(tiles: _Tiles, queries: torch.Size, keys: torch.Size) -> tuple[Tensor, Tensor]:
    """Numbers of the pixels in the tiles' boxes, x-major, and whether they are inside the map: (T, side^2) each."""
    height, width = keys[1:3]
    steps = torch.arange(tiles.side, device=tiles.left.device)
    columns, rows = tiles.left[:, None] + steps, tiles.top[:, None] + steps
    inside = ((columns >= 0) & (columns < width))[:, :, None] & ((rows >= 0) & (rows < height))[:, None, :]
    index = columns.clamp(0, width - 1)[:, :, None] + width * rows.clamp(0, height - 1)[:, None, :]
    sample = tiles.pixels[:, 0] // (queries[1] * queries[2])
    return (index + (height * width * sample)[:, None, None]).flatten(1), inside.flatten(1)


def _sample(queries: Tensor, box: Tensor, inside: Tensor, windows: Windows, tiles: _Tiles) -> Tensor:
    """Inner products of (T, m, C) with their boxes (T, side^2, C), sampled in the windows: (T, m, (2 r + 1)^2)."""
    products = (queries @ box.mT) * inside[:, None]  # (T, m, side^2)
    steps = torch.arange(windows.side, device=queries.device)
    columns, rows = windows.left[..., None] + steps, windows.top[..., None] + steps  # (T, m, 2 r + 2)
    index = columns[..., :, None] * tiles.side + rows[..., None, :]
    return windows.interpolate(products.gather(2, index.flatten(2)).view(index.shape))
