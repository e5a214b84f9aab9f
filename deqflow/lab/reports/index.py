"""The result of each notebook's run, and the index page, which has a card for each notebook."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from deqflow.lab.notebook import as_text
from deqflow.lab.reports.differences import TOLERANCE, differences
from deqflow.lab.reports.html import PLOTLY, PLOTLY_JSON, document, origin_texts, plotly_call

RELOAD = 10  # seconds after which an index reloads itself while reports are still being written
_UNITS = {"px": "px", "ms": "ms", "s": "s", "seconds": "s", "mib": "MiB", "percent": "%"}


@dataclass(frozen=True)
class NotebookRun:
    """The result of one run of a notebook.

    Attributes:
        name: name of the notebook, without suffix.
        title: its first heading.
        seconds: how long it ran.
        error: the error message that it failed with; empty if it passed.
        numbers: the numbers that it recorded (:func:`deqflow.lab.notebook.record`).
        profile: the profile of its parameters: fast, short or full.
        date: date of the run.
        cover: the first output of its cell tagged ``cover``, or else of the notebook, as media type and content: a PNG
            in base64 or a figure as plotly's JSON; None if there is none.
        verdict: one sentence on the finding, or else on the topic.
        good: whether it failed but a report of an earlier run that passed exists.
    """

    name: str
    title: str
    seconds: float
    error: str
    numbers: dict[str, Any]
    profile: str
    date: str
    cover: tuple[str, Any] | None = None
    verdict: str = ""
    good: bool = False

    @property
    def file(self) -> str:
        """Name of its files, without suffix."""
        return f"{self.name}.failed" if self.error else self.name


def to_index(
    runs: Sequence[NotebookRun],
    origin: Mapping[str, Any],
    published: Mapping[str, Mapping[str, Any]],
    waiting: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the index page for the reports in the same folder.

    Args:
        runs: the runs, one for each card.
        origin: the value of :func:`deqflow.evidence.provenance.provenance`.
        published: for each notebook that has any, its committed results, with their ``numbers``.
        waiting: names and titles of the notebooks still to be run, the first of which is running.
    """
    to_come = dict(waiting)
    cards = {run.name: _card(run, published.get(run.name), to_come) for run in runs}
    cards |= {name: _card_to_come(name, title, to_come) for name, title in waiting if name not in cards}
    commit, machine, versions = origin_texts(origin)
    reload = f'<meta http-equiv="refresh" content="{RELOAD}">' if waiting else ""
    content = f"""<header>
<h1>deqflow</h1>
<p class="lead">Deep equilibrium optical flow, a notebook a card. {_state(runs, waiting)}</p>
</header>
<main>
{"".join(cards[name] for name in sorted(cards))}
</main>
<footer>
<p>A number is marked where it differs from the published one (reports/published) by more than {TOLERANCE:.0%}; times
are not compared, nor is a run with one of another profile.</p>
<p>Commit {escape(commit)}. {escape(versions)}. {escape(machine)}.</p>
</footer>"""
    style = (Path(__file__).parent / "index.css").read_text()
    return document("deqflow: notebooks", style, content, f'<script src="{PLOTLY}"></script>{reload}')


def _state(runs: Sequence[NotebookRun], waiting: Sequence[tuple[str, str]]) -> str:
    """The progress of the reports, in a sentence or two."""
    failed = sum(bool(run.error) for run in runs)
    done = f"{failed} of {len(runs)} failed." if failed else f"All {len(runs)} passed."
    if not waiting:
        minutes = sum(run.seconds for run in runs) / 60
        return f"{done} Running them took {minutes:.0f} minutes."
    rest = f", then {len(waiting) - 1} more" if len(waiting) > 1 else ""
    return f'<span role="status">Running now: {escape(waiting[0][1])}{rest}. This page loads itself again.</span>'


def _card(run: NotebookRun, published: Mapping[str, Any] | None, to_come: Mapping[str, str]) -> str:
    file = escape(run.file)
    image = _cover(run)
    # The heading is the same link, so the keyboard needs to stop only there.
    cover = f'<a class="cover" href="{file}.html" tabindex="-1" aria-hidden="true">{image}</a>' if image else ""
    outcome = '<span class="passed">Passed</span>'
    if run.error:
        outcome = f'<span class="failed">Failed</span>: <span class="error">{escape(run.error)}</span>'
    again = f" {_when_next(run.name, to_come)}" if run.name in to_come else ""
    made = f"{escape(run.profile)} profile, {escape(run.date[:16])}"
    good = f' · <a href="{escape(run.name)}.html">last good report</a>' if run.good else ""
    start = '<p class="start">Start here</p>' if run.name.startswith("00") else ""
    return f"""<article>
{cover}<div>{start}
<h2><a href="{file}.html">{escape(run.title)}</a></h2>
<p>{escape(run.verdict)}</p>
<p class="quiet">{outcome} in {_duration(run.seconds)} ({made}).{again}</p>
{_numbers(run, published)}
<p class="files"><a href="{file}.ipynb">notebook with outputs</a> · <a href="{file}.json">numbers</a>{good}</p>
</div>
</article>
"""


def _cover(run: NotebookRun) -> str:
    if run.cover is None:
        return ""
    kind, content = run.cover
    if kind == PLOTLY_JSON:
        return plotly_call(content, f"cover-{run.name}", small=True)
    return f'<img src="data:{kind};base64,{content}" alt="">'


def _card_to_come(name: str, title: str, to_come: Mapping[str, str]) -> str:
    return f"""<article class="waiting"><div><h2>{escape(title)}</h2>
<p class="quiet">{_when_next(name, to_come)}</p></div></article>
"""


def _when_next(name: str, to_come: Mapping[str, str]) -> str:
    return "Running now." if name == next(iter(to_come)) else "Waiting for its turn."


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def readable(name: str) -> str:
    """A recorded name in words, its unit in brackets: ``epe_px`` -> "epe (px)"."""
    words = name.split("_")
    unit = _UNITS.get(words[-1].lower()) if len(words) > 1 else None
    text = " ".join(words[:-1] if unit else words)
    text = re.sub(r"\bepe\b", "end-point error", re.sub(r"\bevals\b", "evaluations", text))
    return f"{text} ({unit})" if unit else text


def _shown(value: float | int | str | bool) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else as_text(value)


def _numbers(run: NotebookRun, published: Mapping[str, Any] | None) -> str:
    """The folded table of a card, with a column of published numbers if there are any."""
    if not run.numbers:
        return ""
    compared = differences(run.numbers, published["numbers"] if published else {})
    alike = published is not None and published["profile"] == run.profile
    rows, marks = [], 0
    for name, value in run.numbers.items():
        cells = [f'<td title="{escape(name)}">{escape(readable(name))}</td>', f"<td>{escape(_shown(value))}</td>"]
        if published:
            known = compared.get(name)
            beyond = alike and known is not None and known.beyond
            marks += beyond
            text = escape(_shown(known.published)) if known else ""
            mark = '<b class="differs" title="differs from the published number">differs</b> ' if beyond else ""
            cells.append(f"<td>{mark}{text}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = ""
    if published:
        head = f"<tr><th></th><th>this run</th><th>published ({escape(published['profile'])} profile)</th></tr>"
    differ = f', <span class="differs">{marks} differ from the published ones</span>' if marks else ""
    count = f"{len(rows)} number{'s' if len(rows) > 1 else ''}{differ}"
    return f"<details><summary>{count}</summary><div><table>{head}{''.join(rows)}</table></div></details>"
