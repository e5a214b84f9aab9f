import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest
import torch
from training_runs import CONFIG, QUICK, Interrupted, assert_equal_runs, noisy_estimator, read_last, read_log, same

from deqflow.training import Progress, Trainer, read_config
from deqflow.training.states import load_state, random_state, save_state, set_random_state

KILLED_IN_STEP_5 = """
import os, signal, sys
import torch
from deqflow.training import Trainer
from training_runs import CONFIG, noisy_estimator

class Killed(Trainer):
    def train_step(self, batch):
        if self.step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step(batch)

torch.set_num_threads(1)
Killed(CONFIG, sys.argv[1], estimator=noisy_estimator(CONFIG)).run()
"""
STATES = [f"state-{step:07d}.pt" for step in range(1, 6)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("run") / "finished"
    Trainer(CONFIG, folder).run()
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("state-*"))


def test_a_killed_run_goes_on_with_the_same_bits(tmp_path):
    paths = [str(Path(__file__).parents[1]), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    child = subprocess.run(
        [sys.executable, "-c", KILLED_IN_STEP_5, str(tmp_path / "killed")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert read_last(tmp_path / "killed")["step"] == 4
    for name in ("killed", "whole"):
        Trainer(CONFIG, tmp_path / name, estimator=noisy_estimator(CONFIG)).run()
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole")
    generators = [read_last(tmp_path / name)["random"] for name in ("killed", "whole")]
    assert same(*generators)


def test_the_last_three_states_are_kept(tmp_path):
    for step in range(1, 6):
        save_state({"step": step}, tmp_path, step)
    assert names(tmp_path) == STATES[2:]
    assert load_state(tmp_path) == {"step": 5}


def test_a_state_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    save_state({"step": 1}, tmp_path, 1)
    before = (tmp_path / STATES[0]).read_bytes()

    def full_disk(state: dict, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise Interrupted

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(Interrupted):
        save_state({"step": 1}, tmp_path, 1)
    assert (tmp_path / STATES[0]).read_bytes() == before


def damage_nothing_left(content: bytes) -> bytes:
    return b""


def damage_cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def damage_one_byte(content: bytes) -> bytes:
    return content.replace(b"A" * 64, b"A" * 63 + b"B")


@pytest.mark.parametrize("damage", [damage_nothing_left, damage_cut, damage_one_byte])
def test_a_damaged_state_is_left_out_with_a_warning(tmp_path, damage):
    weights = torch.full((256,), ord("A"), dtype=torch.uint8)
    for step in (1, 2):
        save_state({"step": step, "weights": weights}, tmp_path, step)
    content = (tmp_path / STATES[1]).read_bytes()
    assert damage(content) != content
    (tmp_path / STATES[1]).write_bytes(damage(content))
    with pytest.warns(UserWarning, match=r"state-0000002.pt is damaged \(.*\): going on from the one before"):
        state = load_state(tmp_path)
    assert state is not None
    assert state["step"] == 1
    (tmp_path / STATES[0]).write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match="holds no state that is whole: use a new folder, or delete it"),
    ):
        load_state(tmp_path)


def test_a_run_goes_on_from_the_state_before_a_damaged_one(finished, tmp_path):
    for name in ("state-0000004.pt", "log.csv"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    (tmp_path / "state-0000006.pt").write_bytes(b"half")
    with pytest.warns(UserWarning, match="state-0000006.pt is damaged"):
        trainer = Trainer(CONFIG, tmp_path)
    assert trainer.step == 4
    trainer.run()
    assert_equal_runs(tmp_path, finished)


def test_a_state_of_a_gpu_is_read_without_one(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:7")
        save_state({"weights": torch.ones(3)}, tmp_path, 1)
    with pytest.raises(RuntimeError, match="deserialize object on"):  # as it would be without care
        torch.load(tmp_path / STATES[0], weights_only=True)
    state = load_state(tmp_path)
    assert state is not None
    assert state["weights"].device.type == "cpu"


def test_no_state_is_no_reason_to_stop(tmp_path):
    assert load_state(tmp_path) is None


def test_random_states_are_restored(tmp_path):
    estimator = noisy_estimator(QUICK)
    features = torch.zeros(1, 3, 16, 16)
    cpu = torch.device("cpu")
    save_state(random_state(cpu), tmp_path, 1)
    expected = [estimator.feature_encoder(features) for _ in range(2)]
    state = load_state(tmp_path)
    assert state is not None
    set_random_state(state, cpu)
    assert torch.equal(estimator.feature_encoder(features), expected[0])
    assert torch.equal(estimator.feature_encoder(features), expected[1])


def stored_without(folder: Path, fields: tuple[str, ...]) -> None:
    """Make the newest state look like one of an earlier version, whose configuration had fewer fields."""
    path = max(folder.glob("state-*.pt"))
    state = torch.load(path, weights_only=True)
    config = json.loads(state["config"])
    for name in fields:
        where = config["scenes"] if name.startswith("scenes.") else config
        del where[name.removeprefix("scenes.")]
    torch.save(state | {"config": json.dumps(config)}, path)


def test_fields_that_did_not_exist_had_their_defaults(tmp_path):
    Trainer(dataclasses.replace(QUICK, steps=1), tmp_path).run()
    stored_without(tmp_path, ("accumulate", "float16", "stage", "scenes.photometric"))
    assert Trainer(dataclasses.replace(QUICK, steps=1), tmp_path).finished
    changed = dataclasses.replace(QUICK, steps=1, float16=True)
    with pytest.raises(ValueError, match="a run of another configuration"):
        Trainer(changed, tmp_path)
    scenes = dataclasses.replace(QUICK.scenes, photometric=0.5)
    with pytest.raises(ValueError, match="a run of another configuration"):
        Trainer(dataclasses.replace(QUICK, steps=1, scenes=scenes), tmp_path)


def test_how_many_workers_there_are_may_change(tmp_path):
    config = dataclasses.replace(QUICK, steps=1)
    Trainer(config, tmp_path).run()
    assert Trainer(dataclasses.replace(config, workers=3, data_root="elsewhere"), tmp_path).finished


class after(Event):  # noqa: N801 (reads as a sentence)
    """An event that is set once it was asked so many times."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def is_set(self) -> bool:
        self.left -= 1
        return self.left <= 0


@pytest.mark.parametrize("anew", [False, True])
def test_a_stopped_run_goes_on_where_it_was(finished, tmp_path, anew):
    trainer = Trainer(CONFIG, tmp_path / "stopped")
    seen: list[Progress] = []
    estimator = trainer.run(seen.append, stop_event=after(3))
    assert not estimator.training
    assert (trainer.step, trainer.finished) == (3, False)
    assert [progress.step for progress in seen] == [2]
    assert read_last(tmp_path / "stopped")["step"] == 3
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    if anew:
        trainer = Trainer(CONFIG, tmp_path / "stopped")
    trainer.run(seen.append, stop_event=Event())
    assert trainer.finished
    assert [progress.step for progress in seen] == [2, 4, 6]
    assert_equal_runs(tmp_path / "stopped", finished)


def test_a_run_writes_its_configuration(tmp_path):
    Trainer(QUICK, tmp_path)
    assert read_config(tmp_path / "config.yaml") == QUICK


def test_a_log_of_fewer_columns_is_gone_on_with(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss,seconds,epe_6\n1,2.5,0.1,3.5\n2,9,9,9\n")
    Trainer(QUICK, tmp_path).run()
    rows = read_log(tmp_path)
    assert [row["step"] for row in rows] == ["1", "2"]
    assert (rows[0]["loss"], rows[0]["epe_6"], rows[0]["evaluations"]) == ("2.5", "3.5", "")
    assert rows[1]["evaluations"] != ""
