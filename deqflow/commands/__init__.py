"""The commands of ``python -m deqflow``: their fields are the options, their docstrings the help, a call runs them.

A new command is a dataclass in the module that it belongs to, and an entry of ``COMMANDS``, whose order is that of the
help. A command's module is imported only if the command is run, and imports torch only while it runs, so that help is
shown at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Entry:
    """Where a command is defined.

    Attributes:
        module: of this package.
        name: of the class.
        summary: one sentence for the list of commands; the class's docstring begins with it.
        maintainers: whether it is for the maintainers of the project, who make what it ships.
    """

    module: str
    name: str
    summary: str
    maintainers: bool = False

    def load(self) -> Any:
        """The command's class."""
        return getattr(import_module(f"deqflow.commands.{self.module}"), self.name)

    def parse(self, name: str, arguments: list[str]) -> Callable[[], int]:
        """The command with its options read; where they make no sense, or ask for help, the process ends."""
        import tyro

        command = self.load()
        if hasattr(command, "parse"):
            return command.parse(arguments)
        return tyro.cli(command, prog=f"deqflow {name}", args=arguments)


COMMANDS = {
    "flow": Entry("flow", "Flow", "Estimate the flow between two images, or of a video, and write it."),
    "clip": Entry("flow", "Clip", "Make a procedural video to try things on."),
    "evaluate": Entry("measure", "Evaluate", "Measure models on pairs with known flow, beside DIS and zero flow."),
    "train": Entry("train", "Train", "Train a model; an interrupted run in the same folder goes on where it was."),
    "reproduce": Entry(
        "train",
        "Reproduce",
        "Train a shipped model again, by the recipe it was made with; goes on where it was interrupted.",
    ),
    "equilibrate": Entry(
        "equilibrate", "Equilibrate", "Turn a recurrent model into an equilibrium model by a short training."
    ),
    "report": Entry("report", "Report", "Run the numbered notebooks and write pages, numbers and an index."),
    "convert": Entry("convert", "Convert", "Write a published checkpoint as one of deqflow's own."),
    "export": Entry("convert", "Export", "Write a model as a graph for other runtimes, and compare it with the model."),
    "doctor": Entry("doctor", "Doctor", "Show what this machine is good for."),
    "experiment": Entry("measure", "Experiment", "Run an experiment of many short trainings.", maintainers=True),
    "confidence": Entry("measure", "Confidence", "Fit the confidence of a model and measure it.", maintainers=True),
}


def overview() -> str:
    """The help of ``python -m deqflow``: every command with its summary, those for maintainers apart."""
    lines = [
        "usage: python -m deqflow COMMAND [OPTIONS]",
        "",
        "Deep equilibrium optical flow. COMMAND --help lists the options of a command.",
    ]
    for title, maintainers in (("Commands", False), ("For maintainers of the project", True)):
        entries = {name: entry for name, entry in COMMANDS.items() if entry.maintainers == maintainers}
        lines += ["", f"{title}:", *(f"  {name:<11} {entry.summary}" for name, entry in entries.items())]
    lines += ["", "Options:", "  --help      Show this help.", "  --version   Show the version."]
    return "\n".join(lines)
