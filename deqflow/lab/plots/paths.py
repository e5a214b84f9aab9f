"""The course of a solve, in plotly: states as paths in space, and maps of the image with a slider over evaluations."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from deqflow.data.colors import flow_to_rgb
from deqflow.evidence.diagnostics import Projection, Trajectory
from deqflow.lab.plots.encoding import png_address
from deqflow.lab.plots.style import COLORS, LEGEND_BELOW, TEMPLATE, full_color

_DASHES = ("solid", "dot", "dash", "dashdot", "longdash")


def trajectories(
    spaces: Mapping[str, Projection], paths: Sequence[Trajectory], *, units: Mapping[str, str], title: str = ""
) -> go.Figure:
    """Paths of solves along their principal components, with a 3-D plot for each space, side by side.

    The colour shows the start, the dash of the line the solver. Each path begins with a square, its first f(z), and
    ends in a diamond. A click in the legend hides a path in all spaces.

    Args:
        spaces: by title, a projection on three components with a path for each of ``paths``.
        paths: the solves.
        units: unit of each space's states, for the axes.
        title: title of the figure.
    """
    starts, rules = (list(dict.fromkeys(getattr(path, name) for path in paths)) for name in ("start", "rule"))
    columns = len(spaces)
    kinds = [[{"type": "scene"}] * columns]
    figure = make_subplots(1, columns, specs=kinds, subplot_titles=list(spaces), horizontal_spacing=0.02)
    for column, projection in enumerate(spaces.values(), 1):
        for path, points in zip(paths, projection.paths, strict=True):
            label = f"{path.start}, {path.rule}"
            color = COLORS[starts.index(path.start) % len(COLORS)]
            inner = len(points) - 2
            figure.add_scatter3d(
                **dict(zip("xyz", np.asarray(points.T), strict=True)),
                name=label,
                legendgroup=label,
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": color, "width": 4, "dash": _DASHES[rules.index(path.rule) % len(_DASHES)]},
                marker={"color": color, "size": [5, *[2] * inner, 6], "symbol": _symbols(len(points))},
                text=[f"evaluation {number}" for number in path.numbers],
                hovertemplate=f"{label}<br>%{{text}}<br>%{{x:.3g}}, %{{y:.3g}}, %{{z:.3g}}",
            )
            figure.data[-1].update(scene="scene" if column == 1 else f"scene{column}")
    view = {"aspectmode": "cube", "camera": {"eye": {"x": 1.7, "y": 1.7, "z": 1.2}, "center": {"z": -0.15}}}
    for column, (name, projection) in enumerate(spaces.items(), 1):
        unit = f", {units[name]}" if units[name] else ""
        axes = {
            f"{axis}axis": {"title": f"PC {i} ({100 * share:.0f} %{unit})"}
            for i, (axis, share) in enumerate(zip("xyz", projection.explained.tolist(), strict=True), 1)
        }
        figure.update_layout({"scene" if column == 1 else f"scene{column}": {**axes, **view}})
    margin = {"l": 0, "r": 0, "t": 70, "b": 80}
    legend = LEGEND_BELOW | {"y": -0.02}
    return figure.update_layout(title=title, template=TEMPLATE, height=640, margin=margin, legend=legend)


def film(
    numbers: Sequence[int],
    flow: Tensor,
    maps: Mapping[str, Tensor],
    *,
    largest: float | None = None,
    scale: tuple[float, float] = (0.01, 10.0),
    unit: str = "px",
    first: int = 0,
    title: str = "",
    counted: str = "evaluations of f",
    caption: str = "after",
) -> go.Figure:
    """The flow and maps of the same pixels, evaluation by evaluation or frame by frame, under a slider.

    The slider needs no kernel and no animation frames: each of its steps carries its images.

    Args:
        numbers: T numbers of evaluations.
        flow: (T, 2, H, W) in pixels.
        maps: by title, (T, H, W) in ``unit``, on one logarithmic scale; grey where not known (NaN).
        largest: length in pixels that gets the full colour; the 99th percentile of all lengths if not given.
        scale: ends of the maps' scale; values beyond an end have its colour.
        unit: unit of the maps.
        first: index of the number that is shown at first.
        title: title of the figure.
        counted: what the numbers count.
        caption: the word before a number in the title of the flow.

    Raises:
        ValueError: the flow or a map does not have an image for each number.
    """
    lengths = {name: len(values) for name, values in {"flow": flow, **maps}.items()}
    if set(lengths.values()) != {len(numbers)}:
        raise ValueError(f"film expects an image for each of {len(numbers)} evaluations, got {lengths}.")
    if largest is None:
        largest = full_color(flow.movedim(1, 0))
    rows = [[png_address(flow_to_rgb(field, largest=largest)) for field in flow]]
    rows += [[png_address(log_colors(values, scale)) for values in stack] for stack in maps.values()]
    # The caption has two lines because narrow pages have no room for one long line.
    captions = [[f"flow<br>{caption} {number}" for number in numbers]]
    for name, stack in maps.items():
        captions.append([f"{name}<br>mean {float(values.nanmean()):.2g} {unit}" for values in stack])
    titles = [texts[first] for texts in captions]
    figure = make_subplots(1, len(rows), subplot_titles=titles, horizontal_spacing=0.02)
    for column, sources in enumerate(rows, 1):
        figure.add_image(source=sources[first], hoverinfo="skip", row=1, col=column)
    steps = [
        {
            "label": str(number),
            "method": "update",
            "args": [
                {"source": [sources[i] for sources in rows]},
                {f"annotations[{k}].text": texts[i] for k, texts in enumerate(captions)},
                list(range(len(rows))),
            ],
        }
        for i, number in enumerate(numbers)
    ]
    prefix = {"prefix": f"{counted}: "}
    slider = {"active": first, "steps": steps, "currentvalue": prefix, "pad": {"t": 10}, "len": 0.9, "x": 0.02}
    figure.add_scatter(**_bar(scale, unit), showlegend=False, hoverinfo="skip")
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    height = 230 + round(900 / len(rows) * flow.shape[2] / flow.shape[3])
    margin = {"l": 10, "r": 10, "t": 90, "b": 10}
    layout = {"title": title, "template": TEMPLATE, "height": height, "margin": margin, "sliders": [slider]}
    return figure.update_layout(layout).update_annotations(font_size=12)


def _symbols(count: int) -> list[str]:
    """Symbols of a path's points: a square at its beginning, a diamond at its end."""
    return ["square", *["circle"] * (count - 2), "diamond"][-count:]


def log_colors(values: Tensor, scale: tuple[float, float]) -> np.ndarray:
    """A map, (H, W), in magma's colours on a logarithmic scale, grey where not known: (H, W, 3) uint8."""
    low, high = (math.log10(end) for end in scale)
    known = torch.isfinite(values).cpu().numpy()
    place = (values.clamp(min=scale[0]).log10() - low) / (high - low)
    colors = plt.get_cmap("magma")(np.ma.array(place.cpu().numpy(), mask=~known), bytes=True)[..., :3]
    return np.where(known[..., None], colors, 153).astype(np.uint8)


def _bar(scale: tuple[float, float], unit: str) -> dict[str, Any]:
    """An invisible point that carries the colour bar, because ready-made images cannot have one in plotly."""
    low, high = (math.log10(end) for end in scale)
    decades = range(math.ceil(low), math.floor(high) + 1)
    bar = {"title": unit, "tickvals": list(decades), "ticktext": [f"{10.0**n:g}" for n in decades], "thickness": 14}
    marker = {"color": [low], "cmin": low, "cmax": high, "colorscale": "Magma", "showscale": True, "colorbar": bar}
    return {"x": [None], "y": [None], "mode": "markers", "marker": marker}
