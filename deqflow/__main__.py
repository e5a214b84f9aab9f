"""Command line: ``python -m deqflow flow | train | reproduce | report | convert | experiment | tables``."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

import deqflow
from deqflow import tables
from deqflow.colors import flow_to_rgb
from deqflow.experiments import EXPERIMENTS, run_experiment
from deqflow.recipes import RECIPES, reproduce
from deqflow.training import TrainConfig, Trainer, published_stage, read_config, say


@dataclass(frozen=True)
class Flow:
    """Estimate the flow between two pictures and write it to a file.

    Attributes:
        image1: path of the first picture.
        image2: path of the second picture, of the same size.
        out: where to; the flow in colours (.png, .jpg), or as numbers (.flo).
        model: a shipped model's name, a checkpoint of deqflow's (.safetensors), or a published one (.pth).
        max_evals: budget in evaluations; the model's own if not given.
        largest: length in px that gets the full colour; the longest vector's if not given.
    """

    image1: tyro.conf.Positional[Path]
    image2: tyro.conf.Positional[Path]
    out: Path = Path("flow.png")
    model: str = "deqflow-small"
    max_evals: int | None = None
    largest: float | None = None

    def __call__(self) -> int:
        """Run the command."""
        estimator = _load(self.model)
        stop = estimator.equilibrium.eval_stop
        if self.max_evals is not None:
            stop = replace(stop, max_evals=self.max_evals)
        with torch.no_grad():
            output = estimator(deqflow.read_image(self.image1), deqflow.read_image(self.image2), stop=stop)
        flow = output.flow[0]
        if self.out.suffix == ".flo":
            deqflow.write_flow(self.out, flow)
        else:
            deqflow.write_image(self.out, flow_to_rgb(flow, largest=self.largest))
        lengths = torch.linalg.vector_norm(flow, dim=0)
        print(f"Motion: median {float(lengths.median()):.2f} px, longest {float(lengths.max()):.2f} px.")
        print(f"Solver: {output.solve.summary()}")
        print(f"Wrote {self.out}.")
        return 0


@dataclass(frozen=True)
class Train:
    """Train a model; an interrupted run in the same folder goes on where it was.

    On several GPUs or machines: accelerate launch --multi_gpu ... -m deqflow train ...

    Attributes:
        folder: where the run's files go.
        device: to train on, such as cpu or cuda; auto takes a GPU where there is one.
        file: YAML file with the run's settings; what is said on the command line goes first.
        preset: published stage to take the settings from, chairs, things, sintel or kitti.
        config: the run.
    """

    folder: Path = Path("runs/mine")
    device: str = "auto"
    file: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    preset: str | None = None
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)

    @classmethod
    def parse(cls, arguments: list[str]) -> "Train":
        """Read the command line, above the settings of its file or preset."""
        sources = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        sources.add_argument("--config")
        sources.add_argument("--preset")
        chosen, _ = sources.parse_known_args(arguments)
        if chosen.config and chosen.preset:
            raise ValueError("train expects --config or --preset, got both: the file may say preset: chairs.")
        base = TrainConfig()
        if chosen.config:
            base = read_config(chosen.config)
        elif chosen.preset:
            base = published_stage(chosen.preset)
        return tyro.cli(cls, prog="deqflow train", args=arguments, default=cls(config=base))

    def __call__(self) -> int:
        """Run the command."""
        trainer = Trainer(self.config, self.folder, device=self.device)
        if trainer.processes.is_first:
            _line(f"Training on {trainer.processes.description}, in {self.folder}.")
        trainer.run(say)
        if trainer.processes.is_first:
            print(f"Wrote {self.folder / 'model.safetensors'}: use it with deqflow.load(path).")
        return 0


@dataclass(frozen=True)
class Reproduce:
    """Train a shipped model again, by the recipe it was made with; goes on where it was interrupted.

    Attributes:
        name: of the shipped model.
        folder: where the stages' files go.
        device: to train on, such as cpu or cuda; auto takes a GPU where there is one.
    """

    name: tyro.conf.Positional[str] = "deqflow-small"
    folder: Path = Path("runs/reproduce")
    device: str = "auto"

    def __call__(self) -> int:
        """Run the command."""
        if self.name not in RECIPES:
            raise ValueError(f"No recipe {self.name!r}: expected one of {', '.join(RECIPES)}.")
        print(f"Wrote {reproduce(RECIPES[self.name], self.folder, device=self.device, on_progress=say)}.")
        return 0


@dataclass(frozen=True)
class Report:
    """Run the numbered notebooks and write pages, numbers and an index.

    Attributes:
        notebooks: folder of the notebooks.
        out: where to.
        only: names or numbers of the notebooks to run, such as 05; all if not given.
        profile: "short" takes minutes for all; "full" makes the figures to quote, and may take hours.
        set: name=value, which replaces a value of the parameters cells; may be given more than once.
        published: folder of the committed results; the index marks what differs from them.
        publish: write the numbers there.
    """

    notebooks: Path = Path("notebooks")
    out: Path = Path("reports")
    only: tuple[str, ...] = ()
    profile: Literal["short", "full"] = "short"
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    published: Path = Path("reports/published")
    publish: bool = False

    def __call__(self) -> int:
        """Run the command."""
        try:
            from deqflow import reports
        except ImportError as error:
            raise ValueError(f"Reports need the packages of the lab ({error}): pip install 'deqflow[lab]'.") from error
        for item in self.set:
            if "=" not in item[1:]:
                raise ValueError(f"--set expects name=value, got {item!r}.")
        values = {name: _literal(text) for name, _, text in (item.partition("=") for item in self.set)}
        notebooks = reports.find_notebooks(self.notebooks, self.only)
        options: dict[str, Any] = {"full": self.profile == "full", "published": self.published, "publish": self.publish}
        built = reports.build_reports(notebooks, self.out, values, _line, **options)
        print(f"Open {self.out / 'index.html'}.")
        return int(any(report.error for report in built))


@dataclass(frozen=True)
class Convert:
    """Write a published checkpoint as one of deqflow's: safetensors, with its configuration inside.

    Attributes:
        source: the published file (.pth, .safetensors).
        target: where to, ending in .safetensors.
    """

    source: tyro.conf.Positional[Path]
    target: tyro.conf.Positional[Path]

    def __call__(self) -> int:
        """Run the command."""
        if self.target.suffix != ".safetensors":
            raise ValueError(f"convert expects a target that ends in .safetensors, got {self.target}.")
        estimator = deqflow.load_published(self.source)
        deqflow.save(estimator, self.target, recipe={"origin": estimator.origin, "file": self.source.name})
        count = sum(parameter.numel() for parameter in estimator.parameters())
        print(f"Found {estimator.origin}, {count / 1e6:.2f} M parameters.")
        print(f"Wrote {self.target}: use it with deqflow.load(path).")
        return 0


@dataclass(frozen=True)
class Experiment:
    """Run an experiment, many short trainings, and write its results; finished runs in the file are kept.

    Attributes:
        name: corrections or gradients.
        out: the results file; reports/published/NAME.json if not given.
    """

    name: tyro.conf.Positional[str]
    out: Path | None = None

    def __call__(self) -> int:
        """Run the command."""
        if self.name not in EXPERIMENTS:
            raise ValueError(f"No experiment {self.name!r}: expected one of {', '.join(EXPERIMENTS)}.")
        out = self.out or Path("reports/published") / f"{self.name}.json"
        run_experiment(self.name, EXPERIMENTS[self.name], out, _say_run)
        print(f"Wrote {out}.")
        return 0


@dataclass(frozen=True)
class Tables:
    """Fill in the tables of a markdown file from the committed results files.

    Attributes:
        file: with marks such as <!-- table: estimators --> and <!-- end -->.
    """

    file: tyro.conf.Positional[Path] = Path("README.md")

    def __call__(self) -> int:
        """Run the command."""
        print(f"{self.file}: {'changed' if tables.update(self.file) else 'as it was'}.")
        return 0


def _load(model: str) -> deqflow.FlowEstimator:
    return deqflow.load_published(model) if model.endswith(".pth") else deqflow.load(model)


def _line(text: str) -> None:
    print(text, flush=True)


def _say_run(run: dict[str, Any]) -> None:
    outcome = run.get("failed") or f"held-out error {run['progress'][-1]['error_px']:.2f} px"
    _line(f"{run['variant']}, seed {run['seed']}: {outcome} after {run['seconds']:.0f} s")


def _literal(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def main(arguments: list[str] | None = None) -> int:
    """Run a command; bad input ends with a sentence and exit status 1 instead of a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    commands = Flow | Train | Reproduce | Report | Convert | Experiment | Tables
    try:
        command: Callable[[], int]
        if arguments[:1] == ["train"]:
            command = Train.parse(arguments[1:])
        else:
            command = tyro.cli(commands, prog="deqflow", description="Deep equilibrium optical flow.", args=arguments)
        return command()
    except (ValueError, TypeError, OSError, FloatingPointError, ImportError) as error:
        print(f"deqflow: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
