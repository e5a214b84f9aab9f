"""Training on procedural pairs: sparse fixed-point correction, phantom gradients (paper sections 3.2, 3.3)."""

import csv
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from deqflow import checkpoints
from deqflow.datasets import FlowSample
from deqflow.equilibrium import Phantom
from deqflow.estimator import STRIDE, FlowEstimator, FlowOutput
from deqflow.geometry import Padding
from deqflow.losses import correction_loss, jacobian_penalty
from deqflow.metrics import mean_endpoint_error
from deqflow.models import build
from deqflow.solvers import Stop
from deqflow.synthetic import SceneConfig, SyntheticPairs

HELD_OUT_SEED = 1_000_003  # scenes for validation; no training set uses it


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run. The same configuration gives the same weights on the same machine.

    Attributes:
        size: of the model, a key of :data:`deqflow.sizes.SIZES`.
        start_from: checkpoint to begin with, a name or path for :func:`deqflow.load`; random weights if empty.
        seed: of weights, data and numbers of evaluations.
        steps, batch: optimiser steps, and pairs a step.
        lr, weight_decay, clip: AdamW under a one-cycle schedule with linear ramps; largest gradient norm.
        evals: least and greatest number of evaluations; one is drawn each step, so that the model has to
            settle instead of counting steps.
        corrections: states supervised, spread evenly.
        gamma: weight of a correction relative to the next.
        phantom_steps: differentiated steps at each correction; 1 is the one-step gradient.
        all_gradients: do not detach the flow inside the update.
        dropout: share of channels of lookup and context that are hidden from the update, one mask a solve.
        jacobian_weight: of the Jacobian penalty at the fixed point in the loss; 0 leaves it out.
        bfloat16: automatic mixed precision.
        workers: processes that make pairs.
        validate_every, validation_pairs: how often, and on how many held-out pairs.
        scenes: what the pairs look like.
    """

    size: str = "mini"
    start_from: str = ""
    seed: int = 0
    steps: int = 1500
    batch: int = 6
    lr: float = 8e-4
    weight_decay: float = 1e-5
    clip: float = 1.0
    evals: tuple[int, int] = (6, 18)
    corrections: int = 3
    gamma: float = 0.8
    phantom_steps: int = 1
    all_gradients: bool = False
    dropout: float = 0.0
    jacobian_weight: float = 0.0
    bfloat16: bool = True
    workers: int = 1
    validate_every: int = 250
    validation_pairs: int = 24
    scenes: SceneConfig = field(default_factory=SceneConfig)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"TrainConfig expects at least 1 step and 1 pair, got {self.steps} and {self.batch}.")
        if self.validate_every < 1 or self.validation_pairs < 1:
            raise ValueError(
                f"TrainConfig expects validate_every and validation_pairs of at least 1, got {self.validate_every} "
                f"and {self.validation_pairs}."
            )
        if self.seed < 0 or self.seed == HELD_OUT_SEED:
            raise ValueError(
                f"TrainConfig expects a seed of 0 or more other than {HELD_OUT_SEED}, which makes the held-out pairs, "
                f"got {self.seed}."
            )
        if not self.corrections <= self.evals[0] <= self.evals[1]:
            raise ValueError(
                f"TrainConfig expects evals as (least, greatest), the least no smaller than corrections="
                f"{self.corrections}, got {self.evals}."
            )
        if not self.jacobian_weight >= 0:
            raise ValueError(f"TrainConfig expects a jacobian_weight of 0 or more, got {self.jacobian_weight}.")


@dataclass(frozen=True)
class Progress:
    """What is logged: step, running mean of the loss, end-point errors (px) on held-out pairs, seconds so far."""

    step: int
    loss: float
    errors: dict[int, float]
    seconds: float


def make_estimator(config: TrainConfig) -> FlowEstimator:
    """Build the model of a run, with random weights or those of ``start_from``.

    Raises:
        ValueError: ``start_from`` is of another architecture.
    """
    torch.manual_seed(config.seed)
    estimator = build(
        config.size,
        all_gradients=config.all_gradients,
        dropout=config.dropout,
        gradient=Phantom(steps=config.phantom_steps),
        corrections=config.corrections,
        train_evals=config.evals[1],
    )
    if config.start_from:
        start = checkpoints.load(config.start_from)
        try:
            estimator.load_state_dict(start.state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"start_from expects a checkpoint of size {config.size!r}, got {config.start_from} with {start.config}."
            ) from error
    return estimator.train()


class Trainer:
    """One run in one folder: ``log.csv``, ``last.pt`` to go on from, ``model.safetensors`` at the end.

    Args:
        config: the run.
        folder: where its files go. A run that was interrupted there is continued.
        device: to train on.
        estimator: a model of your own to train instead of the one that ``config`` describes; it brings its own
            gradient and corrections, and leaves no ``model.safetensors`` if its operator is your own.

    Raises:
        ValueError: the folder holds a run of another configuration.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        estimator: FlowEstimator | None = None,
    ) -> None:
        self.config, self.folder, self.device = config, Path(folder), torch.device(device)
        self.estimator = (estimator or make_estimator(config)).to(self.device).train()
        self.optimizer = torch.optim.AdamW(self.estimator.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.lr, total_steps=config.steps + 1, pct_start=0.05, anneal_strategy="linear"
        )
        self.step, self.seconds = 0, 0.0
        self.recent: list[float] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / "last.pt").exists():
            self._resume()

    def run(self, on_progress: Callable[[Progress], None] | None = None) -> FlowEstimator:
        """Train to the end and return the model in evaluation mode; ``on_progress`` sees each log entry."""
        config = self.config
        pairs = SyntheticPairs(config.steps * config.batch, seed=config.seed, config=config.scenes)
        order = range(self.step * config.batch, len(pairs))
        loader = DataLoader(pairs, config.batch, sampler=order, num_workers=config.workers, drop_last=True)
        started = time.monotonic() - self.seconds
        for batch in tqdm(loader, desc="train", unit="step", initial=self.step, total=config.steps, mininterval=2):
            self.recent = [*self.recent[-99:], self.train_step(FlowSample(*batch))]
            self.step += 1
            self.seconds = time.monotonic() - started
            if self.step % config.validate_every == 0 or self.step == config.steps:
                self._log(on_progress)
        if self.estimator.config is not None:
            checkpoints.save(self.estimator, self.folder / "model.safetensors", recipe=self.recipe())
        return self.estimator.eval()

    def train_step(self, batch: FlowSample) -> float:
        """Take one optimiser step on a batch and return its loss, a weighted mean of absolute errors in px.

        Raises:
            FloatingPointError: the loss or its gradient is not finite.
        """
        config = self.config
        image1, image2, flow, valid, _ = (tensor.to(self.device) for tensor in batch)
        draw = np.random.default_rng([config.seed, self.step])
        stop = Stop(max_evals=int(draw.integers(config.evals[0], config.evals[1] + 1)), atol=0.0)
        with self._autocast():
            output, penalty = self._solve(image1, image2, stop, draw)
        loss = correction_loss(output.flows, flow, valid, gamma=config.gamma) + penalty
        self._require_finite(loss, "loss")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.estimator.parameters(), config.clip)
        self._require_finite(norm, "gradient")
        self.optimizer.step()
        self.schedule.step()
        return float(loss.detach())

    def validate(self, evals: tuple[int, ...] = (6, 12, 24, 48)) -> dict[int, float]:
        """Mean end-point error in px on held-out pairs after so many evaluations each."""
        pairs = SyntheticPairs(self.config.validation_pairs, seed=HELD_OUT_SEED, config=self.config.scenes)
        return validation_errors(self.estimator, pairs, evals, self.device, self._autocast)

    def recipe(self) -> dict[str, Any]:
        """What to store with the weights: the configuration, the run before it, hours, torch's version."""
        before = {}
        if self.config.start_from:
            path = Path(self.config.start_from)
            before = checkpoints.read_metadata(path)[1] if path.is_file() else {"name": self.config.start_from}
        return {
            "config": dataclasses.asdict(self.config) | {"start_from": Path(self.config.start_from).name},
            "pairs": self.step * self.config.batch,
            "hours": round(self.seconds / 3600, 3),
            "torch": torch.__version__,
            "before": before,
        }

    def _solve(
        self, image1: Tensor, image2: Tensor, stop: Stop, draw: np.random.Generator
    ) -> tuple[FlowOutput, Tensor | float]:
        """The estimator's output, and what the Jacobian at its fixed point adds to the loss."""
        # Masks are drawn by seed and step, like all else: a run that goes on draws what it would have drawn.
        generator = torch.Generator().manual_seed(int(draw.integers(2**63)))
        height, width = image1.shape[-2:]
        padding = Padding(height, width, STRIDE)
        f, z0 = self.estimator.fixed_point_map(padding.pad(image1), padding.pad(image2), generator=generator)
        output = self.estimator.solve_map(f, z0, stop=stop, padding=padding)
        weight = self.config.jacobian_weight
        return output, weight * jacobian_penalty(f, output.solve.z, generator) if weight else 0.0

    def _require_finite(self, value: Tensor, name: str) -> None:
        if not bool(torch.isfinite(value)):
            place = f"step {self.step} (seed {self.config.seed})"
            raise FloatingPointError(f"The {name} of {place} is not finite: lower lr, or set bfloat16=False.")

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.bfloat16)

    def _log(self, on_progress: Callable[[Progress], None] | None) -> None:
        errors = self.validate()
        progress = Progress(self.step, float(np.mean(self.recent)), errors, self.seconds)
        row = {"step": self.step, "loss": round(progress.loss, 4), "seconds": round(self.seconds, 1)}
        row |= {f"epe_{k}": round(v, 4) for k, v in errors.items()}
        self._write_row(row)
        self._save()
        if on_progress is not None:
            on_progress(progress)

    def _write_row(self, row: dict[str, float]) -> None:
        path, unfinished = self.folder / "log.csv", self.folder / "log.csv.part"
        rows = [row]
        if path.exists():
            # A run that was stopped before it could save last.pt comes to the same steps again.
            with path.open(newline="") as file:
                rows = [*(old for old in csv.DictReader(file) if int(old["step"]) < self.step), row]
        with unfinished.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            writer.writeheader()
            writer.writerows(rows)
        unfinished.replace(path)

    def _save(self) -> None:
        state = {
            "config": json.dumps(dataclasses.asdict(self.config)),
            "model": self.estimator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "recent": self.recent,
        }
        unfinished = self.folder / "last.pt.part"
        torch.save(state, unfinished)
        unfinished.replace(self.folder / "last.pt")

    def _resume(self) -> None:
        state = torch.load(self.folder / "last.pt", map_location=self.device, weights_only=True)
        if state["config"] != json.dumps(dataclasses.asdict(self.config)):
            raise ValueError(f"{self.folder} holds a run of another configuration: use a new folder, or delete it.")
        self.estimator.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.seconds, self.recent = state["step"], state["seconds"], state["recent"]


