"""The progress of a run: a bar on a terminal, lines in a log, a table in its folder, TensorBoard's files."""

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
    """A log entry, made every ``validate_every`` steps.

    Attributes:
        step: number of steps taken.
        loss: mean loss of the last hundred steps.
        errors: end-point error in px on held-out pairs, by number of evaluations.
        seconds: training time so far.
        residuals: RMS movement of the flow in the last evaluation on held-out pairs, in px, by number of evaluations.
        evaluations: mean number of evaluations on held-out pairs until the model's own tolerance is reached.
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
            parts.append(f"{self.evaluations:.0f} evaluations to converge")
        return f"step {self.step}: {'; '.join(parts)}; {self.seconds:.0f} s"

    @property
    def row(self) -> dict[str, float]:
        """The entry as a row of ``log.csv``."""
        row = {"step": self.step, "loss": round(self.loss, 4), "seconds": round(self.seconds, 1)}
        row |= {f"epe_{k}": round(v, 4) for k, v in self.errors.items()}
        row |= {f"residual_{k}": round(v, 5) for k, v in self.residuals.items()}
        return row | {"evaluations": round(self.evaluations, 2)}


def write_row(row: dict[str, float], path: Path) -> None:
    """Add a row to a CSV file; it replaces rows of the same or later steps."""
    rows: list[dict[str, Any]] = [row]
    if path.exists():
        # A run that was stopped before it could save its state takes the same steps again.
        with path.open(newline="") as file:
            rows = [*(old for old in csv.DictReader(file) if int(old["step"]) < row["step"]), row]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(row), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def make_bar(first: int, total: int, *, shown: bool) -> tqdm.std.tqdm:
    """A progress bar; it is disabled where a log gets a line for each entry instead."""
    return tqdm.auto.tqdm(desc="train", unit="step", initial=first, total=total, mininterval=2, disable=not shown)


def shows_bars() -> bool:
    """Whether a progress bar can be shown: on a terminal, or in a notebook."""
    return sys.stderr.isatty() or issubclass(tqdm.auto.tqdm, tqdm.notebook.tqdm_notebook)


def say(progress: Progress) -> None:
    """Print a log entry as a line, above the progress bar if there is one."""
    tqdm.std.tqdm.write(str(progress), file=sys.stdout)
    sys.stdout.flush()


class Board:
    """Writes files for TensorBoard into the run's folder; does nothing where TensorBoard is not installed.

    Args:
        folder: folder of the run.
        first: step that the run continues from; TensorBoard hides what was written for later steps.
    """

    def __init__(self, folder: Path, first: int) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            self._writer = None
        else:
            self._writer = SummaryWriter(str(folder), purge_step=first or None)

    def write(self, progress: Progress) -> None:
        """Add the numbers of a log entry."""
        if self._writer is None:
            return
        for name, value in progress.row.items():
            if name != "step":
                self._writer.add_scalar(name, value, progress.step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
