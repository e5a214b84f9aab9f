"""The panels without a browser: their logic, what they say, and what stands for them on paper."""

import dataclasses
import datetime
import threading
import time

import cv2
import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from pairs import map_of, problem_of

import deqflow
from deqflow.data.datasets import motorcycle
from deqflow.data.synthetic import SceneConfig, SyntheticPairs
from deqflow.equilibrium import Unrolled
from deqflow.evidence.diagnostics import KeptForBackward
from deqflow.lab.notebook import CHOICES
from deqflow.lab.reports.html import PLOTLY_JSON
from deqflow.lab.widgets import (
    Background,
    CaptionedImage,
    EvaluationPanel,
    RunSettings,
    SolverBench,
    SolverPlayground,
    StillPanel,
)
from deqflow.lab.widgets.controls import OWN
from deqflow.lab.widgets.playground import EARLIER, PINS
from deqflow.lab.widgets.runs import reduced, size_text
from deqflow.model.state import flow_residual
from deqflow.solvers import Stop

SMALL = SceneConfig(height=64, width=96, motion_scales=(0.1,))
FIRST = RunSettings(pair="scene", model="equilibrium", tolerance=0.02, max_evals=40)


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    recurrent = deqflow.build("mini", recurrent=True)
    return {"equilibrium": deqflow.load("deqflow-small"), "recurrent": recurrent}


@pytest.fixture(scope="module")
def pairs():
    scene = SyntheticPairs(2, seed=3, config=SMALL)
    unknown = scene[1]._replace(valid=torch.zeros(64, 96, dtype=torch.bool))
    return {"scene": scene[0], "unknown": unknown}


@pytest.fixture
def bench(pairs, models):
    return SolverBench(pairs, models)


@pytest.fixture
def panel(pairs, models):
    return SolverPlayground(pairs, models, settings=FIRST)


def change(**choices):
    return dataclasses.replace(FIRST, **choices)


# Runs


def test_a_run_is_what_the_estimator_gives(bench, pairs, models):
    run = bench.run(FIRST)
    pair = pairs["scene"]
    with torch.no_grad():
        problem = problem_of(models["equilibrium"].eval(), pair.image1[None], pair.image2[None])
        output = problem.solve(rule=FIRST.rule, stop=Stop(max_evals=40, atol=0.02))
    torch.testing.assert_close(run.flow, output.flow[0])
    assert run.trace == pytest.approx(output.solve.trace[:, 0].tolist())
    assert run.outcome == "converged"
    assert run.epe_px == pytest.approx(torch.linalg.vector_norm(run.flow - pair.flow, dim=0).mean().item())
    assert run.milliseconds > 0


@pytest.mark.parametrize("solver", ["Picard", "Anderson", "Broyden", "SciPy krylov", "SciPy anderson"])
def test_every_solver_keeps_to_its_budget(bench, solver):
    run = bench.run(change(solver=solver, max_evals=7, tolerance=0.0))
    assert (run.evaluations, run.outcome) == (7, "budget spent")
    assert (run.solver_bytes is None) == solver.startswith("SciPy")


def test_a_longer_history_takes_more_memory(bench):
    sizes = [bench.run(change(solver="Anderson", history=k, tolerance=0.0)).solver_bytes for k in (1, 2, 4)]
    assert sizes[1] - sizes[0] == pytest.approx((sizes[2] - sizes[0]) / 3)
    assert sizes[0] > bench.run(change(tolerance=0.0)).solver_bytes


def test_starts_differ_and_a_solution_is_one(bench):
    zero, random, true = (bench.run(change(start=start)) for start in ("zero", "random", "true flow"))
    assert len({run.trace[0] for run in (zero, random, true)}) == 3
    assert true.trace[0] < random.trace[0]
    assert bench.run(change(start="random")).trace == random.trace
    assert bench.run(change(start="random", seed=1)).trace != random.trace
    assert bench.run(change(start="previous solution"), previous=zero).evaluations <= 2


