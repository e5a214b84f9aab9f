"""Each option of training for attraction: what it computes, and that it has the effect it is there for."""

import dataclasses

import pytest
import torch
from training_runs import CONFIG, fixed_batch

import deqflow
from deqflow.data.synthetic import SceneConfig
from deqflow.model.attraction import MeanSmoothing
from deqflow.model.state import FlowState
from deqflow.solvers import Stop
from deqflow.training import Trainer, make_estimator
from deqflow.training.losses import coarse_loss, consistency, way_back
from deqflow.training.objective import Draw, Objective, draw_step
from deqflow.training.starts import STARTS, coarse_truth, disturbance, draw_starts

MINI = dataclasses.replace(CONFIG, size="mini", evals=(3, 6))
LARGER = SceneConfig(height=64, width=96)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def problem():
    estimator = deqflow.load("deqflow-small")
    batch = fixed_batch(4)
    with torch.no_grad():
        return estimator.problem(estimator.encode(batch.image1), estimator.encode(batch.image2)), batch


def test_the_coarse_truth_is_the_mean_of_the_known_vectors():
    flow = torch.zeros(1, 2, 8, 16)
    flow[..., 8:] = torch.arange(8.0)
    valid = torch.ones(1, 8, 16, dtype=torch.bool)
    valid[..., 8:12] = False  # half a cell, the other half has 4, 5, 6, 7
    coarse, known = coarse_truth(flow, valid, 8)
    torch.testing.assert_close(coarse, torch.tensor([0.0, 5.5 / 8]).expand(1, 2, 1, 2))
    assert known.tolist() == [[[True, True]]]
    valid[..., 12:] = False
    coarse, known = coarse_truth(flow, valid, 8)
    assert coarse[..., 1].tolist() == [[[0.0], [0.0]]]
    assert known.tolist() == [[[True, False]]]


def test_starts_are_the_own_one_or_of_each_kind(problem):
    posed, batch = problem
    truth, _ = coarse_truth(batch.flow, batch.valid, 8)
    assert draw_starts(posed, truth, 0.0, seeded()) is posed.z0
    own = FlowState.unpack(posed.z0)
    for kind in STARTS:
        start = FlowState.unpack(draw_starts(posed, truth, 1.0, seeded(), (kind,)))
        hidden_moved = bool((start.hidden != own.hidden).any())
        assert hidden_moved == (kind in ("random", "other")), kind
        assert not torch.equal(start.flow, own.flow)
        if kind == "truth":
            off = 8 * (start.flow - truth).square().mean((1, 2, 3)).sqrt()
            assert ((off > 0.19) & (off < 5.1)).all()
        if kind == "other":
            assert torch.equal(start.flow, truth.roll(-1, 0))
    some = FlowState.unpack(draw_starts(posed, truth, 0.5, seeded(1))).flow
    moved = (some != own.flow).flatten(1).any(1)
    assert 0 < int(moved.sum()) < 4
    assert torch.equal(draw_starts(posed, truth, 0.5, seeded(1)), draw_starts(posed, truth, 0.5, seeded(1)))


def test_a_disturbance_has_its_size_white_or_smooth():
    noise = disturbance(torch.zeros(200, 2, 12, 12), 8, seeded())
    size = 8 * noise.square().mean((1, 2, 3)).sqrt()
    assert float(size.min()) > 0.199
    assert float(size.max()) < 5.001
    assert 0.7 < float(size.median()) < 1.4  # log-spread: the middle is 1 px
    fine = (noise[..., 1:] - noise[..., :-1]).square().mean((1, 2, 3)).sqrt() / noise.square().mean((1, 2, 3)).sqrt()
    assert (fine > 1).float().mean() == pytest.approx(0.5, abs=0.12)


def test_the_coarse_loss_sees_noise_that_upsampling_hides():
    truth = torch.zeros(1, 2, 4, 4)
    checker = torch.ones(4, 4)
    checker[::2, ::2] = checker[1::2, 1::2] = -1.0
    known = torch.ones(1, 4, 4, dtype=torch.bool)
    assert float(coarse_loss([truth + checker], truth, known, stride=8)) == pytest.approx(8.0)
    assert float(coarse_loss([truth + checker, truth], truth, known, stride=8, gamma=0.5)) == pytest.approx(4.0)
    known[:] = False
    assert float(coarse_loss([truth + checker], truth, known, stride=8)) == 0


