import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from pairs import map_of
from training_runs import CONFIG, QUICK, SCENES, fixed_batch, same

from deqflow.data.datasets import FlowSample
from deqflow.data.metrics import mean_endpoint_error
from deqflow.data.synthetic import SyntheticPairs
from deqflow.equilibrium import Phantom, Unrolled
from deqflow.model import checkpoints
from deqflow.solvers import Stop
from deqflow.training import HELD_OUT_SEED, Progress, TrainConfig, Trainer, make_estimator
from deqflow.training.losses import correction_loss, jacobian_penalty
from deqflow.training.objective import draw_step
from deqflow.training.validation import measure_pairs, summarise


def test_a_fixed_batch_is_learnt_by_heart(tmp_path):
    config = dataclasses.replace(CONFIG, size="small", steps=30, lr=2e-3, evals=(3, 4))
    trainer, batch = Trainer(config, tmp_path), fixed_batch()
    losses = [trainer.train_step(batch) for _ in range(30)]
    nothing = correction_loss([torch.zeros_like(batch.flow)] * 3, batch.flow, batch.valid).item()
    assert 0.8 * nothing < losses[0] < 1.2 * nothing
    assert max(losses[-5:]) < 0.5 * nothing


def test_a_step_follows_the_gradient_of_the_loss(tmp_path):
    trainer, batch = Trainer(QUICK, tmp_path), fixed_batch(1)
    with torch.no_grad():
        output = trainer.estimator(batch.image1, batch.image2, stop=Stop(max_evals=3, atol=0.0))
        expected = correction_loss(output.flows, batch.flow, batch.valid, gamma=QUICK.gamma).item()
    assert len(output.flows) == QUICK.corrections
    before = {name: tensor.clone() for name, tensor in trainer.estimator.named_parameters()}
    rate = trainer.schedule.get_last_lr()[0]
    assert trainer.train_step(batch) == pytest.approx(expected, rel=1e-6)
    moved = {name: (tensor - before[name]).abs().max().item() for name, tensor in trainer.estimator.named_parameters()}
    assert trainer.schedule.get_last_lr()[0] != rate
    assert all(0 < distance < 1.1 * rate for distance in moved.values())  # Adam's first step is the rate


@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_gradients_are_clipped(tmp_path, clip):
    trainer = Trainer(dataclasses.replace(QUICK, clip=clip), tmp_path)
    trainer.train_step(fixed_batch(1))
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in trainer.estimator.parameters()])).item()
    assert norm == pytest.approx(clip, rel=1e-3) if clip < 1 else 1e-3 < norm < clip


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_step_and_seed(tmp_path, value):
    trainer = Trainer(dataclasses.replace(QUICK, seed=5), tmp_path)
    trainer.step = 7
    with torch.no_grad():
        next(trainer.estimator.update.parameters()).fill_(value)
    before = {name: tensor.clone() for name, tensor in trainer.estimator.named_parameters()}
    with pytest.raises(FloatingPointError, match=r"loss of step 7 \(seed 5, pairs 7 to 7\) is not finite: lower lr"):
        trainer.train_step(fixed_batch(1))
    for name, tensor in trainer.estimator.named_parameters():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num())


def test_a_gradient_that_is_not_finite_spoils_no_weight(tmp_path):
    trainer = Trainer(dataclasses.replace(QUICK, seed=5), tmp_path)
    parameter = next(trainer.estimator.parameters())
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: tensor.clone() for name, tensor in trainer.estimator.named_parameters()}
    with pytest.raises(
        FloatingPointError, match=r"gradient of step 0 \(seed 5, pairs 0 to 0\) is not finite: lower lr"
    ):
        trainer.run()
    assert same(dict(trainer.estimator.named_parameters()), before)
    assert not list(tmp_path.glob("*.safetensors"))