def test_precisions_agree(bench):
    single, double, half = (bench.run(change(precision=name)) for name in ("float32", "float64", "bfloat16"))
    assert flow_residual((single.flow - double.flow)[None]).item() < 0.1
    assert 0 < flow_residual((single.flow - half.flow)[None]).item() < 1
    assert half.training_bytes < single.training_bytes < double.training_bytes


def test_bytes_are_those_of_a_training_step(bench, pairs, models):
    pair, model = pairs["scene"], models["recurrent"].eval()
    run = bench.run(change(model="recurrent", max_evals=5, tolerance=0.0))
    with KeptForBackward(apart_from=model.parameters()) as kept:
        f, z0 = map_of(model, pair.image1[None], pair.image2[None])
        states = Unrolled().run(f, z0, run.settings.rule, run.settings.stop, (1, 2, 3, 4, 5))
    assert run.training_bytes == pytest.approx(kept.bytes, rel=0.03)
    assert len(states[0]) == 5
    flat = [bench.run(change(max_evals=n, tolerance=0.0)).training_bytes for n in (2, 9)]
    assert flat[0] == flat[1] < run.training_bytes


def test_a_run_can_be_stopped_and_keeps_its_best(bench):
    stop = threading.Event()
    run = bench.run(
        change(tolerance=0.0, max_evals=200), stop=stop, on_eval=lambda number, _: stop.set() if number == 4 else None
    )
    assert (run.evaluations, run.outcome) == (4, "stopped")
    whole = bench.run(change(tolerance=0.0, max_evals=4))
    torch.testing.assert_close(run.flow, whole.flow)
    best = bench.run(change(tolerance=0.0, max_evals=200, solver="SciPy krylov"), stop=stop)
    assert best.outcome == "stopped"


def test_a_run_that_ends_with_the_stop_has_ended(bench):
    stop = threading.Event()
    stop.set()
    assert bench.run(change(tolerance=100.0), stop=stop).outcome == "converged"


def test_a_map_that_fails_is_reported(pairs):
    model = deqflow.load("deqflow-small")
    with torch.no_grad():
        for parameter in model.update.parameters():
            parameter.fill_(torch.nan)
    assert SolverBench(pairs, {"equilibrium": model}).run(FIRST).outcome == "not finite"


def test_the_truth_is_reduced_along():
    pair = motorcycle()
    small = reduced(pair, 184)
    assert small.image1.shape[-2:] == small.flow.shape[-2:] == (124, 184)
    assert small.flow[0, small.valid].mean() == pytest.approx(
        pair.flow[0, pair.valid].mean().item() * 184 / 741, rel=0.02
    )
    assert small.valid.float().mean() == pytest.approx(pair.valid.float().mean().item(), abs=0.02)
    assert reduced(pair, None) is reduced(pair, 1000) is pair


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pair": "moon"}, "No pair 'moon': expected one of scene, unknown"),
        ({"model": "moon"}, "No model 'moon': expected one of equilibrium, recurrent"),
        ({"solver": "moon"}, "No solver 'moon': expected one of Picard"),
        ({"start": "moon"}, "No start 'moon'"),
        ({"precision": "float8"}, "No precision 'float8'"),
        ({"damping": 0.0}, "0 < damping <= 1"),
        ({"max_evals": 0}, "at least 1, got 0"),
        ({"width": 8}, "a width of at least 16 px, got 8"),
        ({"start": "previous solution"}, "There is no previous solution yet"),
        ({"stretch": 0.5}, "a stretch from 1 to 4, got 0.5"),
        ({"start": "true flow", "pair": "unknown"}, "The true flow of 'unknown' is not known"),
    ],
)
def test_bad_choices_are_refused_with_a_sentence(bench, settings, message):
    with pytest.raises(ValueError, match=message):
        bench.run(change(**settings))


def test_a_previous_solution_must_fit(bench):
    previous = bench.run(change(width=48))
    with pytest.raises(ValueError, match=r"does not fit: its state has the shape .*, this pair and model need"):
        bench.run(change(start="previous solution"), previous=previous)


