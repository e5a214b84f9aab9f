"""The figure of README.md: RAFT-small's error from 12 to 96 evaluations, as published and as an equilibrium model.

Run it again after a change of its results file: ``.venv/bin/python reports/equilibration.py``.
"""

import io
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from deqflow.data.writing import write_whole
from deqflow.evidence.results import load_results, published

OUT = Path(__file__).parents[1] / "docs" / "equilibration.svg"
LOOKS = {"before": ("as published", "#d55e00"), "after": ("as an equilibrium model", "#0072b2")}
GRAY = "#808080"  # readable on white and on black


def draw(results: dict) -> Figure:
    """One line a set and model: the error relative to that of RAFT-small after 12 updates."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")  # not pyplot's, which would keep it open
    axes = figure.subplots()
    for label, (words, color) in LOOKS.items():
        for i, found in enumerate(results["sets"].values()):
            base, errors = found["before"]["errors"]["12"], found[label]["errors"]
            shares = [error / base for error in errors.values()]
            axes.plot([int(k) for k in errors], shares, "o-", color=color, alpha=0.8, label=words if i == 0 else None)
    axes.axhline(1, color=GRAY, lw=0.8, ls=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks([12, 24, 96], ["12", "24", "96"])
    axes.set_xlabel("evaluations of RAFT-small's update", color=GRAY)
    axes.set_ylabel("error over that at 12", color=GRAY)
    axes.tick_params(colors=GRAY, which="both")
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRAY)
    axes.legend(frameon=False, labelcolor=GRAY)
    return figure


def main(out: str | Path = OUT) -> None:
    """Write the figure."""
    matplotlib.rcParams["svg.hashsalt"] = "deqflow"  # the same bytes each time
    buffer = io.BytesIO()
    draw(load_results(published("equilibration"))).savefig(
        buffer, format="svg", transparent=True, metadata={"Date": None}
    )
    print(f"Wrote {write_whole(Path(out), buffer.getvalue())}.")


if __name__ == "__main__":
    main(*sys.argv[1:2])
