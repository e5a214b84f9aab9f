"""Memory: training at the published crop, and large pictures."""

import time

import torch

from bench.costs import fitted_exponent, peak_of_a_process
from bench.setting import Row, device, photographs
from deqflow import build
from deqflow.evidence.costs import MIB, step_cost
from deqflow.solvers import Stop

LEAN = {"correlation": "sampled", "checkpoint_encoders": True}
CROP = (400, 720)


def training_step(options: dict, crop: tuple[int, int], seed: int = 0):
    """A base model's training step on one pair."""
    torch.manual_seed(seed)
    estimator = build("base", **options).to(device()).train()
    return step_cost(estimator, *photographs(*crop))


def training_memory(crop: tuple[int, int] = CROP) -> list[Row]:
    """Bytes kept, the highest total and seconds: equilibrium and recurrent, as published and lean."""
    variants = {
        "one-step": {"train_evals": 12},
        "one-step, lean": {"train_evals": 12, **LEAN},
        "recurrent, 12 updates": {"recurrent": True, "train_evals": 12},
        "recurrent, 12 updates, lean": {"recurrent": True, "train_evals": 12, **LEAN},
    }
    rows, costs = [], {}
    for name, options in variants.items():
        peak, cost = peak_of_a_process(training_step, options, crop)
        costs[name] = cost
        ours = name == "one-step, lean"
        rows += [
            Row(
                quantity=f"{name}: kept for backward",
                value=cost.kept / MIB,
                unit="MiB",
                at_most=300.0 if ours else None,
            ),
            Row(
                quantity=f"{name}: highest live total",
                value=cost.peak / MIB,
                unit="MiB",
                at_most=450.0 if ours else None,
            ),
            Row(quantity=f"{name}: peak of the process", value=peak / MIB, unit="MiB"),
            Row(quantity=f"{name}: forward and backward", value=cost.forward + cost.backward, unit="s"),
        ]
    for lean in ("", ", lean"):
        ratio = costs[f"recurrent, 12 updates{lean}"].kept / costs[f"one-step{lean}"].kept
        rows.append(Row(quantity=f"recurrent over one-step{lean}: kept for backward", value=ratio))
    return rows


def same_gradients(crop: tuple[int, int] = CROP) -> list[Row]:
    """How far the lean gradients are from the plain ones, relative to their length."""
    torch.manual_seed(0)
    estimator = build("base", train_evals=3).to(device()).train()
    images = photographs(*crop)
    gradients = []
    for options in ({"correlation": "volume", "checkpoint_encoders": False}, LEAN):
        for name, value in options.items():
            setattr(estimator, name, value)
        estimator.zero_grad(set_to_none=True)
        estimator(*images).flow.abs().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in estimator.parameters() if p.grad is not None]))
    relative = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
    return [Row(quantity="lean gradients: relative difference", value=relative, at_most=1e-5)]


def picture(height: int, width: int, evals: int, correlation: str) -> float:
    """Seconds of base's flow at a size."""
    torch.manual_seed(0)
    estimator = build("base", correlation=correlation).to(device()).eval()
    images = photographs(height, width)
    started = time.perf_counter()
    with torch.no_grad():
        estimator(*images, stop=Stop(max_evals=evals, atol=0.0))
    return time.perf_counter() - started


SIZES = [(240, 416), (540, 960), (1080, 1920), (2160, 3840)]


def large_pictures(evals: int = 4) -> list[Row]:
    """Peak memory at two sizes, and how time and memory grow from 0.1 to 8 megapixels without the volume."""
    limits = {(1080, 1920): 3.0, (2160, 3840): 10.0}
    rows, peaks, seconds = [], [], []
    for height, width in SIZES:
        peak, spent = peak_of_a_process(picture, height, width, evals, "sampled")
        peaks.append(float(peak))
        seconds.append(spent)
        size = f"base, {height}x{width}, {evals} evaluations, float32"
        rows.append(
            Row(
                quantity=f"{size}: peak of the process",
                value=peak / 2**30,
                unit="GiB",
                at_most=limits.get((height, width)),
            )
        )
        rows.append(Row(quantity=f"{size}: time", value=spent, unit="s"))
    pixels = [float(height * width) for height, width in SIZES]
    idle, _ = peak_of_a_process(time.sleep, 0)
    rows.append(Row(quantity="exponent of time against pixels", value=fitted_exponent(pixels, seconds), at_most=1.1))
    above = [peak - idle for peak in peaks]
    rows.append(Row(quantity="exponent of memory against pixels", value=fitted_exponent(pixels, above), at_most=1.1))
    return [*rows, *same_flow()]


@torch.no_grad()
def same_flow() -> list[Row]:
    """The flow with and without the volume, where both fit."""
    torch.manual_seed(0)
    estimator = build("tiny").to(device()).eval()
    flows = []
    for kind in ("volume", "sampled"):
        estimator.correlation = kind
        flows.append(estimator(*photographs(240, 416), stop=Stop(max_evals=4, atol=0.0)).flow)
    difference = (flows[1] - flows[0]).abs().max().item()
    return [
        Row(quantity="largest difference of the flow without the volume", value=difference, unit="px", at_most=1e-3)
    ]