def test_a_bench_needs_something_to_run(pairs, models):
    with pytest.raises(ValueError, match="expects pairs and models, got 0 and 2"):
        SolverBench({}, models)


@pytest.mark.parametrize(("count", "text"), [(12, "12 B"), (1536, "1.5 KiB"), (3 * 2**20, "3 MiB"), (2**31, "2 GiB")])
def test_sizes_are_readable(count, text):
    assert size_text(count) == text


# The panel


def test_a_change_runs_again_and_answers_soon(panel):
    started = time.perf_counter()
    panel.controls.solver.value = "Anderson"
    assert time.perf_counter() - started < 0.2  # the run itself is elsewhere
    panel.join()
    assert panel.run.settings.solver == "Anderson"
    assert "Anderson, history 5: converged after" in panel.message.value
    assert "kept for backward" in panel.table.value
    assert panel.stop_button.disabled
    assert [run.settings.solver for run in panel.earlier] == ["Picard"]


def test_the_curves_are_those_of_this_run_of_earlier_ones_and_of_pins(panel):
    before = panel.curves.image.value
    panel.pin()
    panel.controls.damping.value = 0.5
    panel.join()
    shown = {name: run.trace for run, name, _ in panel._curves()}
    assert list(shown) == ["earlier: Picard", "pin 1: Picard", "Picard, damping 0.5"]
    assert shown["Picard, damping 0.5"] == panel.run.trace
    assert panel.curves.image.value != before
    pixels = cv2.imdecode(np.frombuffer(panel.curves.image.value, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels[0, 0, 3] == 0  # clear ground
    assert (pixels[..., 3] > 0).mean() > 0.01  # and something on it
    panel.clear_pins()
    assert [name for _, name, _ in panel._curves()] == ["earlier: Picard", "Picard, damping 0.5"]


def test_a_stretched_map_makes_picard_diverge_and_keeps_the_fixed_point(bench):
    usual = bench.run(FIRST)
    diverging = bench.run(change(stretch=2.5))
    assert diverging.outcome != "converged"
    assert diverging.trace[-1] > 10 * usual.trace[0]
    stretched = bench.run(change(stretch=2.5, solver="Anderson", max_evals=200))
    assert stretched.outcome == "converged"
    plain = bench.run(change(start="previous solution"), previous=stretched)
    assert plain.trace[0] < 0.05  # where the stretched map rests, f rests too


@pytest.mark.parametrize("name", ["Where Picard diverges", "A random start", "A recurrent model at 200 updates"])
def test_an_experiment_is_one_click(panel, name):
    button = next(each for each in panel.children[1].children if getattr(each, "description", "") == name)
    button.click()
    panel.join()
    assert panel.run.settings == panel.controls.settings == panel.experiments[name]
    assert panel._number == 1  # one run, not one for each control that moved
    assert len(panel.earlier) == 1


def test_what_is_typed_is_what_the_solve_gets(panel):
    panel.controls.max_evals.value = 7
    panel.controls.tolerance.value = 0.0
    panel.join()
    assert panel.run.evaluations == 7


def test_full_size_is_a_choice_like_any_other(panel):
    panel.controls.width.value = "full size"
    assert panel.controls.width.value == "full size"
    assert panel.controls.settings.width is None
    panel.join()
    wide = SolverPlayground(panel.bench.pairs, panel.bench.models, settings=change(width=100))
    assert wide.controls.width.value == "100 px wide"
    assert wide.run.settings.width == 100


def test_settings_are_kept_as_python(panel):
    chosen = change(solver="Anderson", start="random", width=None, stretch=1.5)
    assert eval(chosen.as_python()) == chosen
    assert change(tolerance=0.01, max_evals=100).as_python() == "RunSettings(pair='scene', model='equilibrium')"
    panel.controls.solver.value = "Broyden"
    panel.join()
    assert "solver=&#x27;Broyden&#x27;" in panel.python.value


def test_there_is_room_for_so_many_pins_and_earlier_runs(panel):
    for damping in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        panel.pin()
        panel.controls.damping.value = damping
        panel.join()
    assert (len(panel.earlier), len(panel.pins)) == (EARLIER, PINS)
    panel.pin()
    assert len(panel.pins) == PINS
    assert "There is room for 6 pinned runs: clear them first." in panel.message.value


def test_the_newest_choice_wins(panel):
    panel.controls.tolerance.value = 0.0
    panel.controls.max_evals.value = 1000
    panel.controls.solver.value = "Broyden"
    panel.controls.tolerance.value = 1.0
    panel.join()
    assert panel.run.settings == change(solver="Broyden", max_evals=1000, tolerance=1.0)
    assert len(panel.earlier) <= 4


def test_a_long_run_shows_progress_and_can_be_stopped(panel):
    said = []
    panel.message.observe(lambda change: said.append(change["new"]), "value")
    panel.controls.tolerance.value = 0.0
    panel.controls.start.value = "random"
    panel.controls.max_evals.value = 1000
    deadline = time.monotonic() + 20
    while not any("of at most 1000" in text for text in said):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    panel.stop()
    panel.join()
    assert panel.run.outcome == "stopped"
    assert 1 < panel.run.evaluations < 1000
    assert "stopped after" in panel.message.value


def test_a_bad_choice_shows_a_sentence_and_the_next_one_is_fine(panel):
    panel.controls.pair.value = "unknown"
    panel.controls.start.value = "true flow"
    with pytest.raises(ValueError, match="is not known"):
        panel.join()
    assert "The true flow of &#x27;unknown&#x27; is not known" in panel.message.value
    assert "Traceback" not in panel.message.value
    assert panel.stop_button.disabled
    panel.controls.start.value = "zero"
    panel.join()
    assert "residual" in panel.message.value
    assert "unknown" in panel.table.value


def upload(widget, name, content):
    modified = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    entry = {"name": name, "type": "image/png", "size": len(content), "last_modified": modified}
    widget.value = ({**entry, "content": memoryview(content)},)


def picture(height, width, shift=0):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    return cv2.imencode(".png", np.roll(pixels, shift, 1))[1].tobytes()


def test_two_pictures_of_ones_own(panel):
    panel.controls.pair.value = OWN
    with pytest.raises(ValueError, match="Choose two images of one size first"):
        panel.join()
    upload(panel.controls.first, "a.png", picture(40, 64))
    upload(panel.controls.second, "b.png", picture(40, 64, 1))
    panel.join()
    assert panel.run.settings.pair == OWN
    assert (panel.run.flow.shape, panel.run.epe_px) == ((2, 40, 64), None)
    shown = [name for name, image in panel.images.items() if image.layout.display != "none"]
    assert shown == ["first", "flow"]  # no truth, no error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (picture(40, 72), "Both images must have one size, got 64x40 and 72x40"),
        (b"nonsense", "The image second b.png can't be read"),
    ],
)
def test_bad_uploads_get_a_sentence(panel, content, message):
    upload(panel.controls.first, "a.png", picture(40, 64))
    upload(panel.controls.second, "b.png", content)
    with pytest.raises(ValueError, match=message):
        panel.join()


