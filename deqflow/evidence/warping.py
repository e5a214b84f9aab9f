"""Two answers to what is found at the end of the flow: correlation at 1/8 of the image, or warped features at 1/4.

Both sizes train on the same pairs, in the same order, for the same number of steps, with two seeds. The encoders learn
too. Warped features take memory in proportion to the pixels, so that the state can be finer.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deqflow.data.metrics import endpoint_error
from deqflow.data.synthetic import HELD_OUT_SEED, SceneConfig, SyntheticPairs
from deqflow.evidence.costs import MIB, step_cost
from deqflow.evidence.diagnostics import LiveTensors
from deqflow.evidence.provenance import provenance
from deqflow.evidence.results import save_results
from deqflow.model.budgets import flows_after
from deqflow.model.estimator import FlowEstimator
from deqflow.solvers import Stop
from deqflow.training import TrainConfig, Trainer
from deqflow.training.files import plain

COMPARED = ("mini", "mini-warp")
SEEDS = (0, 1)
EVALS = (6, 12, 24, 96)
FRAME = (436, 1024)  # on which seconds and bytes are measured
SMALL = 2.0  # px, the length below which a motion is small
CONFIG = TrainConfig(
    steps=400,
    batch=6,
    evals=(6, 18),
    validate_every=200,
    validation_pairs=12,
    scenes=SceneConfig(height=128, width=160),
)


def near_edges(flow: Tensor, jump: float = 1.0, reach: int = 4) -> Tensor:
    """Pixels within ``reach`` pixels of a motion edge: neighbours whose flows differ by more than ``jump`` px.

    Args:
        flow: true flow, (B, 2, H, W) in pixels.
        jump: length of the difference.
        reach: in pixels, along rows and columns.

    Returns:
        (B, H, W) booleans.
    """
    across = torch.linalg.vector_norm(flow.diff(dim=3), dim=1) > jump
    down = torch.linalg.vector_norm(flow.diff(dim=2), dim=1) > jump
    edges = F.pad(across, (0, 1)) | F.pad(down, (0, 0, 0, 1))
    return F.max_pool2d(edges[:, None].float(), 2 * reach + 1, stride=1, padding=reach)[:, 0] > 0


@torch.no_grad()
def errors_by_region(estimator: FlowEstimator, pairs: SyntheticPairs) -> dict[str, dict[str, float]]:
    """Mean end-point error in px over all pixels, near motion edges, and where the motion is small, by evaluations."""
    found: dict[str, dict[str, list[Tensor]]] = {}
    for i in range(len(pairs)):
        image1, image2, truth, valid = (tensor[None] for tensor in pairs[i][:4])
        small = torch.linalg.vector_norm(truth, dim=1) < SMALL
        regions = {"all": valid, "edges": valid & near_edges(truth), "small motion": valid & small}
        flows, _ = flows_after(estimator, image1, image2, EVALS)
        for name, region in regions.items():
            for k in EVALS:
                errors = found.setdefault(name, {}).setdefault(str(k), [])
                errors.append(endpoint_error(flows[k], truth)[region])
    joined = {name: {k: torch.cat(errors) for k, errors in by_k.items()} for name, by_k in found.items()}
    return {
        name: {k: float(errors.mean()) for k, errors in by_k.items() if len(errors)} for name, by_k in joined.items()
    }


@torch.no_grad()
def inference_cost(estimator: FlowEstimator) -> dict[str, float]:
    """Processor seconds and MiB of new tensors of 12 evaluations on a frame of ``FRAME``'s size, in float32."""
    images = [torch.rand(1, 3, *FRAME, generator=torch.Generator().manual_seed(i)) * 255 for i in range(2)]
    stop = Stop(max_evals=12, atol=0.0)
    with LiveTensors() as live:
        estimator(*images, stop=stop)
    started = time.process_time()
    estimator(*images, stop=stop)
    return {"seconds": time.process_time() - started, "peak_mib": live.peak / MIB}


def kept_by_step(estimator: FlowEstimator, config: TrainConfig) -> float:
    """MiB that a training step keeps for backward."""
    size = (config.batch, 3, config.scenes.height, config.scenes.width)
    images = [torch.rand(size, generator=torch.Generator().manual_seed(i)) * 255 for i in range(2)]
    try:
        return step_cost(estimator.train(), *images).kept / MIB
    finally:
        estimator.eval()


def run_warping(
    out: str | Path,
    folder: str | Path = "runs/warping",
    config: TrainConfig = CONFIG,
    held_out: int = 48,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train both sizes with two seeds, measure them and write a results file. Interrupted runs are continued.

    Args:
        out: results file (.json).
        folder: gets a folder for each run.
        config: of every run, but for size and seed.
        held_out: number of procedural pairs to measure on.
        say: takes a line for each run.
    """
    pairs = SyntheticPairs(held_out, seed=HELD_OUT_SEED, config=config.scenes)
    results: dict[str, Any] = {"experiment": "warping", "config": plain(config), "held_out": held_out, "runs": []}
    results["provenance"] = provenance(Path(__file__).parent)
    for seed in SEEDS:
        for size in COMPARED:
            run = replace(config, size=size, seed=seed)
            trainer = Trainer(run, Path(folder) / f"{size}-{seed}")
            estimator = trainer.run()
            errors = errors_by_region(estimator, pairs)
            row = {"size": size, "seed": seed, "error_px": errors, "step_kept_mib": kept_by_step(estimator, config)}
            results["runs"].append(row | inference_cost(estimator))
            save_results(results, out)
            say(f"{size}, seed {seed}: {errors['all']['12']:.2f} px after 12 evaluations")
    return results
