"""Experiments: many short trainings that differ in one thing, over several seeds, in one results file.

All runs of an experiment see the same pairs and take the same number of steps and evaluations. The update operator and
the upsampling are trained from random weights; the experiments are about the fixed point of that operator. The encoder
is a shipped model's at first, so that little training tells something; frozen, it makes a run take a minute.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from deqflow.data.datasets import FlowSample
from deqflow.data.metrics import mean_endpoint_error
from deqflow.data.synthetic import RICH_SCENES, SyntheticPairs
from deqflow.equilibrium import GradientMode, Implicit, Phantom, Reversible, Unrolled
from deqflow.evidence.provenance import digest, provenance
from deqflow.evidence.results import load_results, save_results
from deqflow.model import checkpoints
from deqflow.model.budgets import flows_after
from deqflow.model.estimator import FlowEstimator
from deqflow.solvers import Anderson, Stop, rms
from deqflow.training import HELD_OUT_SEED, TrainConfig, Trainer
from deqflow.training.objective import encoders_of

SMALL_MOTION = replace(
    RICH_SCENES, height=48, width=64, objects=(1, 4), camera=2.0, motion=2.0, largest=10.0, motion_scales=(0.3, 1.0)
)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One training of an experiment: its number of corrections, and how each correction is differentiated."""

    corrections: int = 1
    gradient: GradientMode = field(default_factory=Phantom)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Short trainings of several variants, each with several seeds.

    Attributes:
        config: the configuration of every run. The variant sets its corrections, the run its seed.
        variants: by name.
        seeds: each determines the first weights of the update operator and the order of the pairs.
        encoder: the shipped model or checkpoint whose encoder the runs begin with; it must have the size that is
            trained.
        frozen: whether that encoder stays as it is.
        pairs: number of procedural training pairs, made once.
        held_out: number of procedural pairs on which errors are taken.
        evals: numbers of evaluations after which errors are taken.
        looks: how many times during a run the held-out error is taken, after the trained number of evaluations.
    """

    config: TrainConfig
    variants: Mapping[str, Variant]
    seeds: tuple[int, ...] = (0, 1, 2)
    encoder: str = "deqflow-small"
    frozen: bool = True
    pairs: int = 480
    held_out: int = 48
    evals: tuple[int, ...] = (3, 6, 12, 24, 48, 96)
    looks: int = 6


_SHORT = TrainConfig(steps=240, batch=4, lr=1e-3, evals=(12, 12), bfloat16=False, workers=0, scenes=SMALL_MOTION)

_LOOSE = Stop(max_evals=20, atol=0.0, rtol=1e-2, norm=rms)  # of the backward solve

EXPERIMENTS: dict[str, Experiment] = {
    # Claim C7: the effect of sparse fixed-point correction on error and convergence, over long trainings.
    "corrections": Experiment(
        config=replace(_SHORT, steps=1500),
        variants={str(count): Variant(corrections=count) for count in (1, 2, 3, 6)},
        frozen=False,
        pairs=2400,
    ),
    # The half of claim C4 that is about learning: the error that each gradient reaches, and its training time.
    "gradients": Experiment(
        config=replace(_SHORT, all_gradients=True),
        variants={
            "one-step": Variant(),
            "phantom 2": Variant(gradient=Phantom(steps=2)),
            "phantom 3": Variant(gradient=Phantom(steps=3)),
            "phantom 5": Variant(gradient=Phantom(steps=5)),
            "implicit": Variant(
                gradient=Implicit(rule=Anderson(), stop=Stop(max_evals=20, atol=0.0, rtol=1e-2, norm=rms))
            ),
            "reversible": Variant(gradient=Reversible()),
            "unrolled": Variant(gradient=Unrolled()),
        },
    ),
}


@dataclass(frozen=True)
class Material:
    """What all runs of an experiment share: training pairs, held-out pairs, and the model that lends its encoder."""

    pairs: FlowSample
    held_out: FlowSample
    lender: FlowEstimator


def prepare(experiment: Experiment) -> Material:
    """Make the pairs and load the model that lends its encoder."""
    config = experiment.config
    pairs = SyntheticPairs(experiment.pairs, seed=config.seed, config=config.scenes)
    held_out = SyntheticPairs(experiment.held_out, seed=HELD_OUT_SEED, config=config.scenes)
    return Material(_stack(pairs), _stack(held_out), checkpoints.load(experiment.encoder))


def run_experiment(
    name: str, experiment: Experiment, out: str | Path, on_run: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Make the runs that are not yet in the results file, and return its content. Each run is saved when it ends.

    Args:
        name: of the experiment, stored with its results.
        experiment: what to run.
        out: the results file (json). Finished runs in it are kept.
        on_run: called after each run with its entry.

    Raises:
        ValueError: the file holds an experiment of another configuration.
    """
    out, material = Path(out), prepare(experiment)
    config = describe(experiment) | {"encoder_sha256": digest(nn.ModuleList(encoders_of(material.lender)))}
    results = {"experiment": name, "config": config, "runs": []}
    if out.exists():
        results = load_results(out)
        if results["config"] != config:
            raise ValueError(f"{out} holds an experiment of another configuration: use a new file, or delete it.")
    results["provenance"] = provenance(Path(__file__).parent)
    finished = {(run["variant"], run["seed"]) for run in results["runs"]}
    # Seed by seed, so that an interrupted experiment has runs of all variants.
    missing = [(v, s) for s in experiment.seeds for v in experiment.variants if (v, s) not in finished]
    for variant, seed in missing:
        _, run = train_variant(experiment, variant, seed, material)
        results["runs"].append(run | {"commit": results["provenance"]["commit"]})
        save_results(results, out)
        if on_run is not None:
            on_run(run)
    return results


