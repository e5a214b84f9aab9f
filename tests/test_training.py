import csv
import dataclasses
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deqflow import checkpoints, training
from deqflow.datasets import FlowSample
from deqflow.equilibrium import Phantom
from deqflow.geometry import Padding
from deqflow.losses import correction_loss, jacobian_penalty
from deqflow.metrics import mean_endpoint_error
from deqflow.solvers import Stop
from deqflow.synthetic import SceneConfig, SyntheticPairs
from deqflow.training import HELD_OUT_SEED, Progress, TrainConfig, Trainer, make_estimator, validation_errors

SCENES = SceneConfig(height=32, width=32)
# "tiny" has batch statistics, which must be resumed as well.
CONFIG = TrainConfig(
    size="tiny",
    steps=6,
    batch=2,
    evals=(3, 6),
    workers=0,
    bfloat16=False,
    validate_every=2,
    validation_pairs=1,
    scenes=SCENES,
)
QUICK = dataclasses.replace(CONFIG, size="small", steps=2, batch=1, evals=(3, 3))


class Interrupted(Exception):  # noqa: N818 (no error: what a person does)
    """Stands for Ctrl-C, a reboot, a full disk."""


def fixed_batch(size: int = 2) -> FlowSample:
    pairs = SyntheticPairs(size, config=SCENES)
    return FlowSample(*(torch.stack(tensors) for tensors in zip(*(pairs[i] for i in range(size)), strict=True)))


