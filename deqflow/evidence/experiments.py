"""Many short trainings that differ in one thing, over several seeds, kept run by run in one results file.

All runs of an experiment see the same pairs and take as many steps of as many evaluations. So that minutes are
enough, the encoder is a shipped model's, frozen: what is trained, from random weights, is the update operator
(and the upsampling), whose fixed point is what the experiments are about.
"""

import hashlib
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

from deqflow.data.datasets import FlowSample
from deqflow.data.metrics import mean_endpoint_error
from deqflow.data.synthetic import SceneConfig, SyntheticPairs
from deqflow.equilibrium import GradientMode, Implicit, Phantom, Unrolled
from deqflow.evidence.provenance import provenance
from deqflow.evidence.results import load_results, save_results
from deqflow.model import checkpoints
from deqflow.model.estimator import FlowEstimator
from deqflow.solvers import Anderson, Stop
from deqflow.training import HELD_OUT_SEED, TrainConfig, Trainer

SMALL_MOTION = SceneConfig(
    height=48, width=64, objects=(1, 4), camera=2.0, motion=2.0, largest=10.0, motion_scales=(0.3, 1.0)
)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What one training does differently: how many corrections, and how each is differentiated."""

    corrections: int = 1
    gradient: GradientMode = field(default_factory=Phantom)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Short trainings of several variants, each with several seeds.

    Attributes:
        config: of every run, but for the variant's corrections and the seed.
        variants: by name.
        seeds: of the update operator's first weights and of the order of the pairs.
        encoder: shipped model or checkpoint of the same size that lends its encoder.
        pairs: procedural pairs to train on, made once.
        held_out: procedural pairs to measure on.
        evals: numbers of evaluations to measure at.
        looks: how often the held-out error is measured during a run, at its trained number of evaluations.
    """

    config: TrainConfig
    variants: Mapping[str, Variant]
    seeds: tuple[int, ...] = (0, 1, 2)
    encoder: str = "deqflow-small"
    pairs: int = 480
    held_out: int = 48
    evals: tuple[int, ...] = (3, 6, 12, 24, 48, 96)
    looks: int = 6


_SHORT = TrainConfig(steps=240, batch=4, lr=1e-3, evals=(12, 12), bfloat16=False, workers=0, scenes=SMALL_MOTION)

EXPERIMENTS: dict[str, Experiment] = {
    # C7: what sparse fixed-point correction does to error and convergence.
    "corrections": Experiment(
        config=_SHORT, variants={str(count): Variant(corrections=count) for count in (1, 2, 3, 6)}
    ),
    # C4, as far as learning goes: the error each gradient reaches for the seconds spent.
    "gradients": Experiment(
        config=replace(_SHORT, all_gradients=True),
        variants={
            "one-step": Variant(),
            "phantom 2": Variant(gradient=Phantom(steps=2)),
            "phantom 3": Variant(gradient=Phantom(steps=3)),
            "phantom 5": Variant(gradient=Phantom(steps=5)),
            "implicit": Variant(gradient=Implicit(rule=Anderson(), stop=Stop(max_evals=20, atol=0.0, rtol=1e-2))),
            "unrolled": Variant(gradient=Unrolled()),
        },
    ),
}


