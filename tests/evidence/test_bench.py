import json

import pytest
import torch
from bench import __main__ as bench
from bench import gpu, memory
from bench.costs import Timings, alternate, fitted_exponent, matrix_peak, peak_of_a_process, work
from bench.evaluations import default_stop, mean_of, relative, stops_of
from bench.frames import STATM, frames, video_speed
from bench.inference import compiled, deqflow_small, shares_of_the_peak
from bench.memory import LEAN
from bench.plain import PlainFlow
from bench.setting import Row, photographs, reference_base
from bench.speed import training_speed

from deqflow import build, load
from deqflow.data.datasets import motorcycle
from deqflow.evidence.costs import MIB
from deqflow.evidence.evaluation.sets import EvaluationSet
from deqflow.solvers import Stop


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_published_way_gives_the_same_flow(recurrent):
    torch.manual_seed(0)
    ours = build("base", recurrent=True).eval() if recurrent else reference_base()
    images = photographs(128, 160)
    with torch.no_grad():
        flow = ours(*images, stop=Stop(max_evals=4, atol=0.0)).flow
        torch.testing.assert_close(PlainFlow(ours)(*images, 4), flow, rtol=0, atol=1e-3)
    assert flow.abs().max() > 1


def test_rows_say_whether_their_target_was_met():
    assert Row(quantity="a", value=2.0, at_least=1.5).met is True
    assert Row(quantity="a", value=2.0, at_most=1.5).met is False
    assert Row(quantity="a", value=2.0).met is None
    line = bench.line(Row(quantity="a", value=2.0, unit="s", at_most=1.5))
    assert line.split() == ["a", "2", "s", "at", "most", "1.5", "MISSED"]


