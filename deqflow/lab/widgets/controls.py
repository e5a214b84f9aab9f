"""The choices of the playground as widgets."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from deqflow.data.datasets import FlowSample, own_pair
from deqflow.lab.widgets.settings import DAMPED, PRECISIONS, RULES, STARTS, WITH_HISTORY, RunSettings

OWN = "your own two pictures"
WIDTHS = {"184 px wide": 184, "368 px wide": 368, "as they are": None}
TOLERANCES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
BUDGETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 64, 96, 128, 200, 400, 1000)
_WIDE = widgets.Layout(width="auto")
_STYLE = {"description_width": "6.5rem"}


class Controls(widgets.VBox):
    """The choices of a run, and two pictures of one's own.

    Args:
        pairs, models: names to choose from.
        settings: what is chosen at first; a tolerance or budget that is not among the steps is added to them.
    """

    def __init__(self, pairs: Sequence[str], models: Sequence[str], settings: RunSettings) -> None:
        self.pair = _dropdown("pair", [*pairs, OWN], settings.pair)
        self.width = _dropdown("size", list(WIDTHS.items()), settings.width)
        self.model = _dropdown("model", models, settings.model)
        self.solver = _dropdown("solver", list(RULES), settings.solver)
        self.start = _dropdown("start", STARTS, settings.start)
        self.precision = _dropdown("precision", list(PRECISIONS), settings.precision)
        common: dict[str, Any] = {"continuous_update": False, "layout": _WIDE, "style": _STYLE}
        self.damping = widgets.FloatSlider(
            settings.damping, min=0.05, max=1, step=0.05, description="damping", readout_format=".2f", **common
        )
        self.history = widgets.IntSlider(settings.history, min=1, max=12, description="history", **common)
        self.tolerance = _steps("tolerance (px)", TOLERANCES, settings.tolerance, "{:g}", common)
        self.max_evals = _steps("budget (evals)", BUDGETS, settings.max_evals, "{}", common)
        self.first = widgets.FileUpload(accept="image/*", description="First picture", layout={"width": "auto"})
        self.second = widgets.FileUpload(accept="image/*", description="Second picture", layout={"width": "auto"})
        self._seed = settings.seed
        uploads = widgets.HBox([self.first, self.second], layout=widgets.Layout(flex_flow="row wrap"))
        columns = [
            widgets.VBox([self.pair, uploads, self.width, self.model]),
            widgets.VBox([self.solver, self.damping, self.history, self.start]),
            widgets.VBox([self.tolerance, self.max_evals, self.precision]),
        ]
        for column in columns:
            column.layout = widgets.Layout(flex="1 1 17rem", margin="0 1rem 0 0")
        super().__init__([widgets.HBox(columns, layout=widgets.Layout(flex_flow="row wrap"))])
        self.solver.observe(self._offer, "value")
        self._offer()

    @property
    def settings(self) -> RunSettings:
        """What is chosen."""
        return RunSettings(
            pair=str(self.pair.value),
            model=str(self.model.value),
            solver=str(self.solver.value),
            damping=round(self.damping.value, 4),
            history=self.history.value,
            tolerance=self.tolerance.value,
            max_evals=self.max_evals.value,
            start=str(self.start.value),
            precision=str(self.precision.value),
            width=self.width.value,
            seed=self._seed,
        )

    def on_change(self, call: Callable[[], None]) -> None:
        """Call this after each change of a choice; uploads have :meth:`on_upload`."""
        chosen = (self.pair, self.width, self.model, self.solver, self.start, self.precision)
        for widget in (*chosen, self.damping, self.history, self.tolerance, self.max_evals):
            widget.observe(lambda _: call(), "value")

    def on_upload(self, call: Callable[[], None]) -> None:
        """Call this once both pictures are there, and whenever one of them is replaced."""
        for upload in (self.first, self.second):
            upload.observe(lambda _: call() if self.first.value and self.second.value else None, "value")

    def uploaded(self) -> FlowSample:
        """The two pictures of one's own.

        Raises:
            ValueError: one is missing, is no picture, or they differ in size.
        """
        if not (self.first.value and self.second.value):
            raise ValueError("Choose two pictures of one size first, by the buttons beside the pair.")
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for name, upload in (("first", self.first), ("second", self.second)):
                entry = upload.value[0]
                paths.append(Path(folder) / f"{name} {Path(entry['name']).name}")
                paths[-1].write_bytes(entry["content"])
            try:
                return own_pair(*paths)
            except ValueError as error:
                raise ValueError(str(error).replace(f"{folder}/", "The picture ")) from error

    def _offer(self, _: object = None) -> None:
        """Take back what the solver has no use for."""
        self.damping.disabled = self.solver.value not in DAMPED
        self.history.disabled = self.solver.value not in WITH_HISTORY


def _dropdown(description: str, options: Any, value: Any) -> widgets.Dropdown:
    return widgets.Dropdown(options=options, value=value, description=description, layout=_WIDE, style=_STYLE)


def _steps(
    description: str, values: Sequence[float], value: float, form: str, common: dict[str, Any]
) -> widgets.SelectionSlider:
    options = [(form.format(step), step) for step in sorted({*values, value})]
    return widgets.SelectionSlider(options=options, value=value, description=description, **common)
