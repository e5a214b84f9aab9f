import base64
import math

import cv2
import matplotlib
import numpy as np
import pytest
import torch

from deqflow.data.colors import flow_to_rgb
from deqflow.evidence.diagnostics import principal_components, record_trajectories, sparsification
from deqflow.lab import plots
from deqflow.lab.plots.style import full_color
from deqflow.solvers import Picard, Stop, solve


@pytest.fixture
def picture(generator):
    return 255 * torch.rand(3, 24, 32, generator=generator)


def test_images_shows_each_picture_under_its_title_and_marks_points(picture):
    figure = plots.images({"color": picture, "gray": picture[0]}, marks={"gray": (3.0, 4.0)})
    assert [axis.get_title() for axis in figure.axes] == ["color", "gray"]
    assert len(figure.axes[0].lines) == 0
    assert figure.axes[1].lines[0].get_xydata().tolist() == [[3.0, 4.0]]


def test_the_full_colour_is_that_of_long_finite_vectors():
    lengths = torch.arange(101.0)
    flow = torch.stack([lengths, torch.zeros(101)])
    assert full_color(flow) == full_color(flow.view(2, 1, 101)) == 99.0
    assert full_color(torch.cat([flow, torch.full((2, 50), torch.nan)], 1)) == 99.0
    assert full_color(flow / 1000) == 0.5  # a still pair is not drawn in full colours
    assert full_color(torch.full((2, 3, 4), torch.inf)) == 0.5


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
    assert figure.layout.annotations[0].x == 0  # at the left, away from the curve's end
    assert plots.traces({"picard": result}, title="two<br>lines").layout.margin.t > figure.layout.margin.t


def test_ticks_are_powers_of_ten():
    figure = plots.lines([1, 2], {"a": [1e-4, 1.0]}, x="a", y="b", log="y")
    assert figure.layout.template.layout.yaxis.exponentformat == "power"  # not "100µ"


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

    before = plt.get_fignums()  # of whatever else drew
    plots.images({"picture": picture})
    assert plt.get_fignums() == before


def test_tradeoff_labels_its_points_and_leaves_out_what_a_log_axis_cannot_show():
    points = {"a": (1.0, 0.5), "exact": (9.0, 0.0), "unknown": (2.0, math.nan)}
    figure = plots.tradeoff({"model": points}, cost="ms", loss="error", title="price")
    (curve,) = figure.data
    assert (curve.name, list(curve.x), list(curve.y), list(curve.text)) == ("model", [1.0], [0.5], ["a"])
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "log")
    assert plots.tradeoff({"model": {}}, cost="ms", loss="error").layout.xaxis.range is None
    wide = plots.tradeoff({"model": {"a": (1.0, 1.0), "b": (100.0, 1.0)}}, cost="ms", loss="error")
    assert wide.layout.xaxis.range == pytest.approx((-0.2, 2.2))  # decades; with room for labels
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("ms", "error")


def test_lines_are_on_the_scales_asked_for():
    figure = plots.lines([1, 10], {"a": [0.1, 1.0]}, x="evaluations", y="error (px)", log="x")
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "linear")
    assert list(figure.layout.xaxis.tickvals) == [1, 10]
    assert plots.lines([1], {"a": [1]}, x="a", y="b").layout.xaxis.type == "linear"


def test_lines_leave_out_what_a_log_axis_cannot_show():
    figure = plots.lines([1, 2], {"a": [0.0, 1.0]}, x="evaluations", y="distance (px)", log="y")
    assert list(figure.data[0].y) == [None, 1.0]


def test_sparsifications_stand_between_oracle_and_random_order():
    curve = sparsification(np.array([3.0, 2.0, 1.0, 0.0]), np.array([3.0, 1.0, 2.0, 0.0]), steps=4)
    figure = plots.sparsifications({"movement": curve})
    assert [line.name for line in figure.data] == [
        f"movement (AUSE {curve.area:.2f})",
        "oracle",
        f"in random order (AUSE {curve.area_of_chance:.2f})",
    ]
    assert list(figure.data[0].x) == [0, 25, 50, 75]
    assert list(figure.data[1].y) == list(curve.oracle)


