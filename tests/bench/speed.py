"""Training speed: pairs a second of base, equilibrium against recurrent, in bfloat16 where the machine has it."""

import torch

from bench.costs import alternate, matrix_peak, work
from bench.setting import Row, autocast, device, photographs
from deqflow import build

CROP = (368, 496)


def training_speed(repeats: int = 5, crop: tuple[int, int] = CROP) -> list[Row]:
    """Times more pairs a second than the recurrent model with 12 updates; the step's share of the matrix peak."""
    variants = {
        "recurrent, 12 updates": {"recurrent": True, "train_evals": 12},
        "12 evaluations, 1 correction": {"train_evals": 12},
        "12 evaluations, 3 corrections": {"train_evals": 12, "corrections": 3},
        "36 evaluations, 6 corrections": {"train_evals": 36, "corrections": 6},
    }
    images = photographs(*crop)
    steps = {}
    for name, options in variants.items():
        torch.manual_seed(0)
        estimator = build("base", **options).to(device()).train()
        steps[name] = lambda estimator=estimator: step(estimator, images)
    timings = alternate(steps, repeats=repeats, device=device())
    rows = []
    for name in variants:
        rows.append(Row(quantity=f"training, {name}", value=1 / timings.median(name), unit="pairs/s"))
        if name != "recurrent, 12 updates":
            target = 1.5 if name == "12 evaluations, 1 correction" else None
            ratio = timings.ratio("recurrent, 12 updates", name)
            rows.append(Row(quantity=f"{name}: times the recurrent model's speed", value=ratio, at_least=target))
    name = "12 evaluations, 1 correction"
    share = work(steps[name]) / timings.median(name) / matrix_peak(torch.bfloat16, device=device())
    rows.append(Row(quantity=f"training, {name}: share of the bfloat16 matrix peak", value=share))
    return [*rows, *profile(steps[name])]


def step(estimator, images) -> None:
    """Forward and backward."""
    estimator.zero_grad(set_to_none=True)
    with autocast(torch.bfloat16):
        flows = estimator(*images).flows
    torch.stack([flow.abs().mean() for flow in flows]).mean().backward()


def profile(function, shown: int = 6) -> list[Row]:
    """Where the time of a step goes: the largest shares by kind of operation."""
    with torch.profiler.profile() as profiler:
        function()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    largest = sorted(events, key=lambda event: -event.self_cpu_time_total)[:shown]
    return [
        Row(quantity=f"share of the step in {event.key}", value=event.self_cpu_time_total / total) for event in largest
    ]
