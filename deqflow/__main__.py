"""Command line: ``python -m deqflow COMMAND``; the commands are the classes below."""

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
from deqflow import synthetic, tables, video
from deqflow.colors import flow_to_rgb
from deqflow.confidence import SHIPPED_CONFIDENCE, FitConfig, run_confidence
from deqflow.evaluation import EvaluationConfig, evaluate, evaluation_sets, report_lines
from deqflow.experiments import EXPERIMENTS, run_experiment
from deqflow.export import export, parity
from deqflow.recipes import RECIPES, reproduce
from deqflow.results import save_results
from deqflow.synthetic.videos import Speed
from deqflow.training import TrainConfig, Trainer, published_stage, read_config, say
from deqflow.video.benchmark import run_benchmark


@dataclass(frozen=True)
class Flow:
    """Estimate the flow between two pictures, or of a video, and write it.

    Attributes:
        image1: path of the first picture; or, alone, of a video or a folder of pictures.
        image2: path of the second picture, of the same size.
        out: where to. Of two pictures: the flow in colours (.png, .jpg), or as numbers (.flo); flow.png if not given.
            Of a video: a film (.mp4, .avi), or a folder for a file a frame; flow.mp4 if not given.
        model: a shipped model's name, a checkpoint of deqflow's (.safetensors), or a published one (.pth).
        max_evals: budget in evaluations, of each pair; the model's own if not given.
        atol: tolerance, how far one more evaluation would move the flow, in px; the model's own if not given.
        largest: length in px that gets the full colour; the longest vector's if not given, of a video one and a half
            times its first pair's 99th percentile.
        policy: of a video, what a solve starts from: the last one's state along the flow, as published, or nothing.
        drawing: of a video, what the film shows.
        files: of a video, what goes into a folder.
        statistics: of a video, where to write the numbers of each pair (.npz).
    """

    image1: tyro.conf.Positional[Path]
    image2: tyro.conf.Positional[Path | None] = None
    out: Path | None = None
    model: str = "deqflow-small"
    max_evals: int | None = None
    atol: float | None = None
    largest: float | None = None
    policy: video.Policy = "warp"
    drawing: video.Drawing = "colors"
    files: video.FileFormat = "flo"
    statistics: Path | None = None

    def __call__(self) -> int:
        """Run the command."""
        estimator = _load(self.model)
        stop = estimator.equilibrium.eval_stop
        if self.max_evals is not None:
            stop = replace(stop, max_evals=self.max_evals)
        if self.atol is not None:
            stop = replace(stop, atol=self.atol)
        if self.image2 is None:
            return self._film(video.VideoFlow(estimator, policy=self.policy, stop=stop))
        with torch.no_grad():
            output = estimator(deqflow.read_image(self.image1), deqflow.read_image(self.image2), stop=stop)
        flow, out = output.flow[0], self.out or Path("flow.png")
        if out.suffix == ".flo":
            deqflow.write_flow(out, flow)
        else:
            deqflow.write_image(out, flow_to_rgb(flow, largest=self.largest))
        lengths = torch.linalg.vector_norm(flow, dim=0)
        print(f"Motion: median {float(lengths.median()):.2f} px, longest {float(lengths.max()):.2f} px.")
        print(f"Solver: {output.solve.summary()}")
        print(f"Wrote {out}.")
        return 0

    def _film(self, flows: video.VideoFlow) -> int:
        out = self.out or Path("flow.mp4")
        numbers, interrupted = video.film_flow(
            self.image1,
            out,
            flows,
            drawing=self.drawing,
            files=self.files,
            largest=self.largest,
            statistics=self.statistics,
        )
        pairs = len(numbers.rows)
        if pairs:
            cost = f"{numbers['evaluations'].mean():.1f} evaluations and {numbers['seconds'].mean():.2f} s a frame"
            print(f"{pairs} flow fields, {cost}; cuts: {int(numbers['cut'].sum())}.")
            print(f"{'Interrupted; what is done is in' if interrupted else 'Wrote'} {out}.")
        return 130 if interrupted else 0


@dataclass(frozen=True)
class Clip:
    """Make a procedural video to try things on.

    Attributes:
        out: where to (.mp4, .avi).
        frames: how many.
        speed: shapes move by 1, 4 or 12 px a frame.
        cuts: frames that begin a new scene.
        height: of the frames, in px.
        width: of the frames, in px.
        seed: of the scene.
    """

    out: Path = Path("clip.mp4")
    frames: int = 48
    speed: Speed = "ordinary"
    cuts: tuple[int, ...] = ()
    height: int = 192
    width: int = 256
    seed: int = 5

    def __call__(self) -> int:
        """Run the command."""
        config = synthetic.SceneConfig(height=self.height, width=self.width)
        clip = synthetic.SyntheticVideo(self.frames, seed=self.seed, config=config, speed=self.speed, cuts=self.cuts)
        with video.Movie(self.out) as movie:
            for i in range(self.frames):
                movie.add(clip[i].image.clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy())
        print(f"Wrote {self.out}.")
        return 0


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
        models = {Path(name).stem if Path(name).suffix else name: _load(name) for name in self.model}
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
        _line("\n".join(report_lines(name, results["sets"][name])))
        if self.out is not None:
            save_results(results, self.out)


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
        found, results = run_confidence(_load(self.model), self.model, self.data_root, config, _line)
        found.model.save(fitted)
        save_results(results, self.out)
        print(tables.confidence(results))
        print(f"Wrote {fitted} and {self.out}.")
        return 0


@dataclass(frozen=True)
class Export:
    """Write a model with a fixed number of evaluations as a graph for other runtimes, and compare it with the model.

    Attributes:
        model: a shipped model's name, a checkpoint of deqflow's (.safetensors), or a published one (.pth).
        evals: number of evaluations.
        size: height and width of the images; any from 128 px a side up if not given.
        out: where to, ONNX (.onnx) or torch.export's format (.pt2).
        tolerance: largest end-point difference in px that is accepted.
    """

    model: str = "deqflow-small"
    evals: int = 12
    size: tuple[int, int] | None = None
    out: Path = Path("model.onnx")
    tolerance: float = 0.01

    def __call__(self) -> int:
        """Run the command."""
        estimator = _load(self.model)
        export(estimator, self.out, evals=self.evals, size=self.size, notes={"model": self.model})
        print(f"Wrote {self.out}.")
        differences = parity(estimator, self.out, evals=self.evals, sizes=self.size and [self.size])
        for (height, width), difference in differences.items():
            print(f"{width} x {height}: at most {difference:.1e} px from the model.")
        return int(not max(differences.values()) <= self.tolerance)


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


def _say_row(row: dict[str, Any]) -> None:
    cost = f"{row['evaluations']:.1f} evaluations to {row['atol_px']:g} px"
    _line(f"{row['clip']}, {row['policy']}: {cost}")


def _literal(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def main(arguments: list[str] | None = None) -> int:
    """Run a command; bad input ends with a sentence and exit status 1 instead of a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    commands = Flow | Clip | Evaluate | Train | Reproduce | Report | Convert | Experiment | Confidence | Export | Tables
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
