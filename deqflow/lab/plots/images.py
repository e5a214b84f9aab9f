"""Figures of images, flow, errors and features, in matplotlib."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from deqflow.data.colors import color_wheel, flow_to_rgb
from deqflow.lab.plots.style import INK, full_color

PANEL = 4.2  # width of a panel, in inches


def images(
    pictures: Mapping[str, Tensor], *, columns: int = 2, marks: Mapping[str, tuple[float, float]] | None = None
) -> Figure:
    """Images with titles, each (3, H, W) in 0..255, or (H, W) in colours that span its own range.

    Args:
        pictures: the images, by title.
        columns: panels in a row.
        marks: by title, a point (x, y) in pixels to mark in that image.
    """
    figure, axes = _panels(pictures, columns)
    for axis, (title, picture) in zip(axes, pictures.items(), strict=False):
        pixels = picture.detach().cpu()
        if pixels.dim() == 3:
            axis.imshow(pixels.permute(1, 2, 0).clamp(0, 255).byte().numpy())
        else:
            axis.imshow(pixels.numpy(), cmap="viridis")
        if marks and title in marks:
            for color, width in (("black", 4.0), ("white", 1.5)):  # visible on any background
                axis.plot(*marks[title], "+", color=color, markersize=13, markeredgewidth=width)
    return figure


def flows(fields: Mapping[str, Tensor], *, largest: float | None = None, columns: int = 2) -> Figure:
    """Flow fields, (2, H, W) in pixels, in Middlebury's colours on one scale, with the wheel that explains them.

    Args:
        fields: by title; vectors that are not finite (unknown) are black.
        largest: length in pixels that gets the full colour; the 99th percentile of all known lengths if not given.
        columns: panels in a row.
    """
    if largest is None:
        largest = full_color(torch.cat([field.flatten(1) for field in fields.values()], 1))
    figure, axes = _panels(fields, columns)
    for axis, field in zip(axes, fields.values(), strict=False):
        axis.imshow(flow_to_rgb(field, largest=largest))
    inset = axes[0].inset_axes((0.01, 0.64, 0.34, 0.34))
    wheel = color_wheel()
    y, x = np.ogrid[-1 : 1 : 1j * wheel.shape[0], -1 : 1 : 1j * wheel.shape[1]]
    inset.imshow(np.dstack([wheel, 255 * (x**2 + y**2 <= 1).astype(np.uint8)]))  # transparent beside the disc
    caption = {"transform": inset.transAxes, "fontsize": 8, "ha": "center", "va": "top", "color": "black"}
    halo = [withStroke(linewidth=2, foreground="white")]
    inset.text(0.5, -0.04, f"{largest:.3g} px", path_effects=halo, **caption)
    inset.axis("off")
    return figure


def errors(maps: Mapping[str, Tensor], *, largest: float | None = None, columns: int = 2) -> Figure:
    """Maps of the end-point error, (H, W) in pixels, on one scale; grey where it is not known (NaN).

    Args:
        maps: by title.
        largest: the end of the scale in pixels; the 98th percentile of all known errors if not given.
        columns: panels in a row.
    """
    if largest is None:
        known = torch.cat([values[values.isfinite()] for values in maps.values()])
        largest = float(np.percentile(known.detach().cpu().numpy(), 98))
    figure, axes = _panels(maps, columns)
    colors = plt.get_cmap("magma").with_extremes(bad="0.6")
    drawn = None
    for axis, values in zip(axes, maps.values(), strict=False):
        drawn = axis.imshow(values.detach().cpu().numpy(), cmap=colors, vmin=0, vmax=largest)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=list(axes), shrink=0.8, extend="max")
        bar.set_label("end-point error (px)", color=INK)
        bar.ax.tick_params(color=INK, labelcolor=INK)
    return figure


def features(maps: Mapping[str, Tensor]) -> Figure:
    """Feature maps, (C, h, w) each, with their three strongest common components as colours.

    Similar features get similar colours.
    """
    flat = torch.cat([values.detach().flatten(1).T for values in maps.values()])  # (all pixels, C)
    centered = flat - flat.mean(0)
    _, vectors = torch.linalg.eigh(centered.T @ centered)
    components = centered @ vectors[:, -3:].flip(1)  # eigenvalues ascend
    low, high = (torch.quantile(components, share, dim=0) for share in (0.02, 0.98))
    colors = 255 * ((components - low) / (high - low)).clamp(0, 1)
    parts = colors.split([values[0].numel() for values in maps.values()])
    pictures = {
        name: part.T.reshape(3, *values.shape[1:]) for (name, values), part in zip(maps.items(), parts, strict=True)
    }
    return images(pictures)


def _panels(pictures: Mapping[str, Tensor], columns: int) -> tuple[Figure, list[Axes]]:
    """A grid with a titled panel for each image; all panels have the proportions of the first image."""
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    height, width = next(iter(pictures.values())).shape[-2:]
    panel = PANEL * 2 / max(columns, 2)
    size = (panel * columns, rows * (panel * height / width + 0.35))
    figure, grid = plt.subplots(rows, columns, figsize=size, dpi=110, layout="constrained", squeeze=False)
    figure.set_facecolor("none")  # the background of the page shows through, light or dark
    axes = list(grid.flat)
    # As large as the longest title allows, because narrow pages show the figure smaller.
    font = min(max(72 * panel / (0.6 * max(map(len, pictures))), 7), 11)
    for axis in axes:
        axis.axis("off")
    for axis, name in zip(axes, pictures, strict=False):
        axis.set_title(name, fontsize=font, color=INK)
    plt.close(figure)  # the notebook shows the returned figure; pyplot would show it a second time
    return figure, axes
