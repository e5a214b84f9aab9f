"""What became of each notebook, and the page to start from: a card for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from deqflow.notebook import as_text

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #777; --good: #1a7f37; --bad: #cf222e; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; }
p.lead { color: var(--quiet); margin-top: .2rem; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1.2rem; }
article { border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; }
article a.cover { display: block; background: #fff; }
article img { width: 100%; height: 12rem; object-fit: contain; display: block; }
article div { padding: .8rem 1rem 1rem; }
h2 { font-size: 1.1rem; margin: 0 0 .2rem; line-height: 1.3; }
.passed { color: var(--good); } .failed { color: var(--bad); }
table { width: 100%; border-collapse: collapse; font-size: .85rem; margin-top: .6rem; }
td { border-top: 1px solid var(--line); padding: .15rem 0; overflow-wrap: anywhere; }
td + td { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; padding-left: .5rem; }
.files, footer { font-size: .85rem; color: var(--quiet); }
"""


@dataclass(frozen=True)
class Report:
    """What became of one notebook.

    Attributes:
        name: of the notebook, without suffix.
        title: its first heading.
        seconds: it ran for.
        error: the sentence it failed with; empty if it passed.
        numbers: what it recorded (:func:`deqflow.notebook.record`).
        picture: its first picture, a PNG in base64; empty if it has none.
    """

    name: str
    title: str
    seconds: float
    error: str
    numbers: dict[str, Any]
    picture: str


def to_index(reports: Sequence[Report], origin: dict[str, Any]) -> str:
    """Return the page for reports that lie beside it; ``origin`` is what :func:`provenance` says."""
    failed = sum(bool(report.error) for report in reports)
    state = f"{failed} of {len(reports)} failed" if failed else f"all {len(reports)} passed"
    commit = (origin["commit"] or "unknown")[:10] + (" with local changes" if origin["modified"] else "")
    machine = f"{origin['hardware']['processor']}, {origin['hardware']['threads']} threads"
    cards = "\n".join(_card(report) for report in reports)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>deqflow: reports</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>deqflow</h1>
<p class="lead">Deep equilibrium optical flow, one notebook a card: {state}.</p>
<main>
{cards}
</main>
<footer><p>Commit {escape(commit)}; torch {escape(origin["versions"]["torch"])}; {escape(machine)}.</p></footer>
</body>
</html>
"""


def _card(report: Report) -> str:
    name = escape(report.name)
    cover = f'<img src="data:image/png;base64,{report.picture}" alt="">' if report.picture else ""
    outcome = (
        f'<span class="failed">failed</span>: {escape(report.error)}'
        if report.error
        else f'<span class="passed">passed</span> in {report.seconds:.0f} s'
    )
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(as_text(v))}</td></tr>" for k, v in report.numbers.items())
    return f"""<article>
<a class="cover" href="{name}.html">{cover}</a>
<div>
<h2><a href="{name}.html">{escape(report.title)}</a></h2>
{outcome}
<table>{rows}</table>
<p class="files"><a href="{name}.ipynb">notebook</a> · <a href="{name}.json">numbers</a></p>
</div>
</article>"""
