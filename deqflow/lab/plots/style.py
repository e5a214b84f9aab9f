"""The style that all figures share. It is legible on white paper, in a dark window, and for the colour-blind."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import torch
from torch import Tensor

INK = "#7b7b7b"  # of text and axes; its contrast with a white and with a dark background is about equal
GRID = "rgba(128, 128, 128, 0.25)"
CLEAR = "rgba(0, 0, 0, 0)"
# Okabe and Ito's colours without black and yellow, each of which vanishes on one background; two more at the end.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#A0674B", "#8A7DD3")
# On a narrow page a legend beside the plot would leave no room for it; below it, the margin grows with its rows.
LEGEND_BELOW: dict[str, Any] = {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"}


def _template() -> go.layout.Template:
    template = go.layout.Template(pio.templates["plotly_white"])
    # Powers of ten, where plotly would write 0.0001 as "100µ".
    axis = {"gridcolor": GRID, "linecolor": GRID, "zerolinecolor": GRID, "color": INK, "exponentformat": "power"}
    scene_axis = {**axis, "gridcolor": INK, "gridwidth": 1, "backgroundcolor": CLEAR, "showbackground": False}
    layout = go.Layout(
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        font={"color": INK},
        colorway=list(COLORS),
        xaxis=axis,
        yaxis=axis,
        scene=dict.fromkeys(("xaxis", "yaxis", "zaxis"), scene_axis) | {"bgcolor": CLEAR},
    )
    template.update(layout=layout.to_plotly_json())
    return template


TEMPLATE = _template()


def full_color(flow: Tensor) -> float:
    """The length in px that gets the full colour: 99 % of the finite vectors are no longer; at least 0.5 px.

    Args:
        flow: (2, ...) in pixels.
    """
    lengths = torch.linalg.vector_norm(flow.detach(), dim=0).cpu()
    finite = lengths[lengths.isfinite()].numpy()
    return max(float(np.percentile(finite, 99)), 0.5) if len(finite) else 0.5
