import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from layouts import write_chairs_samples, write_kitti, write_sintel

import deqflow
from deqflow.__main__ import main
from deqflow.data.datasets import FlowSample, available_benchmarks
from deqflow.data.synthetic import RICH_SCENES, SceneConfig
from deqflow.evidence.evaluation import (
    SUBSETS,
    EvaluationConfig,
    EvaluationSet,
    estimate_pair,
    evaluate,
    evaluate_set,
    evaluation_sets,
    procedural_pairs,
    report_lines,
    subset,
)
from deqflow.model.scales import carry_to_scale, resize_flow, resize_images
from deqflow.solvers import Anderson, Stop

SMALL = SceneConfig(height=42, width=61, camera=2.0, motion=2.0, largest=8.0)  # neither side divides by 8
QUICK = EvaluationConfig(evals=(1, 3, 6), precision="float32", device="cpu", procedural=2)


@pytest.fixture(scope="module")
def estimator():
    return deqflow.load("deqflow-small")


@pytest.fixture(scope="module")
def pairs():
    return [*procedural_pairs(2, SMALL)]


@pytest.mark.parametrize("rule", [None, Anderson()], ids=["picard", "anderson"])
def test_after_k_evaluations_the_flow_is_what_a_budget_of_k_gives(pairs, rule):
    model = deqflow.load("deqflow-small")
    model.equilibrium.rule = rule or model.equilibrium.rule
    estimates = estimate_pair(model, pairs[0], QUICK)
    for k in QUICK.evals:
        with torch.no_grad():
            output = model(pairs[0].image1[None], pairs[0].image2[None], stop=Stop(max_evals=k, atol=0.0))
        torch.testing.assert_close(estimates.flows[k], output.flow)
        assert estimates.residuals[k] == pytest.approx(output.solve.residual.item(), rel=1e-4)
    assert 0 < estimates.seconds[1] < estimates.seconds[6]


def test_the_early_stop_is_the_models_own(estimator, pairs):
    estimates = estimate_pair(estimator, pairs[0], QUICK)
    with torch.no_grad():
        output = estimator(pairs[0].image1[None], pairs[0].image2[None])
    torch.testing.assert_close(estimates.stopped, output.flow)
    assert estimates.stopped_evaluations == output.solve.evals.item()


def test_at_scales_evaluations_are_those_of_the_last_one(estimator, pairs):
    config = replace(QUICK, scales=(1.0, 1.5))
    estimates = estimate_pair(estimator, pairs[0], config)
    images = (pairs[0].image1[None], pairs[0].image2[None])
    with torch.no_grad():
        whole = deqflow.estimate_at_scales(estimator, *images, config.scales)
        coarse = estimator(*images).state
        fine = [resize_images(image, 1.5) for image in images]
        start = carry_to_scale(coarse, fine[0], 8)
        last = estimator(*fine, start=start, stop=Stop(max_evals=3, atol=0.0))
    torch.testing.assert_close(estimates.stopped, whole.flow)
    assert estimates.stopped_evaluations == whole.outputs[-1].solve.evals.item()
    torch.testing.assert_close(estimates.flows[3], resize_flow(last.flow, *images[0].shape[-2:]))
    assert estimates.residuals[3] == pytest.approx(last.solve.residual.item() / 1.5, rel=1e-4)
    figures = evaluate_set({"deqflow-small": estimator}, EvaluationSet(pairs), config)["methods"]["deqflow-small"]
    assert list(figures["at"]) == ["1", "3", "6"]


def test_bfloat16_changes_the_flow_a_little_and_is_returned_as_float32(estimator, pairs):
    exact = estimate_pair(estimator, pairs[0], QUICK).flows[6]
    rough = estimate_pair(estimator, pairs[0], replace(QUICK, precision="bfloat16")).flows[6]
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().mean() < 0.2


