"""What holds for the project as a whole: where imports may go, and that lists said twice agree."""

import ast
import graphlib
import itertools
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "deqflow"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# What the files of each room may import of the others (docs of the package: deqflow/__init__.py).
ROOMS = {
    "solvers": set(),
    "equilibrium": {"solvers"},
    "model": {"solvers", "equilibrium"},
    "data": set(),
    "training": {"solvers", "equilibrium", "model", "data"},
    "video": {"solvers", "equilibrium", "model", "data"},
    "evidence": {"solvers", "equilibrium", "model", "data", "training", "video"},
    "lab": {"solvers", "equilibrium", "model", "data", "training", "video", "evidence"},
    "commands": {"solvers", "equilibrium", "model", "data", "training", "video", "evidence", "lab"},
}
DOORS = {"__init__", "__main__"}


def imported_modules(path: Path) -> set[str]:
    """Dotted names under deqflow that a file imports anywhere, functions included."""
    targets: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they go"
            targets |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
    return {target.removeprefix("deqflow.") for target in targets if target.startswith("deqflow.")}


def test_the_package_shows_its_rooms_and_nothing_else():
    shown = {path.name for path in PACKAGE.iterdir()} - {"__pycache__", "py.typed"}
    assert shown == {"__init__.py", "__main__.py", "weights"} | set(ROOMS)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_imports_go_one_way(room):
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files
    for path in files:
        others = {name.split(".")[0] for name in imported_modules(path)} & (set(ROOMS) | DOORS)
        assert others - {room} <= ROOMS[room], f"{path.relative_to(ROOT)} imports {others - {room} - ROOMS[room]}"


def test_no_import_runs_in_a_circle():
    modules = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): imported_modules(path)
        for path in PACKAGE.rglob("*.py")
    }

    def module_of(name: str) -> str:
        return name if name in modules else name.rpartition(".")[0]

    graph = {name: {module_of(target) for target in targets} - {name, ""} for name, targets in modules.items()}
    for name in graph:  # graphlib raises CycleError where a circle is
        graph[name] &= set(modules)
    list(graphlib.TopologicalSorter(graph).static_order())


def test_environment_yml_and_pyproject_list_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert f"python{project['requires-python']}" in conda
    extras = ",".join(project["optional-dependencies"])
    assert pip == ["--constraint constraints.txt", f"--editable .[{extras}]"]


def test_every_package_we_ask_for_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {entry.split(">")[0].lower() for entry in asked} <= pinned
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_short_have_parameters_and_assert_what_they_claim(path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in code]
    assert len(notebook["cells"]) <= 31  # 30, and the one that installs the package
    assert max(len(source.splitlines()) for source in sources) <= 25
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1
    assert any("assert" in source for source in sources[-2:])
    kinds = (ast.FunctionDef, ast.ClassDef)
    defined = [part for source in sources for part in ast.walk(ast.parse(source)) if isinstance(part, kinds)]
    longest = max([(part.end_lineno or 0) - part.lineno + 1 for part in defined], default=0)
    assert longest <= 22, "what a cell defines teaches; what is longer belongs in the package"
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")]
PAGES += [PACKAGE / "weights" / "README.md", *NOTEBOOKS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text()
    targets = re.findall(r"\]\(([^)#\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    lost = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not lost


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_named_on_a_page_exist(page):
    for name, path in re.findall(r"\[(test_\w+)\]\(([^)\s]+\.py)\)", page.read_text()):
        text = (page.parent / path).read_text()
        assert re.search(rf"^def {name}\b", text, re.M), f"{path} has no {name}"


def test_the_citation_is_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
