"""Commands that train: a run of one's own, and the shipped models' again."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from deqflow.commands.shared import print_line
from deqflow.training.config import TrainConfig


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
        arguments = _with_values(arguments, "bfloat16")
        sources = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        sources.add_argument("--config")
        sources.add_argument("--preset")
        chosen, _ = sources.parse_known_args(arguments)
        if chosen.config and chosen.preset:
            raise ValueError("train expects --config or --preset, got both: the file may say preset: chairs.")
        from deqflow.training.files import published_stage, read_config

        base = TrainConfig()
        if chosen.config:
            base = read_config(chosen.config)
        elif chosen.preset:
            base = published_stage(chosen.preset)
        return tyro.cli(cls, prog="deqflow train", args=arguments, default=cls(config=base))

    def __call__(self) -> int:
        """Run the command."""
        import torch

        from deqflow.training import Trainer, say
        from deqflow.training.objective import training_precision

        trainer = Trainer(self.config, self.folder, device=self.device)
        if trainer.processes.is_first:
            print_line(f"Training on {trainer.processes.description}, in {self.folder}.")
            for remark in self.config.without_effect():
                print_line(f"Note: {remark}")
            if self.config.bfloat16 is None and not self.config.float16:
                chosen = training_precision(trainer.device, self.config)
                why = "which is fast here" if chosen == torch.bfloat16 else "since this device emulates bfloat16"
                print_line(
                    f"Precision: {str(chosen).removeprefix('torch.')}, {why}; choose with --bfloat16 True or False."
                )
        trainer.run(say)
        if trainer.processes.is_first:
            print(f"Wrote {self.folder / 'model.safetensors'}: use it with deqflow.load(path).")
        return 0


def _with_values(arguments: list[str], name: str) -> list[str]:
    """The arguments with ``--NAME True`` for a bare ``--NAME``, and ``--NAME False`` for ``--no-NAME``."""
    spelled: list[str] = []
    for at, argument in enumerate(arguments):
        if argument == f"--no-{name}":
            spelled += [f"--{name}", "False"]
        else:
            following = arguments[at + 1] if at + 1 < len(arguments) else ""
            bare = argument == f"--{name}" and following not in ("True", "False", "None")
            spelled += [argument, "True"] if bare else [argument]
    return spelled


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
        from deqflow.training import say
        from deqflow.training.recipes import RECIPES, SETTINGS, reproduce

        if self.name not in RECIPES:
            raise ValueError(f"No recipe {self.name!r}: expected one of {', '.join(RECIPES)}.")
        recipe, settings = RECIPES[self.name], SETTINGS[self.name]
        made = reproduce(recipe, self.folder, settings=settings, device=self.device, on_progress=say)
        print(f"Wrote {made}.")
        return 0