def test_the_way_back_is_what_is_left_of_a_disturbance():
    def norm(difference):
        return difference[:, -2:].square().mean((1, 2, 3)).sqrt()

    z, added = torch.randn(2, 5, 3, 3, generator=seeded()), torch.randn(2, 2, 3, 3, generator=seeded(1))
    assert way_back(lambda z: 0.5 * z + 1, z, added, 3, norm).tolist() == pytest.approx([0.125, 0.125], rel=1e-5)
    assert way_back(lambda z: z, z, added, 2, norm).tolist() == pytest.approx([1.0, 1.0], rel=1e-5)


def test_consistency_is_how_far_one_evaluation_falls_short():
    end = torch.ones(1, 5, 2, 2)
    found = consistency(lambda z: 0.5 * (z + end), [torch.zeros_like(end)], end, stride=8)
    assert float(found) == pytest.approx(4.0)


@pytest.mark.parametrize(
    "change",
    [
        {"coarse_weight": 1.0},
        {"return_weight": 1.0},
        {"consistency_weight": 1.0},
        {"other_starts": 1.0},
        {"corrections_from": 0.5},
        {"gradient": "reversible"},
        {"attraction": "none"},
        {"loss": "mixture"},
    ],
)
def test_every_option_changes_the_loss_or_its_gradient(change):
    batch, draw = fixed_batch(), Draw(Stop(max_evals=6, atol=0.0), 5)
    found = []
    for config in (MINI, dataclasses.replace(MINI, **change)):
        estimator = make_estimator(config)
        loss, solve = Objective(estimator, config)(batch, draw)
        loss.backward()
        assert solve.evals.tolist() == [6, 6]
        found.append([float(loss.detach()), float(estimator.update.head.conv2.bias.grad.norm())])
    assert found[0] != found[1]
    assert all(torch.tensor(found).isfinite().flatten())


def test_the_way_back_is_bounded_where_a_disturbance_leads_elsewhere(monkeypatch):
    config, losses = dataclasses.replace(MINI, return_weight=1.0), []
    for left in (0.0, 1.0, 1e6):
        monkeypatch.setattr("deqflow.training.objective.way_back", lambda *_, left=left: torch.full((2,), left))
        losses.append(Objective(make_estimator(config), config)(fixed_batch(), draw_step(config, 0))[0].item())
    assert losses[1] - losses[0] == pytest.approx(0.5, abs=1e-3)
    assert losses[2] - losses[0] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("weight", ["coarse_weight", "return_weight", "consistency_weight", "jacobian_weight"])
def test_every_term_is_computed_in_mixed_precision(weight):
    config = dataclasses.replace(MINI, bfloat16=True, **{weight: 1.0})
    loss, _ = Objective(make_estimator(config), config)(fixed_batch(), Draw(Stop(max_evals=6, atol=0.0), 5))
    loss.backward()
    exact = dataclasses.replace(config, bfloat16=False)
    expected, _ = Objective(make_estimator(exact), exact)(fixed_batch(), Draw(Stop(max_evals=6, atol=0.0), 5))
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=0.05)


@pytest.mark.parametrize("name", ["context", "learned", "leak"])
def test_a_run_may_give_the_model_it_starts_from_another_attraction(name):
    estimator = make_estimator(dataclasses.replace(MINI, start_from="deqflow-small", attraction=name))
    shipped = deqflow.load("deqflow-small")
    torch.testing.assert_close(estimator.update.head.conv2.bias, shipped.update.head.conv2.bias)
    assert type(estimator.attraction) is not type(shipped.attraction)


def test_late_corrections_leave_the_beginning_alone():
    estimator = make_estimator(dataclasses.replace(MINI, corrections_from=0.5, corrections=3))
    assert estimator.equilibrium.correction_points(24) == (16, 20, 24)
    assert estimator.equilibrium.correction_points(4) == (2, 3, 4)


