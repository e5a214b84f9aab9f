"""Pictures: matplotlib for images, flow and errors; plotly for curves to look into.

Each function returns a figure, which a notebook shows when it ends a cell.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plotly.colors import qualitative
from torch import Tensor

from deqflow.colors import color_wheel, flow_to_rgb
from deqflow.solvers import SolverResult

PANEL = 4.2  # width of a panel, in inches


def images(
    pictures: Mapping[str, Tensor], *, columns: int = 2, marks: Mapping[str, tuple[float, float]] | None = None
) -> Figure:
    """Pictures with titles, each (3, H, W) in 0..255, or (H, W) in its own range of colours.

    Args:
        pictures: by title.
        columns: panels in a row.
        marks: a point (x, y) in pixels of the picture with that title, to be marked in it.
    """
    figure, axes = _panels(pictures, columns)
    for axis, (title, picture) in zip(axes, pictures.items(), strict=False):
        pixels = picture.detach().cpu()
        if pixels.dim() == 3:
            axis.imshow(pixels.permute(1, 2, 0).clamp(0, 255).byte().numpy())
        else:
            axis.imshow(pixels.numpy(), cmap="viridis")
        if marks and title in marks:
            for color, width in (("black", 4.0), ("white", 1.5)):  # seen on any ground
                axis.plot(*marks[title], "+", color=color, markersize=13, markeredgewidth=width)
    return figure


def flows(fields: Mapping[str, Tensor], *, largest: float | None = None, columns: int = 2) -> Figure:
    """Flow fields, (2, H, W) in pixels, in Middlebury's colours on one scale, with the wheel that explains them.

    Args:
        fields: by title; vectors that are not finite (unknown) are black.
        largest: length in pixels of the full colour; the 99th percentile of all known lengths if not given.
        columns: panels in a row.
    """
    if largest is None:
        lengths = torch.cat([torch.linalg.vector_norm(field, dim=0).flatten() for field in fields.values()])
        largest = max(float(np.percentile(lengths[lengths.isfinite()].detach().cpu().numpy(), 99)), 0.5)
    figure, axes = _panels(fields, columns)
    for axis, field in zip(axes, fields.values(), strict=False):
        axis.imshow(flow_to_rgb(field, largest=largest))
    inset = axes[0].inset_axes((0.01, 0.64, 0.34, 0.34))
    inset.imshow(color_wheel())
    inset.text(0.5, -0.04, f"{largest:.3g} px", transform=inset.transAxes, fontsize=8, ha="center", va="top")
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
        figure.colorbar(drawn, ax=list(axes), label="end-point error (px)", shrink=0.8, extend="max")
    return figure


def features(maps: Mapping[str, Tensor]) -> Figure:
    """Feature maps, (C, h, w) each, their three strongest common components as colours: alike features look alike."""
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


def traces(solves: Mapping[str, SolverResult], *, title: str = "", unit: str = "px") -> go.Figure:
    """Residual after each evaluation, on a log scale: a curve for each solve and sample."""
    figure = go.Figure()
    for name, solve in solves.items():
        for sample, residuals in enumerate(solve.trace.T.tolist()):
            label = name if solve.trace.shape[1] == 1 else f"{name}, sample {sample}"
            evaluations = list(range(1, len(residuals) + 1))
            figure.add_scatter(x=evaluations, y=residuals, name=label, mode="lines+markers", marker_size=4)
    tolerances = {solve.stop.atol for solve in solves.values() if solve.stop.atol > 0}
    for tolerance in tolerances:
        figure.add_hline(y=tolerance, line_dash="dot", line_color="gray")
        # On a log axis an annotation is placed by the logarithm, unlike the line it belongs to.
        label = {"x": 1, "xref": "paper", "xanchor": "right", "y": math.log10(tolerance), "yanchor": "bottom"}
        figure.add_annotation(text=f"tolerance {tolerance:g} {unit}", showarrow=False, **label)
    return _labelled(figure, title, {"title": "evaluations of f"}, {"title": f"residual ({unit})", "type": "log"})


def lines(
    positions: Sequence[float], curves: Mapping[str, Sequence[float]], *, x: str, y: str, title: str = ""
) -> go.Figure:
    """Curves over common positions; ``x`` and ``y`` name the axes, with their units."""
    figure = go.Figure()
    for name, values in curves.items():
        figure.add_scatter(x=list(positions), y=list(values), name=name, mode="lines+markers")
    return _labelled(figure, title, {"title": x}, {"title": y})


def spreads(
    curves: Mapping[str, np.ndarray], x: Sequence[float], *, title: str = "", x_title: str = "", y_title: str = ""
) -> go.Figure:
    """Curves of several runs each, (runs, points): the mean as a line, from the least to the greatest as a band.

    Both axes are logarithmic.

    Args:
        curves: by name.
        x: of the points.
        title, x_title, y_title: what to write.
    """
    figure = go.Figure()
    for i, (name, values) in enumerate(curves.items()):
        color = qualitative.Plotly[i % len(qualitative.Plotly)]
        around = [*values.max(0), *values.min(0)[::-1]]
        band = {"fill": "toself", "fillcolor": color, "opacity": 0.15, "line_width": 0, "hoverinfo": "skip"}
        figure.add_scatter(x=[*x, *x[::-1]], y=around, mode="lines", legendgroup=name, showlegend=False, **band)
        figure.add_scatter(
            x=list(x), y=values.mean(0), name=name, mode="lines+markers", legendgroup=name, line_color=color
        )
    evaluations = {"title": x_title, "type": "log", "tickvals": list(x)}
    return _labelled(figure, title, evaluations, {"title": y_title, "type": "log"})


def tradeoff(
    series: Mapping[str, Mapping[str, tuple[float, float]]], *, cost: str, loss: str, title: str = ""
) -> go.Figure:
    """What is lost against what it costs, both on log scales: named points (cost, loss) of each series.

    Args:
        series: for each name in the legend, points by label; those that are not positive and finite are left out.
        cost, loss: titles of the axes, with units.
        title: of the figure.
    """
    figure = go.Figure()
    for number, (name, points) in enumerate(series.items()):
        known = {label: point for label, point in points.items() if all(0 < value < math.inf for value in point)}
        shown = dict(sorted(known.items(), key=lambda item: item[1]))
        x, y = [point[0] for point in shown.values()], [point[1] for point in shown.values()]
        # Neighbours by cost, and series, have their labels on different sides.
        sides = [f"{('top', 'bottom')[number % 2]} {('left', 'right')[i % 2]}" for i in range(len(shown))]
        figure.add_scatter(x=x, y=y, text=list(shown), name=name, mode="markers+text", textposition=sides)
    figure.update_traces(marker_size=9, textfont_size=10)
    return _labelled(figure, title, {"title": cost, "type": "log"}, {"title": loss, "type": "log"})


def _labelled(figure: go.Figure, title: str, x: dict[str, Any], y: dict[str, Any]) -> go.Figure:
    """The look that all curves have in common."""
    margin = {"l": 60, "r": 20, "t": 50, "b": 50}
    return figure.update_layout(title=title, xaxis=x, yaxis=y, template="plotly_white", height=420, margin=margin)


def _panels(pictures: Mapping[str, Tensor], columns: int) -> tuple[Figure, list[Axes]]:
    """A grid with a titled panel for each picture, all of the first one's proportions."""
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    height, width = next(iter(pictures.values())).shape[-2:]
    panel = PANEL * 2 / max(columns, 2)
    size = (panel * columns, rows * (panel * height / width + 0.35))
    figure, grid = plt.subplots(rows, columns, figsize=size, dpi=110, layout="constrained", squeeze=False)
    axes = list(grid.flat)
    for axis in axes:
        axis.axis("off")
    for axis, name in zip(axes, pictures, strict=False):
        axis.set_title(name, fontsize=9)
    plt.close(figure)  # shown by being returned, not a second time by pyplot
    return figure, axes