def test_solvers_are_offered_what_they_have_a_use_for(panel):
    panel.controls.solver.value = "SciPy krylov"
    assert (panel.controls.damping.disabled, panel.controls.history.disabled) == (True, True)
    panel.controls.solver.value = "Picard"
    assert (panel.controls.damping.disabled, panel.controls.history.disabled) == (False, True)
    panel.join()


def test_the_panel_is_live_and_a_still(pairs, models):
    chosen = [change(solver=name) for name in ("Picard", "Anderson", "Broyden")]
    panel = SolverPlayground(pairs, models, pinned=chosen)
    bundle = panel._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    still = go.Figure(bundle[PLOTLY_JSON])
    kinds = [trace.type for trace in still.data]
    assert (kinds.count("image"), kinds.count("heatmap"), kinds.count("scatter")) == (3, 3, 3)
    assert {trace.name for trace in still.data if trace.type == "scatter"} == {each.label for each in chosen}
    assert panel.run is panel.pins[-1]
    assert {"pair", "image pair", "What to solve"} >= {bundle[CHOICES][0][key] for key in ("group", "label")}
    assert [choice["value"] for choice in bundle[CHOICES] if choice["label"] == "solver"] == ["Broyden"]


def test_a_panel_of_two_pictures_without_truth_has_a_still_without_errors(pairs, models):
    panel = SolverPlayground(pairs, models, settings=change(pair="unknown"))
    assert [trace.type for trace in panel.still().data] == ["image", "scatter"]


