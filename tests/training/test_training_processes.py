import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.utils import DistributedType
from training_runs import QUICK, read_log, same

from deqflow.data.datasets import FlowSample
from deqflow.training import Processes, Trainer
from deqflow.training.data import Shares
from deqflow.training.devices import require_data_parallel

# A larger batch, and enough steps to be logged, interrupted and gone on with.
CONFIG = dataclasses.replace(QUICK, batch=4, steps=2, validate_every=1, validation_pairs=3, workers=0, clip=1e9)

ONE_OF_TWO = """
import sys
from pathlib import Path
import torch
from deqflow.training import Trainer
from test_training_processes import CONFIG

torch.set_num_threads(1)
folder = Path(sys.argv[1])
trainer = Trainer(CONFIG, folder, device="auto")
kept = []
take = trainer.train_step

def watched(batch):
    loss = take(batch)
    gradients = [parameter.grad.clone() for parameter in trainer.estimator.parameters()]
    kept.append({"loss": loss, "gradients": gradients, "pairs": batch.image1})
    return loss

trainer.train_step = watched
trainer.run(lambda _: None)
torch.save(kept, folder / f"process-{trainer.processes.index}-of-{trainer.processes.count}.pt")
again = Trainer(CONFIG, folder, device="auto")  # all go on from what the first one kept
assert again.finished
print(again.processes.description)
try:
    Trainer(CONFIG, folder, device="cpu")
except ValueError as error:
    print(error)
"""


def test_two_processes_follow_the_gradient_of_one_with_twice_their_batch(tmp_path):
    paths = [str(Path(__file__).parents[1]), *sys.path]
    environment = {"PYTHONPATH": os.pathsep.join(path for path in paths if path), "OMP_NUM_THREADS": "1"}
    # accelerate launch is this for GPUs; for processors it wants MPI.
    launch = "-m torch.distributed.run --standalone --nproc_per_node 2"
    script = tmp_path / "train.py"
    script.write_text(ONE_OF_TWO)
    child = subprocess.run(
        [sys.executable, *launch.split(), str(script), str(tmp_path / "two")],
        env=os.environ | environment | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert child.returncode == 0, child.stderr
    assert "2 processes, each with one CPU" in child.stdout
    assert "accelerate launch gives each process its device, got cpu: leave it at auto." in child.stdout

    one: list[dict] = []

    class Watched(Trainer):
        def train_step(self, batch: FlowSample) -> float:
            loss = super().train_step(batch)
            gradients = [parameter.grad.clone() for parameter in self.estimator.parameters()]
            one.append({"loss": loss, "gradients": gradients, "pairs": batch.image1})
            return loss

    Watched(CONFIG, tmp_path / "one").run(lambda _: None)
    two = [torch.load(tmp_path / "two" / f"process-{index}-of-2.pt", weights_only=True) for index in (0, 1)]
    for step, whole in enumerate(one):
        first, second = (process[step] for process in two)
        assert same(first["gradients"], second["gradients"])
        assert torch.equal(torch.cat([first["pairs"], second["pairs"]]), whole["pairs"])
        assert first["loss"] == second["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        largest = max(gradient.abs().max() for gradient in whole["gradients"])
        for gradient, expected in zip(first["gradients"], whole["gradients"], strict=True):
            # In the second step the weights differ by as much as the first one's rounding.
            assert torch.allclose(gradient, expected, rtol=0, atol=(1e-5, 1e-3)[step] * float(largest))
    for row, expected in zip(read_log(tmp_path / "two"), read_log(tmp_path / "one"), strict=True):
        assert float(row["epe_6"]) == pytest.approx(float(expected["epe_6"]), rel=1e-3)
        assert float(row["residual_48"]) == pytest.approx(float(expected["residual_48"]), rel=1e-2)
    state = torch.load(tmp_path / "two" / "state-0000002.pt", weights_only=True)
    assert len(state["random"]) == 2


def test_shares_are_those_of_one_process_put_side_by_side():
    whole = list(Shares(CONFIG))
    shares = [list(Shares(CONFIG, process=index, processes=2)) for index in (0, 1)]
    assert whole == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [first + second for first, second in zip(*shares, strict=True)] == whole
    assert list(Shares(CONFIG, first=1)) == whole[1:]
    assert len(Shares(CONFIG, first=1)) == 1


def test_one_process_is_all_there_is():
    processes = Processes("cpu")
    assert (processes.index, processes.count, processes.is_first) == (0, 1, True)
    assert processes.description == "one CPU"
    module, value = torch.nn.Linear(1, 1), torch.ones(2)
    assert processes.wrap(module) is module
    assert processes.mean(value) is processes.sum(value) is value
    assert processes.any(True)
    assert not processes.any(False)
    assert processes.gather("a") == ["a"]
    assert processes.from_first("a") == "a"


def test_auto_takes_a_gpu_where_there_is_one():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert Processes().device.type == expected


def test_a_gpu_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="No device cuda:1: torch finds no GPU here"):
        Trainer(QUICK, tmp_path, device="cuda:1")


def test_a_batch_that_cannot_be_shared_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(Processes, "__init__", lambda self, _: vars(self).update(count=3, device=torch.device("cpu")))
    config = dataclasses.replace(QUICK, batch=4, accumulate=2)
    with pytest.raises(
        ValueError, match=r"that 3 processes with accumulate=2 can share out, got 4: take a multiple of 6"
    ):
        Trainer(config, tmp_path)


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_a_launch_that_splits_the_model_is_refused(kind):
    with pytest.raises(ValueError, match=f"expects data parallelism .* got {kind.value}"):
        require_data_parallel(kind)
    require_data_parallel(DistributedType.MULTI_GPU)
