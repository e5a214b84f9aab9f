import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pairs import problem_of

import deqflow
from deqflow.__main__ import main
from deqflow.data.metrics import endpoint_error
from deqflow.data.synthetic import SceneConfig, SyntheticPairs, out_of_frame
from deqflow.evidence.confidence import (
    FEATURES,
    SHIPPED_CONFIDENCE,
    Calibration,
    ConfidenceModel,
    FitConfig,
    Fitted,
    estimate_both_ways,
    evaluate_confidence,
    features,
    fit,
    fit_confidence,
    forward_backward,
    load_confidence,
    run_confidence,
)
from deqflow.evidence.confidence.fitting import occlusion_scores, real_pairs
from deqflow.evidence.provenance import digest
from deqflow.evidence.results import load_results
from deqflow.model.state import FlowState
from deqflow.solvers import Stop
from deqflow.training import HELD_OUT_SEED

SCENES = SceneConfig(height=64, width=96, camera=3.0, motion=4.0, largest=16.0)
SMALL = FitConfig(pairs=6, pixels=600, evals=(0, 6), scenes=SCENES)


@pytest.fixture(scope="module")
def estimator():
    return deqflow.load("deqflow-small")


@pytest.fixture(scope="module")
def fitted(estimator) -> Fitted:
    return fit_confidence(estimator, "deqflow-small", SMALL)


@pytest.fixture(scope="module")
def outputs(estimator):
    pair = SyntheticPairs(1, seed=5, config=SCENES)[0]
    with torch.no_grad():
        return pair, *estimate_both_ways(estimator, pair.image1[None], pair.image2[None])


def uniform(x: float, y: float, height: int = 20, width: int = 30) -> torch.Tensor:
    return torch.tensor([x, y]).view(1, 2, 1, 1).expand(1, 2, height, width).clone()


def test_flows_that_undo_each_other_agree_but_where_they_leave_the_frame():
    got = forward_backward(uniform(3.0, -2.0), uniform(-3.0, 2.0))
    assert float(got.error.max()) == pytest.approx(0, abs=1e-5)
    expected = torch.zeros(1, 20, 30, dtype=torch.bool)
    expected[..., 27:], expected[:, :2] = True, True
    assert torch.equal(got.outside, expected)
    assert torch.equal(got.occluded, expected)


def test_the_criterion_grows_with_the_length_as_published():
    # |F + B| = d, and 0.01 (|F|^2 + |B|^2) + 0.5 is the square of what is allowed.
    for length in (0.0, 8.0):
        allowed = np.roots([0.99, -0.02 * length, -0.02 * length**2 - 0.5]).max()  # B = d - F
        for difference, occluded in ((0.99 * allowed, False), (1.01 * allowed, True)):
            got = forward_backward(uniform(-length, 0), uniform(length + difference, 0))
            inside = got.occluded[~got.outside]
            assert bool(inside.all()) is occluded
            assert bool(inside.any()) is occluded
            assert got.error[~got.outside].numpy() == pytest.approx(difference, abs=1e-5)


def test_a_flow_that_is_not_finite_is_occluded():
    flow = uniform(1.0, 0.0)
    flow[0, 0, 4, 5], flow[0, 1, 6, 7] = torch.nan, torch.inf
    got = forward_backward(flow, uniform(-1.0, 0.0))
    assert got.occluded[0, [4, 6], [5, 7]].all()
    assert not got.occluded[0, 10, 10]


def test_what_a_moving_square_covers_is_occluded():
    forward, backward = uniform(0.0, 0.0), uniform(0.0, 0.0)
    forward[0, 0, 5:12, 8:16] = 6.0
    backward[0, 0, 5:12, 14:22] = -6.0
    expected = torch.zeros(1, 20, 30, dtype=torch.bool)
    expected[0, 5:12, 16:22] = True  # background that the square comes to stand on
    assert torch.equal(forward_backward(forward, backward).occluded, expected)