def budgets(trainer: Trainer, steps: range) -> list[int]:
    """How many evaluations each of these steps takes."""
    asked: list[int] = []
    equilibrium = trainer.estimator.equilibrium
    forward = equilibrium.forward

    def watch(f, z0: torch.Tensor, *, stop: Stop, **options):
        asked.append(stop.max_evals)
        assert stop.atol == stop.rtol == 0
        return forward(f, z0, stop=dataclasses.replace(stop, max_evals=3), **options)

    equilibrium.forward = watch
    for trainer.step in steps:
        trainer.train_step(fixed_batch(1))
    return asked


def test_the_number_of_evaluations_is_drawn_for_each_step(tmp_path):
    config = dataclasses.replace(QUICK, steps=20, evals=(3, 6))
    asked = budgets(Trainer(config, tmp_path / "a"), range(20))
    assert set(asked) == {3, 4, 5, 6}
    # The draw is a function of seed and step, whatever came before.
    assert budgets(Trainer(config, tmp_path / "b"), range(15, 20)) == asked[15:]
    assert budgets(Trainer(dataclasses.replace(config, seed=1), tmp_path / "c"), range(5)) != asked[:5]


@pytest.mark.parametrize(("corrections", "phantom_steps"), [(1, 1), (3, 1), (2, 3)])
def test_corrections_and_phantom_steps_reach_the_estimator(tmp_path, corrections, phantom_steps):
    config = dataclasses.replace(QUICK, corrections=corrections, phantom_steps=phantom_steps, evals=(4, 4))
    trainer = Trainer(config, tmp_path)
    equilibrium = trainer.estimator.equilibrium
    assert equilibrium.gradient == Phantom(steps=phantom_steps)
    assert equilibrium.corrections == corrections
    assert equilibrium.stop.max_evals == 4
    assert equilibrium.stop.atol == 0
    graphs: list[bool] = []
    trainer.estimator.update.register_forward_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    trainer.train_step(fixed_batch(1))
    assert graphs == [False] * 4 + [True] * corrections * phantom_steps


def test_more_phantom_steps_and_all_gradients_give_other_gradients(tmp_path):
    gradients = []
    for change in ({}, {"phantom_steps": 2}, {"phantom_steps": 2, "all_gradients": True}):
        trainer = Trainer(dataclasses.replace(QUICK, **change), tmp_path / str(len(gradients)))
        assert trainer.estimator.all_gradients is ("all_gradients" in change)
        assert trainer.estimator.config.all_gradients is ("all_gradients" in change)
        trainer.train_step(fixed_batch(1))
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.estimator.parameters()]))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert not torch.allclose(gradients[0], gradients[1], rtol=1e-3)
    assert not torch.allclose(gradients[1], gradients[2], rtol=1e-3)


def jacobian_norm(trainer: Trainer, batch: FlowSample) -> float:
    """Squared norm over size of the Jacobian where the solver ends, many random vectors instead of one."""
    with torch.no_grad():
        state = trainer.estimator(batch.image1, batch.image2, stop=Stop(max_evals=3, atol=0.0)).state
        f, _ = map_of(trainer.estimator, batch.image1, batch.image2)
    z, generator = state.pack(), torch.Generator().manual_seed(0)
    return sum(jacobian_penalty(f, z, generator).item() for _ in range(20)) / 20


@pytest.mark.parametrize("all_gradients", [False, True])
def test_the_jacobian_penalty_keeps_the_jacobian_small(tmp_path, all_gradients):
    norms = []
    for weight in (0.0, 10.0):
        config = dataclasses.replace(
            QUICK, steps=15, lr=2e-3, batch=2, jacobian_weight=weight, all_gradients=all_gradients
        )
        trainer, batch = Trainer(config, tmp_path / str(weight)), fixed_batch()
        for trainer.step in range(15):
            trainer.train_step(batch)
        norms.append(jacobian_norm(trainer, batch))
    assert norms[1] < 0.8 * norms[0]


