"""The solver playground: choose a pair, a model, a solver and its settings, and see the equilibrium respond."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape

import ipywidgets as widgets
import plotly.graph_objects as go

from deqflow.data.colors import color_wheel, flow_to_rgb
from deqflow.data.datasets import FlowSample
from deqflow.lab.plots.encoding import png
from deqflow.lab.plots.style import COLORS, INK
from deqflow.lab.widgets import drawing
from deqflow.lab.widgets.base import Background, CaptionedImage, Choice, StillPanel, row
from deqflow.lab.widgets.controls import OWN, Controls, experiments
from deqflow.lab.widgets.runs import SolverBench, SolverRun
from deqflow.lab.widgets.settings import RunSettings
from deqflow.model.estimator import FlowEstimator

EARLIER = 3  # earlier runs whose curves stay on screen
PINS = 6
SOON = 0.3  # seconds after which a run shows its progress
FAINT = "#b4b4b4"  # colour of earlier runs
BUSY = "⏳ "


class SolverPlayground(StillPanel):
    """A live panel: every change runs the solver again, in the background, and shows the result.

    Args:
        pairs: pairs of images by name; the user may upload another one.
        models: equilibrium or recurrent models by name.
        settings: settings of the first run; the first pair and model if not given.
        pinned: settings of runs to make and pin at once instead of a first run; the panel's still shows them.

    Attributes:
        run: the run on screen.
        pins: the pinned runs.

    Raises:
        ValueError: as for :class:`SolverBench` and its runs.
    """

    def __init__(
        self,
        pairs: Mapping[str, FlowSample],
        models: Mapping[str, FlowEstimator],
        *,
        settings: RunSettings | None = None,
        pinned: Sequence[RunSettings] = (),
    ) -> None:
        self.bench = SolverBench(pairs, models)
        chosen = settings or (pinned[-1] if pinned else RunSettings(pair=next(iter(pairs)), model=next(iter(models))))
        self.pins = [self.bench.run(each) for each in pinned]
        self.run = self.pins[-1] if self.pins and chosen == pinned[-1] else self.bench.run(chosen)
        self.earlier: list[SolverRun] = []
        self._scales: dict[tuple[str, int | None], tuple[float, float]] = {}
        self._work = Background(lambda stop: None)
        self._lock = threading.RLock()  # only one thread at a time changes what is on screen
        self._number = 0  # number of the newest run; results of older runs are not shown
        self.controls = Controls(list(pairs), list(models), chosen)
        recurrent = next((name for name, model in models.items() if model.recurrent), None)
        self.experiments = experiments(chosen, recurrent)
        self._build()
        self.controls.on_change(self.start)
        self.controls.on_upload(self._take_uploads)

    def start(self) -> None:
        """Run with the present choices, in the background; a run in progress is stopped."""
        before = self._work
        before.stop()
        self._number += 1
        self.stop_button.disabled = False
        self.say(f"{BUSY}Solving ...")
        work = partial(self._solve, self._number, self.controls.settings, before)
        self._work = Background(work, on_end=partial(self._ended, self._number)).start()

    def stop(self) -> None:
        """Stop the run in progress after its present evaluation, and show how far it got."""
        self._work.stop()

    def join(self) -> None:
        """Wait for the run in progress, and raise what it raised."""
        self._work.join()

    def pin(self) -> None:
        """Pin the run on screen, to compare it with later ones."""
        if len(self.pins) == PINS:
            self.complain(f"There is room for {PINS} pinned runs: clear them first.")
            return
        self.pins.append(self.run)
        self._show()

    def clear_pins(self) -> None:
        """Remove the pinned runs."""
        self.pins.clear()
        self._show()

    def still(self) -> go.Figure:
        """The pinned runs side by side, or the run on screen if there are none."""
        return drawing.still(self.pins[:3] or [self.run])

    def choices(self) -> list[Choice]:
        """The controls and their values."""
        return self.controls.choices()

    def try_experiment(self, name: str) -> None:
        """Choose the settings of one of :attr:`experiments` and run it; the run on screen becomes an earlier one."""
        self.controls.set(self.experiments[name])

    def _build(self) -> None:
        """Make the widgets, which already show the first run."""
        actions = {
            "Run again": ("play", self.start, "Solve once more with the same settings"),
            "Stop": ("stop", self.stop, "End the solve after its present evaluation"),
            "Pin this run": ("thumb-tack", self.pin, "Keep the run on screen, to compare with later ones"),
            "Clear pins": ("eraser", self.clear_pins, "Let go of the pinned runs"),
        }
        buttons = {name: _button(name, icon, call, text) for name, (icon, call, text) in actions.items()}
        self.again_button, self.stop_button, self.pin_button, self.clear_button = buttons.values()
        self.stop_button.disabled = True
        tries = [
            _button(name, "flask", partial(self.try_experiment, name), "Set what this takes, and run it", width="auto")
            for name in self.experiments
        ]
        self.progress = widgets.IntProgress(0, 0, 1, layout=widgets.Layout(width="min(30rem, 100%)"))
        self.images = {name: CaptionedImage() for name in ("first", "flow", "truth", "error")}
        self.wheel = CaptionedImage("91px")
        self.wheel.show(png(color_wheel(91)), "hue: direction")
        self.curves = CaptionedImage("min(62rem, 100%)")
        self.table, self.python = widgets.HTML(), widgets.HTML()
        self.pinned = row([])
        super().__init__()
        self.children = (
            self.controls,
            row([widgets.HTML("<b>Try:</b>"), *tries]),
            row([*buttons.values()]),
            self.progress,
            self.message,
            row([*self.images.values(), self.wheel]),
            self.curves,
            self.table,
            self.pinned,
            self.python,
        )
        self._show()

    def _solve(self, number: int, settings: RunSettings, before: Background, stop: threading.Event) -> None:
        before.wait()
        if number != self._number:
            return
        started = shown = time.monotonic()
        self._progress(0, settings.max_evals, "Encoding the images ...")

        def on_eval(evaluation: int, residual: float) -> None:
            nonlocal shown
            now = time.monotonic()
            if number == self._number and now - started > SOON and now - shown > SOON:
                shown = now
                text = f"Evaluation {evaluation} of at most {settings.max_evals}: residual {residual:.3g} px."
                self._progress(evaluation, settings.max_evals, text)

        if settings.pair == OWN and OWN not in self.bench.pairs:
            self.bench.add_pair(OWN, self.controls.uploaded())
        run = self.bench.run(settings, previous=self.run, stop=stop, on_eval=on_eval)
        with self._lock:
            if number == self._number:
                self.earlier = [*self.earlier, self.run][-EARLIER:]
                self.run = run
                self._show()

    def _ended(self, number: int, error: Exception | None) -> None:
        if number != self._number:
            return
        self.stop_button.disabled = True
        if error is not None:
            self.progress.bar_style = "danger"
            self.complain(str(error) if isinstance(error, ValueError | TypeError) else f"The run failed: {error!r}.")

    def _take_uploads(self) -> None:
        """Switch to the uploaded images."""
        self.bench.pairs.pop(OWN, None)
        self._scales = {key: value for key, value in self._scales.items() if key[0] != OWN}
        if self.controls.pair.value == OWN:
            self.start()
        else:
            self.controls.pair.value = OWN  # this change starts a run

    def _progress(self, value: int, most: int, text: str) -> None:
        self.progress.max, self.progress.value, self.progress.bar_style = most, value, "info"
        self.say(BUSY + text)

    def _show(self) -> None:
        """Show the run on screen, the earlier runs and the pinned ones."""
        with self._lock:
            self._show_all(self.run)

    def _show_all(self, run: SolverRun) -> None:
        facts = run.row()
        self.progress.max, self.progress.value = run.settings.max_evals, run.evaluations
        self.progress.bar_style = "success" if run.outcome == "converged" else "warning"
        self._show_images(run)
        rows = [("on screen", run), *((f"pin {i}", pin) for i, pin in enumerate(self.pins, 1))]
        self.table.value = drawing.runs_table(rows)
        if len(self.pinned.children) != len(self.pins):
            self.pinned.children = tuple(self._pinned(i, pin) for i, pin in enumerate(self.pins, 1))
        self.curves.show(drawing.residuals(self._curves()))
        self.python.value = _as_python(run.settings)
        self.say(
            f"{run.settings.label}: {run.outcome} after {run.evaluations} evaluations in {run.milliseconds:.0f} ms; "
            f"residual {facts['residual (px)']} px; solver memory {facts['solver memory']}; "
            f"a training step would keep {facts['kept for backward']}."
        )

    def _curves(self) -> list[tuple[SolverRun, str, str]]:
        """The curves to draw; that of the run on screen is the last, so that it is on top."""
        earlier = [(run, f"earlier: {run.settings.label}", FAINT) for run in self.earlier]
        pins = [
            (run, f"pin {i}: {run.settings.label}", color)
            for i, (run, color) in enumerate(zip(self.pins, COLORS, strict=False), 1)
        ]
        return [*earlier, *pins, (self.run, self.run.settings.label, INK)]

    def _scale(self, run: SolverRun) -> tuple[float, float]:
        """The scale of the first run on a pair, which all runs on it share, so that their colours can be compared."""
        return self._scales.setdefault((run.settings.pair, run.settings.width), drawing.scales(run))

    def _show_images(self, run: SolverRun) -> None:
        largest, worst = self._scale(run)
        self.images["first"].show(png(drawing.image_rgb(run.pair.image1)), "first image")
        flow = png(flow_to_rgb(run.flow, largest=largest))
        self.images["flow"].show(flow, f"estimated flow; full colour: {largest:.3g} px")
        if run.error is None:
            self.images["truth"].hide()
            self.images["error"].hide()
            return
        true = run.pair.flow.where(run.pair.valid, float("nan"))
        self.images["truth"].show(png(flow_to_rgb(true, largest=largest)), "true flow; black where it is not known")
        error = png(drawing.error_rgb(run.error, worst))
        caption = f"error, mean {run.epe_px:.2f} px; black 0, yellow {worst:.2g} px and more"
        self.images["error"].show(error, caption)

    def _pinned(self, number: int, run: SolverRun) -> CaptionedImage:
        """The flow of a pinned run, and its results."""
        pinned = CaptionedImage("184px")
        error = "" if run.epe_px is None else f"; error {run.epe_px:.2f} px"
        caption = f"pin {number}: {run.settings.label}, {run.evaluations} evaluations{error}"
        pinned.show(png(flow_to_rgb(run.flow, largest=self._scale(run)[0])), caption)
        return pinned


def _button(name: str, icon: str, call: Callable[[], None], tooltip: str, width: str = "9rem") -> widgets.Button:
    button = widgets.Button(description=name, icon=icon, tooltip=tooltip, layout=widgets.Layout(width=width))
    button.on_click(lambda _: call())
    return button


def _as_python(settings: RunSettings) -> str:
    """The settings as a call, folded, with a button that copies it."""
    call = escape(settings.as_python(), quote=True)
    copy = "navigator.clipboard.writeText(this.dataset.call); this.textContent = 'Copied'"
    style = "white-space: pre-wrap; margin: .3rem 0"
    button = f'<button type="button" class="jupyter-button" data-call="{call}" onclick="{copy}">'
    return f'{button}Copy settings as Python</button><pre style="{style}">{call}</pre>'
