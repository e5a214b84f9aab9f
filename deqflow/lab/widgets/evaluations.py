"""A solve with a slider that shows the flow, its error and its residual after each evaluation."""

from collections.abc import Sequence

import ipywidgets as widgets
import plotly.graph_objects as go
import torch
from matplotlib.figure import Figure
from torch import Tensor

from deqflow.data.colors import flow_to_rgb
from deqflow.data.datasets import FlowSample
from deqflow.data.metrics import endpoint_error
from deqflow.evidence.diagnostics import Recording
from deqflow.lab import plots
from deqflow.lab.plots.encoding import png
from deqflow.lab.plots.paths import log_colors
from deqflow.lab.plots.style import COLORS, INK, full_color
from deqflow.lab.widgets.base import CaptionedImage, Choice, StillPanel, row
from deqflow.lab.widgets.drawing import figure_png, plain_axes
from deqflow.lab.widgets.runs import reduced
from deqflow.model.estimator import FlowEstimator
from deqflow.solvers import Picard, Rule, Stop

NUMBERS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
SCALE = (0.01, 10.0)  # ends of the maps' logarithmic scale, in px
HELP = "Moves flow, error and residual together; the arrow keys do it too."


class EvaluationPanel(StillPanel):
    """Solves once without stopping early, and shows any evaluation of it: drag the slider, or press its arrow keys.

    In a report its still has the same slider.

    Args:
        pair: two images; if their true flow is known nowhere, there is no error map.
        model: the model whose fixed point is solved for, in evaluation mode.
        rule: the solver.
        numbers: numbers of the evaluations to show.
        width: width in pixels to which wider images are reduced; None leaves them as they are.

    Attributes:
        flow: (T, 2, H, W) in pixels, after each of ``numbers``.
        residual: movement of the flow in that evaluation, (T, H, W) in pixels.
        error: end-point error, (T, H, W) in pixels, NaN where the truth is not known; None if it is known nowhere.
    """

    def __init__(
        self,
        pair: FlowSample,
        model: FlowEstimator,
        *,
        rule: Rule | None = None,
        numbers: Sequence[int] = NUMBERS,
        width: int | None = 256,
    ) -> None:
        self.pair, self.numbers = reduced(pair, width), tuple(sorted(numbers))
        self._solve(model, rule or Picard())
        known = self.pair.flow[:, self.pair.valid] if self.error is not None else self.flow[-1].flatten(1)
        self._largest = full_color(known)
        self._drawn = {"flow": [png(flow_to_rgb(flow, largest=self._largest)) for flow in self.flow]}
        self._drawn |= {name: [png(log_colors(each, SCALE)) for each in maps] for name, maps in self._maps.items()}
        options = [(str(number), place) for place, number in enumerate(self.numbers)]
        layout, style = widgets.Layout(width="min(50rem, 100%)"), {"description_width": "9rem"}
        self.slider = widgets.SelectionSlider(
            options=options, description="evaluations of f", tooltip=HELP, layout=layout, style=style
        )
        self.play = widgets.Play(min=0, max=len(self.numbers) - 1, interval=500, description="Play")
        widgets.link((self.play, "value"), (self.slider, "value"))
        self.images = {name: CaptionedImage() for name in self._drawn}
        self.curves = CaptionedImage("min(50rem, 100%)")
        super().__init__()
        self.children = (row([self.play, self.slider]), self.message, row([*self.images.values()]), self.curves)
        self.slider.observe(lambda change: self.show(change["new"]), "value")
        self.show(0)

    def show(self, place: int) -> None:
        """Show the evaluation that stands at this place in :attr:`numbers`."""
        mean = self._mean(self.residual)[place]
        for name, image in self.images.items():
            caption = f"flow; full colour: {self._largest:.3g} px"
            if name != "flow":
                caption = f"{name}, mean {self._mean(self._maps[name])[place]:.2g} px; black 0.01, yellow 10 px"
            image.show(self._drawn[name][place], caption)
        self.curves.show(self._draw_curves(place))
        error = "" if self.error is None else f", is {self._mean(self.error)[place]:.2f} px wrong"
        count = self.numbers[place]
        self.say(f"After {count} evaluation{'s' if count > 1 else ''} the flow still moves by {mean:.2g} px{error}.")

    def still(self) -> go.Figure:
        """The same slider over the same images, as a figure that needs no kernel."""
        place = int(self.slider.value)
        return plots.film(self.numbers, self.flow, self._maps, largest=self._largest, scale=SCALE, first=place)

    def choices(self) -> list[Choice]:
        """The position of the slider."""
        return [Choice("Move the slider below", "evaluations of f", str(self.numbers[int(self.slider.value)]), HELP)]

    def _solve(self, model: FlowEstimator, rule: Rule) -> None:
        """Solve, and keep the maps to show for each evaluation."""
        like = next(model.parameters())
        images = [image[None].to(like) for image in (self.pair.image1, self.pair.image2)]
        recording = Recording(self.numbers)
        stop = Stop(max_evals=self.numbers[-1], atol=0.0)
        with torch.no_grad():
            problem = model.problem(*(model.encode(image) for image in images))
            problem.solve(rule=rule, stop=stop, on_eval=recording)
            self.flow = torch.cat([problem.flow(z) for z in recording.states]).float().cpu()
            self.residual = problem.movement(recording.movements[:, 0]).float().cpu()
        self.numbers = recording.numbers  # fewer if the solve reached its fixed point exactly
        error = endpoint_error(self.flow, self.pair.flow.expand_as(self.flow)).where(self.pair.valid, torch.nan)
        self.error = error if bool(error.isfinite().any()) else None
        self._maps = {"residual": self.residual}
        if self.error is not None:
            self._maps["error"] = self.error

    def _mean(self, values: Tensor) -> list[float]:
        return values.nanmean((1, 2)).tolist()

    def _draw_curves(self, place: int) -> bytes:
        """Mean residual and error against evaluations, with a line at the one that is shown."""
        figure = Figure(figsize=(7.2, 2.8), layout="constrained")
        axes = plain_axes(figure.subplots(), "Means over the image", "evaluations of f", "px")
        for color, (name, values) in zip(COLORS, self._maps.items(), strict=False):
            axes.plot(self.numbers, self._mean(values), color=color, label=name, marker="o", markersize=3)
        axes.axvline(self.numbers[place], color=INK, linestyle=":")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(self.numbers, [str(number) for number in self.numbers], minor=False)
        axes.minorticks_off()
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)
        return figure_png(figure)
