"""The command that makes pages of the notebooks."""

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from deqflow.commands.shared import print_line


@dataclass(frozen=True)
class Report:
    """Run the numbered notebooks and write pages, numbers and an index.

    Attributes:
        notebooks: folder of the notebooks.
        out: where to.
        only: names or numbers of the notebooks to run, such as 05; all if not given.
        profile: "short" takes minutes for all; "full" makes the figures to quote, and may take hours; "fast" is for
            tests. The values of short are in the notebooks, those of the others in notebooks/profiles.
        set: name=value, which replaces a value of the parameters cells; may be given more than once.
        published: folder of the committed results; the index marks what differs from them.
        publish: write the numbers there.
        prepare: do not run the notebooks: write copies of them with the profile's parameters to --out.
    """

    notebooks: Path = Path("notebooks")
    out: Path = Path("reports")
    only: tuple[str, ...] = ()
    profile: Literal["short", "full", "fast"] = "short"
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    published: Path = Path("reports/published")
    publish: bool = False
    prepare: bool = False

    def __call__(self) -> int:
        """Run the command."""
        try:
            from deqflow.lab import reports
        except ImportError as error:
            raise ValueError(f"Reports need the packages of the lab ({error}): pip install 'deqflow[lab]'.") from error
        for item in self.set:
            if "=" not in item[1:]:
                raise ValueError(f"--set expects name=value, got {item!r}.")
        values = {name: _literal(text) for name, _, text in (item.partition("=") for item in self.set)}
        notebooks = reports.find_notebooks(self.notebooks, self.only)
        if self.prepare:
            copies = reports.prepare_notebooks(notebooks, self.out, self.profile, values)
            print(f"Wrote {len(copies)} notebooks with the {self.profile} profile to {self.out}.")
            return 0
        options: dict[str, Any] = {"profile": self.profile, "published": self.published, "publish": self.publish}
        built = reports.build_reports(notebooks, self.out, values, print_line, **options)
        print(f"Open {self.out / 'index.html'}.")
        return int(any(report.error for report in built))


def _literal(text: str) -> object:
    """A value as JSON or Python write it (null, None, true, True, 3, [1, 2]); else the text itself."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text
