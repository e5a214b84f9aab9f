"""Inference: DEQ-Flow base and deqflow-small against the published way, and where their time goes."""

import time

import torch
from pairs import map_of

import deqflow
from bench.costs import alternate, matrix_peak, work
from bench.plain import PlainFlow
from bench.setting import DATA, Row, autocast, device, photographs, real_pairs, reference_base
from deqflow.solvers import Stop

EVALS = 24
SMALL_EVALS = 12
SMALL = (440, 1024)  # height and width for deqflow-small
SIDE = 1024  # of the matrices whose product says what the machine can do at that moment


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
    return [*rows, *shares_of_the_peak(ours, images, repeats), *bfloat16_change(), *deqflow_small(repeats)]


@torch.no_grad()
def deqflow_small(repeats: int, size: tuple[int, int] = SMALL) -> list[Row]:
    """deqflow-small in float32: times faster than the published way, and the milliseconds of its parts."""
    ours = deqflow.load("deqflow-small").to(device()).eval()
    plain = PlainFlow(ours)
    images = photographs(*size)
    fixed = Stop(max_evals=SMALL_EVALS, atol=0.0)
    features = [ours.encode(image) for image in images]
    problem = ours.problem(*features)
    z = problem.f(problem.f(problem.z0))
    square = torch.randn(2, SIDE, SIDE, device=device())
    whole = {
        "plain": lambda: plain(*images, SMALL_EVALS),
        "ours": lambda: ours(*images, stop=fixed),
        "stopped": lambda: ours(*images),
        "product": lambda: square[0] @ square[1],
    }
    parts = {
        "encoder, both images": lambda: [ours.encode(image) for image in images],
        "correlation": lambda: ours.problem(*features),
        "one evaluation": lambda: problem.f(z),
        "lookup, a part of it": lambda: problem.f.correlation.lookup(z[:, -2:]),
        "upsampling": lambda: problem.flow(z),
    }
    timings = alternate(whole | parts, repeats=repeats, device=device())
    name = f"deqflow-small, {size[0]}x{size[1]}, float32"
    difference = (ours(*images, stop=fixed).flow - plain(*images, SMALL_EVALS)).abs().max().item()
    rows = [
        Row(quantity=f"{name}: published way, {SMALL_EVALS} evaluations", value=timings.median("plain"), unit="s"),
        Row(quantity=f"{name}: times faster", value=timings.ratio("plain", "ours"), at_least=2.0),
        Row(quantity=f"{name}: largest difference of the flow", value=difference, unit="px", at_most=1e-3),
        Row(
            quantity=f"{name}: evaluations until its own stop",
            value=float(ours(*images).solve.evals.float().mean()),
        ),
        Row(quantity=f"{name}: times faster with its own stop", value=timings.ratio("plain", "stopped")),
    ]
    rows += [Row(quantity=f"{name}: {part}", value=1000 * timings.median(part), unit="ms") for part in parts]
    peak = 2 * SIDE**3 / timings.median("product")
    for part in ("encoder, both images", "one evaluation"):
        share = work(parts[part]) / timings.median(part) / peak
        rows.append(Row(quantity=f"{name}: share of a matrix product's speed in {part}", value=share))
    return rows


@torch.no_grad()
def compiled(repeats: int = 5, size: tuple[int, int] = SMALL) -> list[Row]:
    """deqflow-small compiled against as it is, and the time that the first call takes."""
    images, stop = photographs(*size), Stop(max_evals=SMALL_EVALS, atol=0.0)
    model = deqflow.load("deqflow-small").to(device()).eval()
    faster = deqflow.load("deqflow-small", compile=True).to(device()).eval()
    started = time.perf_counter()
    faster(*images, stop=stop)
    first = time.perf_counter() - started
    timings = alternate(
        {"as it is": lambda: model(*images, stop=stop), "compiled": lambda: faster(*images, stop=stop)},
        repeats=repeats,
        device=device(),
    )
    name = f"deqflow-small, {size[0]}x{size[1]}, float32, compiled"
    return [
        Row(quantity=f"{name}: first call, with compiling", value=first, unit="s"),
        Row(quantity=f"{name}: times faster than as it is", value=timings.ratio("as it is", "compiled")),
    ]


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