def test_the_jacobian_penalty_is_added_to_the_loss_and_costs_one_evaluation(tmp_path):
    losses, calls = [], []
    for weight in (0.0, 1.0, 2.0):
        trainer = Trainer(dataclasses.replace(QUICK, jacobian_weight=weight), tmp_path / str(weight))
        count = []
        trainer.estimator.update.register_forward_hook(lambda *_, count=count: count.append(1))
        losses.append(trainer.train_step(fixed_batch(1)))
        calls.append(len(count))
    assert calls == [6, 7, 7]
    assert losses[0] < losses[1]
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-3)  # one v for one seed and step
    assert trainer.estimator.equilibrium._forward_hooks == {}


def cost_of_hiding_half(trainer: Trainer, batch: FlowSample) -> float:
    """How many times larger the error gets under ten masks that were not trained with."""
    errors = {0.0: 0.0, 0.5: 0.0}
    for trainer.estimator.dropout in errors:
        for seed in range(10):
            with torch.no_grad():
                output = trainer.estimator(batch.image1, batch.image2, generator=torch.Generator().manual_seed(seed))
            errors[trainer.estimator.dropout] += (output.flow - batch.flow).abs().mean().item()
    return errors[0.5] / errors[0.0]


def test_dropout_makes_a_model_that_can_do_with_half_of_what_it_sees(tmp_path):
    costs = []
    for dropout in (0.0, 0.5):
        config = dataclasses.replace(QUICK, steps=100, lr=2e-3, batch=2, dropout=dropout)
        trainer, batch = Trainer(config, tmp_path / str(dropout)), fixed_batch()
        for trainer.step in range(100):
            trainer.train_step(batch)
        costs.append(cost_of_hiding_half(trainer, batch))
    assert costs[1] < 1.02 < 1.05 < costs[0]


def test_dropout_hides_the_same_channels_in_the_same_step_of_a_run_that_goes_on(tmp_path):
    config = dataclasses.replace(QUICK, dropout=0.3)
    losses = [Trainer(config, tmp_path / str(run)).train_step(fixed_batch(1)) for run in range(2)]
    assert losses[0] == losses[1]
    assert Trainer(QUICK, tmp_path / "none").train_step(fixed_batch(1)) != losses[0]


def test_the_seed_makes_the_weights():
    weights = [make_estimator(dataclasses.replace(QUICK, seed=seed)).state_dict() for seed in (0, 0, 1)]
    assert same(weights[0], weights[1])
    assert not same(weights[0], weights[2])


def test_bfloat16_is_for_the_arithmetic_alone(tmp_path):
    trainer = Trainer(dataclasses.replace(QUICK, bfloat16=True), tmp_path)
    kinds = set()
    trainer.estimator.feature_encoder.register_forward_hook(lambda _, __, output: kinds.add(output.dtype))
    seen: list[Progress] = []
    estimator = trainer.run(seen.append)
    assert kinds == {torch.bfloat16}  # in training and in validation
    assert all(torch.isfinite(torch.tensor(list(progress.errors.values()))).all() for progress in seen)
    assert {p.dtype for p in estimator.parameters()} == {torch.float32}
    kinds.clear()
    Trainer(dataclasses.replace(QUICK, bfloat16=False), tmp_path / "full").validate()
    assert kinds == set()
    assert trainer.recent[0] == pytest.approx(Trainer(QUICK, tmp_path / "f32").train_step(fixed_batch(1)), rel=0.05)


@pytest.mark.parametrize("training_mode", [True, False])
def test_validation_is_the_mean_error_after_so_many_evaluations(training_mode):
    estimator = make_estimator(QUICK).train(training_mode)
    pairs = SyntheticPairs(2, seed=HELD_OUT_SEED, config=SCENES)
    errors = summarise(measure_pairs(estimator, pairs, (5, 2, 9)).sum(0), 2, (5, 2, 9)).errors
    assert estimator.training is training_mode
    assert errors.keys() == {2, 5, 9}
    estimator.eval()
    for k, error in errors.items():
        total = 0.0
        for pair in (pairs[0], pairs[1]):
            with torch.no_grad():
                output = estimator(pair.image1[None], pair.image2[None], stop=Stop(max_evals=k, atol=0.0))
            assert int(output.solve.evals) == k
            total += mean_endpoint_error(output.flow, pair.flow[None], pair.valid[None]).item()
        assert error == pytest.approx(total / 2, rel=1e-5)


