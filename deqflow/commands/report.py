"""The command that makes pages of the notebooks."""

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from deqflow.commands.shared import print_line, refuse_without_effect, repeated

WORDS = {"true": True, "false": False, "null": None, "none": None}


@dataclass(frozen=True)
class Report:
    """Run the numbered notebooks and write pages, numbers and an index.

    Attributes:
        notebooks: folder of the notebooks.
        out: folder to write to.
        only: names or numbers of the notebooks to run, such as 05; all if not given.
        profile: "short" takes minutes for all; "full" makes the figures to quote, and may take hours; "fast" is for
            tests. The values of short are in the notebooks, those of the others in notebooks/profiles.
        set: NAME=VALUE, which replaces a value in the cells of parameters; may be given more than once. A value is
            null, true, false, a number, a list or a string.
        published: folder of the committed results; the index marks what differs from them.
        publish: write the numbers to that folder.
        prepare: do not run the notebooks: write copies of them with the profile's parameters to --out.
    """

    notebooks: Path = Path("notebooks")
    out: Path = Path("reports")
    only: tuple[str, ...] = ()
    profile: Literal["short", "full", "fast"] = "short"
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    published: Path = Path("reports/published")
    publish: tyro.conf.FlagCreatePairsOff[bool] = False
    prepare: tyro.conf.FlagCreatePairsOff[bool] = False

    def __call__(self) -> int:
        """Run the command."""
        values = parse_settings(self.set)
        self._check_folders()
        if self.prepare:
            refuse_without_effect(
                {"--publish": self.publish}, "with --prepare, which runs nothing: leave one of them out"
            )
        try:
            from deqflow.lab import reports
        except ImportError as error:
            raise ValueError(f"Reports need the packages of the lab ({error}): pip install 'deqflow[lab]'.") from error
        notebooks = reports.find_notebooks(self.notebooks, self.only)
        if self.prepare:
            copies = reports.prepare_notebooks(notebooks, self.out, self.profile, values)
            print(f"Wrote {len(copies)} notebooks with the {self.profile} profile to {self.out}.")
            return 0
        options: dict[str, Any] = {"profile": self.profile, "published": self.published, "publish": self.publish}
        built = reports.build_reports(notebooks, self.out, values, print_line, **options)
        print(f"Open {self.out / 'index.html'}.")
        return int(any(report.error for report in built))

    def _check_folders(self) -> None:
        """Reports have the names of their notebooks, and of the committed results."""
        for option, folder in (("--notebooks", self.notebooks), ("--published", self.published)):
            if self.out.resolve() == folder.resolve():
                raise ValueError(f"--out {self.out} would replace the files of {option}: choose another --out.")


def parse_settings(items: tuple[str, ...]) -> dict[str, object]:
    """The values of NAME=VALUE by name.

    Raises:
        ValueError: one is not of that form, or a name comes twice.
    """
    for item in items:
        if "=" not in item[1:]:
            raise ValueError(f"--set expects name=value, got {item!r}.")
    pairs = [(name, text) for name, _, text in (item.partition("=") for item in items)]
    if twice := repeated([name for name, _ in pairs]):
        raise ValueError(f"--set expects each name once, got {twice[0]} twice.")
    return {name: parse_value(text) for name, text in pairs}


def parse_value(text: str) -> object:
    """A value as papermill's -p reads it, and lists: null, a boolean, a number, a list, a dictionary, else a string.

    None, True and False may be spelled as in Python or as in JSON. Quotes make a string of anything.
    """
    if text.strip().lower() in WORDS:
        return WORDS[text.strip().lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, str | list | dict):
            return value
    return text