# What panels have in common


def test_an_image_is_replaced_in_place_and_fits_its_room():
    image = CaptionedImage()
    assert image.layout.display == "none"  # nothing to show yet
    image.show(b"png", "a < b")
    assert (image.image.value, image.layout.display) == (b"png", "")
    assert "a &lt; b" in image.caption.value
    assert image.image.layout.margin == "0"  # with one, 100 % is too wide
    image.hide()
    assert image.layout.display == "none"


def test_a_panel_without_a_still_says_so():
    with pytest.raises(
        NotImplementedError, match=r"StillPanel should return a plotly figure or a PNG file from still\(\)"
    ):
        StillPanel()._repr_mimebundle_()


def test_messages_are_text_and_no_markup():
    panel = StillPanel()
    panel.say("a < b")
    assert "a &lt; b" in panel.message.value
    panel.complain("<script>")
    assert "<script>" not in panel.message.value


def test_background_work_stops_and_keeps_its_error():
    ended = []
    endless = Background(lambda stop: stop.wait() and None, on_end=ended.append).start()
    assert endless.running
    assert not endless.wait(0.01)
    endless.stop()
    endless.join()
    assert ended == [None]
    failing = Background(lambda stop: 1 / 0, on_end=ended.append).start()
    with pytest.raises(ZeroDivisionError):
        failing.join()
    assert ended[1] is failing.error
    assert Background(lambda stop: None).wait()  # never started: nothing to wait for


# A slider over evaluations


def test_one_slider_moves_flow_error_and_residual(pairs, models):
    model = models["equilibrium"].eval()
    panel = EvaluationPanel(pairs["scene"], model, numbers=(1, 3, 8))
    shown = {name: image.image.value for name, image in panel.images.items()}
    assert list(shown) == ["flow", "residual", "error"]
    panel.slider.value = 2
    assert panel.play.value == 2
    assert all(image.image.value != shown[name] for name, image in panel.images.items())
    assert "After 8 evaluations the flow still moves by" in panel.message.value
    with torch.no_grad():
        stop = Stop(max_evals=8, atol=0.0)
        output = model(pairs["scene"].image1[None], pairs["scene"].image2[None], stop=stop)
    torch.testing.assert_close(panel.flow[2], output.flow[0])
    assert panel.residual[2].mean().item() < panel.residual[0].mean().item()
    assert panel.error[2].mean().item() == pytest.approx(
        torch.linalg.vector_norm(output.flow[0] - pairs["scene"].flow, dim=0).mean().item(), rel=1e-4
    )


def test_its_still_has_the_same_slider(pairs, models):
    panel = EvaluationPanel(pairs["unknown"], models["equilibrium"].eval(), numbers=(1, 3))
    panel.slider.value = 1
    bundle = panel._repr_mimebundle_()
    figure = go.Figure(bundle[PLOTLY_JSON])
    assert figure.layout.sliders[0].active == 1
    assert [step.label for step in figure.layout.sliders[0].steps] == ["1", "3"]
    assert bundle[CHOICES][0]["value"] == "3"
    assert panel.error is None
    assert list(panel.images) == ["flow", "residual"]
