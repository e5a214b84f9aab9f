import time

import pytest
import torch

from deqflow import build
from deqflow.evidence.costs import (
    MIB,
    Timings,
    alternate,
    at_depth,
    costs_over_depth,
    fitted_exponent,
    kept_by_part,
    matrix_peak,
    peak_of_a_process,
    seconds_of,
    step_cost,
    work,
)
from deqflow.evidence.diagnostics import KeptForBackward, LiveTensors


def test_functions_are_timed_in_turns_after_a_turn_that_does_not_count():
    calls = []
    timings = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert "".join(calls) == "abababab"
    assert {name: len(values) for name, values in timings.seconds.items()} == {"a": 3, "b": 3}


def test_ratios_are_medians_of_turns():
    timings = Timings({"slow": (4.0, 8.0, 100.0), "fast": (2.0, 2.0, 1.0)})
    assert timings.ratio("slow", "fast") == 4.0
    assert timings.median("slow") == 8.0


def test_seconds_are_seconds():
    assert 0.05 <= seconds_of(lambda: time.sleep(0.05)) < 5


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


def test_live_tensors_are_counted_once_and_while_they_live():
    outside = torch.ones(100)
    with LiveTensors() as live:
        view = outside[10:].view(9, 10)  # of a tensor from outside: nothing new
        assert live.now == 0
        new = torch.zeros(50)
        half = new[:25]
        new += 1
        assert live.now == live.peak == 200
        del new
        assert live.now == 200  # a view keeps it
        del half
        assert live.now == 0
        assert live.peak == 200
        parts = torch.split(torch.zeros(8), 4)
        assert live.now == 32
    assert len(parts) == 2
    assert view.shape == (9, 10)


def test_live_tensors_of_a_backward_pass_are_counted():
    x = torch.ones(1000, requires_grad=True)
    with LiveTensors() as live:
        y = x.exp().exp().sum()
        before = live.now
        y.backward()
    assert before == 4 * 2001
    assert live.peak > before


def images(side=64):
    return torch.rand(2, 1, 3, side, side, generator=torch.Generator().manual_seed(0)).mul(255).unbind()


def test_a_step_keeps_less_and_peaks_lower_without_volume_and_activations():
    torch.manual_seed(0)
    estimator = build("tiny", train_evals=3)
    plain = step_cost(estimator, *images())
    estimator.correlation, estimator.checkpoint_encoders = "sampled", True
    lean = step_cost(estimator, *images())
    assert lean.kept < plain.kept / 2
    assert lean.peak < plain.peak
    assert plain.kept < plain.peak
    assert min(plain.forward, plain.backward, lean.forward, lean.backward) > 0
    assert all(parameter.grad is None for parameter in estimator.parameters())


def test_lean_gradients_are_the_same():
    torch.manual_seed(0)
    estimator = build("tiny", train_evals=3).double()
    pair = [image.double() for image in images()]
    gradients = []
    for correlation, checkpoint in (("volume", False), ("sampled", True)):
        estimator.correlation, estimator.checkpoint_encoders = correlation, checkpoint
        estimator.zero_grad()
        estimator(*pair).flow.abs().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in estimator.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("recurrent", [True, False])
def test_checkpointed_updates_keep_less_and_change_no_gradient(recurrent):
    torch.manual_seed(0)
    estimator = build("tiny", recurrent=recurrent, train_evals=3).double()
    pair = [image.double() for image in images()]
    gradients, kept = [], []
    for checkpoint in (False, True):
        estimator.checkpoint_updates = checkpoint
        estimator.zero_grad()
        with KeptForBackward(apart_from=estimator.parameters()) as seen:
            loss = torch.stack(estimator(*pair).flows).abs().mean()
        kept.append(seen.bytes)
        loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in estimator.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-8, atol=1e-12)
    assert kept[1] < kept[0]


def test_with_all_checkpointed_an_update_keeps_its_state_and_flow():
    torch.manual_seed(0)
    estimator = build("tiny", recurrent=True, correlation="sampled", checkpoint_encoders=True)
    estimator.checkpoint_updates = True
    costs = costs_over_depth(estimator, *images(), (2, 4))
    each = (costs[4].kept - costs[2].kept) / 2
    state = 4 * (32 + 2) * 8 * 8
    flow = 4 * 2 * 64 * 64
    assert state + flow <= each <= 3 * (state + flow)  # the loss takes the flow's absolute value, and stacks


def test_depth_costs_a_recurrent_model_memory_and_an_equilibrium_model_none():
    torch.manual_seed(0)
    recurrent, equilibrium = build("tiny", recurrent=True), build("tiny")
    before = equilibrium.equilibrium.stop
    line, flat = (costs_over_depth(model, *images(), (2, 4, 8)) for model in (recurrent, equilibrium))
    assert flat[8].kept == flat[4].kept == flat[2].kept
    first, second = line[4].kept - line[2].kept, line[8].kept - line[4].kept
    assert second == pytest.approx(2 * first, rel=0.05)
    assert first > 0
    assert equilibrium.equilibrium.stop is before


def test_a_depth_that_would_not_fit_is_left_out():
    torch.manual_seed(0)
    estimator = build("tiny", recurrent=True)
    assert list(costs_over_depth(estimator, *images(32), (1, 2, 64), limit=1)) == [1, 2]


def test_a_depth_that_was_not_measured_is_on_the_line_of_the_deepest():
    values = {6: 100.0, 12: 10.0, 24: 34.0}
    assert at_depth(values, 12) == 10
    assert at_depth(values, 36) == 58
    with pytest.raises(ValueError, match="expects 36 among the depths, or two for a line, got \\[6\\]"):
        at_depth({6: 1.0}, 36)


@pytest.mark.parametrize("lean", [False, True])
def test_what_is_kept_has_its_part(lean):
    torch.manual_seed(0)
    estimator = build("tiny", train_evals=2, checkpoint_encoders=lean)
    estimator.checkpoint_updates = lean
    parts = kept_by_part(estimator, *images())
    assert list(parts) == ["encoders", "correlation", "update", "upsampling", "rest"]
    assert sum(parts.values()) == step_cost(estimator, *images()).kept
    assert all(parts[part] > 0 for part in ("encoders", "update", "rest"))
    if not lean:
        assert min(parts.values()) > 0
        assert parts["encoders"] > sum(parts.values()) / 2  # the tiny model's are as large as the base model's


def test_a_part_keeps_what_its_modules_would_keep_alone():
    torch.manual_seed(0)
    estimator = build("tiny", train_evals=2)
    pair = images()
    with KeptForBackward(apart_from=estimator.parameters()) as kept:
        features = estimator.feature_encoder(torch.cat(pair) * (2 / 255) - 1)
        context = estimator.context_encoder(pair[0] * (2 / 255) - 1)
    assert features.requires_grad
    assert context.requires_grad
    assert kept_by_part(estimator, *pair)["encoders"] == pytest.approx(kept.bytes, rel=0.02)
