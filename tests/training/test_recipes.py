import json
from dataclasses import asdict, replace

import pytest
from training_runs import QUICK

from deqflow.model.checkpoints import SHIPPED, read_metadata
from deqflow.training.files import complete
from deqflow.training.recipes import RECIPES, reproduce

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
        assert complete(got) | {"start_from": ""} == expected
        stored = stored["before"]
    assert stored == {}


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


def test_there_must_be_a_stage(tmp_path):
    with pytest.raises(ValueError, match="at least one stage"):
        reproduce((), tmp_path)
