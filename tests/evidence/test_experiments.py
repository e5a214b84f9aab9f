import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deqflow import build
from deqflow.__main__ import main
from deqflow.data.metrics import mean_endpoint_error
from deqflow.data.synthetic import SceneConfig
from deqflow.equilibrium import Phantom, Unrolled
from deqflow.evidence import experiments
from deqflow.evidence.experiments import EXPERIMENTS, Experiment, Variant, error_curve, prepare, run_experiment
from deqflow.evidence.results import curves, load_results, published
from deqflow.model import checkpoints
from deqflow.solvers import Stop
from deqflow.training import Trainer


class Interrupted(Exception):  # noqa: N818 (no error: what a person does)
    """Stands for Ctrl-C."""


def short(name: str) -> Experiment:
    """An experiment of two steps a run."""
    experiment = EXPERIMENTS[name]
    config = replace(experiment.config, steps=2, batch=1, scenes=SceneConfig(height=32, width=32))
    return replace(experiment, config=config, seeds=(0, 1), pairs=12, held_out=2, evals=(2, 5), looks=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The results of an experiment that nobody interrupted."""
    out = tmp_path_factory.mktemp("experiment") / "new folder" / "corrections.json"
    run_experiment("corrections", short("corrections"), out)
    return out


def without_seconds(run: dict) -> dict:
    looks = [{**look, "seconds": 0} for look in run["progress"]]
    return {**run, "seconds": 0, "progress": looks}


def test_each_variant_is_run_with_each_seed(finished):
    results = load_results(finished)
    assert [(run["variant"], run["seed"]) for run in results["runs"]] == [
        (variant, seed) for seed in (0, 1) for variant in ("1", "2", "3", "6")
    ]
    for run in results["runs"]:
        assert [look["step"] for look in run["progress"]] == [1, 2]
        assert 0 < run["progress"][0]["seconds"] < run["progress"][1]["seconds"] <= round(run["seconds"], 5)
        assert run["curve"]["evals"] == [2, 5]
        assert all(0 < x < 50 for name in ("error_px", "residual_px") for x in run["curve"][name])
    assert list(finished.parent.iterdir()) == [finished]  # nothing unfinished is left


def test_the_results_say_where_they_come_from(finished):
    results = load_results(finished)
    assert results["experiment"] == "corrections"
    assert results["provenance"].keys() == {"commit", "modified", "versions", "hardware"}
    config = results["config"]
    assert config["config"]["steps"] == 2
    assert config["seeds"] == [0, 1]
    assert config["variants"]["6"] == {"corrections": 6, "gradient": {"kind": "Phantom", "steps": 1, "damping": 1.0}}
    assert len(config["encoder_sha256"]) == 64


def test_a_variant_and_a_seed_make_the_run(finished, tmp_path):
    one = replace(short("corrections"), variants={"3": Variant(corrections=3)}, seeds=(1,))
    run = run_experiment("again", one, tmp_path / "again.json")["runs"][0]
    runs = load_results(finished)["runs"]
    same = next(other for other in runs if (other["variant"], other["seed"]) == ("3", 1))
    assert without_seconds(run) == without_seconds(same)
    assert len({str(run["curve"]) for run in runs}) == len(runs)


def test_all_variants_of_a_seed_see_the_same_pairs(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Trainer, "train_step", lambda _, batch: seen.append(batch.flow.numpy().tobytes()) or 0.0)
    run_experiment("corrections", replace(short("corrections"), seeds=(0, 4)), tmp_path / "results.json")
    by_run = [seen[i : i + 2] for i in range(0, len(seen), 2)]
    assert len(by_run) == 8
    assert by_run[:4] == by_run[:1] * 4
    assert by_run[4:] == by_run[4:5] * 4
    assert by_run[0] != by_run[4]


def test_an_interrupted_experiment_goes_on_run_by_run(finished, tmp_path, monkeypatch):
    out, done = tmp_path / "results.json", []

    def interrupt(run):
        done.append(run)
        if len(done) == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        run_experiment("corrections", short("corrections"), out, interrupt)
    assert len(load_results(out)["runs"]) == 3
    results = run_experiment("corrections", short("corrections"), out, done.append)
    assert len(done) == 8
    assert results == load_results(out)
    expected = load_results(finished)["runs"]
    assert [without_seconds(run) for run in results["runs"]] == [without_seconds(run) for run in expected]
    monkeypatch.setattr(experiments, "train_variant", lambda *_: pytest.fail("a finished run was run again"))
    assert run_experiment("corrections", short("corrections"), out)["runs"] == results["runs"]


def test_results_of_another_experiment_are_refused(finished):
    before = finished.read_bytes()
    other = replace(short("corrections"), pairs=4)
    with pytest.raises(ValueError, match=r"corrections.json holds an experiment of another configuration: use a new"):
        run_experiment("corrections", other, finished)
    assert finished.read_bytes() == before


@pytest.mark.filterwarnings("ignore:The backward solve of Implicit has not converged")  # 20 evaluations are its budget
def test_every_gradient_trains(tmp_path):
    results = run_experiment("gradients", replace(short("gradients"), seeds=(0,)), tmp_path / "results.json")
    assert set(curves(results, "error_px")) == set(EXPERIMENTS["gradients"].variants)
    kinds = {variant["gradient"]["kind"] for variant in results["config"]["variants"].values()}
    assert kinds == {"Phantom", "Implicit", "Reversible", "Unrolled"}


@pytest.mark.parametrize(
    ("variant", "evaluations"),
    [(Variant(corrections=3), 15), (Variant(gradient=Phantom(steps=4)), 16), (Variant(gradient=Unrolled()), 12)],
)
def test_a_variant_reaches_the_estimator(monkeypatch, variant, evaluations):
    experiment = replace(short("corrections"), variants={"it": variant})
    calls = []
    train_step = Trainer.train_step

    def watch(trainer, batch):
        hook = trainer.estimator.update.register_forward_hook(lambda *_: calls.append(1))
        loss = train_step(trainer, batch)
        hook.remove()
        return loss

    monkeypatch.setattr(Trainer, "train_step", watch)
    estimator, _ = experiments.train_variant(experiment, "it", 0, prepare(experiment))
    assert len(calls) == 2 * evaluations
    assert estimator.equilibrium.gradient == variant.gradient
    assert estimator.equilibrium.corrections == variant.corrections


@pytest.mark.parametrize("frozen", [True, False])
def test_the_encoder_is_lent_and_stays_as_it_is_if_frozen(frozen):
    experiment = replace(short("corrections"), frozen=frozen)
    material = prepare(experiment)
    estimator, _ = experiments.train_variant(experiment, "1", 0, material)
    lent = material.lender.feature_encoder.state_dict()
    same = [torch.equal(tensor, lent[name]) for name, tensor in estimator.feature_encoder.state_dict().items()]
    assert all(same) if frozen else not any(same)
    own, other = (dict(model.update.named_parameters()) for model in (estimator, material.lender))
    assert not any(torch.equal(own[name], other[name]) for name in own)


def test_the_lender_must_be_of_the_same_size(tmp_path):
    path = checkpoints.save(build("tiny"), tmp_path / "tiny.safetensors")
    with pytest.raises(ValueError, match="lends its encoder must be of the size that is trained"):
        run_experiment("corrections", replace(short("corrections"), encoder=str(path)), tmp_path / "results.json")
    assert not (tmp_path / "results.json").exists()


def test_a_run_that_fails_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    train_step = Trainer.train_step

    def watch(trainer, batch):
        if trainer.config.corrections == 2 and trainer.step == 1:
            raise FloatingPointError("The loss of step 1 (seed 0) is not finite: lower lr, or set bfloat16=False.")
        return train_step(trainer, batch)

    monkeypatch.setattr(Trainer, "train_step", watch)
    results = run_experiment("corrections", short("corrections"), tmp_path / "results.json")
    failed = [run for run in results["runs"] if "failed" in run]
    assert [run["variant"] for run in failed] == ["2", "2"]
    assert "not finite" in failed[0]["failed"]
    assert [look["step"] for look in failed[0]["progress"]] == [1]
    assert set(curves(results, "error_px")) == {"1", "3", "6"}


def test_an_error_curve_has_the_error_after_each_number_of_evaluations():
    experiment = short("corrections")
    held_out = prepare(experiment).held_out
    torch.manual_seed(0)
    estimator = build("mini")
    curve = error_curve(estimator, held_out, (5, 2))
    assert estimator.training
    assert curve["evals"] == [2, 5]
    estimator.eval()
    for i, evaluations in enumerate(curve["evals"]):
        with torch.no_grad():
            output = estimator(held_out.image1, held_out.image2, stop=Stop(max_evals=evaluations, atol=0.0))
        error = mean_endpoint_error(output.flow, held_out.flow, held_out.valid).mean().item()
        assert curve["error_px"][i] == pytest.approx(error, rel=1e-4)
        assert curve["residual_px"][i] == pytest.approx(output.solve.residual.mean().item(), rel=1e-4, abs=1e-6)


def test_the_command_runs_an_experiment(tmp_path, monkeypatch, capsys):
    one = replace(short("corrections"), variants={"2": Variant(corrections=2)}, seeds=(0,))
    monkeypatch.setitem(EXPERIMENTS, "corrections", one)
    out = tmp_path / "results.json"
    assert main(["experiment", "corrections", "--out", str(out)]) == 0
    assert "2, seed 0: held-out error" in capsys.readouterr().out
    assert len(json.loads(out.read_text())["runs"]) == 1
    assert main(["experiment", "nothing", "--out", str(out)]) == 1
    assert "expected one of corrections, gradients, attraction, video" in capsys.readouterr().err


def test_an_error_curve_is_of_one_solve_that_is_not_repeated_with_damping(monkeypatch):
    held_out = prepare(short("corrections")).held_out
    torch.manual_seed(0)
    estimator = build("mini")
    calls = []
    estimator.update.register_forward_hook(lambda *_: calls.append(1))
    convert = estimator.problem

    def growing(*features):  # a map without a fixed point to find, which the estimator would damp
        problem = convert(*features)
        return replace(problem, f=lambda z: 2 * problem.f(z) + 1)

    monkeypatch.setattr(estimator, "problem", growing)
    curve = error_curve(estimator, held_out, (3, 8))
    assert len(calls) == 8
    assert curve["residual_px"][1] > curve["residual_px"][0] > 0


@pytest.mark.claims
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_published_results_are_complete(name):
    results, experiment = load_results(published(name)), EXPERIMENTS[name]
    asked = {(variant, seed) for variant in experiment.variants for seed in experiment.seeds}
    assert {(run["variant"], run["seed"]) for run in results["runs"]} == asked
    stored, today = results["config"], experiments.describe(experiment)
    for name, variant in stored["variants"].items():  # settings that did not exist then are not in the file
        now = today["variants"][name]
        assert variant["corrections"] == now["corrections"]
        assert variant["gradient"] == {key: now["gradient"][key] for key in variant["gradient"]}
    then = stored["config"]
    assert then | {"scenes": None} == {key: today["config"][key] for key in then} | {"scenes": None}
    assert then["scenes"] == {key: today["config"]["scenes"][key] for key in then["scenes"]}
    assert all(run["commit"] for run in results["runs"])
