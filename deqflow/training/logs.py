"""What a run says on its way: a bar on a terminal, lines in a log, a table in its folder, TensorBoard's files."""

import csv
import io
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tqdm.auto
import tqdm.notebook
import tqdm.std

from deqflow.data.writing import write_whole


@dataclass(frozen=True)
class Progress:
    """What is logged, at each interval.

    Attributes:
        step: so many have been taken.
        loss: mean of the last hundred steps.
        errors: end-point error in px on held-out pairs, after so many evaluations.
        seconds: of training so far.
        residuals: how far the last of so many evaluations moved the flow on held-out pairs, RMS in px.
        evaluations: how many it takes on held-out pairs to come below the model's own tolerance.
    """

    step: int
    loss: float
    errors: dict[int, float]
    seconds: float
    residuals: dict[int, float] = field(default_factory=dict)
    evaluations: float = float("nan")

    def __str__(self) -> str:
        errors = ", ".join(f"{error:.2f} px after {evals}" for evals, error in self.errors.items())
        parts = [f"loss {self.loss:.3f}", f"held-out error {errors}"]
        if self.residuals:
            parts.append(f"residual {self.residuals[max(self.residuals)]:.3f} px")
            parts.append(f"{self.evaluations:.0f} evaluations to settle")
        return f"step {self.step}: {'; '.join(parts)}; {self.seconds:.0f} s"

    @property
    def row(self) -> dict[str, float]:
        """As in ``log.csv``."""
        row = {"step": self.step, "loss": round(self.loss, 4), "seconds": round(self.seconds, 1)}
        row |= {f"epe_{k}": round(v, 4) for k, v in self.errors.items()}
        row |= {f"residual_{k}": round(v, 5) for k, v in self.residuals.items()}
        return row | {"evaluations": round(self.evaluations, 2)}


def write_row(row: dict[str, float], path: Path) -> None:
    """Add a row to a table, in place of rows of the same or later steps."""
    rows: list[dict[str, Any]] = [row]
    if path.exists():
        # A run that was stopped before it could save its state comes to the same steps again.
        with path.open(newline="") as file:
            rows = [*(old for old in csv.DictReader(file) if int(old["step"]) < row["step"]), row]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(row), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def make_bar(first: int, total: int, *, shown: bool) -> tqdm.std.tqdm:
    """A progress bar, or one that is not shown: a log gets a line an interval instead."""
    return tqdm.auto.tqdm(desc="train", unit="step", initial=first, total=total, mininterval=2, disable=not shown)


def shows_bars() -> bool:
    """Whether somebody sees a bar move: on a terminal, or in a notebook."""
    return sys.stderr.isatty() or issubclass(tqdm.auto.tqdm, tqdm.notebook.tqdm_notebook)


def say(progress: Progress) -> None:
    """Print a line, above the bar where there is one."""
    tqdm.std.tqdm.write(str(progress), file=sys.stdout)
    sys.stdout.flush()


class Board:
    """Files for TensorBoard in the run's folder, if it is installed; else nothing.

    Args:
        folder: of the run.
        first: step that a run goes on from; what was written of later ones is hidden.
    """

    def __init__(self, folder: Path, first: int) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            self._writer = None
        else:
            self._writer = SummaryWriter(str(folder), purge_step=first or None)

    def write(self, progress: Progress) -> None:
        """Add the numbers of an interval."""
        if self._writer is None:
            return
        for name, value in progress.row.items():
            if name != "step":
                self._writer.add_scalar(name, value, progress.step)
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.close()
