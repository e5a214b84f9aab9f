"""A live view of a training run: loss, error, residual, evaluations, a preview of the flow, Stop and Go on."""

import threading

import ipywidgets as widgets
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deqflow.data.colors import flow_to_rgb
from deqflow.data.datasets import FlowSample
from deqflow.data.synthetic import SyntheticPairs
from deqflow.lab.plots.style import COLORS, INK, full_color
from deqflow.lab.widgets.base import Background, CaptionedImage, Choice, StillPanel, row
from deqflow.lab.widgets.drawing import figure_png, plain_axes
from deqflow.model.estimator import FlowEstimator
from deqflow.training import HELD_OUT_SEED, Progress, Trainer
from deqflow.training.objective import set_training


class TrainingPanel(StillPanel):
    """Trains on a thread of its own and shows the progress; ``Stop`` saves the state, ``Go on`` continues from there.

    The still shows the run as it is when the panel is displayed, so a report should set ``wait``.

    Args:
        trainer: trainer of the run, which may have begun.
        preview: pair whose flow is shown; the first held-out pair if not given.
        wait: return at the end of the run instead of at once.

    Attributes:
        entries: the log entries since the panel was made.

    Raises:
        FloatingPointError, and whatever else training raises; without ``wait``, :meth:`join` raises it.
    """

    def __init__(self, trainer: Trainer, *, preview: FlowSample | None = None, wait: bool = False) -> None:
        self.trainer = trainer
        self.entries: list[Progress] = []
        held_out = SyntheticPairs(1, seed=HELD_OUT_SEED, config=trainer.config.scenes)
        self.preview = preview or held_out[0]
        known = self.preview.flow[:, self.preview.valid]
        self._largest = full_color(known) if known.numel() else None
        self._work = Background(lambda stop: None)
        self._flow = self._estimate()
        self.stop_button = widgets.Button(description="Stop", icon="stop")
        self.go_on_button = widgets.Button(description="Go on", icon="play")
        self.stop_button.on_click(lambda _: self.stop())
        self.go_on_button.on_click(lambda _: self.start())
        self.progress = widgets.IntProgress(trainer.step, 0, trainer.config.steps, layout={"width": "min(30rem, 100%)"})
        self.curves = CaptionedImage("min(70rem, 100%)")
        self.curves.show(self.still())
        super().__init__()
        self.children = (row([self.stop_button, self.go_on_button]), self.progress, self.message, self.curves)
        self.start()
        if wait:
            self.join()

    def start(self) -> None:
        """Begin the run, or continue it where it was stopped; do nothing if it is running."""
        if not self._work.running:
            self.stop_button.disabled, self.go_on_button.disabled = False, True
            self.say(f"Training on {self.trainer.processes.description} ...")
            self._work = Background(self._train, on_end=self._ended).start()

    def stop(self) -> None:
        """Ask the run to stop after the present step and to save its state; returns at once."""
        self._work.stop()

    def join(self) -> FlowEstimator:
        """Wait until the run has ended or was stopped, and return the model; raise what training raised.

        An interrupt (the kernel's, or Ctrl-C) stops the run after its present step, as ``Stop`` does.
        """
        try:
            self._work.join()
        except KeyboardInterrupt:
            self.stop()
            self._work.join()
        return self.trainer.estimator

    def still(self) -> bytes:
        """The curves and the preview as they are now, as a PNG file."""
        figure = Figure(figsize=(11, 5.4), layout="constrained")
        grid = figure.subplots(2, 3)
        self._draw_curve(grid[0, 0], "Loss", "px", "loss")
        self._draw_counts(grid[0, 1], "Error on held-out pairs", "errors")
        self._draw_counts(grid[1, 0], "Residual on held-out pairs", "residuals")
        self._draw_curve(grid[1, 1], "Evaluations to the tolerance", "evaluations of f", "evaluations")
        for axes, title, flow in ((grid[0, 2], "True flow", self.preview.flow), (grid[1, 2], "Flow now", self._flow)):
            axes.imshow(flow_to_rgb(flow, largest=self._largest))
            axes.set_title(f"{title} of a held-out pair", fontsize=10, color=INK, loc="left")
            axes.axis("off")
        return figure_png(figure)

    def choices(self) -> list[Choice]:
        """The two buttons."""
        stop = Choice("Buttons", "Stop", "◼", "ends the run after its present step and saves its state")
        return [stop, Choice("Buttons", "Go on", "▶", "continues a run that was stopped")]

    def _draw_curve(self, axes: Axes, title: str, unit: str, name: str) -> None:
        plain_axes(axes, title, "steps", unit)
        steps, values = self._steps(), [getattr(entry, name) for entry in self.entries]
        axes.plot(steps, values, color=COLORS[0], linewidth=1.8, marker="o", markersize=3)
        if name == "loss":
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)

    def _draw_counts(self, axes: Axes, title: str, name: str) -> None:
        """A curve for each number of evaluations."""
        plain_axes(axes, title, "steps", "px")
        axes.set_yscale("log")
        for color, evals in zip(COLORS, sorted(self.entries[-1].errors) if self.entries else (), strict=False):
            values = [getattr(entry, name)[evals] for entry in self.entries]
            label = f"after {evals} evaluations"
            axes.plot(self._steps(), values, color=color, label=label, linewidth=1.8, marker="o", markersize=3)
        if self.entries and name == "errors":
            axes.legend(fontsize=8, frameon=False, labelcolor=INK)

    def _steps(self) -> list[int]:
        return [entry.step for entry in self.entries]

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
        self.curves.show(self.still())

    def _estimate(self) -> torch.Tensor:
        """The flow of the preview as the model sees it now, (2, H, W), on the CPU."""
        estimator, device = self.trainer.estimator, self.trainer.device
        training = estimator.training
        estimator.eval()
        with torch.no_grad():
            output = estimator(*(image[None].to(device) for image in (self.preview.image1, self.preview.image2)))
        if training:
            set_training(estimator, self.trainer.config)  # frozen parts stay frozen
        return output.flow[0].cpu()
