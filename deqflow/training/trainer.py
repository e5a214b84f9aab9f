"""One run in one folder: its steps, log and saved states, and how it is continued (paper sections 3.2, 3.3)."""

import dataclasses
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from deqflow.data.datasets import FlowSample
from deqflow.data.synthetic import SyntheticPairs
from deqflow.model import checkpoints
from deqflow.model.estimator import FlowEstimator
from deqflow.solvers import SolverResult
from deqflow.training.config import HELD_OUT_SEED, TrainConfig
from deqflow.training.data import Shares, training_pairs
from deqflow.training.devices import Processes
from deqflow.training.files import complete, plain, write_config
from deqflow.training.logs import Board, Progress, make_bar, say, shows_bars, write_row
from deqflow.training.objective import (
    Objective,
    autocast,
    draw_step,
    make_estimator,
    origin,
    prepare,
    set_training,
    training_precision,
)
from deqflow.training.states import load_state, random_state, save_state, set_random_state, write_tensors
from deqflow.training.validation import Validation, measure_pairs, summarise

EVALS = (6, 12, 24, 48)
SMALLEST_SCALE = 2.0**-14  # a gradient that still overflows at a smaller scale is too large for float16

# May differ on resume; does not affect the weights.
_FREE = ("workers", "data_root")
_LONGER = " To train longer than planned, start a run in a new folder from this one's model.safetensors, with --from."


