"""The choices of the playground as widgets."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from deqflow.data.datasets import FlowSample, own_pair
from deqflow.lab.widgets.base import Choice, row, titled
from deqflow.lab.widgets.settings import DAMPED, PRECISIONS, RULES, STARTS, WITH_HISTORY, RunSettings

OWN = "your own two images"
FULL = "full size"
WIDTHS = {"128 px wide": 128, "256 px wide": 256, "512 px wide": 512, FULL: None}
_WIDE = widgets.Layout(width="auto")
_STYLE = {"description_width": "9.5rem"}
_COMMON: dict[str, Any] = {"layout": _WIDE, "style": _STYLE}

GROUPS = {
    "What to solve": ("pair", "width", "model"),
    "How": ("solver", "damping", "history", "stretch"),
    "From where, and until when": ("start", "tolerance", "max_evals", "precision"),
}
LABELS = {
    "pair": ("image pair", "Two images; choose your own with the two buttons below."),
    "width": ("image width", "Larger images are reduced to this width: small ones answer at once."),
    "model": ("model", "Whose fixed point is looked for."),
    "solver": (
        "solver",
        "Picard repeats f; Anderson and Broyden learn from earlier steps; SciPy's are general.",
    ),
    "damping": ("damping (0 to 1)", "Which share of a step is taken; of Anderson its mixing."),
    "history": ("history (steps)", "How many earlier steps Anderson and Broyden look at."),
    "stretch": (
        "stretch (times)",
        "Makes each step longer: the fixed points stay, and plain iteration diverges.",
    ),
    "start": ("start", "The state that the solve begins with."),
    "tolerance": ("tolerance (px)", "The solve ends once a step moves the flow by less than this, root mean square."),
    "max_evals": ("budget (evaluations)", "The solve ends after so many evaluations of f at most."),
    "precision": ("precision", "Of the numbers in encoders and update; bfloat16 keeps the state in float32."),
}


class Controls(widgets.VBox):
    """The choices of a run in three groups, and fields to upload two images.

    Args:
        pairs, models: names to choose from.
        settings: the first choices; a width that is not offered yet is added.
    """

    def __init__(self, pairs: Sequence[str], models: Sequence[str], settings: RunSettings) -> None:
        self._seed, self._quiet = settings.seed, False
        widths = [*WIDTHS] if settings.width in WIDTHS.values() else [f"{settings.width} px wide", *WIDTHS]
        self.pair = _dropdown([*pairs, OWN])
        self.width = _dropdown(widths)
        self.model = _dropdown(models)
        self.solver = _dropdown(list(RULES))
        self.start = _dropdown(STARTS)
        self.precision = _dropdown(list(PRECISIONS))
        lazy: dict[str, Any] = {"continuous_update": False, **_COMMON}
        self.damping = widgets.FloatSlider(min=0.05, max=1, step=0.05, readout_format=".2f", **lazy)
        self.history = widgets.IntSlider(min=1, max=12, **lazy)
        self.stretch = widgets.FloatSlider(min=1, max=4, step=0.1, readout_format=".1f", **lazy)
        # Numbers are typed, so a field shows exactly the value that the solve gets.
        self.tolerance = widgets.BoundedFloatText(min=0, max=100, step=0.005, **lazy)
        self.max_evals = widgets.BoundedIntText(min=1, max=10_000, **lazy)
        self.first = widgets.FileUpload(accept="image/*", description="First image", layout=_WIDE)
        self.second = widgets.FileUpload(accept="image/*", description="Second image", layout=_WIDE)
        for name, (label, text) in LABELS.items():
            getattr(self, name).description = label
            getattr(self, name).tooltip = text
        groups = [titled(title, [getattr(self, name) for name in names]) for title, names in GROUPS.items()]
        groups[0].children = (*groups[0].children, row([self.first, self.second]))
        super().__init__([row(groups)])
        self.set(settings)
        self.solver.observe(self._offer, "value")
        self._offer()

    @property
    def settings(self) -> RunSettings:
        """The present choices."""
        width = str(self.width.value)
        return RunSettings(
            pair=str(self.pair.value),
            model=str(self.model.value),
            solver=str(self.solver.value),
            damping=round(self.damping.value, 4),
            history=self.history.value,
            stretch=round(self.stretch.value, 4),
            tolerance=self.tolerance.value,
            max_evals=self.max_evals.value,
            start=str(self.start.value),
            precision=str(self.precision.value),
            width=None if width == FULL else int(width.split()[0]),
            seed=self._seed,
        )

    def set(self, settings: RunSettings) -> None:
        """Set all choices at once; functions of :meth:`on_change` are called once, if any choice changed."""
        before = self.settings if self.pair.value else None
        self._quiet = True
        for name in LABELS:
            value = getattr(settings, name)
            if name == "width":
                value = FULL if value is None else f"{value} px wide"
            getattr(self, name).value = value
        self._seed, self._quiet = settings.seed, False
        if before is not None and self.settings != before:
            self._call()

    def _call(self) -> None:
        """Do nothing; :meth:`on_change` replaces this function."""

    def on_change(self, call: Callable[[], None]) -> None:
        """Have ``call`` called after each change of a choice; for uploads see :meth:`on_upload`."""
        self._call = call
        for name in LABELS:
            getattr(self, name).observe(lambda _: None if self._quiet else call(), "value")

    def on_upload(self, call: Callable[[], None]) -> None:
        """Have ``call`` called once both images are uploaded, and whenever one of them is replaced."""
        for upload in (self.first, self.second):
            upload.observe(lambda _: call() if self.first.value and self.second.value else None, "value")

    def choices(self) -> list[Choice]:
        """The present choices, for a page without widgets."""
        chosen = {name: str(getattr(self, name).value) for name in LABELS}
        return [Choice(group, LABELS[n][0], chosen[n], LABELS[n][1]) for group, names in GROUPS.items() for n in names]

    def uploaded(self) -> FlowSample:
        """The two uploaded images.

        Raises:
            ValueError: one is missing or is not an image, or they differ in size.
        """
        if not (self.first.value and self.second.value):
            raise ValueError("Choose two images of one size first, by the buttons First image and Second image.")
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for name, upload in (("first", self.first), ("second", self.second)):
                entry = upload.value[0]
                paths.append(Path(folder) / f"{name} {Path(entry['name']).name}")
                paths[-1].write_bytes(entry["content"])
            try:
                return own_pair(*paths)
            except ValueError as error:
                raise ValueError(str(error).replace(f"{folder}/", "The image ")) from error

    def _offer(self, _: object = None) -> None:
        """Offer only the settings that the chosen solver uses."""
        self.damping.disabled = self.solver.value not in DAMPED
        self.history.disabled = self.solver.value not in WITH_HISTORY


def experiments(settings: RunSettings, recurrent: str | None) -> dict[str, RunSettings]:
    """Instructive settings, by the words on their buttons.

    Args:
        settings: the settings that each of them changes.
        recurrent: name of a recurrent model, if there is one.
    """
    usual = replace(settings, solver="Picard", damping=1.0, start="zero", stretch=1.0, precision="float32")
    found = {
        "Where Picard diverges": replace(usual, stretch=2.5, max_evals=60),
        "The same by Anderson": replace(usual, stretch=2.5, max_evals=60, solver="Anderson"),
        "A random start": replace(usual, start="random", max_evals=100),
    }
    if recurrent is not None:
        found["A recurrent model at 200 updates"] = replace(usual, model=recurrent, tolerance=0.0, max_evals=200)
    return found


def _dropdown(options: Sequence[str]) -> widgets.Dropdown:
    return widgets.Dropdown(options=list(options), **_COMMON)