def read_log(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_last(folder: Path) -> dict:
    return torch.load(folder / "last.pt", weights_only=True)


def same(a: object, b: object) -> bool:
    """Equal bit for bit, through dictionaries and lists of tensors and numbers."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def assert_equal_runs(one: Path, other: Path) -> None:
    weights = load_file(one / "model.safetensors")
    assert same(weights, load_file(other / "model.safetensors"))
    last, last_of_other = read_last(one), read_last(other)
    assert last["optimizer"]["state"]
    for key in ("config", "model", "optimizer", "schedule", "step", "recent"):
        assert same(last[key], last_of_other[key]), key
    logs = [[{**row, "seconds": ""} for row in read_log(folder)] for folder in (one, other)]
    assert logs[0] == logs[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("run") / "finished"
    Trainer(CONFIG, folder).run()
    return folder


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


def test_a_run_interrupted_after_a_log_entry_goes_on_with_the_same_bits(finished, tmp_path):
    def interrupt(progress: Progress) -> None:
        if progress.step == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        Trainer(CONFIG, tmp_path).run(interrupt)
    assert read_last(tmp_path)["step"] == 4
    assert not (tmp_path / "model.safetensors").exists()
    torch.manual_seed(99)  # whatever happened in between
    trainer = Trainer(CONFIG, tmp_path)
    assert trainer.step == 4
    assert trainer.seconds > 0
    trainer.run()
    assert_equal_runs(tmp_path, finished)


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_interrupted_between_log_entries_goes_on_from_the_last(finished, tmp_path, step):
    class Broken(Trainer):
        def train_step(self, batch: FlowSample) -> float:
            if self.step == step:
                raise Interrupted
            return super().train_step(batch)

    with pytest.raises(Interrupted):
        Broken(CONFIG, tmp_path).run()
    trainer = Trainer(CONFIG, tmp_path)
    assert trainer.step == 2 * (step // 2)
    trainer.run()
    assert_equal_runs(tmp_path, finished)


@pytest.mark.parametrize("step", [2, 4])
def test_a_run_that_could_not_save_logs_no_step_twice(finished, tmp_path, monkeypatch, step):
    def full_disk(state: dict, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise Interrupted

    class Broken(Trainer):
        def _save(self) -> None:
            with monkeypatch.context() as patch:
                if self.step == step:
                    patch.setattr(torch, "save", full_disk)
                super()._save()

    with pytest.raises(Interrupted):
        Broken(CONFIG, tmp_path).run()
    trainer = Trainer(CONFIG, tmp_path)
    assert trainer.step == step - 2
    trainer.run()
    assert_equal_runs(tmp_path, finished)
    assert not list(tmp_path.glob("*.part"))


def test_a_finished_run_only_writes_its_model_again(finished, tmp_path, monkeypatch):
    for name in ("last.pt", "log.csv"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    monkeypatch.setattr(Trainer, "train_step", lambda *_: pytest.fail("a step was taken"))
    estimator = Trainer(CONFIG, tmp_path).run()
    assert not estimator.training
    assert_equal_runs(tmp_path, finished)


def test_workers_change_no_bit(finished, tmp_path):
    Trainer(dataclasses.replace(CONFIG, workers=2), tmp_path).run()
    assert same(load_file(tmp_path / "model.safetensors"), load_file(finished / "model.safetensors"))


def test_a_folder_of_another_configuration_is_refused(finished):
    before = (finished / "last.pt").read_bytes()
    for change in ({"seed": 1}, {"lr": 1e-3}, {"scenes": SceneConfig(height=32, width=40)}):
        with pytest.raises(ValueError, match=r"finished holds a run of another configuration: use a new folder"):
            Trainer(dataclasses.replace(CONFIG, **change), finished)
    assert (finished / "last.pt").read_bytes() == before


def test_a_run_leaves_its_log_its_state_and_its_model(finished):
    assert sorted(path.name for path in finished.iterdir()) == ["last.pt", "log.csv", "model.safetensors"]
    rows = read_log(finished)
    assert list(rows[0]) == ["step", "loss", "seconds", "epe_6", "epe_12", "epe_24", "epe_48"]
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert all(float(value) >= 0 for row in rows for value in row.values())
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)


def test_progress_tells_what_the_log_holds(tmp_path):
    seen: list[Progress] = []
    trainer = Trainer(dataclasses.replace(QUICK, steps=3), tmp_path)
    trainer.run(seen.append)
    assert [progress.step for progress in seen] == [2, 3]  # the last step is always logged
    for progress, row in zip(seen, read_log(tmp_path), strict=True):
        assert row["step"] == str(progress.step)
        assert row["loss"] == str(round(progress.loss, 4))
        assert [row[f"epe_{k}"] for k in progress.errors] == [str(round(e, 4)) for e in progress.errors.values()]
    assert seen[1].loss == pytest.approx(sum(trainer.recent) / 3)
    assert seen[1].errors == trainer.validate()


def test_the_loss_is_the_mean_of_the_last_hundred(tmp_path, monkeypatch):
    losses = iter(range(1000))
    monkeypatch.setattr(Trainer, "train_step", lambda *_: float(next(losses)))
    monkeypatch.setattr(Trainer, "validate", lambda _: {6: 1.0})
    seen: list[Progress] = []
    config = dataclasses.replace(QUICK, steps=104, validate_every=104, scenes=SceneConfig(height=16, width=16))
    Trainer(config, tmp_path).run(seen.append)
    assert seen[0].loss == sum(range(4, 104)) / 100


def test_no_pair_is_seen_twice(tmp_path, monkeypatch):
    seen: list[torch.Tensor] = []

    def record(_: Trainer, batch: FlowSample) -> float:
        seen.extend(batch.flow)
        return 0.0

    monkeypatch.setattr(Trainer, "train_step", record)
    monkeypatch.setattr(Trainer, "validate", lambda _: {6: 1.0})
    config = dataclasses.replace(QUICK, steps=6, batch=3, workers=2, validate_every=6)
    Trainer(config, tmp_path).run()
    assert len(seen) == 18
    pairs = SyntheticPairs(18, seed=config.seed, config=config.scenes)
    assert all(torch.equal(flow, pairs[i].flow) for i, flow in enumerate(seen))
    assert len({flow.numpy().tobytes() for flow in seen}) == 18


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_step_and_seed(tmp_path, value):
    trainer = Trainer(dataclasses.replace(QUICK, seed=5), tmp_path)
    trainer.step = 7
    with torch.no_grad():
        next(trainer.estimator.update.parameters()).fill_(value)
    before = {name: tensor.clone() for name, tensor in trainer.estimator.named_parameters()}
    with pytest.raises(FloatingPointError, match=r"loss of step 7 \(seed 5\) is not finite: lower lr"):
        trainer.train_step(fixed_batch(1))
    for name, tensor in trainer.estimator.named_parameters():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num())


def test_a_gradient_that_is_not_finite_spoils_no_weight(tmp_path):
    trainer = Trainer(dataclasses.replace(QUICK, seed=5), tmp_path)
    parameter = next(trainer.estimator.parameters())
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: tensor.clone() for name, tensor in trainer.estimator.named_parameters()}
    with pytest.raises(FloatingPointError, match=r"gradient of step 0 \(seed 5\) is not finite: lower lr"):
        trainer.run()
    assert same(dict(trainer.estimator.named_parameters()), before)
    assert list(tmp_path.iterdir()) == []


def budgets(trainer: Trainer, steps: range) -> list[int]:
    """How many evaluations each of these steps takes."""
    asked: list[int] = []
    solve_map = trainer.estimator.solve_map

    def watch(f, z0: torch.Tensor, *, stop: Stop, padding: Padding):
        asked.append(stop.max_evals)
        assert stop.atol == stop.rtol == 0
        return solve_map(f, z0, stop=dataclasses.replace(stop, max_evals=3), padding=padding)

    trainer.estimator.solve_map = watch
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
        f, _ = trainer.estimator.fixed_point_map(batch.image1, batch.image2)
    z, generator = torch.cat([state.hidden, state.flow], 1), torch.Generator().manual_seed(0)
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


def test_the_recipe_lies_beside_the_weights(finished):
    config, recipe = checkpoints.read_metadata(finished / "model.safetensors")
    assert config.size == "tiny"
    assert recipe["config"] == json.loads(json.dumps(dataclasses.asdict(CONFIG)))
    assert recipe["pairs"] == 12
    assert 0 <= recipe["hours"] < 1
    assert recipe["torch"] == torch.__version__
    assert recipe["before"] == {}


def test_a_run_may_start_from_another(finished, tmp_path):
    path = finished / "model.safetensors"
    config = dataclasses.replace(
        CONFIG, start_from=str(path), seed=1, steps=1, batch=1, all_gradients=True, validate_every=1
    )
    trainer = Trainer(config, tmp_path)
    assert same(dict(trainer.estimator.state_dict()), load_file(path))
    assert trainer.estimator.training
    trainer.run()
    recipe = checkpoints.read_metadata(tmp_path / "model.safetensors")[1]
    assert recipe["config"]["start_from"] == "model.safetensors"  # no path of the machine it ran on
    assert recipe["before"] == checkpoints.read_metadata(path)[1]


def test_a_run_may_start_from_a_shipped_model(tmp_path):
    trainer = Trainer(dataclasses.replace(QUICK, size="mini", start_from="deqflow-small"), tmp_path)
    assert same(trainer.estimator.state_dict(), checkpoints.load("deqflow-small").state_dict())
    assert trainer.recipe()["before"] == {"name": "deqflow-small"}


def test_a_start_of_another_architecture_is_refused(finished, tmp_path):
    path = str(finished / "model.safetensors")
    with pytest.raises(ValueError, match=r"start_from expects a checkpoint of size 'small', got .*size='tiny'"):
        Trainer(dataclasses.replace(QUICK, start_from=path), tmp_path)
    with pytest.raises(FileNotFoundError, match="No model 'nothing'"):
        Trainer(dataclasses.replace(QUICK, start_from="nothing"), tmp_path)
    assert list(tmp_path.iterdir()) == []


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_code_in_a_state_is_never_run(tmp_path):
    torch.save({"config": Malicious(tmp_path / "run")}, tmp_path / "last.pt")
    with pytest.raises(pickle.UnpicklingError):
        Trainer(QUICK, tmp_path)
    assert not (tmp_path / "run").exists()
    torch.load(tmp_path / "last.pt", weights_only=False)  # it would have been
    assert (tmp_path / "run").exists()


def test_validation_is_on_held_out_pairs(tmp_path, monkeypatch):
    asked = []

    class Watched(SyntheticPairs):
        def __init__(self, length: int, *, seed: int, config: SceneConfig) -> None:
            asked.append((length, seed, config))
            super().__init__(length, seed=seed, config=config)

    monkeypatch.setattr(training, "SyntheticPairs", Watched)
    Trainer(dataclasses.replace(QUICK, steps=1, seed=4, validation_pairs=3), tmp_path).run()
    assert asked == [(1, 4, SCENES), (3, HELD_OUT_SEED, SCENES)]


@pytest.mark.parametrize("training_mode", [True, False])
def test_validation_is_the_mean_error_after_so_many_evaluations(training_mode):
    estimator = make_estimator(QUICK).train(training_mode)
    pairs = SyntheticPairs(2, seed=HELD_OUT_SEED, config=SCENES)
    errors = validation_errors(estimator, pairs, (5, 2, 9))
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


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, "at least 1 step and 1 pair, got 0 and 2"),
        ({"batch": 0}, "at least 1 step and 1 pair, got 6 and 0"),
        ({"validate_every": 0}, "validate_every and validation_pairs of at least 1, got 0 and 1"),
        ({"validation_pairs": 0}, "validate_every and validation_pairs of at least 1, got 2 and 0"),
        ({"seed": -1}, "a seed of 0 or more other than 1000003.* got -1"),
        ({"seed": HELD_OUT_SEED}, "1000003, which makes the held-out pairs, got 1000003"),
        ({"evals": (7, 6)}, r"evals as \(least, greatest\).* got \(7, 6\)"),
        ({"evals": (2, 6)}, r"no smaller than corrections=3, got \(2, 6\)"),
        ({"corrections": 4}, "no smaller than corrections=4"),
        ({"jacobian_weight": -1.0}, "jacobian_weight of 0 or more, got -1.0"),
        ({"jacobian_weight": float("nan")}, "jacobian_weight of 0 or more, got nan"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": "medium"}, "Unknown size 'medium': expected one of tiny"),
        ({"corrections": 0}, "corrections of at least 1"),
        ({"phantom_steps": 0}, "Phantom expects steps"),
    ],
)
def test_what_no_model_can_be_built_with_is_told_at_once(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        Trainer(dataclasses.replace(CONFIG, **change), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="learning_rate"):
        TrainConfig(learning_rate=1e-3)