def test_validation_changes_nothing(tmp_path):
    trainer = Trainer(CONFIG, tmp_path)
    before = {name: tensor.clone() for name, tensor in trainer.estimator.state_dict().items()}
    trainer.validate((1, 2))
    assert same(dict(trainer.estimator.state_dict()), before)
    assert trainer.estimator.training
    assert all(p.grad is None for p in trainer.estimator.parameters())


def gradients(config: TrainConfig, folder: Path, batch: FlowSample) -> dict[str, torch.Tensor]:
    """What one step leaves in the parameters, before clipping changes anything."""
    trainer = Trainer(dataclasses.replace(config, clip=1e9), folder)
    trainer.train_step(batch)
    return {name: p.grad.clone() for name, p in trainer.estimator.named_parameters() if p.grad is not None}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    largest = max(gradient.abs().max() for gradient in one.values())
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        assert torch.allclose(gradient, other[name], rtol=0, atol=tolerance * float(largest)), name


@pytest.mark.parametrize("change", [{"accumulate": 2}, {"checkpoint_encoders": True}, {"compile": "eager"}])
def test_what_saves_memory_or_time_changes_no_gradient(tmp_path, change):
    config = dataclasses.replace(QUICK, batch=2)
    plain = gradients(config, tmp_path / "plain", fixed_batch())
    assert_close(plain, gradients(dataclasses.replace(config, **change), tmp_path / "other", fixed_batch()), 1e-5)


def test_accumulated_parts_are_half_as_large(tmp_path):
    trainer = Trainer(dataclasses.replace(QUICK, batch=2, accumulate=2), tmp_path)
    seen = []
    trainer.estimator.feature_encoder.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    loss = trainer.train_step(fixed_batch())
    assert seen == [2, 2]  # two pictures a pair
    assert loss == pytest.approx(
        Trainer(dataclasses.replace(QUICK, batch=2), tmp_path / "b").train_step(fixed_batch()), rel=1e-5
    )


def test_encoders_are_computed_twice_where_memory_is_short(tmp_path):
    for wanted, calls in ((False, 1), (True, 2)):
        trainer = Trainer(dataclasses.replace(QUICK, checkpoint_encoders=wanted), tmp_path / str(wanted))
        seen = []
        trainer.estimator.feature_encoder.head.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        trainer.train_step(fixed_batch(1))
        assert len(seen) == calls


def test_compiled_parts_are_compiled_once(tmp_path):
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.register_backend(backend, name="counting")
    trainer = Trainer(dataclasses.replace(QUICK, compile="counting"), tmp_path)
    names = list(trainer.estimator.state_dict())
    counts = []
    for trainer.step in range(3):
        trainer.train_step(fixed_batch(1))
        counts.append(len(graphs))
    assert counts[0] > 0
    assert counts[1] == counts[2], "nothing is compiled again once it is warm"
    assert names == list(make_estimator(QUICK).state_dict())


def test_batch_norm_is_frozen_where_asked(tmp_path):
    for frozen in (False, True):
        trainer = Trainer(dataclasses.replace(CONFIG, freeze_batch_norm=frozen), tmp_path / str(frozen))
        before = {name: b.clone() for name, b in trainer.estimator.named_buffers() if name.endswith("running_mean")}
        assert before
        trainer.train_step(fixed_batch())
        trainer.validate((1,))
        trainer.train_step(fixed_batch())
        same_as_before = [torch.equal(dict(trainer.estimator.named_buffers())[name], before[name]) for name in before]
        assert same_as_before == [frozen] * len(before)