def test_parts_are_kept_when_others_are_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "PARTS", {"one": lambda: [Row(quantity="q", value=1.0)], "two": lambda: []})
    for part in ("one", "two"):
        monkeypatch.setattr("sys.argv", ["bench", part, "--threads", "1", "--out", str(tmp_path / "b.json")])
        bench.main()
    parts = json.loads((tmp_path / "b.json").read_text())["parts"]
    assert list(parts) == ["one", "two"]
    assert parts["one"]["rows"][0]["quantity"] == "q"
    assert parts["one"]["provenance"]["versions"]["torch"]
    monkeypatch.setattr("sys.argv", ["bench", "three"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "no part three: expected one, two" in capsys.readouterr().err


def test_training_memory_and_speed_have_their_rows_at_a_small_size(monkeypatch):
    monkeypatch.setattr(memory, "peak_of_a_process", lambda function, *arguments: (1, function(*arguments)))
    rows = {row.quantity: row.value for row in memory.training_memory((64, 64))}
    assert rows["one-step, lean: kept for backward"] < rows["one-step: kept for backward"]
    assert rows["one-step: kept for backward"] < rows["recurrent, 12 updates: kept for backward"]
    assert all(value > 0 for value in rows.values())
    speeds = [row for row in training_speed(repeats=1, crop=(32, 32)) if row.unit == "pairs/s"]
    assert len(speeds) == 4


def test_shares_of_the_peak_are_shares():
    torch.manual_seed(0)
    with torch.no_grad():
        rows = shares_of_the_peak(build("tiny").eval(), photographs(64, 64), repeats=1)
    shares = [row.value for row in rows if "share" in row.quantity]
    assert len(shares) == 2
    assert all(0 < share < 1 for share in shares)


def test_parts_of_deqflow_small_are_timed_and_its_flow_is_the_published_ways():
    rows = {row.quantity.split(": ")[1]: row for row in deqflow_small(1, size=(128, 160))}
    assert rows["largest difference of the flow"].met
    assert rows["times faster"].at_least == 2.0
    assert all(rows[part].value > 0 for part in ("encoder, both images", "correlation", "one evaluation", "upsampling"))
    assert rows["share of a matrix product's speed in one evaluation"].value > 0


def test_a_compiled_model_is_timed_beside_the_model_as_it_is(monkeypatch):
    asked = []

    def loaded(name, *, compile=False):  # compiling takes minutes
        asked.append(compile)
        return load(name)

    monkeypatch.setattr("bench.inference.deqflow.load", loaded)
    first, ratio = compiled(1, size=(64, 96))
    assert asked == [False, True]
    assert "with compiling" in first.quantity
    assert ratio.value > 0


def test_a_stop_found_by_going_on_is_that_of_a_solve_of_its_own():
    pair = motorcycle()
    small = type(pair)(*(tensor[..., 200:264, 300:396] for tensor in pair))
    model = load("deqflow-small").eval()
    with torch.no_grad():
        ((ends, _),) = stops_of(model, [small])
        for atol, (spent, error) in ends.items():
            assert mean_of(model, [small], Stop(max_evals=60, atol=atol)) == (pytest.approx(error, abs=1e-4), spent)
    assert len({spent for spent, _ in ends.values()}) > 2
    assert relative([({0.1: (3, 2.0)}, 1.0), ({0.1: (5, 1.0)}, 2.0)], 0.1) == 1.0


def test_the_default_stop_has_rows_for_each_set(tmp_path, monkeypatch):
    pair = motorcycle()
    small = EvaluationSet([type(pair)(*(tensor[..., 200:264, 300:396] for tensor in pair))])
    sets = {"procedural": small, "motorcycle": small}
    monkeypatch.setattr("bench.evaluations.evaluation_sets", lambda *_: sets)
    monkeypatch.setattr("bench.evaluations.procedural_pairs", lambda *_: small.pairs)
    rows = [row.quantity for row in default_stop(tmp_path)]
    assert "motorcycle: error at the default stop over that after 96 evaluations" in rows
    assert "procedural: evaluations to the default stop" in rows


def test_means_over_pairs_stop_early():
    pair = motorcycle()
    small = type(pair)(*(tensor[..., 200:264, 300:364] for tensor in pair))
    torch.manual_seed(0)
    model = build("tiny").eval()
    with torch.no_grad():
        error, spent = mean_of(model, [small, small], Stop(max_evals=3, atol=1e9))
    assert error > 0
    assert spent == 1
    assert set(LEAN) == {"correlation", "checkpoint_encoders"}


@pytest.mark.skipif(not STATM.exists(), reason="reads what Linux says of a process")
def test_frames_in_a_loop_are_counted_and_the_process_weighed():
    growth, rate = frames(12, 4)
    assert growth.quantity.startswith("12 frames")
    assert growth.met
    assert rate.value > 0


def test_films_have_rows_for_speed_and_error():
    rows = {row.quantity: row for row in video_speed(repeats=1, count=3, sizes=((48, 64),))}
    methods = ["deqflow-small", "without threads", "without threads, each frame encoded twice"]
    for name in [*methods, "RAFT-small, 12 updates", "DIS"]:
        assert rows[f"film 48x64, {name}: frames"].value > 0
    assert rows["film 48x64: times the speed without threads, each frame encoded twice"].at_least == 2.5
    error, rate = rows["film 48x64, DIS: error"], rows["film 48x64, DIS: frames"]
    assert rows["film 48x64, DIS: frames a second over error"].value == pytest.approx(rate.value / error.value)


def test_the_steps_on_a_gpu_are_bounded_and_one_that_fails_stops_no_other(monkeypatch, capfd):
    assert sum(limit for _, limit in gpu.STEPS.values()) <= 480
    assert set(gpu.STEPS["bench"][0]) >= {"inference", "training speed"} <= set(bench.PARTS)
    steps = {
        "bad": (["-c", "raise SystemExit(3)"], 60.0),
        "slow": (["-c", "import time; time.sleep(60)"], 0.5),
        "good": (["-c", "print('hello')"], 60.0),
    }
    assert gpu.run_steps(steps) == 1
    said = capfd.readouterr().out
    assert "== bad: failed with exit status 3" in said
    assert "== slow: stopped, it took too long" in said
    assert "hello\n== good: passed" in said
    assert gpu.run_steps({"good": steps["good"]}) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 1
    assert "bench-gpu expects a GPU, torch finds none here" in capfd.readouterr().err


def test_functions_are_timed_in_turns_after_a_turn_that_does_not_count():
    calls = []
    timings = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert "".join(calls) == "abababab"
    assert {name: len(values) for name, values in timings.seconds.items()} == {"a": 3, "b": 3}


def test_ratios_are_medians_of_turns():
    timings = Timings({"slow": (4.0, 8.0, 100.0), "fast": (2.0, 2.0, 1.0)})
    assert timings.ratio("slow", "fast") == 4.0
    assert timings.median("slow") == 8.0


@pytest.mark.parametrize(("functions", "repeats"), [({}, 5), ({"a": int}, 0)])
def test_there_must_be_something_to_time(functions, repeats):
    with pytest.raises(ValueError, match="alternate expects functions and at least 1 repeat, got"):
        alternate(functions, repeats=repeats)


def test_work_is_counted_in_multiplications_and_additions():
    left, right = torch.zeros(3, 5), torch.zeros(5, 7)
    assert work(lambda: left @ right) == 2 * 3 * 5 * 7
    assert matrix_peak(torch.float32, side=64) > 1e6


def test_exponents_are_those_of_a_power_law():
    sizes = [0.1, 0.5, 2.0, 8.0]
    assert fitted_exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)


def fill(megabytes):
    return float(torch.ones(megabytes * MIB // 4).sum())


def fail(_):
    raise SystemExit(3)


def test_a_process_of_its_own_tells_its_peak():
    (little, _), (much, total) = peak_of_a_process(fill, 1), peak_of_a_process(fill, 301)
    assert total == 301 * MIB // 4
    assert 280 * MIB < much - little < 320 * MIB


def test_a_process_that_dies_is_an_error():
    with pytest.raises(RuntimeError, match="ended with exit status 3: is there enough memory"):
        peak_of_a_process(fail, 1)