@dataclass(frozen=True)
class Material:
    """What all runs of an experiment share: pairs to train on, pairs to measure on, and whose encoder is lent."""

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
    """Run what is not yet in the results file, which is written anew after each run, and return its content.

    Args:
        name: of the experiment, stored with its results.
        experiment: what to run.
        out: the results file (json). Finished runs that it holds are kept.
        on_run: sees each run's entry.

    Raises:
        ValueError: the file holds an experiment of another configuration.
    """
    out, material = Path(out), prepare(experiment)
    config = describe(experiment) | {"encoder_sha256": _digest(material.lender)}
    results = {"experiment": name, "config": config, "runs": []}
    if out.exists():
        results = load_results(out)
        results["config"] |= {"config": complete(results["config"]["config"])}
        if results["config"] != config:
            raise ValueError(f"{out} holds an experiment of another configuration: use a new file, or delete it.")
    results["provenance"] = provenance(Path(__file__).parent)
    finished = {(run["variant"], run["seed"]) for run in results["runs"]}
    # Seed by seed, so that an interrupted experiment has something of each variant.
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
    """Train one variant with one seed; return the model, and its entry in the results.

    ``seconds`` are the processor's, of the training steps alone: a busy machine does not change what they compare.
    A run whose loss is not finite ends there; its entry has ``failed`` and no ``curve``.
    """
    pairs, held_out = material.pairs, material.held_out
    choice = experiment.variants[variant]
    config = replace(experiment.config, seed=seed, corrections=choice.corrections)
    order = np.random.default_rng([seed, 1])
    run: dict[str, Any] = {"variant": variant, "seed": seed, "seconds": 0.0, "progress": []}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, folder)
        _borrow_encoder(trainer.estimator, material.lender)
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
                error = measure(trainer.estimator, held_out, (config.evals[1],))["error_px"][0]
                numbers = {"seconds": run["seconds"], "loss": float(np.mean(losses)), "error_px": error}
                run["progress"].append({"step": step} | {name: round(x, 5) for name, x in numbers.items()})
                losses.clear()
        estimator = trainer.estimator.eval()
    return estimator, run | {"curve": measure(estimator, held_out, experiment.evals)}


def _borrow_encoder(estimator: FlowEstimator, lender: FlowEstimator) -> None:
    """Give the estimator a trained model's encoder and freeze it."""
    for name in ("feature_encoder", "context_encoder"):
        own, other = getattr(estimator, name), getattr(lender, name)
        try:
            if own is not other:  # None and None where features and context share an encoder
                own.load_state_dict(other.state_dict())
                own.requires_grad_(False)
        except (AttributeError, RuntimeError) as error:
            raise ValueError("The model that lends its encoder must be of the size that is trained.") from error


@torch.no_grad()
def measure(estimator: FlowEstimator, held_out: FlowSample, evals: tuple[int, ...]) -> dict[str, list[float]]:
    """Error and residual after so many evaluations, without early stop.

    Returns:
        ``evals``; ``error_px``, the mean end-point error; ``residual_px``, how far the evaluation moved the flow,
        RMS in full-size pixels, mean over pairs, and ``residual_median_px``.
    """
    training = estimator.training
    estimator.eval()
    curve: dict[str, list[float]] = {"evals": [], "error_px": [], "residual_px": [], "residual_median_px": []}
    state, before = None, 0
    for k in sorted(evals):
        # Plain iteration goes on from f(z) as if it had not been interrupted.
        output = estimator(held_out.image1, held_out.image2, start=state, stop=Stop(max_evals=k - before, atol=0.0))
        state, before = output.state, k
        curve["evals"].append(k)
        errors = mean_endpoint_error(output.flow, held_out.flow, held_out.valid)
        curve["error_px"].append(round(float(errors.mean()), 5))
        curve["residual_px"].append(round(float(output.solve.residual.mean()), 6))
        curve["residual_median_px"].append(round(float(output.solve.residual.median()), 6))
    estimator.train(training)
    return curve


def _stack(pairs: SyntheticPairs) -> FlowSample:
    return FlowSample(*(torch.stack(tensors) for tensors in zip(*(pairs[i] for i in range(len(pairs))), strict=True)))


def complete(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored training configuration with today's settings: what was run before one existed had its default."""
    defaults = asdict(TrainConfig())
    return json.loads(json.dumps(defaults | stored | {"scenes": defaults["scenes"] | stored["scenes"]}))


def _digest(estimator: FlowEstimator) -> str:
    weights = b"".join(tensor.numpy().tobytes() for tensor in estimator.state_dict().values())
    return hashlib.sha256(weights).hexdigest()


def describe(experiment: Experiment) -> dict[str, Any]:
    """The experiment as json can hold it."""
    plain = asdict(experiment)
    for name, variant in experiment.variants.items():
        plain["variants"][name]["gradient"]["kind"] = type(variant.gradient).__name__
    return json.loads(json.dumps(_limited(plain), default=lambda function: function.__name__))


def _limited(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the limits that are infinite, which json cannot hold: no limit."""
    kept = {name: value for name, value in settings.items() if value != math.inf}
    return {name: _limited(value) if isinstance(value, dict) else value for name, value in kept.items()}