@pytest.mark.parametrize("recurrent", [False, True])
def test_frozen_encoders_stay_as_they_are_and_the_rest_learns(tmp_path, recurrent):
    path = tmp_path / "start.safetensors"
    checkpoints.save(make_estimator(dataclasses.replace(CONFIG, recurrent=recurrent)), path)
    config = dataclasses.replace(CONFIG, recurrent=recurrent, freeze_encoders=True, start_from=str(path))
    trainer = Trainer(config, tmp_path / "run")
    before = {name: tensor.clone() for name, tensor in trainer.estimator.state_dict().items()}
    trainer.train_step(fixed_batch())
    trainer.validate((1,))
    trainer.train_step(fixed_batch())
    changed = {name for name, tensor in trainer.estimator.state_dict().items() if not torch.equal(tensor, before[name])}
    encoders = {name for name in before if "encoder" in name}
    assert any("running_mean" in name for name in encoders)
    assert changed
    assert not changed & encoders


def test_frozen_encoders_must_come_from_somewhere(tmp_path):
    with pytest.raises(ValueError, match="freeze_encoders expects start_from"):
        Trainer(dataclasses.replace(CONFIG, freeze_encoders=True), tmp_path)


def test_the_recurrent_counterpart_is_supervised_at_each_evaluation(tmp_path):
    trainer = Trainer(dataclasses.replace(QUICK, recurrent=True, evals=(4, 4)), tmp_path)
    assert trainer.estimator.recurrent
    assert trainer.estimator.equilibrium.gradient == Unrolled()
    graphs: list[bool] = []
    trainer.estimator.update.register_forward_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    trainer.train_step(fixed_batch(1))
    assert graphs == [True] * 4


def test_the_update_operator_may_be_another(tmp_path):
    estimator = make_estimator(dataclasses.replace(QUICK, update="gma"))
    assert estimator.config is not None
    assert estimator.config.update == "gma"


def step_until_followed(trainer: Trainer) -> float:
    """Take steps until the scale of the loss is one that the gradient does not overflow at; the last one's loss."""
    for _ in range(12):
        rate = trainer.schedule.get_last_lr()
        loss = trainer.train_step(fixed_batch(1))
        if trainer.schedule.get_last_lr() != rate:
            return loss
    pytest.fail("every step overflowed")


def test_float16_scales_the_gradient_and_follows_it_all_the_same(tmp_path):
    config = dataclasses.replace(QUICK, float16=True, clip=1e9)
    trainer = Trainer(config, tmp_path)
    kinds = set()
    trainer.estimator.feature_encoder.register_forward_hook(lambda _, __, output: kinds.add(output.dtype))
    loss = step_until_followed(trainer)
    assert kinds == {torch.float16}
    assert loss == pytest.approx(Trainer(QUICK, tmp_path / "f32").train_step(fixed_batch(1)), rel=0.05)
    scaled = torch.cat([p.grad.flatten() for p in trainer.estimator.parameters()])
    exact = torch.cat([g.flatten() for g in gradients(QUICK, tmp_path / "exact", fixed_batch(1)).values()])
    assert torch.cosine_similarity(scaled, exact, dim=0) > 0.98
    assert scaled.norm().item() == pytest.approx(exact.norm().item(), rel=0.1)