@pytest.mark.parametrize(
    ("forward", "backward", "options", "sentence"),
    [
        (torch.zeros(1, 2, 4, 5), torch.zeros(1, 2, 4, 6), {}, r"one shape \(B, 2, H, W\), got \(1, 2, 4, 5\) and"),
        (torch.zeros(2, 4, 5), torch.zeros(2, 4, 5), {}, r"got \(2, 4, 5\)"),
        (torch.zeros(1, 2, 4, 5), torch.zeros(1, 2, 4, 5), {"absolute": -1.0}, "numbers of 0 or more, got 0.01 and -1"),
    ],
)
def test_consistency_says_what_it_expects(forward, backward, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        forward_backward(forward, backward, **options)


def test_both_ways_are_the_estimators_own(estimator, outputs):
    pair, forward, backward = outputs
    images = pair.image1[None], pair.image2[None]
    with torch.no_grad():
        assert torch.equal(forward.flow, problem_of(estimator, *images).solve().flow)
        assert torch.equal(backward.flow, problem_of(estimator, images[1], images[0]).solve().flow)
        # In one pass through the encoder, where oneDNN may round otherwise.
        torch.testing.assert_close(forward.flow, estimator(*images).flow, rtol=0, atol=1e-3)
        torch.testing.assert_close(backward.flow, estimator(images[1], images[0]).flow, rtol=0, atol=1e-3)
        short, _ = estimate_both_ways(estimator, *images, stop=Stop(max_evals=2, atol=0.0))
    assert int(short.solve.evals) == 2


def test_the_residual_map_is_the_residual_pixel_by_pixel(estimator, generator):
    images = 255 * torch.rand(2, 2, 3, 52, 75, generator=generator)
    with torch.no_grad():
        output = estimator(*images, stop=Stop(max_evals=3, atol=0.0))
    assert output.residual_map.shape == (2, 52, 75)
    coarse = 8 * torch.linalg.vector_norm(FlowState.unpack(output.solve.fz - output.solve.z).flow, dim=1)
    assert (coarse.square().mean((1, 2)) / 2).sqrt().numpy() == pytest.approx(output.solve.residual.numpy(), rel=1e-4)
    # 52 and 75 px were padded by 2 above and to the left; a block's middle pixels lie 1/16 from its centre.
    share = torch.tensor([1 / 32, 15 / 16, 1 / 32])
    expected = torch.einsum("bij,i,j->b", coarse[:, :3, 1:4], share, share)
    fine = output.residual_map[:, 8 + 1 : 8 + 3, 16 + 1 : 16 + 3].mean((1, 2))
    assert fine.numpy() == pytest.approx(expected.numpy(), rel=1e-4)
    assert bool((output.residual_map.amax((1, 2)) <= coarse.amax((1, 2)) + 1e-5).all())


def test_features_are_logarithms_of_pixels(outputs):
    _, forward, backward = outputs
    values = dict(zip(FEATURES, features(forward, backward)[0], strict=True))
    length = torch.linalg.vector_norm(forward.flow[0], dim=0)
    assert torch.allclose(values["log length"].exp() - 0.01, length, atol=1e-4)
    consistency = forward_backward(forward.flow, backward.flow)
    assert torch.allclose(values["log consistency error"].exp() - 0.01, consistency.error[0], atol=1e-4)
    assert torch.equal(values["occluded"].bool(), consistency.occluded[0])
    assert torch.equal(values["leaves the frame"].bool(), consistency.outside[0])


def test_a_fit_finds_the_model_that_made_the_data():
    rng = np.random.default_rng(0)
    values = rng.normal(2.0, 1.5, (20000, len(FEATURES)))
    truth = np.array([-1.0, 0.5, 0.0, -0.3, 0.0, 0.2])
    right = rng.random(len(values)) < 1 / (1 + np.exp(-(values @ truth + 0.7)))
    model = fit(values, np.where(right, 0.5, 3.0))
    assert list(model.weights.values()) == pytest.approx(truth, abs=0.05)
    assert model.bias == pytest.approx(0.7, abs=0.2)
    confidence = model.predict(torch.from_numpy(values)).numpy()
    assert confidence.mean() == pytest.approx(right.mean(), abs=1e-3)
    part = fit(values, np.where(right, 0.5, 3.0), names=("occluded",))
    assert list(part.weights) == ["occluded"]


def test_a_fit_says_what_it_expects():
    values = np.zeros((4, len(FEATURES)))
    with pytest.raises(ValueError, match=r"values \(N, 6\) and errors \(N,\), got \(4, 6\) and \(3,\)"):
        fit(values, np.ones(3))
    with pytest.raises(ValueError, match="finite values and errors"):
        fit(values, np.array([1.0, np.nan, 2.0, 0.1]))
    with pytest.raises(ValueError, match=r"both sides of 1\.0 px, got all on one"):
        fit(values, np.full(4, 0.2))


def test_a_model_that_expects_its_own_error_has_one_feature_more():
    torch.manual_seed(0)
    model = deqflow.build("mini", mixture=True, max_evals=3).eval()
    pair = SyntheticPairs(1, seed=5, config=SCENES)[0]
    with torch.no_grad():
        both = estimate_both_ways(model, pair.image1[None], pair.image2[None])
    values = features(*both)
    assert values.shape[1] == len(FEATURES) + 1
    assert torch.allclose(values[:, -1].exp() - 0.01, both[0].expected_error, atol=1e-4)
    own = fit_confidence(model, "mine", SMALL).model
    assert tuple(own.weights) == (*FEATURES, "log expected error")
    assert own(*both).shape == (1, 64, 96)
    with pytest.raises(ValueError, match=r"expects its own error \(a mixture\), got one that does not: fit it again"):
        own.predict(values[:, :-1])


def test_what_a_mixture_expects_is_of_use():
    rng = np.random.default_rng(0)
    values = rng.normal(0.0, 1.0, (5000, len(FEATURES) + 1))
    right = rng.random(len(values)) < 1 / (1 + np.exp(2 * values[:, -1]))
    model = fit(values, np.where(right, 0.5, 3.0))
    assert model.weights["log expected error"] == pytest.approx(-2, abs=0.2)


@pytest.mark.claims
def test_confidence_is_calibrated_on_scenes_of_its_kind_and_better_than_consistency(estimator, fitted):
    pairs = SyntheticPairs(5, seed=11, config=SCENES)
    told = []
    got = evaluate_confidence(estimator, fitted, (pairs[i] for i in range(len(pairs))), told.append)
    ours, alone = got["confidence"], got["consistency"]
    assert got["pairs"] == len(told) == 5
    assert ours["expected_calibration_error"] < 0.2
    assert ours["ause"] < 0.8 * got["chance"]["ause"]
    assert ours["ause"] < alone["ause"] + 0.02
    assert sum(row["pixels"] for row in ours["reliability"]) == pytest.approx(1)


def test_pairs_without_a_known_flow_do_not_count(estimator, fitted):
    pair = SyntheticPairs(1, seed=11, config=SCENES)[0]
    unknown = pair._replace(valid=torch.zeros_like(pair.valid))
    both, alone = (evaluate_confidence(estimator, fitted, pairs) for pairs in ([unknown, pair], [pair]))
    assert both == alone
    assert evaluate_confidence(estimator, fitted, [unknown]) is None


def test_a_set_without_a_known_flow_is_left_out_and_the_others_follow(estimator, monkeypatch):
    pair = SyntheticPairs(1, seed=11, config=SCENES)[0]
    unknown = pair._replace(valid=torch.zeros_like(pair.valid))
    monkeypatch.setattr("deqflow.evidence.confidence.fitting.real_pairs", lambda _: [("a", [unknown]), ("b", [pair])])
    said = []
    _, results = run_confidence(estimator, "deqflow-small", "data", replace(SMALL, pairs=2), said.append)
    assert [row["set"] for row in results["rows"]] == ["procedural, held out", "b"]
    assert "a: no pixel with known flow, left out" in said


def test_out_of_frame_is_the_same_as_for_procedural_pairs():
    flow = uniform(2.6, -1.4)
    got = forward_backward(flow, -flow)
    assert torch.equal(got.outside, out_of_frame(flow))
    assert got.outside.sum() == 20 * 30 - 19 * 27


def test_confidence_is_high_where_the_flow_is_right(fitted, outputs):
    pair, forward, backward = outputs
    confidence = fitted.model(forward, backward)
    assert confidence.shape == (1, 64, 96)
    assert float(confidence.min()) >= 0
    assert float(confidence.max()) <= 1
    right = endpoint_error(forward.flow, pair.flow[None]) < 1
    assert float(confidence[right].mean()) > float(confidence[~right].mean()) + 0.1


def test_confidence_in_a_flow_that_is_not_finite_is_zero(fitted, outputs):
    _, forward, backward = outputs
    broken = replace(forward, flow=forward.flow.clone())
    broken.flow[0, 0, 10, 20] = torch.nan
    confidence = fitted.model(broken, backward)
    assert confidence[0, 10, 20] == 0
    assert bool(torch.isfinite(confidence).all())


def test_fits_do_not_depend_on_the_time_they_are_made_at(estimator, fitted):
    again = fit_confidence(estimator, "deqflow-small", SMALL)
    assert again.model.weights == fitted.model.weights
    assert SMALL.seed not in (HELD_OUT_SEED, 0)


def test_what_is_saved_is_read(tmp_path, fitted):
    path = tmp_path / "new folder" / "mine.json"
    fitted.model.save(path)
    got = load_confidence(path)
    assert (got.weights, got.bias, got.threshold_px) == (fitted.model.weights, fitted.model.bias, 1.0)
    assert got.recipe["fit"]["seed"] == SMALL.seed
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "damaged or is not a confidence model"),
        ("[]", "damaged or is not a confidence model"),
        ('{"weights": {"colour": 1}, "bias": 0, "threshold_px": 1, "recipe": {}}', "got colour: fit it again"),
        ('{"weights": {}, "bias": 0, "threshold_px": 1, "recipe": {}}', "got none"),
        ('{"weights": {"occluded": 1}, "bias": 0, "threshold_px": 0, "recipe": {}}', "more than 0 px, got 0.0"),
    ],
)
def test_damaged_models_are_refused(tmp_path, content, sentence):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=sentence):
        load_confidence(path)