class Trainer:
    """One run in one folder, with ``config.yaml``, ``log.csv``, saved states and, at the end, ``model.safetensors``.

    Args:
        config: the run's configuration.
        folder: folder for the run's files. A run that was interrupted there is continued.
        device: device to train on. "auto" takes a GPU where there is one; under ``accelerate launch`` it takes the
            device of this process.
        estimator: a model of your own to train instead of the one that ``config`` describes. It brings its own
            gradient and corrections; with an operator of your own, no ``model.safetensors`` is written.
        teacher: a model whose flow is a second target, see ``teacher_weight``.

    Attributes:
        step: number of steps taken.
        solve: the solver's result in the last step.

    Raises:
        ValueError: the folder holds a run of another configuration or is a file, or the batch cannot be shared out.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        estimator: FlowEstimator | None = None,
        teacher: FlowEstimator | None = None,
    ) -> None:
        self.config, self.folder, self.processes = config, Path(folder), Processes(device)
        self.device = self.processes.device
        self._require_shares()
        self._teacher = None if teacher is None else teacher.to(self.device)
        self.estimator = prepare((estimator or make_estimator(config)).to(self.device), config)
        set_training(self.estimator, config)
        self.optimizer = torch.optim.AdamW(self.estimator.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            config.lr,
            total_steps=config.steps + 1,
            pct_start=0.05,
            anneal_strategy="linear",
            cycle_momentum=config.cycle_momentum,
        )
        # This is torch's scaler: accelerate's refuses float16 on a CPU, where it is slow but can be tested.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.float16)
        self.step, self.seconds = 0, 0.0
        self.recent: list[float] = []
        self.solve: SolverResult | None = None
        self._random: dict[str, Any] | None = None
        self._resume()

    @property
    def finished(self) -> bool:
        """Whether all steps have been taken."""
        return self.step >= self.config.steps

    def run(
        self,
        on_progress: Callable[[Progress], None] | None = None,
        *,
        stop_event: Event | None = None,
        bar: bool = True,
    ) -> FlowEstimator:
        """Train to the end and return the model in evaluation mode.

        Args:
            on_progress: called with each log entry. If it is not given and no bar is shown, entries are printed.
            stop_event: once it is set, the run saves its state after the current step and returns. Calling ``run``
                again, or another :class:`Trainer` on the same folder, continues from there.
            bar: show a progress bar if this is a terminal or a notebook.
        """
        config = self.config
        bar = bar and self.processes.is_first and shows_bars()
        if on_progress is None and not bar:
            on_progress = say
        set_training(self.estimator, config)
        if self._random is not None:
            set_random_state(self._random, self.device)
            self._random = None
        started = time.monotonic() - self.seconds
        board = Board(self.folder, self.step) if self.processes.is_first else None
        with make_bar(self.step, config.steps, shown=bar) as progress_bar:
            for batch in self._batches():
                self.recent = [*self.recent[-99:], self.train_step(FlowSample(*batch))]
                self.step += 1
                self.seconds = time.monotonic() - started
                progress_bar.update()
                if self.step % config.validate_every == 0 or self.finished:
                    self._log(on_progress, board)
                if stop_event is not None and self.processes.any(stop_event.is_set()):
                    self._save()
                    break
        if board is not None:
            board.close()
        if self.finished and self.estimator.config is not None and self.processes.is_first:
            checkpoints.save(self.estimator, self.folder / "model.safetensors", recipe=self.recipe())
        self.processes.wait()  # the other processes may load the file next
        return self.estimator.eval()

    def train_step(self, batch: FlowSample) -> float:
        """Take one optimiser step on a batch and return its loss (:class:`deqflow.training.objective.Objective`).

        Args:
            batch: this process's share of the step's pairs; the first dimension of each tensor counts the pairs.

        Raises:
            FloatingPointError: the loss or its gradient is not finite. The batch is saved in the run's folder.
        """
        parts, losses = self.config.accumulate, []
        self.optimizer.zero_grad(set_to_none=True)
        for i, part in enumerate(zip(*(tensor.chunk(parts) for tensor in batch), strict=True)):
            part = FlowSample(*(tensor.to(self.device, non_blocking=True) for tensor in part))
            draw = draw_step(self.config, self.step, self.processes.index * parts + i)
            with self.processes.without_sync(self._objective) if i + 1 < parts else nullcontext():
                loss, self.solve = self._objective(part, draw)
                losses.append(self.processes.mean(loss.detach()))
                self._require_finite(losses[-1], "loss", batch)
                self.scaler.scale(loss / parts).backward()
        self._descend(batch)
        return float(torch.stack(losses).mean())

    def validate(self, evals: tuple[int, ...] = EVALS) -> dict[int, float]:
        """Mean end-point error in px on held-out pairs, after each of the given numbers of evaluations."""
        return self.measure(evals).errors

    def measure(self, evals: tuple[int, ...] = EVALS) -> Validation:
        """Errors, residuals and evaluations on held-out pairs, which are divided among the processes."""
        count = self.config.validation_pairs
        pairs = SyntheticPairs(count, seed=HELD_OUT_SEED, config=self.config.scenes)
        mine = (pairs[i] for i in range(self.processes.index, count, self.processes.count))
        rows = measure_pairs(self.estimator, mine, evals, self.device, lambda: autocast(self.device, self.config))
        set_training(self.estimator, self.config)
        return summarise(self.processes.sum(rows.sum(0)), count, evals)

    def recipe(self) -> dict[str, Any]:
        """What is stored with the weights: configuration, origin of the first weights, hours, torch's version."""
        config = self.config
        # Only the names, not the paths on the machine that trained.
        names = {name: Path(getattr(config, name)).name for name in ("start_from", "data_root")}
        return {
            "config": dataclasses.asdict(config) | names,
            "pairs": self.step * config.batch,
            "hours": round(self.seconds / 3600, 3),
            "torch": torch.__version__,
            "precision": str(training_precision(self.device, config)).removeprefix("torch."),
            "before": origin(config),
        }

    @cached_property
    def _objective(self) -> nn.Module:
        """The loss, made at the first step because parameters may be frozen until then."""
        return self.processes.wrap(Objective(self.estimator, self.config, self._teacher))

    @property
    def _shares(self) -> Shares:
        """The share of this process in the pairs of each remaining step."""
        return Shares(self.config, first=self.step, process=self.processes.index, processes=self.processes.count)

    def _batches(self) -> DataLoader[FlowSample]:
        return DataLoader(
            training_pairs(self.config),
            batch_sampler=self._shares,
            num_workers=self.config.workers,
            pin_memory=self.device.type == "cuda",
            # Without this generator the loader would use torch's global one, and a continued run would draw twice.
            generator=torch.Generator().manual_seed(self.config.seed),
        )

    def _descend(self, batch: FlowSample) -> None:
        """Clip the gradient and take the optimiser step; in float16, skip a step whose gradient overflowed."""
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.estimator.parameters(), self.config.clip)
        before = self.scaler.get_scale()
        if not self.scaler.is_enabled() or before < SMALLEST_SCALE:
            self._require_finite(norm, "gradient", batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= before:  # a smaller scale means that the step was skipped: so is the schedule's
            self.schedule.step()

    def _require_finite(self, value: Tensor, name: str, batch: FlowSample) -> None:
        """Raise an error if a value, which is the same in all processes, is not finite; save the batch first."""
        if bool(torch.isfinite(value)):
            return
        indices = self._shares.at(self.step)
        path = self.folder / f"not-finite-{self.step:07d}-{self.processes.index}.pt"
        place = {"seed": self.config.seed, "step": self.step, "indices": indices}
        write_tensors(place | {key: tensor.cpu() for key, tensor in batch._asdict().items()}, path)
        raise FloatingPointError(
            f"The {name} of step {self.step} (seed {self.config.seed}, pairs {indices[0]} to {indices[-1]}) is not "
            f"finite: lower lr, or set bfloat16=False for float32. The batch is in {path}."
        )

    def _log(self, on_progress: Callable[[Progress], None] | None, board: Board | None) -> None:
        seen = self.measure()
        loss = float(np.mean(self.recent))
        progress = Progress(self.step, loss, seen.errors, self.seconds, seen.residuals, seen.evaluations)
        if board is not None:
            write_row(progress.row, self.folder / "log.csv")
            board.write(progress)
        self._save()
        if on_progress is not None and self.processes.is_first:
            on_progress(progress)

    def _save(self) -> None:
        generators = self.processes.gather(random_state(self.device))
        if not self.processes.is_first:
            return
        state = {
            "config": json.dumps(dataclasses.asdict(self.config)),
            "model": self.estimator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": generators,
            "step": self.step,
            "seconds": self.seconds,
            "recent": self.recent,
        }
        save_state(state, self.folder, self.step)

    def _resume(self) -> None:
        """Continue from the folder's newest state. Only the first process needs access to the folder."""
        state = None
        if self.processes.is_first:
            if file := next((path for path in (self.folder, *self.folder.parents) if path.is_file()), None):
                raise ValueError(f"A run expects a folder at {self.folder}, but {file} is a file: choose another name.")
            self.folder.mkdir(parents=True, exist_ok=True)
            state = load_state(self.folder)
        state = self.processes.from_first(state)
        if state is None:
            if self.processes.is_first:
                write_config(self.config, self.folder / "config.yaml")
            return
        stored, asked = complete(json.loads(state["config"])), plain(self.config)
        differing = differences(stored, asked)
        if differing:
            raise ValueError(
                f"{self.folder} holds a run of another configuration: use a new folder, or delete it. They differ in "
                f"{', '.join(f'{name} ({there!r} there, {now!r} now)' for name, (there, now) in differing.items())}."
                + (_LONGER if asked["steps"] > stored["steps"] else "")
            )
        self.estimator.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds, self.recent = state["step"], state["seconds"], state["recent"]
        if self.processes.index < len(state["random"]):
            self._random = state["random"][self.processes.index]

    def _require_shares(self) -> None:
        shares = self.processes.count * self.config.accumulate
        if self.config.batch % shares:
            raise ValueError(
                f"Trainer expects a batch that {self.processes.count} processes with accumulate="
                f"{self.config.accumulate} can share out, got {self.config.batch}: take a multiple of {shares}."
            )


def differences(stored: dict[str, Any], asked: dict[str, Any], place: str = "") -> dict[str, tuple[Any, Any]]:
    """The settings that affect the weights and differ: for each name the stored and the requested value."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, now in asked.items():
        there = stored[name]
        if isinstance(now, dict):
            found |= differences(there, now, f"{place}{name}.")
        elif there != now and name not in _FREE:
            found[place + name] = (there, now)
    return found
