"""Commands that measure and write results files: models, their confidence, experiments."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from deqflow.commands.jobs import Job, join_processes, name_failures, share_out
from deqflow.commands.records import PairRecords
from deqflow.commands.shared import (
    PairProgress,
    load_model,
    print_line,
    refuse_overwriting,
    refuse_without_effect,
    repeated,
    require_data_folder,
    require_suffix,
)
from deqflow.evidence.evaluation.config import EvaluationConfig

if TYPE_CHECKING:
    from deqflow.evidence.evaluation import EvaluationSet
    from deqflow.model.estimator import FlowEstimator
    from deqflow.training import Processes

FIT_PAIRS = 120  # those of deqflow.evidence.confidence.FitConfig, repeated here since help does without torch


@dataclass(frozen=True)
class Evaluate:
    """Measure models on pairs with known flow, beside DIS and zero flow.

    The pairs are procedural ones, the motorcycle, and those of every benchmark under a folder. Under accelerate launch
    several processes share them. With --out a run that was killed goes on where it was, and a pair that fails is named
    at the end.

    Attributes:
        model: names of shipped models, or paths of checkpoints, deqflow's own or published ones; one or more.
        root: folder of the benchmarks; data/README.md describes it.
        only: names of the sets to measure on, such as middlebury-4; all that are there if not given.
        out: results file (.json) to write.
        config: how to measure.
    """

    model: tuple[str, ...] = ("deqflow-small",)
    root: Path = Path("data")
    only: tuple[str, ...] = ()
    out: Path | None = None
    config: Annotated[EvaluationConfig, tyro.conf.arg(name="")] = field(default_factory=EvaluationConfig)

    def __call__(self) -> int:
        """Run the command."""
        from deqflow.evidence.evaluation import evaluation_sets

        require_suffix(self.out, ".json")
        require_data_folder(self.root, "--root")
        sets = evaluation_sets(self.root, self.config)
        if missing := [name for name in self.only if name not in sets]:
            raise ValueError(f"No set {missing[0]!r} under {self.root}: there are {', '.join(sets)}.")
        chosen = {name: sets[name] for name in self.only or sets}
        if not any(name.startswith("procedural") for name in chosen):
            given = self.config.procedural if self.config.procedural != EvaluationConfig().procedural else None
            refuse_without_effect(
                {"--procedural": given}, "without procedural sets: leave it out, or add one to --only"
            )
        processes, device = join_processes(self.config.device)
        config = replace(self.config, device=device)
        # One process asks the device, since a short probe may come out either way.
        config = replace(config, precision=processes.from_first(config.chosen_precision if processes.is_first else ""))
        models = self._models()
        if processes.is_first:
            print_line(f"On {config.torch_device}, in {config.chosen_precision}.")
        try:
            failed, total = self._measure(models, chosen, config, processes)
        except KeyboardInterrupt:
            print_line(f"Interrupted; {'the next run goes on from here' if self.out else 'nothing is kept'}.")
            return 130
        if processes.is_first and self.out is not None and len(failed) < total:
            print(f"Wrote {self.out}.")
        return name_failures(failed, total) if processes.is_first else int(bool(failed))

    def _measure(
        self,
        models: "dict[str, FlowEstimator]",
        sets: "dict[str, EvaluationSet]",
        config: EvaluationConfig,
        processes: "Processes",
    ) -> tuple[dict[str, str], int]:
        """Measure set after set; return what failed and why, by name, and the number of pairs."""
        from deqflow.evidence.evaluation import PairMeasurement, begin_results, summarize

        results = begin_results(models, config)
        results["config"] |= {"device": config.torch_device.type, "precision": config.precision}
        kept = PairRecords.beside(self.out, processes, lambda: _identity(results, models, sets, self.root))
        progress, failed = PairProgress(), {}
        for name, pairs in sets.items():
            measure = PairMeasurement(models, pairs, config)
            jobs = [
                Job(f"{name}, pair {i + 1}", partial(kept.make, name, i, measure), partial(kept.exists, name, i))
                for i in range(len(pairs.pairs))
            ]
            outcome = share_out(jobs, processes, partial(progress, name))
            failed |= outcome.failed
            records = kept.all_of(name, outcome.results) if processes.is_first else []
            if records:
                results["sets"][name] = summarize(records, pooled=pairs.pooled)
                if outcome.failed:
                    results["sets"][name]["failed"] = outcome.failed
                self._on_set(name, results)
        if processes.is_first and not failed:
            kept.remove()
        return failed, sum(len(pairs.pairs) for pairs in sets.values())

    def _models(self) -> "dict[str, FlowEstimator]":
        """The models by the names that the results have for them."""
        if twice := repeated(self.model):
            raise ValueError(f"--model names {twice[0]} twice: leave one of them out.")
        short = [Path(name).stem if Path(name).suffix else name for name in self.model]
        # Two files of one name, in different folders, go by their paths.
        names = [path if name in repeated(short) else name for path, name in zip(self.model, short, strict=True)]
        return {name: load_model(path) for name, path in zip(names, self.model, strict=True)}

    def _on_set(self, name: str, results: dict[str, Any]) -> None:
        """Show a set and save the results so far: a whole benchmark takes hours, and may be interrupted."""
        from deqflow.evidence.evaluation import report_lines
        from deqflow.evidence.results import save_results

        print_line("\n".join(report_lines(name, results["sets"][name])))
        if self.out is not None:
            save_results(results, self.out)


def _identity(
    results: dict[str, Any], models: "dict[str, FlowEstimator]", sets: "dict[str, EvaluationSet]", root: Path
) -> dict[str, Any]:
    """What has to agree for records of an earlier run to be of use."""
    from deqflow.evidence.provenance import digest

    return {
        "config": results["config"],
        "models": {name: results["models"][name] | {"weights": digest(models[name])} for name in models},
        "sets": {name: len(chosen.pairs) for name, chosen in sets.items()},
        "root": str(root.resolve()),
        "code": {name: results["provenance"][name] for name in ("commit", "versions")},
    }


@dataclass(frozen=True)
class Confidence:
    """Fit the confidence of a model and measure it.

    It is fitted on procedural pairs, and measured on others and on the real pairs that are there.

    Attributes:
        out: results file (.json) to write.
        fitted: file (.json) for the fitted confidence; beside the results, NAME-fitted.json, if not given.
        model: name of a shipped model, or path of a checkpoint: deqflow's own or a published one.
        device: where to run, such as cpu or cuda; auto takes a GPU where there is one.
        data_root: folder of the published data sets; the motorcycle pair is always measured on.
        pairs: number of procedural pairs to fit on.
    """

    out: Path
    fitted: Path | None = None
    model: str = "deqflow-small"
    device: str = "auto"
    data_root: Path = Path("data")
    pairs: int = FIT_PAIRS

    def __call__(self) -> int:
        """Run the command."""
        from deqflow.evidence.confidence import FitConfig, run_confidence
        from deqflow.evidence.results import save_results

        fitted = self.fitted or self.out.with_name(f"{self.out.stem}-fitted.json")
        require_suffix(self.out, ".json")
        require_suffix(fitted, ".json", option="--fitted")
        refuse_overwriting(fitted, self.out, option="--fitted")
        require_data_folder(self.data_root, "--data-root")
        estimator, config = load_model(self.model, self.device), FitConfig(pairs=self.pairs)
        found, results = run_confidence(estimator, self.model, self.data_root, config, print_line)
        found.model.save(fitted)
        save_results(results, self.out)
        print(f"Wrote {fitted} and {self.out}.")
        return 0


@dataclass(frozen=True)
class Experiment:
    """Run an experiment of many short trainings.

    Finished runs that are in the results file are kept.

    Attributes:
        name: corrections, gradients, attraction (whether the fixed points of the models attract), video (what
            fixed-point reuse saves), warping (warped features beside a correlation), or ablation (what each setting
            of the training buys).
        model: only for attraction: names or paths of the models; the shipped ones if not given.
        out: results file (.json) to write.
        data: only for video: folder of the data sets whose clips are used beside procedural ones; data if not given.
    """

    name: tyro.conf.Positional[str]
    out: Path
    data: Path | None = None
    model: tuple[str, ...] = ()

    def __call__(self) -> int:
        """Run the command."""
        from deqflow.evidence.ablation import run_ablation
        from deqflow.evidence.attraction import run_attraction
        from deqflow.evidence.experiments import EXPERIMENTS, run_experiment
        from deqflow.evidence.video_reuse import run_benchmark
        from deqflow.evidence.warping import run_warping
        from deqflow.model.checkpoints import SHIPPED

        known = (*EXPERIMENTS, "attraction", "video", "warping", "ablation")
        if self.name not in known:
            raise ValueError(f"No experiment {self.name!r}: expected one of {', '.join(known)}.")
        require_suffix(self.out, ".json")
        if self.name != "attraction":
            refuse_without_effect({"--model": self.model or None}, f"on {self.name}: leave it out")
        if self.name == "video":
            data = self.data or Path("data")
            require_data_folder(data, "--data")
            run_benchmark(self.out, data=data, on_row=_say_row)
        elif self.name == "attraction":
            refuse_without_effect({"--data": self.data}, "on attraction: leave it out")
            names = self.model or SHIPPED
            run_attraction({Path(name).stem: load_model(name) for name in names}, self.out, say=print_line)
        else:
            refuse_without_effect(
                {"--data": self.data}, f"on {self.name}, which trains on procedural pairs: leave it out"
            )
            if self.name == "warping":
                run_warping(self.out, say=print_line)
            elif self.name == "ablation":
                run_ablation(self.out, say=print_line)
            else:
                run_experiment(self.name, EXPERIMENTS[self.name], self.out, _say_run)
        print(f"Wrote {self.out}.")
        return 0


def _say_run(run: dict[str, Any]) -> None:
    outcome = run.get("failed") or f"held-out error {run['progress'][-1]['error_px']:.2f} px"
    print_line(f"{run['variant']}, seed {run['seed']}: {outcome} after {run['seconds']:.0f} s")


def _say_row(row: dict[str, Any]) -> None:
    cost = f"{row['evaluations']:.1f} evaluations to {row['atol_px']:g} px"
    print_line(f"{row['clip']}, {row['policy']}: {cost}")
