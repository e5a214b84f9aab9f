import time

import pytest
import torch

from deqflow import build
from deqflow.evidence.costs import (
    at_depth,
    costs_over_depth,
    kept_by_part,
    seconds_of,
    step_cost,
)
from deqflow.evidence.diagnostics import KeptForBackward, LiveTensors


def test_seconds_are_seconds():
    assert 0.05 <= seconds_of(lambda: time.sleep(0.05)) < 5


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