def test_a_step_that_overflows_in_float16_is_left_out(tmp_path):
    trainer = Trainer(dataclasses.replace(QUICK, float16=True), tmp_path)
    hook = next(trainer.estimator.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    before = {name: tensor.clone() for name, tensor in trainer.estimator.named_parameters()}
    rate, scale = trainer.schedule.get_last_lr(), trainer.scaler.get_scale()
    trainer.train_step(fixed_batch(1))
    assert same(dict(trainer.estimator.named_parameters()), before)
    assert trainer.schedule.get_last_lr() == rate
    assert trainer.scaler.get_scale() == scale / 2
    hook.remove()
    step_until_followed(trainer)
    assert not same(dict(trainer.estimator.named_parameters()), before)
    assert trainer.schedule.get_last_lr() != rate


def test_a_gradient_that_overflows_at_any_scale_ends_the_run(tmp_path):
    trainer = Trainer(dataclasses.replace(QUICK, float16=True), tmp_path)
    next(trainer.estimator.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-15)
    with pytest.raises(FloatingPointError, match="gradient of step 0"):
        trainer.train_step(fixed_batch(1))


def test_the_batch_of_a_loss_that_is_not_finite_is_kept(tmp_path):
    class Spoilt(Trainer):
        def train_step(self, batch: FlowSample) -> float:
            if self.step == 1:
                batch = batch._replace(image1=batch.image1 * float("nan"))
            return super().train_step(batch)

    config = dataclasses.replace(QUICK, batch=2, seed=5)
    with pytest.raises(FloatingPointError, match=r"pairs 2 to 3.*The batch is in .*not-finite-0000001-0.pt"):
        Spoilt(config, tmp_path).run()
    kept = torch.load(tmp_path / "not-finite-0000001-0.pt", weights_only=True)
    assert (kept["seed"], kept["step"], kept["indices"]) == (5, 1, [2, 3])
    pairs = SyntheticPairs(4, seed=5, config=SCENES)
    assert torch.equal(kept["image2"], torch.stack([pairs[2].image2, pairs[3].image2]))
    assert torch.isnan(kept["image1"]).all()


def test_invalid_pixels_count_neither_in_the_loss_nor_in_the_error(tmp_path):
    trainer, batch = Trainer(QUICK, tmp_path), fixed_batch(1)
    half = torch.zeros_like(batch.valid)
    half[..., :16] = True
    spoilt = batch._replace(valid=half, flow=torch.where(half[:, None], batch.flow, 1e3))
    known = batch._replace(valid=half)
    losses = [Trainer(QUICK, tmp_path / name).train_step(b) for name, b in (("a", spoilt), ("b", known))]
    assert losses[0] == losses[1]
    samples = [FlowSample(*(tensor[0] for tensor in b)) for b in (spoilt, known, batch)]
    errors = [measure_pairs(trainer.estimator, [sample], (3,))[0, 0] for sample in samples]
    assert errors[0] == errors[1] != errors[2]


def test_a_measurement_tells_residuals_and_evaluations():
    estimator = make_estimator(QUICK).eval()
    pair = SyntheticPairs(1, seed=HELD_OUT_SEED, config=SCENES)[0]
    with torch.no_grad():
        solve = estimator(pair.image1[None], pair.image2[None], stop=Stop(max_evals=6, atol=0.0)).solve
    trace = solve.trace[:, 0]
    tolerance = float(trace[3:5].min()) if trace[:3].min() > trace[3:5].min() else float(trace[2])
    first = int((trace <= tolerance).nonzero()[0]) + 1
    estimator.equilibrium.eval_stop = Stop(max_evals=40, atol=tolerance * (1 + 1e-5))
    seen = summarise(measure_pairs(estimator, [pair, pair], (2, 6)).sum(0), 2, (2, 6))
    assert seen.evaluations == first
    assert seen.residuals == {2: pytest.approx(float(trace[1]), rel=1e-4), 6: pytest.approx(float(trace[5]), rel=1e-4)}
    estimator.equilibrium.eval_stop = Stop(max_evals=40, atol=0.0)
    assert summarise(measure_pairs(estimator, [pair], (2, 6))[0], 1, (2, 6)).evaluations == 6


def test_log_spread_covers_the_range_and_draws_large_numbers_rarely():
    config = TrainConfig(evals=(8, 80), evals_spread="log")
    drawn = [draw_step(config, step).stop.max_evals for step in range(2000)]
    assert (min(drawn), max(drawn)) == (8, 80)
    assert np.median(drawn) == pytest.approx(8 * (81 / 8) ** 0.5, rel=0.1)  # as many below as above the geometric mean
    assert drawn == [draw_step(config, step).stop.max_evals for step in range(2000)]
    with pytest.raises(ValueError, match="evals_spread as uniform or log, got 'linear'"):
        TrainConfig(evals_spread="linear")
