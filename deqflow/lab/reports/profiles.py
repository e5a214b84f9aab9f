"""Find notebooks, check the parameters of a profile, and write copies of notebooks with them for tests to run."""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import papermill
import yaml

from deqflow.data.writing import unfinished_name

SHORT = "short"  # the profile that takes the values in the parameters cells
WAIT = "wait"  # a parameter of notebooks with a live panel: wait for its run to end, as a report must
Parameters = dict[str, dict[str, Any]]  # values by notebook and parameter


def find_notebooks(folder: str | Path, only: Sequence[str] = ()) -> list[Path]:
    """Return the numbered notebooks of a folder in order; with ``only``, those that it lists by name or number.

    Raises:
        FileNotFoundError: there are no notebooks, or a name fits none of them.
    """
    found = sorted(Path(folder).glob("[0-9]*.ipynb"))
    if not found:
        raise FileNotFoundError(f"No numbered notebooks in {folder}: run this from the project's folder.")
    names = [path.stem for path in found]
    for wanted in only:
        if not any(_is_called(name, wanted) for name in names):
            raise FileNotFoundError(f"No notebook {wanted!r} in {folder}: expected one of {', '.join(names)}.")
    return [path for path in found if not only or any(_is_called(path.stem, wanted) for wanted in only)]


def _is_called(name: str, wanted: str) -> bool:
    return wanted in (name, name.partition("_")[0])


def default_parameters(path: Path) -> dict[str, Any]:
    """The values in a notebook's parameters cell, by name; an expression that is not a literal is given as source."""
    return {name: _value(entry["default"]) for name, entry in papermill.inspect_notebook(str(path)).items()}


def _value(source: str) -> Any:
    try:
        return ast.literal_eval(source)
    except (ValueError, SyntaxError):
        return source


def parameters_of(
    notebooks: Sequence[Path], profile: str = SHORT, chosen: Mapping[str, Any] | None = None
) -> Parameters:
    """Return the parameters to run each notebook with, where they differ from its parameters cell.

    A notebook that has a parameter ``wait`` waits for its panels, so that their stills show the end.

    Args:
        notebooks: their paths; those of one folder have their profiles in ``profiles/NAME.yaml`` beside them.
        profile: "short", the values of the parameters cells, or the name of a file of parameters by notebook.
        chosen: values that replace those of the profile, in each notebook that has a parameter of that name.

    Raises:
        FileNotFoundError: there is no file for the profile.
        ValueError: the file is not a table of parameters by notebook, it names a notebook that does not exist or a
            parameter that its notebook does not have, or no notebook has a parameter of a chosen name.
    """
    known = {path.stem: default_parameters(path) for path in notebooks}
    names = sorted({name for defaults in known.values() for name in defaults})
    chosen = chosen or {}
    for name in chosen:
        if name not in names:
            raise ValueError(f"No parameter {name!r} in these notebooks: expected one of {', '.join(names)}.")
    values = {folder: _read_profile(folder, profile) for folder in {path.parent for path in notebooks}}
    parameters: Parameters = {}
    for path in notebooks:
        own = values[path.parent].get(path.stem, {})
        for name in own:
            if name not in known[path.stem]:
                expected = ", ".join(known[path.stem]) or "none"
                raise ValueError(f"The profile {profile!r} sets {name!r} of {path.stem}, which has: {expected}.")
        if WAIT in known[path.stem]:
            own = {WAIT: True} | own
        parameters[path.stem] = own | {name: value for name, value in chosen.items() if name in known[path.stem]}
    return parameters


def _read_profile(folder: Path, profile: str) -> Parameters:
    """The checked content of a profile's file; empty for the profile that takes the parameters cells' values."""
    if profile == SHORT:
        return {}
    path = folder / "profiles" / f"{profile}.yaml"
    if not path.exists():
        raise FileNotFoundError(f"No profile {profile!r}: expected {path}, or --profile {SHORT}.")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(own, dict) for own in values.values()):
        raise ValueError(f"{path} expects parameters by notebook, such as '00_start_here: {{max_evals: 12}}'.")
    names = [notebook.stem for notebook in folder.glob("*.ipynb")]
    for name in values:
        if name not in names:
            raise ValueError(f"{path} names {name!r}: expected notebooks of {folder}.")
    return values


def prepare_notebooks(
    notebooks: Sequence[Path], folder: str | Path, profile: str = SHORT, chosen: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write copies of notebooks with the parameters of a profile, without running them, and return their paths.

    Args:
        notebooks: paths of the notebooks.
        folder: folder for the copies, created if needed; it must not be that of the notebooks.
        profile, chosen: as for :func:`parameters_of`, whose errors this raises.

    Raises:
        ValueError: the folder is that of the notebooks.
    """
    folder = Path(folder)
    if any(path.parent.resolve() == folder.resolve() for path in notebooks):
        raise ValueError(f"Prepared copies would replace the notebooks in {folder}: choose another --out.")
    parameters = parameters_of(notebooks, profile, chosen)
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for path in notebooks:
        unfinished, copy = unfinished_name(folder / path.name), folder / path.name
        options = {"prepare_only": True, "kernel_name": "python3", "progress_bar": False}
        papermill.execute_notebook(str(path), str(unfinished), parameters[path.stem], **options)
        unfinished.replace(copy)
        copies.append(copy)
    return copies
