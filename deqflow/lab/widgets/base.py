"""What panels have in common: live in JupyterLab, a still in a report, long work on a thread of its own."""

import threading
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go
import plotly.io as pio


class Background:
    """Work on a thread of its own, which can be asked to stop. What it raises is kept, and raised by :meth:`join`.

    Args:
        work: takes an event and returns soon after it is set.
        on_end: called on the thread at the end, with what ``work`` raised or None.
    """

    def __init__(
        self, work: Callable[[threading.Event], None], *, on_end: Callable[[Exception | None], None] | None = None
    ) -> None:
        self.error: Exception | None = None
        self._work, self._on_end = work, on_end
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)  # must not keep a kernel from ending

    def start(self) -> "Background":
        """Start, and return self."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ask the work to stop; returns at once."""
        self._stop.set()

    @property
    def running(self) -> bool:
        """Whether the work has been started and has not ended."""
        return self._thread.is_alive()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end, for at most ``timeout`` seconds; return whether it came. Raises nothing of the work's."""
        if self._thread.ident is not None:  # started
            self._thread.join(timeout)
        return not self.running

    def join(self) -> None:
        """Wait for the end, and raise what the work raised."""
        self.wait()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            self._work(self._stop)
        except Exception as error:  # whatever it is: it is raised again where somebody asks
            self.error = error
        if self._on_end is not None:
            self._on_end(self.error)


class LiveFigure(widgets.VBox):  # of which the figure takes the full width
    """A plotly figure on screen.

    After a page reload the browser gets a figure as it was constructed, not as it was changed since. So: change
    it through :attr:`figure` as often as needed, and call :meth:`redraw` to construct it again, from ``build``.
    The figure itself is no record of its state: what the browser fills in by default is taken out of it again.

    Args:
        build: returns the complete figure as it should be now; called at once and by each :meth:`redraw`.
    """

    def __init__(self, build: Callable[[], go.Figure]) -> None:
        self.build = build
        super().__init__([self._construct()], layout=widgets.Layout(width="100%", overflow="hidden"))

    @property
    def figure(self) -> go.FigureWidget:
        """The figure, to be changed in place; ``batch_update`` sends many changes as one."""
        return self.children[0]

    def redraw(self) -> None:
        """Construct the figure again."""
        old = self.figure
        self.children = (self._construct(),)
        old.close()

    def _construct(self) -> go.FigureWidget:
        figure = go.FigureWidget(self.build())
        figure._config = {**figure._config, "responsive": True}  # as wide as there is room
        return figure


class StillPanel(widgets.VBox):
    """A panel: live where widgets are drawn, a plotly figure where they are not, as in a report.

    A subclass builds its widgets complete before it hands them over, and says in :meth:`still` what stands for
    the panel on paper.

    Args:
        children: the widgets, from top to bottom.
        figures: those figures among them, at any depth, that :attr:`redraw_button` draws again.

    Attributes:
        redraw_button: draws the figures again, for after a page reload; to be placed among the children.
        message: a line of text, for :meth:`say` and :meth:`complain`; to be placed among the children.
    """

    def __init__(self, children: Sequence[widgets.Widget] = (), figures: Sequence[LiveFigure] = ()) -> None:
        self.figures = tuple(figures)
        self.redraw_button = widgets.Button(
            description="Redraw", icon="refresh", tooltip="Draw the figures again, as after a page reload"
        )
        self.redraw_button.on_click(lambda _: self.redraw())
        self.message = widgets.HTML()
        super().__init__(list(children))

    def still(self) -> go.Figure:
        """Return the figure that stands for the panel on paper.

        Raises:
            NotImplementedError: the subclass does not say.
        """
        raise NotImplementedError(f"{type(self).__name__} should return a plotly figure from still().")

    def redraw(self) -> None:
        """Draw the figures again."""
        for figure in self.figures:
            figure.redraw()

    def say(self, text: str) -> None:
        """Show a sentence."""
        self.message.value = f'<span role="status">{escape(text)}</span>'

    def complain(self, text: str) -> None:
        """Show a sentence about something that is wrong."""
        color = "color: var(--jp-error-color0, #b00020)"
        self.message.value = f'<span role="alert" style="{color}"><b>{escape(text)}</b></span>'

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """Return the live view and, for readers that have no widgets, the still."""
        bundle = super()._repr_mimebundle_(**options) or {}
        return bundle | pio.renderers["plotly_mimetype"].to_mimebundle(self.still().to_dict())
