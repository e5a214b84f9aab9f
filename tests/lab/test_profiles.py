"""Profiles: which values a notebook runs with, and the copies that tests run."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from deqflow.lab import reports
from deqflow.lab.reports.profiles import default_parameters

NOTEBOOKS = reports.find_notebooks(Path(__file__).parents[2] / "notebooks")


def write(folder: Path, name: str, parameters: str = "") -> Path:
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    path = folder / f"{name}.ipynb"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [tagged, new_code_cell("print(size)")]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two notebooks and a profile for one of them."""
    write(tmp_path, "00_a", "size = 4\nseed = 7")
    write(tmp_path, "01_b", "size = (1, 2)\nname = 'b'")
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "full.yaml").write_text("00_a:\n  size: 400\n")
    return tmp_path


def test_notebooks_are_found_in_order_and_by_name(tmp_path):
    for name in ("01_b", "00_a", "scratch"):
        write(tmp_path, name)
    assert [path.stem for path in reports.find_notebooks(tmp_path)] == ["00_a", "01_b"]
    assert [path.stem for path in reports.find_notebooks(tmp_path, ["01_b"])] == ["01_b"]
    assert [path.stem for path in reports.find_notebooks(tmp_path, ["01"])] == ["01_b"]
    with pytest.raises(FileNotFoundError, match=r"No notebook 'c' in .*: expected one of 00_a, 01_b"):
        reports.find_notebooks(tmp_path, ["c"])
    with pytest.raises(FileNotFoundError, match="No numbered notebooks"):
        reports.find_notebooks(tmp_path / "nowhere")


def test_a_profile_says_what_differs_and_a_chosen_value_goes_first(folder):
    notebooks = reports.find_notebooks(folder)
    assert reports.parameters_of(notebooks) == {"00_a": {}, "01_b": {}}
    assert reports.parameters_of(notebooks, "full") == {"00_a": {"size": 400}, "01_b": {}}
    chosen = {"size": 1, "name": "c"}
    assert reports.parameters_of(notebooks, "full", chosen) == {"00_a": {"size": 1}, "01_b": chosen}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("00_a: {sise: 3}", "The profile 'full' sets 'sise' of 00_a, which has: size, seed"),
        ("00_c: {size: 3}", "names '00_c': expected notebooks of"),
        ("[1, 2]", "expects parameters by notebook, such as"),
        ("00_a: 3", "expects parameters by notebook, such as"),
        ("00_a: {", "is not YAML"),
    ],
)
def test_a_profile_that_fits_no_notebook_is_refused(folder, text, message):
    (folder / "profiles" / "full.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        reports.parameters_of(reports.find_notebooks(folder), "full")


def test_a_profile_that_is_not_there_is_named(folder):
    with pytest.raises(FileNotFoundError, match=r"No profile 'fast': expected .*fast.yaml, or --profile short"):
        reports.parameters_of(reports.find_notebooks(folder), "fast")


def test_a_parameter_that_no_notebook_has_is_refused(folder):
    with pytest.raises(ValueError, match="No parameter 'sise' in these notebooks: expected one of name, seed, size"):
        reports.parameters_of(reports.find_notebooks(folder), chosen={"sise": 1})


@pytest.mark.parametrize(
    ("source", "value"), [("(1, 2)", (1, 2)), ("'a'", "a"), ("None", None), ("len(x)", "len(x)"), ("(", "(")]
)
def test_defaults_of_parameters_are_given_as_values_where_possible(tmp_path, source, value):
    assert default_parameters(write(tmp_path, "00_a", f"size = {source}")) == {"size": value}


def test_copies_carry_the_values_and_leave_the_notebooks_alone(folder, tmp_path):
    before = (folder / "00_a.ipynb").read_text()
    copies = reports.prepare_notebooks(reports.find_notebooks(folder), tmp_path / "copies", "full")
    assert [path.name for path in copies] == ["00_a.ipynb", "01_b.ipynb"]
    cells = nbformat.read(copies[0], as_version=4).cells
    assert [cell.source.splitlines()[-1] for cell in cells] == ["seed = 7", "size = 400", "print(size)"]
    assert len(nbformat.read(copies[1], as_version=4).cells) == 2
    assert (folder / "00_a.ipynb").read_text() == before
    assert [path.name for path in (tmp_path / "copies").iterdir()] == ["00_a.ipynb", "01_b.ipynb"]


def test_copies_do_not_replace_the_notebooks(folder):
    with pytest.raises(ValueError, match="would replace the notebooks"):
        reports.prepare_notebooks(reports.find_notebooks(folder), folder / "profiles" / "..")


@pytest.mark.parametrize("profile", ["short", "fast", "full"])
def test_each_profile_fits_the_notebooks_of_the_project(tmp_path, profile):
    assert len(NOTEBOOKS) == 11
    copies = reports.prepare_notebooks(NOTEBOOKS, tmp_path, profile)
    assert [path.name for path in copies] == [path.name for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_parameters_cell_has_plain_values(path):
    """So that a notebook run by hand shows what it runs with, and papermill can replace each value by its name."""
    tagged = [c for c in nbformat.read(path, as_version=4).cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    known = default_parameters(path)
    assignments = [line for line in tagged[0].source.splitlines() if line and not line.startswith("#")]
    assert [line.partition(" = ")[0] for line in assignments] == list(known)
    assert not [name for name, value in known.items() if isinstance(value, str) and "(" in value and name != "device"]