def test_a_missing_model_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m deqflow confidence"):
        load_confidence(tmp_path / "none.json")


@pytest.mark.claims
def test_the_shipped_confidence_belongs_to_the_shipped_weights(estimator):
    shipped = load_confidence()
    assert shipped.recipe["weights_sha256"] == digest(estimator), "run: python -m deqflow confidence"
    assert tuple(shipped.weights) == FEATURES
    published = load_results(Path(__file__).parents[2] / "reports" / "published" / "confidence.json")
    assert published["model"]["weights"] == shipped.weights


def test_calibration_by_hand():
    calibration = Calibration()
    calibration.add(np.array([0.05, 0.95, 1.0]), np.array([False, True, False]))
    calibration.add(np.array([0.55]), np.array([True]))
    got = calibration.summary()
    assert got["right"] == 0.5
    assert got["confidence"] == pytest.approx(2.55 / 4)
    assert got["expected_calibration_error"] == pytest.approx((0.05 + 0.95 + 0.45) / 4)
    assert got["reliability"][9] == {"pixels": 0.5, "confidence": pytest.approx(0.975), "right": 0.5}
    assert got["reliability"][3] == {"pixels": 0, "confidence": None, "right": None}


def test_occlusion_scores_by_hand():
    scores = occlusion_scores(pixels=20, occluded=4, predicted=5, both=3)
    assert scores == {"share": 0.2, "precision": 0.6, "recall": 0.75}
    assert occlusion_scores(20, 4, 0, 0) == {"share": 0.2, "precision": 0, "recall": 0}
    assert occlusion_scores(20, 0, 5, 0) is None, "the set does not say what is occluded"


