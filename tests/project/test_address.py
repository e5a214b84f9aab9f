"""One address of the repository, in badges and first cells; and what Binder builds."""

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import address
import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
HERE = "https://github.com/someone/deqflow"


@pytest.fixture
def checkout(tmp_path):
    """The files that hold the address, of a checkout."""
    (tmp_path / "notebooks").mkdir()
    for path in (ROOT / "README.md", ROOT / "pyproject.toml", *NOTEBOOKS[-2:]):
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    return tmp_path


def first_code(path: Path) -> nbformat.NotebookNode:
    return next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")


def test_badges_and_cells_name_the_address_of_pyproject():
    known = address.address_of(ROOT)
    readme = (ROOT / "README.md").read_text()
    assert address.with_badges(readme, known) == readme, "run make address"
    for path in NOTEBOOKS:
        assert address.with_install(path.read_text(), known, path.stem) == path.read_text(), "run make address"
        assert "machinery" in first_code(path).metadata.tags


def test_an_address_is_written_everywhere_and_may_change(checkout):
    names = {"README.md", "pyproject.toml", *(f"notebooks/{path.name}" for path in NOTEBOOKS[-2:])}
    for chosen in (HERE, HERE.replace("someone", "another")):
        assert set(address.update(checkout, chosen)) == names
        assert address.address_of(checkout) == chosen
        assert tomllib.loads((checkout / "pyproject.toml").read_text())["project"]["urls"] == {"Repository": chosen}
        readme = (checkout / "README.md").read_text()
        name = chosen.removeprefix("https://github.com/")
        assert f"https://mybinder.org/v2/gh/{name}/main?urlpath=lab/tree/notebooks/00_start_here.ipynb" in readme
        assert f"https://colab.research.google.com/github/{name}/blob/main/notebooks/00_start_here.ipynb" in readme
        assert f'repository = "{chosen}"' in first_code(checkout / "notebooks" / NOTEBOOKS[-1].name).source
    assert address.update(checkout, address.address_of(checkout)) == []


def test_a_notebook_without_the_cell_gets_it_before_its_code(checkout):
    path = checkout / "notebooks" / NOTEBOOKS[-1].name
    notebook = nbformat.read(path, as_version=4)
    number = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    cell = notebook.cells.pop(number)
    nbformat.write(notebook, path)
    address.update(checkout, "")
    again = nbformat.read(path, as_version=4)
    assert again.cells[number].source == cell.source
    assert again.cells[0].cell_type == "markdown"


@pytest.mark.parametrize("wrong", ["deqflow", "https://example.com/a/b", HERE + ".git", HERE + "/tree/main"])
def test_what_is_no_repository_on_github_is_refused(checkout, wrong):
    before = (checkout / "README.md").read_text()
    with pytest.raises(ValueError, match=r"such as https://github.com/you/deqflow, got"):
        address.update(checkout, wrong)
    assert (checkout / "README.md").read_text() == before


def test_the_cell_does_nothing_where_the_package_is_and_names_what_is_missing_elsewhere(monkeypatch):
    code = address.INSTALL.format(address="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nothing is to be installed"))
    exec(compile(code, "cell", "exec"), {})
    with pytest.raises(AssertionError, match="this copy knows no address: pip install -e"):
        exec(compile(code.replace('"deqflow")', '"deqflow_that_is_missing")'), "cell", "exec"), {})


def test_the_cell_installs_from_the_address_and_says_so(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append((command[1:], check)))
    code = address.INSTALL.format(address=HERE).replace('"deqflow")', '"deqflow_that_is_missing")')
    exec(compile(code, "cell", "exec"), {})
    assert asked == [(["-m", "pip", "install", "--quiet", f"deqflow[lab] @ git+{HERE}"], True)]
    assert f"Installing deqflow from {HERE}." in capsys.readouterr().out


def test_binder_builds_what_pyproject_lists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / ".binder" / "environment.yml").read_text())
    python = next(entry for entry in environment["dependencies"] if entry.startswith("python"))
    assert python.replace("=", ">=") == f"python{project['requires-python']}"
    script = ROOT / ".binder" / "postBuild"
    assert os.access(script, os.X_OK), "repo2docker runs it"
    extras = script.read_text().rsplit(".[", 1)[1].split("]")[0].split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    assert "lab" in extras
    assert script.read_text().count("--constraint constraints.txt") == 2
