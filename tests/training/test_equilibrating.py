"""A recurrent model turned into an equilibrium model."""

import dataclasses

import pytest
import torch
from training_runs import SCENES, fixed_batch

import deqflow
from deqflow.__main__ import main
from deqflow.commands.equilibrate import Equilibrate
from deqflow.data.datasets import FlowSample
from deqflow.data.synthetic import SyntheticPairs, SyntheticVideo
from deqflow.evidence.equilibration import compare_convergence
from deqflow.evidence.results import load_results
from deqflow.evidence.video_reuse import VideoSample
from deqflow.model.attraction import MeanSmoothing
from deqflow.solvers import Stop
from deqflow.training import as_equilibrium, equilibrate, measure_convergence
from deqflow.training.equilibrating import RECIPE, TOLERANCE
from deqflow.training.objective import Draw, Objective

TINY = dataclasses.replace(
    RECIPE,
    steps=2,
    batch=2,
    evals=(4, 6),
    workers=0,
    bfloat16=False,
    validate_every=2,
    validation_pairs=1,
    scenes=SCENES,
)


@pytest.fixture(scope="module")
def twin():
    return deqflow.load("raft-small-twin")


def test_the_equilibrium_model_starts_as_the_recurrent_one(twin):
    made, batch = as_equilibrium(twin).eval(), fixed_batch()
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), twin.parameters(), strict=True))
    images = (batch.image1, batch.image2)
    assert torch.equal(made(*images, stop=Stop(max_evals=12, atol=0.0)).flow, twin(*images).flow)
    assert made.equilibrium.eval_stop.atol == TOLERANCE
    assert made(*images).solve.evals.max() <= 60
    assert twin.equilibrium.eval_stop.max_evals == 12, "the given model is not changed"


def test_an_equilibrium_model_is_refused():
    with pytest.raises(ValueError, match="expects a recurrent model such as RAFT's, got an equilibrium model"):
        as_equilibrium(deqflow.build("mini"))


def test_only_the_update_operator_and_the_upsampler_learn_and_a_run_goes_on(twin, tmp_path):
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    trained = equilibrate(twin, tmp_path, config=TINY, smoothing=0.2)
    changed = {
        name.split(".")[0] for name, value in trained.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"update", "upsampler"}
    assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())
    loaded = deqflow.load(tmp_path / "model.safetensors")
    assert isinstance(loaded.attraction, MeanSmoothing)
    assert loaded.attraction.strength == 0.2
    assert loaded.recurrent
    assert loaded.equilibrium.eval_stop == dataclasses.replace(
        loaded.equilibrium.eval_stop, max_evals=60, atol=TOLERANCE
    )
    batch = fixed_batch()
    again = equilibrate(twin, tmp_path, config=TINY, smoothing=0.2)
    assert torch.equal(again(*batch[:2]).flow, trained(*batch[:2]).flow)


def test_the_teachers_flow_is_a_second_target(twin):
    batch, draw = fixed_batch(), Draw(Stop(max_evals=6, atol=0.0), 1)
    losses = {}
    for weight in (0.0, 0.5, 1.0):
        config = dataclasses.replace(TINY, teacher_weight=weight)
        student = as_equilibrium(twin, config).train()
        losses[weight] = Objective(student, config, twin)(batch, draw)[0].item()
    assert losses[0.5] - losses[0.0] == pytest.approx(losses[1.0] - losses[0.5], rel=1e-3)
    assert losses[1.0] > losses[0.0]


def test_convergence_is_measured_pair_by_pair(twin):
    pairs = SyntheticPairs(3, seed=4, config=SCENES)
    found = measure_convergence(as_equilibrium(twin).eval(), pairs, (2, 12))
    alone = [measure_convergence(as_equilibrium(twin).eval(), [pairs[i]], (2, 12)) for i in range(3)]
    assert found.errors[12] == pytest.approx(sum(one.errors[12] for one in alone) / 3)
    assert found.movement == sorted(one.movement for one in alone)[1]
    assert found.evaluations == pytest.approx(sum(one.evaluations for one in alone) / 3)
    assert str(found).startswith(f"error {found.errors[2]:.3f} px after 2, ")
    still = FlowSample(*(torch.zeros_like(tensor) for tensor in pairs[0][:4]), pairs[0].occluded)
    still = still._replace(valid=torch.ones_like(still.valid))
    assert measure_convergence(as_equilibrium(twin).eval(), [still], (2, 24)).errors[2] < 1


def test_the_command_writes_a_model_and_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("deqflow.training.equilibrating.RECIPE", TINY)
    monkeypatch.setattr("deqflow.data.synthetic.RICH_SCENES", SCENES)
    out = tmp_path / "made.safetensors"
    command = [
        "equilibrate",
        "raft-small-twin",
        "--out",
        str(out),
        "--folder",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    ]
    assert main([*command, "--steps", "1", "--pairs", "1"]) == 0
    said = capsys.readouterr().out
    assert "procedural, held out, before: error" in said
    assert "procedural, held out, after: error" in said
    assert deqflow.load(out).origin == "raft-small-twin, equilibrated"
    assert "warm starts" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["raft-small-twin", "--out", "a.pth"], "ends in .safetensors, got a.pth"),
        (["deqflow-small", "--out", "a.safetensors"], "expects a recurrent model"),
        (["raft-small-twin", "--out", "a.safetensors", "--data", "nowhere"], "nowhere is not a folder"),
        (["nothing", "--out", "a.safetensors"], "nothing"),
        (["raft-small-twin", "--out", "a.safetensors", "--results", "a.csv"], "--results expects a name that ends in"),
        (["raft-small-twin", "--out", "a.safetensors", "--stage", "chairs"], "--stage chairs expects --data"),
        (
            ["raft-small-twin", "--out", "a.safetensors", "--stage", "chairs", "--photographs", "."],
            "--photographs has no effect with --stage",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["equilibrate", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.safetensors").exists()


def test_it_trains_on_the_data_that_are_given(tmp_path):
    command = Equilibrate("raft-small-twin", tmp_path / "a.safetensors", steps=7)
    assert command._config() == dataclasses.replace(RECIPE, steps=7, validate_every=7)
    own = dataclasses.replace(command, photographs=tmp_path)._config()
    assert own.scenes == dataclasses.replace(RECIPE.scenes, photographs=str(tmp_path))
    published = dataclasses.replace(command, stage="chairs", data=tmp_path)._config()
    assert (published.stage, published.data_root) == ("chairs", str(tmp_path))


def test_results_hold_pairs_and_videos_of_both_models(twin, tmp_path):
    lines, models = [], {"before": as_equilibrium(twin).eval(), "after": as_equilibrium(twin, smoothing=0.3).eval()}
    clip = VideoSample.of(SyntheticVideo(3, seed=1, config=SCENES))
    out = tmp_path / "results.json"
    results = compare_convergence(models, {"a": SyntheticPairs(1, config=SCENES)}, {"b": [clip]}, out, lines.append)
    assert load_results(out) == results
    assert results["sets"]["a"]["pairs"] == 1
    for label in models:
        assert results["sets"]["a"][label]["errors"].keys() == {"12", "24", "96"}
        assert results["video"]["b"][label]["reset"]["evaluations"] > 0
    assert len(lines) == 4
    assert "warm starts take" in lines[3]
