"""Commands that measure, and write results files: models, their confidence, experiments."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from deqflow.commands.shared import load_model, print_line
from deqflow.evidence.confidence import SHIPPED_CONFIDENCE, FitConfig, run_confidence
from deqflow.evidence.evaluation import EvaluationConfig, evaluate, evaluation_sets, report_lines
from deqflow.evidence.experiments import EXPERIMENTS, run_experiment
from deqflow.evidence.results import save_results
from deqflow.evidence.video_reuse import run_benchmark


@dataclass(frozen=True)
class Evaluate:
    """Measure models on procedural pairs, the motorcycle, and every benchmark under a root, beside DIS and zero flow.

    Attributes:
        model: shipped models' names, checkpoints of deqflow's (.safetensors), published ones (.pth); one or more.
        root: where the benchmarks lie; data/README.md says how.
        only: names of the sets to measure on, such as middlebury-4; all there are if not given.
        out: results file (json) to write.
        config: how to measure.
    """

    model: tuple[str, ...] = ("deqflow-small",)
    root: Path = Path("data")
    only: tuple[str, ...] = ()
    out: Path | None = None
    config: Annotated[EvaluationConfig, tyro.conf.arg(name="")] = field(default_factory=EvaluationConfig)

    def __call__(self) -> int:
        """Run the command."""
        models = {Path(name).stem if Path(name).suffix else name: load_model(name) for name in self.model}
        sets = evaluation_sets(self.root, self.config)
        if missing := [name for name in self.only if name not in sets]:
            raise ValueError(f"No set {missing[0]!r} under {self.root}: there are {', '.join(sets)}.")
        chosen = {name: sets[name] for name in self.only or sets}
        evaluate(models, chosen, self.config, self._on_set)
        if self.out is not None:
            print(f"Wrote {self.out}.")
        return 0

    def _on_set(self, name: str, results: dict[str, Any]) -> None:
        """Show a set and save all so far: measuring a whole benchmark takes hours, and may be interrupted."""
        print_line("\n".join(report_lines(name, results["sets"][name])))
        if self.out is not None:
            save_results(results, self.out)


@dataclass(frozen=True)
class Confidence:
    """Fit the confidence of a model on procedural pairs, and measure it on the real ones that are there.

    Attributes:
        model: a shipped model's name, a checkpoint of deqflow's (.safetensors), or a published one (.pth).
        data_root: folder of the published data sets; the motorcycle pair is measured anyway.
        pairs: procedural pairs to fit on.
        fitted: where the fitted model goes; into the package if it is deqflow-small's and none is given.
        out: the results file.
    """

    model: str = "deqflow-small"
    data_root: Path = Path("data")
    pairs: int = FitConfig.pairs
    fitted: Path | None = None
    out: Path = Path("reports/published/confidence.json")

    def __call__(self) -> int:
        """Run the command."""
        fitted = self.fitted or (SHIPPED_CONFIDENCE if self.model == "deqflow-small" else Path("confidence.json"))
        config = FitConfig(pairs=self.pairs)
        found, results = run_confidence(load_model(self.model), self.model, self.data_root, config, print_line)
        found.model.save(fitted)
        save_results(results, self.out)
        print(f"Wrote {fitted} and {self.out}.")
        return 0


@dataclass(frozen=True)
class Experiment:
    """Run an experiment, many short trainings, and write its results; finished runs in the file are kept.

    Attributes:
        name: corrections, gradients, or video (what fixed-point reuse saves).
        out: the results file; reports/published/NAME.json if not given.
        data: of video, the folder of data sets whose clips join.
    """

    name: tyro.conf.Positional[str]
    out: Path | None = None
    data: Path = Path("data")

    def __call__(self) -> int:
        """Run the command."""
        if self.name not in (*EXPERIMENTS, "video"):
            raise ValueError(f"No experiment {self.name!r}: expected one of {', '.join(EXPERIMENTS)}, video.")
        out = self.out or Path("reports/published") / f"{self.name}.json"
        if self.name == "video":
            run_benchmark(out, data=self.data, on_row=_say_row)
        else:
            run_experiment(self.name, EXPERIMENTS[self.name], out, _say_run)
        print(f"Wrote {out}.")
        return 0


def _say_run(run: dict[str, Any]) -> None:
    outcome = run.get("failed") or f"held-out error {run['progress'][-1]['error_px']:.2f} px"
    print_line(f"{run['variant']}, seed {run['seed']}: {outcome} after {run['seconds']:.0f} s")


def _say_row(row: dict[str, Any]) -> None:
    cost = f"{row['evaluations']:.1f} evaluations to {row['atol_px']:g} px"
    print_line(f"{row['clip']}, {row['policy']}: {cost}")
