"""Inference: DEQ-Flow base against the published way, one pair of 432x1024, 24 evaluations."""

import torch
from pairs import map_of

import deqflow
from bench.costs import alternate, matrix_peak, work
from bench.plain import PlainFlow
from bench.setting import DATA, Row, autocast, device, photographs, real_pairs, reference_base
from deqflow.solvers import Stop

EVALS = 24


@torch.no_grad()
def inference(repeats: int = 5) -> list[Row]:
    """Times faster than the published way, agreement with it, and the share of the machine's peak."""
    ours = reference_base()
    plain = PlainFlow(ours)
    images = photographs(432, 1024)
    stop = Stop(max_evals=EVALS, atol=0.0)

    def run(dtype: torch.dtype):
        with autocast(dtype):
            return ours(*images, stop=stop).flow

    timings = alternate(
        {
            "plain": lambda: plain(*images, EVALS),
            "float32": lambda: run(torch.float32),
            "bfloat16": lambda: run(torch.bfloat16),
        },
        repeats=repeats,
        device=device(),
    )
    difference = (run(torch.float32) - plain(*images, EVALS)).abs().max().item()
    size = "base, 432x1024, 24 evaluations"
    rows = [
        Row(quantity=f"published way, {size}", value=timings.median("plain"), unit="s"),
        Row(quantity="float32: times faster", value=timings.ratio("plain", "float32"), at_least=1.3),
        Row(quantity="float32: largest difference of the flow", value=difference, unit="px", at_most=1e-3),
        Row(quantity="bfloat16: times faster", value=timings.ratio("plain", "bfloat16"), at_least=4.0),
    ]
    return [*rows, *shares_of_the_peak(ours, images, repeats), *bfloat16_change()]


def shares_of_the_peak(estimator: deqflow.FlowEstimator, images, repeats: int) -> list[Row]:
    """Work of an evaluation over its time, as a share of what a matrix product reaches."""
    rows = []
    for dtype, target in ((torch.float32, None), (torch.bfloat16, 0.5)):
        with autocast(dtype):
            f, z = map_of(estimator, *images)
            z = f(f(z))
            operations = work(lambda f=f, z=z: f(z))
            peak = matrix_peak(dtype, device=device())
            seconds = alternate({"f": lambda f=f, z=z: f(z)}, repeats=2 * repeats, device=device()).median("f")
        name = str(dtype).removeprefix("torch.")
        rows += [
            Row(quantity=f"{name}: matrix product's peak", value=peak / 1e9, unit="GFLOP/s"),
            Row(quantity=f"{name}: an evaluation's work", value=operations / 1e9, unit="GFLOP"),
            Row(
                quantity=f"{name}: share of the peak in an evaluation",
                value=operations / seconds / peak,
                at_least=target,
            ),
        ]
    return rows


def bfloat16_change() -> list[Row]:
    """How far bfloat16 moves the flow of trained models on real pairs."""
    models = {"deqflow-small": deqflow.load("deqflow-small")}
    if (DATA / "published" / "raft-small.pth").exists():
        models["raft-small"] = deqflow.load_published(DATA / "published" / "raft-small.pth")
    pairs = real_pairs()
    rows = []
    for name, model in models.items():
        model = model.to(device()).eval()
        changes = []
        for pair in pairs:
            images = [image[None].to(device()) for image in (pair.image1, pair.image2)]
            exact = model(*images, stop=Stop(max_evals=12, atol=0.0)).flow
            with autocast(torch.bfloat16):
                rounded = model(*images, stop=Stop(max_evals=12, atol=0.0)).flow
            changes.append((rounded - exact).norm(dim=1).mean().item())
        quantity = f"bfloat16: mean change of {name}'s flow, {len(pairs)} real pairs"
        rows.append(Row(quantity=quantity, value=sum(changes) / len(changes), unit="px", at_most=0.03))
    return rows
