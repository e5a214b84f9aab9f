"""What became of each notebook, and the page to start from: a card for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from deqflow.lab.notebook import as_text
from deqflow.lab.reports.differences import TOLERANCE, differences

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #595959; --good: #1a7f37; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --quiet: #b0b0b0; --good: #57c26d; --bad: #ff8a80; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; }
p.lead { color: var(--quiet); margin-top: .2rem; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 1.2rem;
  align-items: start; }
article { border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; }
article a.cover { display: block; background: #fff; }
article img { width: 100%; height: 12rem; object-fit: contain; display: block; }
article div { padding: .8rem 1rem 1rem; }
h2 { font-size: 1.1rem; margin: 0 0 .2rem; line-height: 1.3; }
p.outcome { margin: 0; font-size: .9rem; overflow-wrap: anywhere; }
.passed { color: var(--good); font-weight: 600; } .failed, .differs { color: var(--bad); font-weight: 600; }
table { width: 100%; border-collapse: collapse; font-size: .85rem; margin-top: .6rem; }
th { font-weight: normal; color: var(--quiet); text-align: right; }
td { border-top: 1px solid var(--line); padding: .15rem 0; overflow-wrap: anywhere; }
td + td { text-align: right; font-variant-numeric: tabular-nums; padding-left: .5rem; overflow-wrap: normal; }
.files, footer { font-size: .85rem; color: var(--quiet); }
summary { font-size: .85rem; cursor: pointer; margin-top: .6rem; }
a:focus-visible, summary:focus-visible { outline: 3px solid; outline-offset: 2px; }
"""

_MANY = 12  # numbers on a card; more are folded away


@dataclass(frozen=True)
class NotebookRun:
    """What became of one notebook.

    Attributes:
        name: of the notebook, without suffix.
        title: its first heading.
        seconds: it ran for.
        error: the sentence it failed with; empty if it passed.
        numbers: what it recorded (:func:`deqflow.lab.notebook.record`).
        profile: with which values it was run: fast, short or full.
        date: when.
        picture: its first picture, a PNG in base64; empty if it has none.
        good: it failed, but a report of an earlier run that passed is there.
    """

    name: str
    title: str
    seconds: float
    error: str
    numbers: dict[str, Any]
    profile: str
    date: str
    picture: str
    good: bool = False

    @property
    def file(self) -> str:
        """Name of its files, without suffix."""
        return f"{self.name}.failed" if self.error else self.name


def to_index(reports: Sequence[NotebookRun], origin: dict[str, Any], published: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page for reports that lie beside it.

    Args:
        reports: one for each card.
        origin: what :func:`provenance` says.
        published: for each notebook that has any, its committed results, with their ``numbers``.
    """
    failed = sum(bool(report.error) for report in reports)
    state = f"{failed} of {len(reports)} failed" if failed else f"all {len(reports)} passed"
    commit = (origin["commit"] or "unknown")[:10] + (" with local changes" if origin["modified"] else "")
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    hardware = origin["hardware"]
    machine = ", ".join([hardware["processor"], f"threads: {hardware['threads']}", *hardware["gpus"]])
    cards = "\n".join(_card(report, published.get(report.name)) for report in reports)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>deqflow: reports</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>deqflow</h1>
<p class="lead">Deep equilibrium optical flow, one notebook a card: {state}.</p>
</header>
<main>
{cards}
</main>
<footer>
<p>A number is marked where it differs from the published one (reports/published) by more than {TOLERANCE:.0%}; times
are not compared, nor is a run with one of another profile.</p>
<p>Commit {escape(commit)}. {escape(versions)}. {escape(machine)}.</p>
</footer>
</body>
</html>
"""


def _card(report: NotebookRun, published: Mapping[str, Any] | None) -> str:
    file = escape(report.file)
    picture = f'<img src="data:image/png;base64,{report.picture}" alt="">' if report.picture else ""
    # The heading is the same link: one stop for the keyboard is enough.
    cover = f'<a class="cover" href="{file}.html" tabindex="-1" aria-hidden="true">{picture}</a>'
    when = f"{escape(report.profile)} profile, {report.seconds:.0f} s, {escape(report.date)}"
    outcome = f'<span class="passed">passed</span> ({when})'
    if report.error:
        outcome = f'<span class="failed">failed</span> ({when}): {escape(report.error)}'
    good = f' · <a href="{escape(report.name)}.html">last good report</a>' if report.good else ""
    return f"""<article>
{cover}
<div>
<h2><a href="{file}.html">{escape(report.title)}</a></h2>
<p class="outcome">{outcome}</p>
{_numbers(report, published)}
<p class="files"><a href="{file}.ipynb">notebook</a> · <a href="{file}.json">numbers</a>{good}</p>
</div>
</article>"""


def _numbers(report: NotebookRun, published: Mapping[str, Any] | None) -> str:
    """The table of a card; with a column of what was published, where anything was."""
    if not report.numbers:
        return ""
    compared = differences(report.numbers, published["numbers"] if published else {})
    alike = published is not None and published["profile"] == report.profile
    rows = []
    for name, value in report.numbers.items():
        cells = [f"<td>{escape(name)}</td>", f"<td>{escape(as_text(value))}</td>"]
        if published:
            known = compared.get(name)
            beyond = alike and known is not None and known.beyond
            text = escape(as_text(known.published)) if known else ""
            mark = '<b class="differs" title="differs from the published number">differs</b> ' if beyond else ""
            cells.append(f"<td>{mark}{text}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = ""
    if published:
        head = f"<tr><th></th><th>this run</th><th>published ({escape(published['profile'])} profile)</th></tr>"
    numbers = f"<table>{head}{''.join(rows)}</table>"
    return numbers if len(rows) <= _MANY else f"<details><summary>{len(rows)} numbers</summary>{numbers}</details>"