def test_a_solve_that_ends_before_the_budget_still_has_all_times_and_flows(pairs, monkeypatch):
    model = deqflow.load("deqflow-small")
    problem = model.problem
    monkeypatch.setattr(model, "problem", lambda *features: replace(problem(*features), f=lambda z: z))
    estimates = estimate_pair(model, pairs[0], QUICK)
    assert set(estimates.seconds) == set(estimates.flows) == {1, 3, 6}
    assert estimates.residuals[6] == 0


def test_a_sets_figures_are_means_over_pairs_or_over_pixels():
    flow = torch.zeros(2, 16, 16)
    image = torch.full((3, 16, 16), 128.0)
    valid = torch.ones(16, 16, dtype=torch.bool)
    few = torch.zeros_like(valid)
    few[0, 0] = True
    hidden = torch.zeros_like(valid)
    still = FlowSample(image, image, flow, valid, hidden)
    moved = FlowSample(image, image, flow + 3.0, few, hidden)
    model = {"deqflow-small": deqflow.load("deqflow-small")}
    for_pairs = evaluate_set(model, EvaluationSet([still, moved]), QUICK)
    for_pixels = evaluate_set(model, EvaluationSet([still, moved], pooled=True), QUICK)
    length = 18**0.5
    assert (for_pairs["pairs"], for_pairs["mean"], for_pixels["mean"]) == (2, "pairs", "pixels")
    assert for_pairs["methods"]["zero flow"]["error_px"] == pytest.approx(length / 2, abs=1e-4)
    assert for_pixels["methods"]["zero flow"]["error_px"] == pytest.approx(length / 257, abs=1e-4)


def test_a_model_has_errors_residuals_and_times_by_evaluations(estimator, pairs):
    figures = evaluate_set({"deqflow-small": estimator}, EvaluationSet(pairs), QUICK)["methods"]
    assert list(figures) == ["zero flow", "DIS", "deqflow-small"]
    at, stopped = figures["deqflow-small"]["at"], figures["deqflow-small"]["stopped"]
    assert list(at) == ["1", "3", "6"]
    expected = [estimate_pair(estimator, pair, QUICK) for pair in pairs]
    for k in QUICK.evals:
        errors = [(e.flows[k][0] - p.flow).norm(dim=0).mean() for e, p in zip(expected, pairs, strict=True)]
        assert at[str(k)]["error_px"] == pytest.approx(float(sum(errors)) / 2, abs=1e-4)
        assert at[str(k)]["residual_px"] == pytest.approx(sum(e.residuals[k] for e in expected) / 2, abs=1e-4)
    assert stopped["evaluations"] == sum(e.stopped_evaluations for e in expected) / 2
    assert min(part["ms"] for part in (figures["DIS"], stopped, *at.values())) > 0


def test_held_out_procedural_pairs_do_not_depend_on_installed_packages():
    assert procedural_pairs(1, RICH_SCENES).config.packages == ("scikit-image",)
    assert torch.equal(procedural_pairs(2, SMALL)[1].flow, procedural_pairs(3, SMALL)[1].flow)


def test_without_benchmarks_the_procedural_sets_and_the_motorcycle_remain(tmp_path):
    sets = evaluation_sets(tmp_path, QUICK)
    assert {name: len(chosen.pairs) for name, chosen in sets.items()} == {
        "procedural": 2,
        "procedural-rich": 2,
        "motorcycle": 1,
    }


def test_benchmarks_come_with_their_subsets_and_their_own_mean(tmp_path):
    write_sintel(tmp_path)
    write_kitti(tmp_path)
    write_chairs_samples(tmp_path, pairs=9)
    sets = evaluation_sets(tmp_path, QUICK)
    benchmarks = available_benchmarks(tmp_path)
    assert "chairs-9" in sets
    assert "chairs-samples" not in sets, "which is the same nine pairs"
    assert len(sets["chairs-9"].pairs) == 9
    assert sets["sintel-clean"].pooled
    assert not sets["kitti-2015"].pooled
    assert len(sets["sintel-clean"].pairs) == len(benchmarks["sintel-clean"]) > 1
    assert set(benchmarks) - {"chairs-samples"} <= set(sets)
    assert sets["kitti-2015"].place == "top"
    assert {chosen.place for name, chosen in sets.items() if not name.startswith("kitti")} == {"centre"}