def test_calibration_says_what_it_expects():
    with pytest.raises(ValueError, match="at least one pixel"):
        Calibration().summary()
    for value in (1.5, np.nan):
        with pytest.raises(ValueError, match="from 0 to 1"):
            Calibration().add(np.array([value]), np.array([True]))


@pytest.mark.parametrize("options", [{"pairs": 0}, {"pixels": 0}, {"evals": ()}, {"evals": (-1,)}])
def test_fit_config_says_what_it_expects(options):
    with pytest.raises(ValueError, match="at least 1 pair, 1 pixel and one budget"):
        FitConfig(**options)


def test_the_command_fits_and_measures(tmp_path, capsys, monkeypatch):
    small = SyntheticPairs(1, seed=1, config=SCENES)[0]
    monkeypatch.setattr("deqflow.evidence.confidence.fitting.motorcycle", lambda: small)
    monkeypatch.setattr("deqflow.evidence.confidence.fitting.RICH_SCENES", SCENES)
    fitted, out = tmp_path / "fitted.json", tmp_path / "results.json"
    command = ["confidence", "--pairs", "2", "--data-root", str(tmp_path), "--fitted", str(fitted), "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "mean end-point error" in said
    assert f"Wrote {fitted} and {out}." in said
    results = json.loads(out.read_text())
    assert [(row["set"], row["pairs"]) for row in results["rows"]] == [("procedural, held out", 1), ("motorcycle", 1)]
    assert load_confidence(fitted).weights == results["model"]["weights"]
    assert all(0 <= row["occlusion"]["recall"] <= 1 for row in results["rows"]), "procedural pairs say what is hidden"


def test_confidence_models_are_keyword_only():
    with pytest.raises(TypeError):
        ConfidenceModel(1.0, {}, 0.0)
    assert SHIPPED_CONFIDENCE.name == "confidence.json"


def test_real_sets_are_read_each_from_its_own_files(monkeypatch):
    sets = {"one": [1, 2, 3], "two": [4]}
    monkeypatch.setattr("deqflow.evidence.confidence.fitting.available_benchmarks", lambda root: sets)
    monkeypatch.setattr("deqflow.evidence.confidence.fitting.motorcycle", lambda: 5)
    assert [(name, list(pairs)) for name, pairs in list(real_pairs("data"))] == [
        ("one", [1, 2, 3]),
        ("two", [4]),
        ("motorcycle", [5]),
    ]
