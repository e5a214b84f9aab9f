"""Short trainings of the shipped model that each change one setting."""

import dataclasses

import pytest
from training_runs import SCENES

import deqflow
from deqflow.data.synthetic import HELD_OUT_SEED, SyntheticPairs
from deqflow.evidence import ablation
from deqflow.evidence.ablation import CONFIG, VARIANTS, measure_ablation, run_ablation
from deqflow.evidence.attraction import attraction_of, summarise_attraction
from deqflow.evidence.results import load_results
from deqflow.model.budgets import flows_after
from deqflow.training import make_estimator

TINY = dataclasses.replace(CONFIG, steps=1, batch=1, evals=(3, 3), bfloat16=False, validate_every=1, scenes=SCENES)


@pytest.fixture(autouse=True)
def near(monkeypatch):
    monkeypatch.setattr(ablation, "EVALS", (2, 4))
    monkeypatch.setattr("deqflow.evidence.attraction.FAR", 6)


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_is_a_training_of_the_shipped_model(name):
    config = dataclasses.replace(CONFIG, **VARIANTS[name])
    changed = [field for field in VARIANTS[name] if getattr(config, field) == getattr(CONFIG, field)]
    assert not changed, "a variant that changes nothing"
    assert make_estimator(config).config.size == deqflow.load("deqflow-small").config.size


def test_a_model_is_measured_on_held_out_pairs():
    estimator = deqflow.load("deqflow-small")
    pairs = SyntheticPairs(2, seed=HELD_OUT_SEED, config=SCENES)
    found = measure_ablation(estimator, pairs, 1)
    errors = []
    for pair in (pairs[0], pairs[1]):
        flow = flows_after(estimator, pair.image1[None], pair.image2[None], (4,))[0][4][0]
        errors.append(float((flow - pair.flow).norm(dim=0)[pair.valid].mean()))
    assert found["error_px"]["4"] == pytest.approx(sum(errors) / 2, rel=1e-4)
    assert found["residual_px"]["4"] < found["residual_px"]["2"]
    first = SyntheticPairs(1, seed=HELD_OUT_SEED, config=SCENES)
    assert found["attraction"] == summarise_attraction(attraction_of(estimator, first, radius_steps=20))


def test_every_variant_and_seed_has_a_row_beside_the_start(tmp_path):
    variants = {"plain": {}, "way back": {"return_weight": 1.0}}
    lines = []
    results = run_ablation(tmp_path / "out.json", tmp_path / "runs", TINY, variants, 1, 1, lines.append)
    assert load_results(tmp_path / "out.json") == results
    assert [(run["variant"], run["seed"]) for run in results["runs"]] == [
        (name, seed) for seed in (0, 1) for name in variants
    ]
    assert results["variants"] == variants
    errors = {run["error_px"]["4"] for run in results["runs"]} | {results["start"]["error_px"]["4"]}
    assert len(errors) == 5, "every training ends elsewhere"
    assert lines[1].startswith("way back, seed 0: ")
    again = run_ablation(tmp_path / "again.json", tmp_path / "runs", TINY, variants, 1, 1, lines.append)
    assert again["runs"] == results["runs"]
