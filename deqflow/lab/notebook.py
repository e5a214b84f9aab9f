"""Helpers of a notebook: they find the project's files, record numbers for the report, and show tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from IPython.core.display import Markdown
from IPython.display import display

NUMBERS = "application/vnd.deqflow.numbers+json"  # the numbers that a cell recorded, by name
CHOICES = "application/vnd.deqflow.choices+json"  # the controls of a panel, and their values


def project_path(path: str | Path) -> Path:
    """Return the absolute path of a file or folder whose path is given relative to the project's folder.

    A notebook's kernel may run in ``notebooks/`` (JupyterLab), in the project's folder (a report) or elsewhere (a
    test): a path such as ``data`` means the same folder in all of them. An absolute path stays as it is, and ``~`` is
    the user's home.

    The project's folder is the nearest one, from the working folder upwards, that has numbered notebooks in
    ``notebooks/``; else the checkout that the package is installed from; else the working folder.
    """
    here = Path.cwd()
    candidates = [here, *here.parents, Path(__file__).parents[2]]
    root = next((folder for folder in candidates if any(folder.glob("notebooks/[0-9]*.ipynb"))), here)
    return (root / Path(path).expanduser()).resolve()


def record(**numbers: float | int | str | bool) -> None:
    """Show results and store them in the notebook, from where a report collects them.

    The names should carry the unit: ``epe_px=0.31``.

    Raises:
        TypeError: a value is not a number, string or boolean (a tensor has ``.item()``).
    """
    for name, value in numbers.items():
        if not isinstance(value, float | int | str):
            raise TypeError(
                f"record expects numbers, strings or booleans, got {type(value).__name__} for {name}: use .item()."
            )
    lines = "\n".join(f"{name:<32} {as_text(value)}" for name, value in numbers.items())
    display({NUMBERS: numbers, "text/plain": lines}, raw=True)


def _is_number(value: float | int | str) -> bool:
    return isinstance(value, float | int) or value.removeprefix("-")[:1].isdigit()


def as_text(value: float | int | str) -> str:
    """A recorded value as text; a float has four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Mapping[str, float | int | str | bool]]) -> Markdown:
    """Return rows as a table, which is shown if it ends a cell. The columns have the order of the first row.

    Columns of numbers, and of texts of which one begins with a number ("0.9 ± 0.1"), are aligned at the right.

    Raises:
        ValueError: there are no rows, or a row has other columns than the first.
    """
    if not rows or any(list(row) != list(rows[0]) for row in rows):
        raise ValueError(f"table expects rows with the same columns, got {[list(row) for row in rows]}.")
    lines = [[as_text(value) for value in row.values()] for row in rows]
    columns = zip(*(row.values() for row in rows), strict=True)
    align = ["---:" if any(map(_is_number, column)) else "---" for column in columns]
    return Markdown("\n".join("| " + " | ".join(line) + " |" for line in [list(rows[0]), align, *lines]))