def test_trajectories_have_a_path_in_each_space_and_one_entry_in_the_legend(generator):
    z0 = torch.randn(1, 6, generator=generator)
    rules = {"Picard": Picard(), "damped": Picard(damping=0.5)}
    paths = record_trajectories(lambda z: z / 2, {"own": z0, "other": -z0}, rules, Stop(max_evals=5, atol=0.0))
    whole = principal_components([path.states[:, 0] for path in paths])
    part = principal_components([path.states[:, 0, :4] for path in paths])
    figure = plots.trajectories({"all": whole, "part": part}, paths, units={"all": "px", "part": ""})
    assert [path.scene for path in figure.data] == ["scene"] * 4 + ["scene2"] * 4
    assert [path.showlegend for path in figure.data] == [True] * 4 + [False] * 4
    assert np.allclose(figure.data[1].x, whole.paths[1][:, 0])
    assert figure.data[0].line.color == figure.data[1].line.color != figure.data[2].line.color
    assert figure.data[0].line.dash == figure.data[2].line.dash != figure.data[1].line.dash
    assert figure.data[0].marker.symbol == ("square", "circle", "circle", "circle", "diamond")
    assert figure.layout.scene.xaxis.title.text == "PC 1 (100 %, px)"
    assert figure.layout.scene2.xaxis.title.text == "PC 1 (100 %)"


def decoded(source):
    png = np.frombuffer(base64.b64decode(source.removeprefix("data:image/png;base64,")), np.uint8)
    return cv2.imdecode(png, cv2.IMREAD_COLOR)[..., ::-1]


@pytest.fixture
def reel(generator):
    flow = torch.randn(3, 2, 6, 8, generator=generator)
    movement = torch.tensor([1.0, 0.1, 1e-9])[:, None, None].expand(3, 6, 8).clone()
    movement[:, 0, 0] = torch.nan
    return flow, movement


def test_each_step_of_a_film_carries_its_pictures_and_captions(reel):
    flow, movement = reel
    figure = plots.film([1, 4, 16], flow, {"movement": movement}, largest=3.0, scale=(0.01, 1.0), first=1)
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["1", "4", "16"]
    pictures, captions, targets = slider.steps[1].args
    assert [figure.data[i].source for i in targets] == pictures["source"]  # what is shown at first
    assert (decoded(pictures["source"][0]) == flow_to_rgb(flow[1], largest=3.0)).all()
    assert captions == {
        "annotations[0].text": "flow<br>after 4",
        "annotations[1].text": "movement<br>mean 0.1 px",
    }
    assert [figure.layout.annotations[i].text for i in range(2)] == list(captions.values())


def test_maps_of_a_film_are_logarithmic_and_grey_where_not_known(reel):
    flow, movement = reel
    figure = plots.film([1, 4, 16], flow, {"movement": movement}, scale=(0.01, 1.0))
    at_one, at_tenth, at_nothing = (decoded(step.args[0]["source"][1]) for step in figure.layout.sliders[0].steps)
    assert at_one[0, 0].tolist() == [153, 153, 153]
    magma = matplotlib.colormaps["magma"]
    for picture, place in ((at_one, 1.0), (at_tenth, 0.5), (at_nothing, 0.0)):
        assert np.abs(picture[1, 1] - 255 * np.array(magma(place)[:3])).max() < 4
    bar = figure.data[-1].marker
    assert (bar.cmin, bar.cmax) == (-2, 0)
    assert list(bar.colorbar.ticktext) == ["0.01", "0.1", "1"]


def test_a_film_needs_a_picture_for_each_evaluation(reel):
    flow, movement = reel
    with pytest.raises(ValueError, match=r"each of 3 evaluations, got {'flow': 3, 'movement': 2}"):
        plots.film([1, 4, 16], flow, {"movement": movement[:2]})