@torch.no_grad()
def validation_errors(
    estimator: FlowEstimator,
    pairs: SyntheticPairs,
    evals: tuple[int, ...],
    device: torch.device | str = "cpu",
    autocast: Callable[[], Any] | None = None,
) -> dict[int, float]:
    """Mean end-point error in px over pairs, after each of the given numbers of evaluations (no early stop)."""
    training = estimator.training
    estimator.eval()
    totals = dict.fromkeys(evals, 0.0)
    for i in range(len(pairs)):
        image1, image2, flow, valid, _ = (tensor[None].to(device) for tensor in pairs[i])
        totals = {k: totals[k] + error for k, error in _errors(estimator, image1, image2, flow, valid, evals, autocast)}
    estimator.train(training)
    return {k: total / len(pairs) for k, total in totals.items()}


def _errors(
    estimator: FlowEstimator,
    image1: Tensor,
    image2: Tensor,
    flow: Tensor,
    valid: Tensor,
    evals: tuple[int, ...],
    autocast: Callable[[], Any] | None,
) -> list[tuple[int, float]]:
    """One solve a pair: each number of evaluations starts from the state of the one before."""
    errors, state, before = [], None, 0
    for k in sorted(evals):
        stop = Stop(max_evals=k - before, atol=0.0)
        if autocast is None:
            output = estimator(image1, image2, start=state, stop=stop)
        else:
            with autocast():
                output = estimator(image1, image2, start=state, stop=stop)
        errors.append((k, float(mean_endpoint_error(output.flow, flow, valid))))
        state, before = output.state, k
    return errors
