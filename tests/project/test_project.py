"""What holds for the project as a whole: where imports may go, and that lists said twice agree."""

import ast
import itertools
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "deqflow"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# The order of the package: a module imports only from modules in lines above its own.
LAYERS = [
    {"writing"},
    {"solvers", "geometry", "metrics", "losses", "colors", "provenance", "results", "baselines", "notebook", "sizes"},
    {"equilibrium", "correlation", "encoders", "updates", "flow_files"},
    {"flow_map"},
    {"estimator", "datasets", "diagnostics"},
    {"models", "scales", "submissions", "synthetic", "measure"},
    {"checkpoints"},
    {"claims", "confidence", "export", "published", "training", "video"},
    {"recipes", "experiments", "evaluation", "tables", "plots", "reports"},
    {"widgets", "commands"},
    {"__init__", "__main__"},
]
NOBODYS = {"plots", "reports", "widgets", "notebook", "commands", "__main__"}  # for notebooks, and each other, alone


def modules() -> dict[str, set[str]]:
    """For each module, or folder of modules, of the package: what it imports of the others."""
    imports: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            targets = []
            if isinstance(node, ast.ImportFrom) and node.module:
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            ours = {target.split(".")[1] for target in targets if target.startswith("deqflow.")}
            imports.setdefault(name, set()).update(ours - {name})
    return imports


def test_every_module_has_its_place_in_the_order():
    assert set(modules()) == set().union(*LAYERS)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_one_way(name):
    level = next(i for i, layer in enumerate(LAYERS) if name in layer)
    below = set().union(*LAYERS[:level])
    known = set(modules())
    assert {target for target in modules()[name] if target in known} <= below


def test_only_notebooks_and_each_other_use_what_is_made_for_notebooks():
    for name, imported in modules().items():
        if name not in NOBODYS:
            assert not imported & NOBODYS, f"{name} imports {imported & NOBODYS}"


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
    assert len(notebook["cells"]) <= 25
    assert max(len(source.splitlines()) for source in sources) <= 25
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1
    assert any("assert" in source for source in sources[-2:])
    defined = [line for source in sources for line in source.splitlines() if line.startswith(("class ", "def "))]
    assert len(defined) == (path.stem == "08_bring_your_own_update")  # whose point is to write one
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")]
PAGES += [PACKAGE / "weights" / "README.md", *NOTEBOOKS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text()
    targets = re.findall(r"\]\(([^)#\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    lost = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not lost


def test_the_citation_is_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
