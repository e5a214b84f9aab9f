"""What the tests of training share: a small run, a fixed batch, and whether two runs are the same."""

import csv
import dataclasses
import random
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from deqflow.data.datasets import FlowSample
from deqflow.data.synthetic import SceneConfig, SyntheticPairs
from deqflow.model.estimator import FlowEstimator
from deqflow.training import TrainConfig, make_estimator

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


def fixed_batch(size: int = 2, scenes: SceneConfig = SCENES) -> FlowSample:
    pairs = SyntheticPairs(size, config=scenes)
    return FlowSample(*(torch.stack(tensors) for tensors in zip(*(pairs[i] for i in range(size)), strict=True)))


def read_log(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_last(folder: Path) -> dict:
    """The newest state of a run."""
    return torch.load(max(folder.glob("state-*.pt")), weights_only=True)


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
    for key in ("config", "model", "optimizer", "schedule", "scaler", "step", "recent"):
        assert same(last[key], last_of_other[key]), key
    logs = [[{**row, "seconds": ""} for row in read_log(folder)] for folder in (one, other)]
    assert logs[0] == logs[1]


def noisy_estimator(config: TrainConfig) -> FlowEstimator:
    """A model of one's own that draws from each of the global generators, which are seeded here."""
    estimator = make_estimator(config)
    np.random.seed(0)  # noqa: NPY002 (the global generators are the point)
    random.seed(0)

    def add_noise(_: nn.Module, __: tuple, features: torch.Tensor) -> torch.Tensor:
        strength = random.random() * np.random.rand()  # noqa: NPY002
        return features + strength * torch.randn_like(features)

    estimator.feature_encoder.register_forward_hook(add_noise)
    return estimator
