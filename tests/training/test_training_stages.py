import dataclasses
from pathlib import Path

import pytest
import torch
from layouts import write_all
from training_runs import SCENES, read_log

from deqflow.data.datasets import stage_mixture
from deqflow.model import checkpoints
from deqflow.training import PUBLISHED, Trainer, published_stage
from deqflow.training.data import training_pairs

# facts: steps, batch, lr, crop, gamma, evaluations, corrections, phantom steps, all gradients, frozen batch norm.
TABLE = {
    "chairs": (120_000, 12, 4e-4, (368, 496), 0.8, 36, 6, 1, False, False),
    "things": (120_000, 6, 1.25e-4, (400, 720), 0.8, 40, 2, 3, True, True),
    "sintel": (120_000, 6, 1.25e-4, (368, 768), 0.9, 36, 6, 3, False, True),
    "kitti": (50_000, 6, 1e-4, (288, 960), 0.9, 36, 6, 1, False, True),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Sample files, laid out as the published sets."""
    folder = tmp_path_factory.mktemp("data")
    write_all(folder)
    return folder


def tiny(name: str, root: Path):
    """A stage as published, but for what makes it slow."""
    small = {"size": "small", "crop": (48, 64), "batch": 1, "workers": 0, "data_root": str(root)}
    short = {"steps": 20, "validate_every": 20, "validation_pairs": 1, "scenes": SCENES}
    evaluations = {"evals": (PUBLISHED[name].corrections,) * 2}
    return dataclasses.replace(PUBLISHED[name], **small, **short, **evaluations)


@pytest.mark.parametrize("name", TABLE)
def test_the_presets_are_the_published_table(name):
    config = published_stage(name)
    steps, batch, lr, crop, gamma, evaluations, corrections, phantom, all_gradients, frozen = TABLE[name]
    assert (config.stage, config.size, config.weight_decay, config.clip) == (name, "base", 1e-4, 1.0)
    assert (config.steps, config.batch, config.lr, config.crop, config.gamma) == (steps, batch, lr, crop, gamma)
    assert (config.evals, config.corrections, config.phantom_steps) == ((evaluations,) * 2, corrections, phantom)
    assert (config.all_gradients, config.freeze_batch_norm) == (all_gradients, frozen)


@pytest.mark.parametrize("name", TABLE)
def test_a_published_stage_runs_twenty_steps(root, tmp_path, name):
    trainer = Trainer(tiny(name, root), tmp_path)
    group = trainer.optimizer.param_groups[0]
    assert (group["eps"], group["betas"]) == (1e-8, (0.9, 0.999))
    losses = []
    step = trainer.train_step
    trainer.train_step = lambda batch: losses.append(step(batch)) or losses[-1]
    estimator = trainer.run()
    assert group["betas"] == (0.9, 0.999)  # the published schedule leaves them alone
    assert len(losses) == 20
    assert all(0 < loss < 1000 for loss in losses)
    assert all(torch.isfinite(parameter).all() for parameter in estimator.parameters())
    assert read_log(tmp_path)[-1]["step"] == "20"
    recipe = checkpoints.read_metadata(tmp_path / "model.safetensors")[1]
    assert (recipe["config"]["stage"], recipe["config"]["data_root"]) == (name, root.name)


def test_a_stage_goes_through_its_epochs_as_a_run_that_goes_on_would(root, tmp_path):
    config = tiny("chairs", root)
    pairs = training_pairs(config)
    expected = stage_mixture("chairs", root, crop=config.crop, seed=config.seed)
    beyond = len(expected) + 1  # an index of the second epoch
    assert all(torch.equal(a, b) for a, b in zip(pairs[beyond], expected[beyond], strict=True))
    assert not torch.equal(pairs[beyond].image1, pairs[1].image1)
    assert pairs[0].image1.shape == (3, *config.crop)


def test_a_set_that_is_missing_is_told_before_a_step(tmp_path):
    with pytest.raises(FileNotFoundError, match="FlyingChairs"):
        Trainer(tiny("chairs", tmp_path / "nowhere"), tmp_path / "run").run()


def test_an_unknown_preset_is_told():
    with pytest.raises(ValueError, match="Unknown preset 'cars': expected one of chairs, things, sintel, kitti"):
        published_stage("cars")
