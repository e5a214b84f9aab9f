import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import CONFIG, QUICK, SCENES, Interrupted, assert_equal_runs, read_last, read_log, same

from deqflow.data.datasets import FlowSample
from deqflow.data.synthetic import SceneConfig, SyntheticPairs
from deqflow.model import checkpoints
from deqflow.training import HELD_OUT_SEED, Progress, Trainer, Validation, data, trainer

NOTHING = Validation(errors={6: 1.0}, residuals={6: 0.1}, evaluations=48.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("run") / "finished"
    Trainer(CONFIG, folder).run()
    return folder


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
    for name in ("state-0000006.pt", "log.csv"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    monkeypatch.setattr(Trainer, "train_step", lambda *_: pytest.fail("a step was taken"))
    estimator = Trainer(CONFIG, tmp_path).run()
    assert not estimator.training
    assert_equal_runs(tmp_path, finished)


def test_workers_change_no_bit(finished, tmp_path):
    Trainer(dataclasses.replace(CONFIG, workers=2), tmp_path).run()
    assert same(load_file(tmp_path / "model.safetensors"), load_file(finished / "model.safetensors"))


def test_a_folder_of_another_configuration_is_refused(finished):
    before = (finished / "state-0000006.pt").read_bytes()
    for change, named in (
        ({"seed": 1}, r"differ in seed \(0 there, 1 now\)\.$"),
        (
            {"lr": 1e-3, "validate_every": 3},
            r"differ in lr \(0.0008 there, 0.001 now\), validate_every \(2 there, 3 now\)\.$",
        ),
        ({"scenes": SceneConfig(height=32, width=40)}, r"differ in scenes.width \(32 there, 40 now\)\.$"),
        ({"steps": 9}, r"steps \(6 there, 9 now\)\. To train longer than planned, .* with --from\."),
    ):
        with pytest.raises(
            ValueError, match=r"finished holds a run of another configuration: use a new folder.*" + named
        ):
            Trainer(dataclasses.replace(CONFIG, **change), finished)
    assert (finished / "state-0000006.pt").read_bytes() == before


def test_a_run_leaves_its_log_its_state_and_its_model(finished):
    states = [f"state-000000{step}.pt" for step in (2, 4, 6)]
    kept = ["config.yaml", "log.csv", "model.safetensors", *states]
    assert sorted(path.name for path in finished.iterdir()) == kept
    rows = read_log(finished)
    columns = [f"{name}_{k}" for name in ("epe", "residual") for k in (6, 12, 24, 48)]
    assert list(rows[0]) == ["step", "loss", "seconds", *columns, "evaluations"]
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
        assert [row[f"residual_{k}"] for k in progress.errors] == [
            str(round(r, 5)) for r in progress.residuals.values()
        ]
    assert seen[1].loss == pytest.approx(sum(trainer.recent) / 3)
    assert seen[1].errors == trainer.validate()


def test_the_loss_is_the_mean_of_the_last_hundred(tmp_path, monkeypatch):
    losses = iter(range(1000))
    monkeypatch.setattr(Trainer, "train_step", lambda *_: float(next(losses)))
    monkeypatch.setattr(Trainer, "measure", lambda _: NOTHING)
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
    monkeypatch.setattr(Trainer, "measure", lambda _: NOTHING)
    config = dataclasses.replace(QUICK, steps=6, batch=3, workers=2, validate_every=6)
    Trainer(config, tmp_path).run()
    assert len(seen) == 18
    pairs = SyntheticPairs(18, seed=config.seed, config=config.scenes)
    assert all(torch.equal(flow, pairs[i].flow) for i, flow in enumerate(seen))
    assert len({flow.numpy().tobytes() for flow in seen}) == 18


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
    path = tmp_path / "state-0000002.pt"
    torch.save({"config": Malicious(tmp_path / "run")}, path)
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(ValueError, match="no state that is whole"):
        Trainer(QUICK, tmp_path)
    assert not (tmp_path / "run").exists()
    torch.load(path, weights_only=False)  # it would have been
    assert (tmp_path / "run").exists()


def test_validation_is_on_held_out_pairs(tmp_path, monkeypatch):
    asked = []

    class Watched(SyntheticPairs):
        def __init__(self, length: int, *, seed: int, config: SceneConfig) -> None:
            asked.append((length, seed, config))
            super().__init__(length, seed=seed, config=config)

    monkeypatch.setattr(data, "SyntheticPairs", Watched)
    monkeypatch.setattr(trainer, "SyntheticPairs", Watched)
    Trainer(dataclasses.replace(QUICK, steps=1, seed=4, validation_pairs=3), tmp_path).run()
    assert asked == [(1, 4, SCENES), (3, HELD_OUT_SEED, SCENES)]


def test_a_file_is_no_folder_for_a_run(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=r"expects a folder at .*, but .*file is a file: choose another name"):
            Trainer(QUICK, folder)
    assert (tmp_path / "file").read_text() == "mine"