def test_most_pairs_of_each_set_are_spread_over_it(tmp_path):
    write_sintel(tmp_path)
    write_chairs_samples(tmp_path, pairs=9)
    whole = evaluation_sets(tmp_path, replace(QUICK, procedural=3))
    sets = evaluation_sets(tmp_path, replace(QUICK, procedural=3, most=2))
    assert sets.keys() == whole.keys()
    assert {name: len(chosen.pairs) for name, chosen in sets.items()} == {
        name: min(2, len(chosen.pairs)) for name, chosen in whole.items()
    }
    for i, k in enumerate((2, 6)):
        assert torch.equal(sets["chairs-9"].pairs[i].flow, whole["chairs-9"].pairs[k].flow)
    assert sets["sintel-clean"].pooled


def test_a_subset_has_the_named_pairs_in_their_order_or_is_none(tmp_path):
    write_chairs_samples(tmp_path, pairs=3)
    whole = available_benchmarks(tmp_path)["chairs-samples"]
    part = subset(whole, ("0000002-gt.flo", "0000000-gt.flo"))
    assert torch.equal(part[0].flow, whole[2].flow)
    assert torch.equal(part[1].flow, whole[0].flow)
    assert len(part) == 2
    assert len(whole) == 3
    assert subset(whole, ("0000000-gt.flo", "0000009-gt.flo")) is None
    assert subset(whole, ("00-gt.flo",)) is None, "names are whole"


def test_the_figures_of_the_targets_are_those_of_the_shared_data(shared_data):
    sets = evaluation_sets(shared_data, QUICK)
    assert set(SUBSETS) <= set(sets)
    model = deqflow.load("deqflow-small")
    model.equilibrium.eval_stop = Stop(max_evals=1)
    figures = evaluate_set({"once": model}, sets["kitti-000010"], replace(QUICK, evals=(1,)))["methods"]
    assert figures["zero flow"]["error_px"] == pytest.approx(9.03, abs=0.005)
    assert figures["DIS"]["error_px"] == pytest.approx(2.95, abs=0.01)


def test_results_say_what_was_measured_and_by_what(estimator, pairs):
    seen = []
    sets = {"some": EvaluationSet(pairs[:1]), "all": EvaluationSet(pairs)}
    steps = []
    results = evaluate(
        {"mine": estimator},
        sets,
        QUICK,
        lambda name, sofar: seen.append((name, *sofar["sets"])),
        lambda *step: steps.append(step),
    )
    assert seen == [("some", "some"), ("all", "some", "all")]
    assert steps == [("some", 1, 1), ("all", 1, 2), ("all", 2, 2)]
    assert results["config"]["evals"] == [1, 3, 6]
    assert results["config"]["device"] == "cpu"
    assert results["models"]["mine"]["parameters"] == sum(p.numel() for p in estimator.parameters())
    assert "commit" in results["provenance"]
    assert json.loads(json.dumps(results)) == results
    text = report_lines("all", results["sets"]["all"])
    assert text[0] == "all, 2 pairs, mean over pairs"
    assert [line.split(" px")[0].rsplit(None, 1)[0].strip() for line in text[1:6]] == [
        "zero flow", "DIS", "mine, 1 evaluations", "mine, 3 evaluations", "mine, 6 evaluations",
    ]  # fmt: skip
    assert "within 1, 3, 5 px: " in text[1]
    assert "F1-all" in text[1]


def test_a_set_without_a_known_flow_has_no_error_and_the_next_set_follows(estimator, pairs):
    unknown = pairs[0]._replace(valid=torch.zeros_like(pairs[0].valid))
    sets = {"unknown": EvaluationSet([unknown]), "known": EvaluationSet(pairs[:1])}
    for pooled in (False, True):
        sets["unknown"] = EvaluationSet([unknown], pooled)
        measured = evaluate({"mine": estimator}, sets, QUICK)["sets"]
        text = report_lines("unknown", measured["unknown"])
        assert len(text) == 7
        assert all("no pixel with known flow" in line for line in text[1:])
        assert measured["unknown"]["methods"]["mine"]["stopped"]["error_px"] is None
        assert measured["known"]["methods"]["mine"]["stopped"]["error_px"] > 0
    both = evaluate_set({"mine": estimator}, EvaluationSet([unknown, pairs[0]]), QUICK)["methods"]["DIS"]
    assert both["error_px"] == measured["known"]["methods"]["DIS"]["error_px"]


