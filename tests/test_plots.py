import math

import numpy as np
import pytest
import torch

from deqflow import plots
from deqflow.solvers import Picard, Stop, solve


@pytest.fixture
def picture(generator):
    return 255 * torch.rand(3, 24, 32, generator=generator)


def test_images_shows_each_picture_under_its_title_and_marks_points(picture):
    figure = plots.images({"color": picture, "gray": picture[0]}, marks={"gray": (3.0, 4.0)})
    assert [axis.get_title() for axis in figure.axes] == ["color", "gray"]
    assert len(figure.axes[0].lines) == 0
    assert figure.axes[1].lines[0].get_xydata().tolist() == [[3.0, 4.0]]


def test_flows_share_one_scale_that_the_wheel_names(generator):
    small = torch.randn(2, 16, 16, generator=generator)
    figure = plots.flows({"small": small, "unknown": torch.full_like(small, torch.nan)}, largest=7.0)
    assert "7 px" in [text.get_text() for axis in figure.axes[0].child_axes for text in axis.texts]


def test_the_scale_of_flows_ignores_unknown_vectors(generator):
    flow = torch.randn(2, 16, 16, generator=generator)
    flow[:, 0, 0] = torch.nan
    assert plots.flows({"flow": flow}).axes[0].get_title() == "flow"


def test_errors_are_on_one_scale_with_a_bar(generator):
    maps = {name: torch.rand(8, 8, generator=generator) for name in "ab"}
    figure = plots.errors(maps, largest=2.0)
    assert [axis.images[0].get_clim() for axis in figure.axes[:2]] == [(0, 2.0), (0, 2.0)]
    assert figure.axes[-1].get_ylabel() == "end-point error (px)"


def test_equal_features_get_equal_colors(generator):
    features = torch.randn(8, 6, 7, generator=generator)
    figure = plots.features({"one": features, "the same": features.clone()})
    one, same = (axis.images[0].get_array() for axis in figure.axes)
    assert one.shape == (6, 7, 3)
    assert (one == same).all()


def test_traces_draw_a_curve_for_each_sample_and_the_tolerance():
    result = solve(lambda z: 0.5 * z, torch.ones(2, 3), Picard(), Stop(max_evals=5, atol=1e-3))
    figure = plots.traces({"picard": result}, title="halving")
    assert [curve.name for curve in figure.data] == ["picard, sample 0", "picard, sample 1"]
    assert list(figure.data[0].x) == [1, 2, 3, 4, 5]
    assert figure.data[0].y[1] == pytest.approx(0.25)
    assert figure.layout.annotations[0].y == pytest.approx(math.log10(1e-3))


def test_spreads_draw_the_mean_in_a_band_from_least_to_greatest():
    runs = np.array([[4.0, 2.0, 1.0], [8.0, 4.0, 1.0]])
    figure = plots.spreads({"one": runs, "other": runs / 2}, [3, 6, 12], x_title="evaluations")
    band, line, _, other = figure.data
    assert list(band.x) == [3, 6, 12, 12, 6, 3]
    assert list(band.y) == [8, 4, 1, 1, 2, 4]
    assert list(line.y) == [6, 3, 1]
    assert [curve.name for curve in figure.data if curve.showlegend is not False] == ["one", "other"]
    assert band.fillcolor == line.line.color != other.line.color
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"


def test_figures_are_closed_so_that_a_notebook_shows_them_once(picture):
    import matplotlib.pyplot as plt

    plots.images({"picture": picture})
    assert plt.get_fignums() == []


def test_tradeoff_labels_its_points_and_leaves_out_what_a_log_axis_cannot_show():
    points = {"a": (1.0, 0.5), "exact": (9.0, 0.0), "unknown": (2.0, math.nan)}
    figure = plots.tradeoff({"model": points}, cost="ms", loss="error", title="price")
    (curve,) = figure.data
    assert (curve.name, list(curve.x), list(curve.y), list(curve.text)) == ("model", [1.0], [0.5], ["a"])
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "log")
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("ms", "error")
