"""The comparison of correlation at 1/8 with warped features at 1/4."""

import dataclasses

import pytest
import torch
from training_runs import SCENES

from deqflow import build
from deqflow.data.metrics import endpoint_error
from deqflow.data.synthetic import SyntheticPairs
from deqflow.evidence import warping
from deqflow.evidence.results import load_results
from deqflow.evidence.warping import COMPARED, CONFIG, errors_by_region, near_edges, run_warping
from deqflow.model.budgets import flows_after

TINY = dataclasses.replace(CONFIG, steps=1, batch=1, evals=(3, 3), workers=0, validation_pairs=1, scenes=SCENES)


def test_edges_are_where_the_motion_jumps():
    flow = torch.zeros(1, 2, 20, 30)
    flow[:, 0, :, 15:] = 3.0
    found = near_edges(flow, reach=2)
    assert found[0].any(0).nonzero().flatten().tolist() == [12, 13, 14, 15, 16]
    assert found[0].all(0).sum() == 5
    assert not near_edges(0.3 * flow).any(), "a jump of 0.9 px is no edge"


def test_errors_are_means_over_the_pixels_of_a_region(monkeypatch):
    monkeypatch.setattr(warping, "EVALS", (2, 3))
    torch.manual_seed(0)
    estimator, pairs = (
        build("mini").eval(),
        SyntheticPairs(2, seed=5, config=dataclasses.replace(SCENES, motion_scales=(0.1,))),
    )
    found = errors_by_region(estimator, pairs)
    errors, small = [], []
    for i in range(2):
        image1, image2, truth, valid = (tensor[None] for tensor in pairs[i][:4])
        with torch.no_grad():
            error = endpoint_error(flows_after(estimator, image1, image2, (3,))[0][3], truth)
        errors.append(error[valid])
        small.append(error[valid & (truth.norm(dim=1) < 2)])
    assert found["all"]["3"] == pytest.approx(float(torch.cat(errors).mean()), rel=1e-5)
    assert found["small motion"]["3"] == pytest.approx(float(torch.cat(small).mean()), rel=1e-5)
    assert found["edges"].keys() == {"2", "3"}


def test_both_sizes_train_on_the_same_pairs_and_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(warping, "EVALS", (2, 12))
    monkeypatch.setattr(warping, "FRAME", (64, 96))
    lines = []
    results = run_warping(tmp_path / "out.json", tmp_path / "runs", TINY, 1, lines.append)
    assert [(run["size"], run["seed"]) for run in results["runs"]] == [
        (size, seed) for seed in (0, 1) for size in COMPARED
    ]
    assert load_results(tmp_path / "out.json") == results
    assert len(lines) == 4
    assert all(run["peak_mib"] > 0 for run in results["runs"])
    again = run_warping(tmp_path / "again.json", tmp_path / "runs", TINY, 1, lines.append)
    assert [run["error_px"] for run in again["runs"]] == [run["error_px"] for run in results["runs"]]
