"""Interactive curves, in plotly."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from deqflow.evidence.diagnostics import Sparsification
from deqflow.lab.plots.style import COLORS, LEGEND_BELOW, TEMPLATE
from deqflow.solvers import SolverResult

_SIDES = tuple(f"{row} {column}" for column in ("right", "left", "center") for row in ("top", "bottom", "middle"))[:8]


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
        # On a log axis plotly places an annotation by the logarithm, but a line by the value itself.
        # It stands at the left, because curves end at the right near the tolerance.
        label = {"x": 0, "xref": "paper", "xanchor": "left", "y": math.log10(tolerance), "yanchor": "bottom"}
        figure.add_annotation(text=f"tolerance {tolerance:g} {unit}", showarrow=False, **label)
    return _labelled(figure, title, {"title": "evaluations of f"}, {"title": f"residual ({unit})", "type": "log"})


def lines(
    positions: Sequence[float], curves: Mapping[str, Sequence[float]], *, x: str, y: str, title: str = "", log: str = ""
) -> go.Figure:
    """Curves over common positions. ``x`` and ``y`` are the titles of the axes, with their units.

    ``log`` ("x", "y" or "xy") says which axes are logarithmic; values that a logarithmic ``y`` can't show are left out.
    """
    figure = go.Figure()
    for name, values in curves.items():
        shown = [None if "y" in log and value <= 0 else value for value in values]
        figure.add_scatter(x=list(positions), y=shown, name=name, mode="lines+markers", showlegend=True)
    kinds = ["log" if axis in log else "linear" for axis in "xy"]
    axes: list[dict[str, Any]] = [{"title": text, "type": kind} for text, kind in zip((x, y), kinds, strict=True)]
    if kinds[0] == "log":
        axes[0]["tickvals"] = list(positions)
    return _labelled(figure, title, *axes)


def spreads(
    curves: Mapping[str, np.ndarray], x: Sequence[float], *, title: str = "", x_title: str = "", y_title: str = ""
) -> go.Figure:
    """Curves of several runs each: a line shows the mean, and a band reaches from the least to the greatest value.

    Both axes are logarithmic.

    Args:
        curves: by name, (runs, points) each.
        x: positions of the points.
        title, x_title, y_title: titles of the figure and its axes.
    """
    figure = go.Figure()
    for i, (name, values) in enumerate(curves.items()):
        color = COLORS[i % len(COLORS)]
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
    """Loss against cost, both on log scales: named points (cost, loss) of each series.

    Args:
        series: for each name in the legend, points by label; points that are not positive and finite are left out.
        cost, loss: titles of the axes, with units.
        title: title of the figure.
    """
    figure = go.Figure()
    known = {
        (name, label): point
        for name, points in series.items()
        for label, point in sorted(points.items(), key=lambda item: item[1])
        if all(0 < value < math.inf for value in point)
    }
    sides = _label_sides(known)
    for name in series:
        mine = {label: point for (owner, label), point in known.items() if owner == name}
        x, y = [point[0] for point in mine.values()], [point[1] for point in mine.values()]
        places = [sides[name, label] for label in mine]
        texts = [label if place else "" for label, place in zip(mine, places, strict=True)]
        figure.add_scatter(
            x=x,
            y=y,
            text=texts,
            hovertext=list(mine),
            name=name,
            mode="markers+text",
            textposition=[place or "top center" for place in places],
        )
    figure.update_traces(marker_size=9, textfont_size=10, cliponaxis=False)
    costs = [math.log10(point[0]) for point in known.values()]
    room = 0.1 * (max(costs, default=0) - min(costs, default=0)) or 1  # for labels beside the outermost points
    shown = [min(costs) - room, max(costs) + room] if costs else None
    return _labelled(figure, title, {"title": cost, "type": "log", "range": shown}, {"title": loss, "type": "log"})


def _label_sides(points: Mapping[tuple[str, str], tuple[float, float]]) -> dict[tuple[str, str], str]:
    """The side of each point where its label overlaps no point and no other label; "" if there is none.

    The figure is assumed to have its usual size in pixels; where it is narrower, the page leaves labels out.
    """
    if not points:
        return {}
    logs = np.log10(np.array(list(points.values())))
    low, high = logs.min(0), logs.max(0)
    places = (logs - low) / np.where(high > low, high - low, 1) * [620, 290]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    sides = {}
    for (name, label), (x, y) in zip(points, places, strict=True):
        width, height = 6 * len(label), 14
        left = {"left": x - width - 6, "center": x - width / 2, "right": x + 6}
        low_edge = {"top": y + 6, "middle": y - height / 2, "bottom": y - height - 6}
        sides[name, label] = ""
        for side in _SIDES:
            edge, column = low_edge[side.split()[0]], left[side.split()[1]]
            box = (column, edge, column + width, edge + height)
            overlaps = [b for b in taken if box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3]]
            if not overlaps:
                sides[name, label] = side
                taken.append(box)
                break
    return sides


def sparsifications(curves: Mapping[str, Sparsification], *, title: str = "") -> go.Figure:
    """Mean error of the remaining pixels against the share removed. The oracle, which knows the errors, is dashed.

    Args:
        curves: by name. All belong to the same errors, so the oracle is taken from the first.
        title: title of the figure.
    """
    figure = go.Figure()
    for name, curve in curves.items():
        figure.add_scatter(x=100 * curve.removed, y=curve.remaining, name=f"{name} (AUSE {curve.area:.2f})")
    first = next(iter(curves.values()))
    figure.add_scatter(x=100 * first.removed, y=first.oracle, name="oracle", line={"dash": "dash", "color": "gray"})
    chance = f"in random order (AUSE {first.area_of_chance:.2f})"
    figure.add_scatter(x=[0, 100], y=[1, 1], name=chance, line={"dash": "dot", "color": "gray"})
    figure.update_traces(mode="lines")
    x, y = {"title": "pixels removed (%)"}, {"title": "mean error of the rest (share of all)", "rangemode": "tozero"}
    return _labelled(figure, title, x, y)


def _labelled(figure: go.Figure, title: str, x: dict[str, Any], y: dict[str, Any]) -> go.Figure:
    """Give a figure its titles and the style that all curves share."""
    margin = {"l": 60, "r": 20, "t": 50 + 20 * title.count("<br>"), "b": 50}
    look = {"template": TEMPLATE, "height": 440, "margin": margin, "legend": LEGEND_BELOW}
    return figure.update_layout(title=title, xaxis=x, yaxis=y, **look)
