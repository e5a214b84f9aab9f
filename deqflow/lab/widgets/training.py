"""A training run to watch: its loss, error, residual and evaluations, a preview of the flow, Stop and Go on."""

import threading
from collections.abc import Sequence

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from deqflow.data.colors import flow_to_rgb
from deqflow.data.datasets import FlowSample
from deqflow.data.synthetic import SyntheticPairs
from deqflow.lab.plots.encoding import png_address
from deqflow.lab.widgets.base import Background, LiveFigure, StillPanel
from deqflow.model.estimator import FlowEstimator
from deqflow.training import HELD_OUT_SEED, Progress, Trainer
from deqflow.training.objective import set_training

TITLES = (
    "loss (px)",
    "error on held-out pairs (px)",
    "a held-out pair: true flow",
    "residual (px)",
    "evaluations to the tolerance",
    "its flow now",
)
COLORS = ("#9ecae1", "#4292c6", "#2171b5", "#08306b")
HOVER = "%{y:.3g} at step %{x}"


class TrainingPanel(StillPanel):
    """Trains on a thread of its own and shows how it goes; ``Stop`` keeps the state, ``Go on`` goes on from there.

    Where nobody can click, as in a report, the panel waits for the end of the run and stands for itself as a still.

    Args:
        trainer: of the run, begun or not.
        preview: pair whose flow is shown; the first that is held out if not given.
        wait: return at the end of the run instead of at once.

    Attributes:
        entries: what was logged since the panel was made.

    Raises:
        FloatingPointError, and whatever else training raises; without ``wait``, :meth:`join` raises it.
    """

    def __init__(self, trainer: Trainer, *, preview: FlowSample | None = None, wait: bool = True) -> None:
        self.trainer = trainer
        self.entries: list[Progress] = []
        held_out = SyntheticPairs(1, seed=HELD_OUT_SEED, config=trainer.config.scenes)
        self.preview = preview or held_out[0]
        lengths = self.preview.flow[:, self.preview.valid].norm(dim=0)
        self._largest = max(float(np.percentile(lengths.numpy(), 99)), 0.5) if len(lengths) else None
        self._work = Background(lambda stop: None)
        self._flow = self._estimate()
        self.stop_button = widgets.Button(description="Stop", icon="stop")
        self.go_on_button = widgets.Button(description="Go on", icon="play")
        self.stop_button.on_click(lambda _: self.stop())
        self.go_on_button.on_click(lambda _: self.start())
        self.progress = widgets.IntProgress(trainer.step, 0, trainer.config.steps, layout={"width": "min(30rem, 100%)"})
        self.curves = LiveFigure(self.still)
        super().__init__(figures=[self.curves])
        buttons = widgets.HBox([self.stop_button, self.go_on_button, self.redraw_button])
        self.children = (buttons, self.progress, self.message, self.curves)
        self.start()
        if wait:
            self.join()

    def start(self) -> None:
        """Begin, or go on from where the run was stopped; nothing if it is under way."""
        if not self._work.running:
            self.stop_button.disabled, self.go_on_button.disabled = False, True
            self.say(f"Training on {self.trainer.processes.description} ...")
            self._work = Background(self._train, on_end=self._ended).start()

    def stop(self) -> None:
        """Stop after the present step and keep the state; returns at once."""
        self._work.stop()

    def join(self) -> FlowEstimator:
        """Wait until the run has ended or was stopped, and return the model; raise what training raised."""
        self._work.join()
        return self.trainer.estimator

    def still(self) -> go.Figure:
        """The curves and the preview as they are now."""
        figure = make_subplots(rows=2, cols=3, subplot_titles=TITLES, horizontal_spacing=0.06, vertical_spacing=0.14)
        for number, curve in enumerate(self._curves()):
            row, column = _place(number)
            figure.add_scatter(**curve, row=row, col=column)
        for row, flow in ((1, self.preview.flow), (2, self._flow)):
            figure.add_image(source=self._picture(flow), hoverinfo="skip", row=row, col=3)
            figure.update_xaxes(visible=False, constrain="domain", row=row, col=3)
            figure.update_yaxes(visible=False, constrain="domain", row=row, col=3)
        figure.update_xaxes(title_text="steps", row=2)
        for row, column in ((1, 1), (1, 2), (2, 1)):
            figure.update_yaxes(type="log", tickformat="~g", row=row, col=column)
        figure.update_yaxes(rangemode="tozero", row=2, col=2)
        figure.update_annotations(font_size=13)
        return figure.update_layout(
            template="plotly_white",
            height=540,
            margin={"l": 50, "r": 10, "t": 40, "b": 50},
            legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "title": {"text": "after"}},
        )

    def _train(self, stop: threading.Event) -> None:
        self.trainer.run(self._show, stop_event=stop, bar=False)

    def _ended(self, error: Exception | None) -> None:
        trainer = self.trainer
        self.stop_button.disabled, self.go_on_button.disabled = True, trainer.finished
        self.progress.value = trainer.step
        if error is not None:
            self.progress.bar_style = "danger"
            self.complain(str(error) or repr(error))
        elif trainer.finished:
            self.progress.bar_style = "success"
            self.say(f"Finished: {trainer.step} steps in {trainer.seconds:.0f} s.")
        else:
            self.progress.bar_style = "warning"
            self.say(f"Stopped after {trainer.step} of {trainer.config.steps} steps: Go on goes on from there.")

    def _show(self, progress: Progress) -> None:
        """Take a log entry and change what is on screen; called between two steps, on the thread that trains."""
        self.entries.append(progress)
        self._flow = self._estimate()
        self.progress.value = progress.step
        self.say(str(progress))
        with self.curves.figure.batch_update():
            for number, curve in enumerate(self._curves()):
                self.curves.figure.data[number].update(x=curve["x"], y=curve["y"], name=curve["name"])
            self.curves.figure.data[-1].source = self._picture(self._flow)

    def _curves(self) -> list[dict]:
        """Loss, then error and residual after each number of evaluations, then evaluations."""
        steps = [entry.step for entry in self.entries]
        evals: Sequence[int] = sorted(self.entries[-1].errors) if self.entries else ()
        # As many curves as there will be, so that a figure on screen has a place for each.
        names = [f"{evals[i]} evaluations" if i < len(evals) else "" for i in range(len(COLORS))]
        curves = [_curve(steps, [entry.loss for entry in self.entries], "loss", "#444444", False)]
        for kind in ("errors", "residuals"):
            for i, name in enumerate(names):
                values = [getattr(entry, kind)[evals[i]] for entry in self.entries] if name else []
                curves.append(_curve(steps if name else [], values, name, COLORS[i], kind == "errors"))
        return [*curves, _curve(steps, [entry.evaluations for entry in self.entries], "evaluations", "#444444", False)]

    def _estimate(self) -> torch.Tensor:
        """The flow of the preview as the model sees it now, (2, H, W), on the CPU."""
        estimator, device = self.trainer.estimator, self.trainer.device
        training = estimator.training
        estimator.eval()
        with torch.no_grad():
            output = estimator(*(image[None].to(device) for image in (self.preview.image1, self.preview.image2)))
        if training:
            set_training(estimator, self.trainer.config)  # what is frozen stays frozen
        return output.flow[0].cpu()

    def _picture(self, flow: torch.Tensor) -> str:
        return png_address(flow_to_rgb(flow, largest=self._largest))


def _curve(x: list[int], y: list[float], name: str, color: str, legend: bool) -> dict:
    """The arguments of a curve."""
    return {
        "x": x,
        "y": y,
        "name": name,
        "mode": "lines+markers",
        "line": {"color": color, "width": 2},
        "marker": {"size": 4},
        "showlegend": legend,
        "hovertemplate": HOVER,
    }


def _place(number: int) -> tuple[int, int]:
    """Row and column of a curve's diagram."""
    count = len(COLORS)
    if number == 0:
        return 1, 1
    if number <= count:
        return 1, 2
    return (2, 1) if number <= 2 * count else (2, 2)