@torch.no_grad()
def left_of_noise(estimator, smooth, evals):
    """What some evaluations leave of noise of 1 px at the end, as a ratio."""
    batch = fixed_batch(4, LARGER)
    problem = estimator.problem(estimator.encode(batch.image1), estimator.encode(batch.image2))
    z = problem.z0
    for _ in range(24):
        z = problem.f(z)
    noise = disturbance(FlowState.unpack(z).flow, 8, seeded(), smooth=smooth, size=1.0)
    return float(way_back(problem.f, z, noise, evals, problem.residual).mean())


def test_training_the_way_back_makes_the_end_attract(tmp_path):
    start = deqflow.load("deqflow-small")
    settings = {name: getattr(start.config, name) for name in ("attraction", "attraction_strength", "least_gate")}
    config = dataclasses.replace(
        MINI,
        start_from="deqflow-small",
        freeze_encoders=True,
        steps=120,
        lr=5e-4,
        evals=(6, 6),
        corrections=1,
        **settings,
    )
    batch, left = fixed_batch(4, LARGER), []
    for weight in (0.0, 30.0):
        trainer = Trainer(dataclasses.replace(config, return_weight=weight), tmp_path / str(weight))
        for trainer.step in range(config.steps):
            trainer.train_step(batch)
        left.append(left_of_noise(trainer.estimator.eval(), smooth=True, evals=5))
    plain, trained = left
    assert trained < 0.7 * plain
    assert trained < 0.9 * left_of_noise(start, smooth=True, evals=5)


def test_smoothing_makes_the_end_attract_without_training():
    estimator = deqflow.load("deqflow-small")
    estimator.attraction = None
    free = left_of_noise(estimator, smooth=False, evals=2)
    estimator.attraction = MeanSmoothing(0.3)
    assert left_of_noise(estimator, smooth=False, evals=2) < 0.7 * free


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coarse_weight": -1.0}, "coarse_weight of 0 or more, got -1.0"),
        ({"return_weight": float("nan")}, "return_weight of 0 or more, got nan"),
        ({"consistency_weight": -0.5}, "consistency_weight of 0 or more, got -0.5"),
        ({"other_starts": 1.5}, "other_starts as a share from 0 to 1 .* got 1.5 and 0.0"),
        ({"corrections_from": 1.0}, "corrections_from as one below 1, got 0.0 and 1.0"),
        ({"gradient": "implicit", "phantom_steps": 2}, "phantom_steps=1 .* where gradient is 'implicit'"),
        ({"gradient": "unrolled", "recurrent": True}, "an equilibrium model where gradient is 'unrolled'"),
        ({"bfloat16": True, "float16": True}, "bfloat16 or float16, got both"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.parametrize("gradient", ["phantom", "reversible", "implicit", "unrolled"])
def test_a_step_with_each_gradient(tmp_path, gradient):
    trainer = Trainer(dataclasses.replace(MINI, gradient=gradient), tmp_path)
    assert trainer.train_step(fixed_batch()) > 0


def test_the_same_step_draws_the_same_starts():
    config = dataclasses.replace(MINI, other_starts=0.5)
    batch, losses = fixed_batch(4), []
    for _ in range(2):
        losses.append(Objective(make_estimator(config), config)(batch, draw_step(config, 3))[0].item())
    assert losses[0] == losses[1]


def test_the_mixture_loss_trains_a_head_also_from_weights_without_one(tmp_path):
    config = dataclasses.replace(MINI, start_from="deqflow-small", loss="mixture", freeze_encoders=True)
    trainer = Trainer(config, tmp_path)
    head = trainer.estimator.mixture_head
    assert head is not None
    before = [parameter.detach().clone() for parameter in head.parameters()]
    losses = [trainer.train_step(fixed_batch()) for _ in range(2)]
    assert losses[1] != losses[0]
    assert any(not torch.equal(old, new) for old, new in zip(before, head.parameters(), strict=True))
    output = trainer.estimator.eval()(*fixed_batch()[:2])
    assert output.expected_error.shape == output.flow[:, 0].shape


def test_a_checkpoint_of_another_size_is_refused_with_the_mixture_too():
    with pytest.raises(ValueError, match="start_from expects a checkpoint of size 'tiny'"):
        make_estimator(dataclasses.replace(MINI, size="tiny", start_from="deqflow-small", loss="mixture"))
