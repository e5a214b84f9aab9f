"""Whether a fixed point attracts, measured on maps that are known and on the shipped model."""

import dataclasses
import json

import pytest
import torch

import deqflow
from deqflow.__main__ import main
from deqflow.data.synthetic import SceneConfig, SyntheticPairs
from deqflow.evidence.attraction import attraction_of, run_attraction, summarise_attraction

PAIRS = SyntheticPairs(2, seed=3, config=SceneConfig(height=48, width=64))


class Linear:
    """f(z) = gain z + 1, whatever the images."""

    def __init__(self, gain):
        self.gain, self.all_gradients = gain, True

    def __call__(self, z):
        return self.gain * z + 1


def estimator_of(gain):
    estimator = deqflow.load("deqflow-small")
    pose = estimator.problem
    estimator.problem = lambda *features: dataclasses.replace(pose(*features), f=Linear(gain))
    return estimator


def test_a_contraction_forgets_starts_and_noise_by_its_gain():
    rows = attraction_of(estimator_of(0.5), PAIRS, radius_steps=8)
    assert len(rows) == 2
    for row in rows:
        assert row["random_apart_px"] < 1e-4
        assert row["truth_apart_px"] < 1e-4
        assert row["white_after_1_px"] == pytest.approx(0.4, rel=1e-3)
        assert row["smooth_after_5_px"] == pytest.approx(0.8 / 2**5, rel=1e-3)
        assert row["spectral_radius"] == pytest.approx(0.5, rel=1e-3)
        assert row["broyden_evaluations"] < row["picard_evaluations"]
    assert "stale_apart_px" not in rows[0]
    assert rows[1]["stale_apart_px"] < 1e-4


def test_a_map_that_keeps_what_it_is_given_shows_it():
    row = attraction_of(estimator_of(1.0), PAIRS, radius_steps=8)[0]
    assert row["white_after_20_px"] == pytest.approx(0.8, rel=1e-3)
    assert row["random_apart_px"] > 1
    assert row["picard_evaluations"] == 100


def test_summaries_are_medians_and_what_nine_of_ten_do_not_exceed():
    found = summarise_attraction([{"a": float(value)} for value in range(10)] + [{"b": 2.0}])
    assert found == {"a": {"median": 4.5, "nine_of_ten": 8.0}, "b": {"median": 2.0, "nine_of_ten": 2.0}}


def test_a_results_file_says_where_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.setattr("deqflow.evidence.attraction.RICH_SCENES", SceneConfig(height=48, width=64))
    said = []
    results = run_attraction({"half": estimator_of(0.5)}, tmp_path / "out.json", 1, said.append)
    assert json.loads((tmp_path / "out.json").read_text())["models"] == results["models"]
    assert results["provenance"]["commit"]
    assert said[0].startswith("half: the ends of random starts lie ")


@pytest.mark.claims
def test_the_shipped_model_draws_noise_back():
    with torch.no_grad():
        row = attraction_of(deqflow.load("deqflow-small"), PAIRS, radius_steps=4)[0]
    assert row["white_after_20_px"] < row["white_after_1_px"] < 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attraction", "--data", "."], "--data has no effect on attraction"),
        (["corrections", "--model", "deqflow-small"], "--model has no effect on corrections"),
    ],
)
def test_options_without_effect_are_refused(arguments, message, tmp_path, capsys):
    assert main(["experiment", *arguments, "--out", str(tmp_path / "out.json")]) == 1
    assert message in capsys.readouterr().err
