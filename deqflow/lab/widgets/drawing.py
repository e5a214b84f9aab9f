"""The drawings of the playground: runs as images, curves and rows of a table, and a still of several runs."""

import io
from collections.abc import Sequence
from html import escape

import matplotlib
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plotly.subplots import make_subplots
from torch import Tensor

from deqflow.data.colors import flow_to_rgb
from deqflow.lab.plots.encoding import png_address
from deqflow.lab.plots.style import COLORS, INK, TEMPLATE, full_color
from deqflow.lab.widgets.runs import SolverRun

STILL_WIDTH = 240  # largest width of a still's maps in pixels, to keep pages small


def image_rgb(image: Tensor) -> np.ndarray:
    """An image (3, H, W) in 0..255 as (H, W, 3) uint8."""
    return np.ascontiguousarray(image.clamp(0, 255).byte().permute(1, 2, 0).numpy())


def error_rgb(error: Tensor, largest: float) -> np.ndarray:
    """An error map, (H, W) in pixels, black at 0 to yellow at ``largest``; grey where it is NaN."""
    colors = matplotlib.colormaps["magma"].with_extremes(bad="0.6")
    return (255 * colors(np.ma.masked_invalid(error.numpy() / largest))[..., :3]).round().astype(np.uint8)


def scales(run: SolverRun) -> tuple[float, float]:
    """Lengths in pixels that get the full colour, of the flow and of its error."""
    known = run.pair.flow[:, run.pair.valid] if run.error is not None else run.flow.flatten(1)
    error = 1.0 if run.error is None else float(np.nanpercentile(run.error.numpy(), 98))
    return full_color(known), max(error, 0.5)


def runs_table(runs: Sequence[tuple[str, SolverRun]]) -> str:
    """Runs as an HTML table; each comes with a word that says which run it is."""
    rows = [{"": word} | run.row() for word, run in runs]
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row.values()) + "</tr>" for row in rows)
    style = "style='border-collapse: collapse; font-size: 90%; line-height: 1.4' cellpadding='4'"
    return f"<div style='overflow-x: auto'><table {style}><tr>{head}</tr>{body}</table></div>"


def residuals(runs: Sequence[tuple[SolverRun, str, str]]) -> bytes:
    """Residual against evaluations, on a log scale: a curve for each run, with its name and colour; a PNG file."""
    figure = Figure(figsize=(8.6, 3.4))
    figure.subplots_adjust(left=0.08, right=0.72, top=0.91, bottom=0.14)  # a layout engine would draw it twice
    axes = plain_axes(figure.subplots(), "Residual against evaluations", "evaluations of f", "residual (px)")
    for run, name, color in runs:
        known = np.array(run.trace, dtype=float)
        known[~np.isfinite(known) | (known <= 0)] = np.nan
        axes.plot(np.arange(1, len(known) + 1), known, color=color, label=name, linewidth=1.8, marker="o", markersize=3)
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False, labelcolor=INK)
    return figure_png(figure)


def plain_axes(axes: Axes, title: str, x: str, y: str) -> Axes:
    """Axes in the common style: no box, a faint grid, ink that is visible on light and dark backgrounds."""
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.tick_params(colors=INK, labelsize=8, which="both")
    axes.grid(color=INK, alpha=0.25)
    axes.set_facecolor("none")
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def figure_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file with a transparent background."""
    with io.BytesIO() as file:
        with matplotlib.rc_context({"axes.formatter.min_exponent": 4}):  # 0.01 rather than a power of ten
            figure.savefig(file, format="png", dpi=130, facecolor="none")
        return file.getvalue()


def still(runs: Sequence[SolverRun]) -> go.Figure:
    """The flow and error map of each run, one run below the other, and under them all residuals in one diagram."""
    count = len(runs)
    specs = [*[[{}, {}] for _ in runs], [{"colspan": 2}, None]]
    heights = [*[1.0] * count, 1.4]
    gap = 0.2 / (count + 1)
    figure = make_subplots(
        rows=count + 1, cols=2, specs=specs, row_heights=heights, vertical_spacing=gap, horizontal_spacing=0.03
    )
    largest, worst = scales(runs[0])
    for row, (run, color) in enumerate(zip(runs, COLORS, strict=False), 1):
        _maps(figure, run, row, largest)
        figure.add_scatter(
            x=list(range(1, run.evaluations + 1)),
            y=list(run.trace),
            name=run.settings.label,
            mode="lines+markers",
            line={"color": color, "width": 2},
            marker={"size": 4},
            hovertemplate="%{y:.3g} px after %{x} evaluations",
            row=count + 1,
            col=1,
        )
    figure.update_xaxes(title_text="evaluations of f", row=count + 1, col=1)
    narrow = {"title": {"text": "residual (px)", "standoff": 2}, "tickfont": {"size": 10}}  # for narrow pages
    figure.update_yaxes({**narrow, "type": "log", "tickformat": "~g"}, row=count + 1, col=1)
    bar = {"title": {"text": "px"}, "len": 0.25, "y": 1, "yanchor": "top", "thickness": 8, "tickfont": {"size": 10}}
    title = f"Solver runs: flow (full colour: {largest:.3g} px),<br>error, and residual against evaluations"
    return figure.update_layout(
        template=TEMPLATE,
        height=210 * count + 380,
        margin={"l": 42, "r": 5, "t": 115, "b": 60 + 18 * count},
        coloraxis={"colorscale": "Magma", "cmin": 0, "cmax": worst, "colorbar": bar},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
        title={"text": title, "font": {"size": 15}, "y": 1, "yanchor": "top", "pad": {"t": 15}},
    )


def _maps(figure: go.Figure, run: SolverRun, row: int, largest: float) -> None:
    """Draw a run's flow and error into a row, under a line with its results."""
    step = -(-run.flow.shape[-1] // STILL_WIDTH)
    source = png_address(flow_to_rgb(run.flow[:, ::step, ::step], largest=largest))
    figure.add_image(source=source, hoverinfo="skip", row=row, col=1)
    if run.error is not None:
        error = run.error[::step, ::step].numpy()
        hover = "error %{z:.2f} px<extra></extra>"
        figure.add_heatmap(z=error, coloraxis="coloraxis", hovertemplate=hover, row=row, col=2)
    for column in (1, 2):
        subplot = 2 * (row - 1) + column
        across = f"x{subplot}" if subplot > 1 else "x"
        common = {"visible": False, "constrain": "domain", "row": row, "col": column}
        figure.update_xaxes(**common, constraintoward="right" if column == 1 else "left")
        figure.update_yaxes(**common, scaleanchor=across, autorange="reversed", constraintoward="top")
    figure.add_annotation(
        text=_facts(run),
        showarrow=False,
        align="left",
        font={"size": 11},
        x=0,
        y=1,
        yshift=1,
        xref=f"x{2 * row - 1} domain" if row > 1 else "x domain",
        yref=f"y{2 * row - 1} domain" if row > 1 else "y domain",
        xanchor="left",
        yanchor="bottom",
    )


def _facts(run: SolverRun) -> str:
    """Solver, evaluations, milliseconds and bytes in a line."""
    row = run.row()
    error = "" if run.epe_px is None else f"; error {run.epe_px:.2f} px"
    return (
        f"<b>{escape(run.settings.label)}</b><br>{run.evaluations} evaluations, {row['solve (ms)']} ms, "
        f"{row['solver memory']}{error}"
    )
