import json
from dataclasses import asdict, replace

import pytest
import torch
from training_runs import QUICK

from deqflow.model.checkpoints import SHIPPED, load, read_metadata
from deqflow.training.recipes import RECIPES, SETTINGS, reproduce

STAGE = replace(QUICK, size="tiny")


def test_every_shipped_model_has_a_recipe():
    assert set(RECIPES) == set(SHIPPED)


@pytest.mark.claims
@pytest.mark.parametrize("name", SHIPPED)
def test_the_recipe_is_the_one_inside_the_checkpoint(name):
    stored = read_metadata(name)[1]
    for stage in reversed(RECIPES[name]):
        expected = json.loads(json.dumps(asdict(stage)))
        got = stored["config"]
        for key in got.keys() - {"start_from", "scenes"}:  # settings that did not exist then are not in the file
            assert got[key] == expected[key], key
        assert got["scenes"] == {key: expected["scenes"][key] for key in got["scenes"]}
        stored = stored["before"]
    assert stored == {}


@pytest.mark.claims
@pytest.mark.parametrize("name", SHIPPED)
def test_the_checkpoint_has_the_settings_that_are_set_after_training(name):
    config = read_metadata(name)[0]
    assert {key: getattr(config, key) for key in SETTINGS[name]} == SETTINGS[name]


def test_settings_are_set_after_training(tmp_path):
    path = reproduce((STAGE,), tmp_path, settings={"max_evals": 7, "least_gate": 0.2})
    assert path == tmp_path / "model.safetensors"
    trained, made = load(tmp_path / "stage-1" / "model.safetensors"), load(path)
    assert made.equilibrium.eval_stop.max_evals == 7
    assert [unit.least_gate for unit in made.update.units] == [0.2, 0.2]
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), trained.parameters(), strict=True))
    assert read_metadata(path)[1] == read_metadata(tmp_path / "stage-1" / "model.safetensors")[1]


def test_stages_follow_each_other_and_finished_ones_are_kept(tmp_path):
    stages = (STAGE, replace(STAGE, seed=1, lr=1e-4))
    path = reproduce(stages, tmp_path)
    assert path == tmp_path / "stage-2" / "model.safetensors"
    recipe = read_metadata(path)[1]
    assert recipe["config"]["seed"] == 1
    assert recipe["before"]["config"]["seed"] == 0
    first = (tmp_path / "stage-1" / "model.safetensors").stat().st_mtime_ns
    assert reproduce(stages, tmp_path) == path
    assert (tmp_path / "stage-1" / "model.safetensors").stat().st_mtime_ns == first


@pytest.mark.parametrize(("asked", "stored"), [(True, None), (False, False), (None, None)])
def test_bfloat16_is_left_to_the_device(tmp_path, asked, stored):
    reproduce((replace(STAGE, steps=1, bfloat16=asked),), tmp_path)
    assert read_metadata(tmp_path / "stage-1" / "model.safetensors")[1]["config"]["bfloat16"] is stored


def test_there_must_be_a_stage(tmp_path):
    with pytest.raises(ValueError, match="at least one stage"):
        reproduce((), tmp_path)