def train_variant(
    experiment: Experiment, variant: str, seed: int, material: Material
) -> tuple[FlowEstimator, dict[str, Any]]:
    """Train one variant with one seed; return the model and the run's entry in the results.

    ``seconds`` is the processor time of the training steps, so that other work on the machine does not change it.
    A run ends when its loss is not finite; its entry then has ``failed`` and no ``curve``.
    """
    pairs, held_out = material.pairs, material.held_out
    choice = experiment.variants[variant]
    config = replace(experiment.config, seed=seed, corrections=choice.corrections)
    order = np.random.default_rng([seed, 1])
    run: dict[str, Any] = {"variant": variant, "seed": seed, "seconds": 0.0, "progress": []}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, folder)
        _borrow_encoder(trainer.estimator, material.lender, frozen=experiment.frozen)
        trainer.estimator.equilibrium.gradient = choice.gradient
        look_every, losses = max(1, config.steps // experiment.looks), []
        for step in range(1, config.steps + 1):
            chosen = order.choice(len(pairs.image1), config.batch, replace=False)
            batch = FlowSample(*(tensor[chosen] for tensor in pairs))
            started = time.process_time()
            try:
                losses.append(trainer.train_step(batch))
            except FloatingPointError as error:
                return trainer.estimator.eval(), run | {"failed": str(error)}
            trainer.step = step
            run["seconds"] += time.process_time() - started
            if step % look_every == 0 or step == config.steps:
                error = error_curve(trainer.estimator, held_out, (config.evals[1],))["error_px"][0]
                numbers = {"seconds": run["seconds"], "loss": float(np.mean(losses)), "error_px": error}
                run["progress"].append({"step": step} | {name: round(x, 5) for name, x in numbers.items()})
                losses.clear()
        estimator = trainer.estimator.eval()
    return estimator, run | {"curve": error_curve(estimator, held_out, experiment.evals)}


def _borrow_encoder(estimator: FlowEstimator, lender: FlowEstimator, *, frozen: bool = True) -> None:
    """Give the estimator a trained model's encoder, and freeze it if asked to."""
    own = nn.ModuleList(encoders_of(estimator))
    try:
        own.load_state_dict(nn.ModuleList(encoders_of(lender)).state_dict())
    except RuntimeError as error:
        raise ValueError("The model that lends its encoder must be of the size that is trained.") from error
    if frozen:
        own.requires_grad_(False)


def error_curve(estimator: FlowEstimator, held_out: FlowSample, evals: tuple[int, ...]) -> dict[str, list[float]]:
    """Error and residual after several numbers of evaluations, without early stop.

    Returns:
        ``evals``; ``error_px``, the mean end-point error; ``residual_px``, how far the evaluation moved the flow,
        RMS in full-size pixels, mean over pairs, and ``residual_median_px``.
    """
    training, evals = estimator.training, tuple(sorted(evals))
    flows, solved = flows_after(estimator.eval(), held_out.image1, held_out.image2, evals)
    estimator.train(training)
    errors = [mean_endpoint_error(flows[k], held_out.flow, held_out.valid).mean() for k in evals]
    residuals = [solved.kept[k].residual for k in evals]
    return {
        "evals": list(evals),
        "error_px": [round(float(error), 5) for error in errors],
        "residual_px": [round(float(residual.mean()), 6) for residual in residuals],
        "residual_median_px": [round(float(residual.median()), 6) for residual in residuals],
    }


def _stack(pairs: SyntheticPairs) -> FlowSample:
    return FlowSample(*(torch.stack(tensors) for tensors in zip(*(pairs[i] for i in range(len(pairs))), strict=True)))


def describe(experiment: Experiment) -> dict[str, Any]:
    """The experiment as json can hold it."""
    plain = asdict(experiment)
    for name, variant in experiment.variants.items():
        plain["variants"][name]["gradient"]["kind"] = type(variant.gradient).__name__
    return json.loads(json.dumps(_limited(plain), default=lambda function: function.__name__))


def _limited(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that are infinite, which json cannot hold; a missing limit means no limit."""
    kept = {name: value for name, value in settings.items() if value != math.inf}
    return {name: _limited(value) if isinstance(value, dict) else value for name, value in kept.items()}
