"""The solver playground: choose a pair, a model, a solver and its settings, and see the equilibrium respond."""

import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go

from deqflow.data.colors import color_wheel, flow_to_rgb
from deqflow.data.datasets import FlowSample
from deqflow.lab.plots.encoding import png
from deqflow.lab.widgets import drawing
from deqflow.lab.widgets.base import Background, LiveFigure, StillPanel
from deqflow.lab.widgets.controls import OWN, Controls
from deqflow.lab.widgets.runs import SolverBench, SolverRun
from deqflow.lab.widgets.settings import RunSettings
from deqflow.model.estimator import FlowEstimator

EARLIER = 5  # earlier runs whose curves stay on screen
PINS = 6
SOON = 0.3  # seconds after which a run shows its progress
BLACK, GREY = "#222222", "#bbbbbb"


class SolverPlayground(StillPanel):
    """A live panel: every change runs the solver again, in the background, and shows what came out.

    Args:
        pairs: by name; the user may add two pictures.
        models: by name, equilibrium or recurrent.
        settings: of the first run; the first pair and model if not given.
        pinned: runs to make and pin at once, in place of a first run: what the panel's still shows.

    Attributes:
        run: what is on screen.
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
        self._lock = threading.RLock()  # what is on screen changes from one thread at a time
        self._number = 0  # of the newest run asked for: what an older one has to say is not shown
        self.controls = Controls(list(pairs), list(models), chosen)
        self._build()
        self.controls.on_change(self.start)
        self.controls.on_upload(self._take_uploads)

    def start(self) -> None:
        """Run with the present choices, in the background; a run in progress gives way."""
        before = self._work
        before.stop()
        self._number += 1
        self.stop_button.disabled = False
        work = partial(self._solve, self._number, self.controls.settings, before)
        self._work = Background(work, on_end=partial(self._ended, self._number)).start()

    def stop(self) -> None:
        """Stop the run in progress after its present evaluation, and show how far it got."""
        self._work.stop()

    def join(self) -> None:
        """Wait for the run in progress, and raise what it raised."""
        self._work.join()

    def pin(self) -> None:
        """Keep the run on screen, to compare with later ones."""
        if len(self.pins) == PINS:
            self.complain(f"There is room for {PINS} pinned runs: clear them first.")
            return
        self.pins.append(self.run)
        self._show()

    def clear_pins(self) -> None:
        """Let go of the pinned runs."""
        self.pins.clear()
        self._show()

    def still(self) -> go.Figure:
        """The pinned runs side by side, or the run on screen if there are none."""
        return drawing.still(self.pins[:3] or [self.run])

    def _build(self) -> None:
        """Make the widgets, complete with the first run."""
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.again_button = widgets.Button(description="Run again", icon="play")
        self.pin_button = widgets.Button(description="Pin this run", icon="thumb-tack")
        self.clear_button = widgets.Button(description="Clear pins", icon="eraser")
        for button, action in (
            (self.again_button, self.start),
            (self.stop_button, self.stop),
            (self.pin_button, self.pin),
            (self.clear_button, self.clear_pins),
        ):
            button.on_click(lambda _, action=action: action())
        self.progress = widgets.IntProgress(0, 0, 1, layout=widgets.Layout(width="min(30rem, 100%)"))
        self.pictures = _row([])
        self.pinned = _row([])
        self.table = widgets.HTML()
        self.curves = LiveFigure(lambda: drawing.residuals(self._curves(), slots=EARLIER + PINS + 1))
        super().__init__(figures=[self.curves])
        buttons = [self.again_button, self.stop_button, self.pin_button, self.clear_button, self.redraw_button]
        status = widgets.VBox([self.progress, self.message])
        self.children = (
            self.controls,
            _row(buttons),
            status,
            self.pictures,
            self.curves,
            self.table,
            self.pinned,
        )
        self._show()

    def _solve(self, number: int, settings: RunSettings, before: Background, stop: threading.Event) -> None:
        before.wait()
        if number != self._number:
            return
        started = shown = time.monotonic()
        self._progress(0, settings.max_evals, "Encoding the pictures ...")

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
        """Go over to the uploaded pictures."""
        self.bench.pairs.pop(OWN, None)
        self._scales = {key: value for key, value in self._scales.items() if key[0] != OWN}
        if self.controls.pair.value == OWN:
            self.start()
        else:
            self.controls.pair.value = OWN  # which starts a run

    def _progress(self, value: int, most: int, text: str) -> None:
        self.progress.max, self.progress.value, self.progress.bar_style = most, value, "info"
        self.say(text)

    def _show(self) -> None:
        """Show the run, the earlier and the pinned ones."""
        with self._lock:
            self._show_all(self.run)

    def _show_all(self, run: SolverRun) -> None:
        facts = run.row()
        self.progress.max, self.progress.value = run.settings.max_evals, run.evaluations
        self.progress.bar_style = "success" if run.outcome == "converged" else "warning"
        self.pictures.children = self._pictures(run)
        rows = [("on screen", run), *((f"pin {i}", pin) for i, pin in enumerate(self.pins, 1))]
        self.table.value = drawing.table(rows)
        self.pinned.children = tuple(picture for i, pin in enumerate(self.pins, 1) for picture in self._pinned(i, pin))
        self._draw_curves()
        self.say(
            f"{run.settings.label}: {run.outcome} after {run.evaluations} evaluations in {run.milliseconds:.0f} ms; "
            f"residual {facts['residual (px)']} px; solver memory {facts['solver memory']}; "
            f"a training step would keep {facts['kept for backward']}."
        )

    def _draw_curves(self) -> None:
        shown = self._curves()
        figure: Any = self.curves.figure
        with figure.batch_update():
            for slot, trace in enumerate(figure.data):
                if slot < len(shown):
                    trace.update(drawing.curve(*shown[slot]))
                else:
                    trace.visible = False

    def _curves(self) -> list[tuple[SolverRun, str, str]]:
        """The curves to draw, the run on screen last and so on top."""
        earlier = [(run, f"earlier: {run.settings.label}", GREY) for run in self.earlier]
        pins = [
            (run, f"pin {i}: {run.settings.label}", color)
            for i, (run, color) in enumerate(zip(self.pins, drawing.COLORS, strict=False), 1)
        ]
        return [*earlier, *pins, (self.run, self.run.settings.label, BLACK)]

    def _scale(self, run: SolverRun) -> tuple[float, float]:
        """One scale for all runs on a pair, so that their colours compare: that of the first of them."""
        return self._scales.setdefault((run.settings.pair, run.settings.width), drawing.scales(run))

    def _pictures(self, run: SolverRun) -> tuple[widgets.Widget, ...]:
        largest, worst = self._scale(run)
        shown = [
            _picture("first picture", png(drawing.image_rgb(run.pair.image1))),
            _picture(f"estimated flow, full colour: {largest:.3g} px", png(flow_to_rgb(run.flow, largest=largest))),
        ]
        if run.error is not None:
            true = run.pair.flow.where(run.pair.valid, float("nan"))
            error = png(drawing.error_rgb(run.error, worst))
            shown.append(_picture("true flow", png(flow_to_rgb(true, largest=largest))))
            shown.append(_picture(f"error, mean {run.epe_px:.2f} px; black 0, yellow {worst:.2g} px and more", error))
        wheel = png(color_wheel(91))
        return (*shown, _picture("direction as hue", wheel, width="91px"))

    def _pinned(self, number: int, run: SolverRun) -> tuple[widgets.Widget, ...]:
        largest, worst = self._scale(run)
        flow = png(flow_to_rgb(run.flow, largest=largest))
        shown = [_picture(f"pin {number}: {run.settings.label}", flow, width="184px")]
        if run.error is not None:
            error = png(drawing.error_rgb(run.error, worst))
            shown.append(_picture(f"pin {number}: error, mean {run.epe_px:.2f} px", error, width="184px"))
        return tuple(shown)


def _row(children: Sequence[widgets.Widget]) -> widgets.HBox:
    return widgets.HBox(list(children), layout=widgets.Layout(flex_flow="row wrap", align_items="flex-start"))


def _picture(caption: str, data: bytes, width: str = "min(276px, 100%)") -> widgets.Widget:
    image = widgets.Image(value=data, format="png", layout=widgets.Layout(width="100%"))
    text = widgets.HTML(f"<small style='line-height: 1.2; display: block'>{escape(caption)}</small>")
    return widgets.VBox([image, text], layout=widgets.Layout(width=width, margin="0 .6rem .4rem 0"))