def test_images_are_padded_as_the_published_programs_pad_them(estimator, pairs):
    pair = pairs[0]  # 42 x 61: 6 rows and 3 columns are missing
    found = estimate_pair(estimator, pair, QUICK, "top")
    padded = [F.pad(image[None], (1, 2, 0, 6), mode="replicate") for image in (pair.image1, pair.image2)]
    with torch.no_grad():
        expected = estimator(*padded, stop=Stop(max_evals=3, atol=0.0)).flow[..., :42, 1:62]
        stopped = estimator(*padded).flow[..., :42, 1:62]
    torch.testing.assert_close(found.flows[3], expected)
    torch.testing.assert_close(found.stopped, stopped)
    published = replace(QUICK, padding="published")
    kitti, other = EvaluationSet([pair], place="top"), EvaluationSet([pair])
    at = {
        name: evaluate_set({"mine": estimator}, chosen, config)["methods"]["mine"]["at"]["3"]["error_px"]
        for name, chosen, config in (
            ("split", other, QUICK),
            ("published, other", other, published),
            ("kitti, split", kitti, QUICK),
            ("published, kitti", kitti, published),
        )
    }
    assert at["split"] == at["published, other"] == at["kitti, split"] != at["published, kitti"]
    error = (expected[0] - pair.flow).norm(dim=0)[pair.valid].mean()
    assert at["published, kitti"] == pytest.approx(error.item(), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"evals": ()}, "ascending order"),
        ({"evals": (12, 6)}, "ascending order"),
        ({"evals": (0, 6)}, "from 1"),
        ({"padding": "bottom"}, "centre or published, got 'bottom'"),
        ({"padding": "published", "scales": (1.0, 2.0)}, "the published programs solve at one scale"),
        ({"precision": "float8"}, "float32 or bfloat16, got 'float8'"),
        ({"procedural": 0}, "at least 1 pair"),
        ({"most": 0}, "at least 1 pair"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        EvaluationConfig(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told():
    with pytest.raises(ValueError, match="No device cuda: torch finds no GPU here"):
        EvaluationConfig(device="cuda")


def test_nothing_to_measure_is_refused(estimator):
    with pytest.raises(ValueError, match="at least one pair, got an empty set"):
        evaluate_set({"mine": estimator}, EvaluationSet([]), QUICK)
    with pytest.raises(ValueError, match="at least one model"):
        evaluate({}, {}, QUICK)


def test_the_command_writes_results_without_paths_of_this_machine(tmp_path, capsys):
    write_kitti(tmp_path / "data")
    model = deqflow.save(deqflow.load("deqflow-small"), tmp_path / "weights" / "mine.safetensors")
    out = tmp_path / "results.json"
    options = ["--root", str(tmp_path / "data"), "--only", "kitti-2015", "--evals", "1", "2", "--device", "cpu"]
    assert main(["evaluate", "--model", str(model), *options, "--out", str(out)]) == 0
    text = out.read_text()
    assert str(tmp_path) not in text
    results = json.loads(text)
    assert list(results["models"]) == ["mine"]
    assert list(results["sets"]["kitti-2015"]["methods"]["mine"]["at"]) == ["1", "2"]
    assert "mine, 2 evaluations" in capsys.readouterr().out


def test_the_command_names_the_sets_there_are(tmp_path, capsys):
    assert main(["evaluate", "--root", str(tmp_path), "--only", "sintel-clean", "--device", "cpu"]) == 1
    assert "No set 'sintel-clean'" in capsys.readouterr().err
