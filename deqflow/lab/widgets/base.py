"""The common parts of panels, which are live in JupyterLab, stills in reports, and work on their own threads."""

import base64
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go
import plotly.io as pio

from deqflow.lab.notebook import CHOICES


class Background:
    """Work on a thread of its own, which can be asked to stop. Its error is kept, and raised by :meth:`join`.

    Args:
        work: a function that takes an event and returns soon after it is set.
        on_end: called on the thread at the end, with the error that ``work`` raised or None.
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
        """Wait up to ``timeout`` seconds for the end, and return whether it came. The work's error is not raised."""
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
        except Exception as error:  # any error: join raises it again
            self.error = error
        if self._on_end is not None:
            self._on_end(self.error)


@dataclass(frozen=True)
class Choice:
    """A control as a page without widgets shows it.

    Attributes:
        group: heading of its group.
        label: name of what it sets, with the unit.
        value: its present value.
        help: one sentence on what it does.
    """

    group: str
    label: str
    value: str
    help: str


class CaptionedImage(widgets.VBox):
    """An image with a caption under it, both replaced in place; hidden until it shows something.

    The image is a file that the kernel draws: it is on screen whenever the cell is, also after Run All and after a page
    reload, where a figure that the browser draws may stay empty.

    Args:
        width: of the image, as CSS has it.
    """

    def __init__(self, width: str = "min(360px, 100%)") -> None:
        # No margin: with one, 100 % is too wide, and a scrollbar comes with it.
        self.image = widgets.Image(format="png", layout=widgets.Layout(width="100%", margin="0"))
        self.caption = widgets.HTML(layout=widgets.Layout(margin="0"))
        layout = widgets.Layout(width=width, margin="0 .8rem .6rem 0", overflow="hidden", display="none")
        super().__init__([self.image, self.caption], layout=layout)

    def show(self, data: bytes, caption: str = "") -> None:
        """Show a PNG file's bytes, with a line of text under it."""
        self.image.value = data
        self.caption.value = (
            f"<small style='line-height: 1.3; display: block'>{escape(caption)}</small>" if caption else ""
        )
        self.layout.display = ""

    def hide(self) -> None:
        """Show nothing."""
        self.layout.display = "none"


class StillPanel(widgets.VBox):
    """A panel: live where widgets are drawn; where they are not, as in a report, a figure with its controls as text.

    A subclass builds its widgets completely before it hands them over, and returns from :meth:`still` what replaces
    the panel on paper.

    Args:
        children: the widgets, from top to bottom.

    Attributes:
        message: a line of text for :meth:`say` and :meth:`complain`, which a subclass places among the children.
    """

    def __init__(self, children: Sequence[widgets.Widget] = ()) -> None:
        self.message = widgets.HTML()
        super().__init__(list(children))

    def still(self) -> go.Figure | bytes:
        """Return what replaces the panel on paper: a plotly figure, or the bytes of a PNG file.

        Raises:
            NotImplementedError: the subclass has no still.
        """
        raise NotImplementedError(f"{type(self).__name__} should return a plotly figure or a PNG file from still().")

    def choices(self) -> Sequence[Choice]:
        """Return the controls and their values, which a page shows above the still."""
        return ()

    def say(self, text: str) -> None:
        """Show a line of text."""
        self.message.value = f'<span role="status">{escape(text)}</span>'

    def complain(self, text: str) -> None:
        """Show an error message, in one line."""
        color = "color: var(--jp-error-color0, #b00020)"
        self.message.value = f'<span role="alert" style="{color}"><b>{escape(" ".join(text.split()))}</b></span>'

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """Return the live view and, for readers that have no widgets, the still and the controls."""
        bundle = super()._repr_mimebundle_(**options) or {}
        still = self.still()
        if isinstance(still, bytes):
            bundle["image/png"] = base64.b64encode(still).decode()
        else:
            bundle |= pio.renderers["plotly_mimetype"].to_mimebundle(still.to_dict())
        return bundle | {CHOICES: [asdict(choice) for choice in self.choices()]}


def row(children: Sequence[widgets.Widget]) -> widgets.HBox:
    """Widgets side by side, in as many rows as they need."""
    return widgets.HBox(list(children), layout=widgets.Layout(flex_flow="row wrap", align_items="flex-start"))


def titled(title: str, children: Sequence[widgets.Widget]) -> widgets.VBox:
    """A group of controls under a heading."""
    heading = widgets.HTML(f"<b>{escape(title)}</b>")
    return widgets.VBox([heading, *children], layout=widgets.Layout(flex="1 1 19rem", margin="0 1.2rem .4rem 0"))
