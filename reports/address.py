"""Write the repository's address where it is needed: badges in README.md and the first cells of the notebooks.

The address stands in one place, ``[project.urls]`` of pyproject.toml::

    .venv/bin/python reports/address.py https://github.com/you/deqflow    # writes it there, and everywhere
    .venv/bin/python reports/address.py                                   # everywhere, from pyproject.toml
"""

import re
import sys
import tomllib
from pathlib import Path

import nbformat

from deqflow.data.writing import write_whole

ROOT = Path(__file__).parents[1]
BRANCH, FIRST = "main", "00_start_here"  # the branch, and the notebook, that badges open
INSTALL = """\
# On Colab, or wherever deqflow is missing, this cell installs it. Elsewhere it does nothing.
import importlib.util
import subprocess
import sys

repository = "{address}"  # written by: make address
if importlib.util.find_spec("deqflow") is None:
    assert repository, "deqflow is not installed, and this copy knows no address: pip install -e '.[lab]' in its folder"
    print(f"Installing deqflow from {{repository}}. This takes some minutes.")
    install = [sys.executable, "-m", "pip", "install", "--quiet", f"deqflow[lab] @ git+{{repository}}"]
    subprocess.run(install, check=True)"""


def address_of(root: Path) -> str:
    """The address in pyproject.toml, or nothing if there is none yet."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return project.get("urls", {}).get("Repository", "")


def badges(address: str) -> str:
    """Links that open the notebooks on Binder and on Colab, and run the tests; nothing without an address."""
    if not address:
        return ""
    name = address.removeprefix("https://github.com/")
    notebook = f"notebooks/{FIRST}.ipynb"
    links = {
        f"{address}/actions/workflows/test.yml/badge.svg": ("tests", f"{address}/actions/workflows/test.yml"),
        "https://mybinder.org/badge_logo.svg": (
            "open on Binder",
            f"https://mybinder.org/v2/gh/{name}/{BRANCH}?urlpath=lab/tree/{notebook}",
        ),
        "https://colab.research.google.com/assets/colab-badge.svg": (
            "open in Colab",
            f"https://colab.research.google.com/github/{name}/blob/{BRANCH}/{notebook}",
        ),
    }
    return "\n".join(f"[![{text}]({image})]({target})" for image, (text, target) in links.items())


def with_badges(text: str, address: str) -> str:
    """A page with the badges between their marks."""
    made = "\n".join(line for line in ("<!-- badges -->", badges(address), "<!-- end -->") if line)
    return re.sub(r"<!-- badges -->\n.*?<!-- end -->", lambda _: made, text, flags=re.DOTALL)


def with_install(text: str, address: str, name: str) -> str:
    """A notebook, as text, whose first code cell installs the package; it is put there if it is missing."""
    notebook = nbformat.reads(text, as_version=4)
    source, number = INSTALL.format(address=address), name[:2]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if code and code[0].source.startswith(INSTALL.splitlines()[0]):
        code[0].source = source
    else:
        cell = nbformat.v4.new_code_cell(source, id=f"{number}-install", metadata={"tags": ["machinery"]})
        notebook.cells.insert(next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"), cell)
    return nbformat.writes(notebook) + "\n"


def with_address(text: str, address: str) -> str:
    """The text of pyproject.toml with this address."""
    line = f'Repository = "{address}"'
    if "[project.urls]" in text:
        return re.sub(r"(\[project\.urls\]\n(?:.+\n)*?)Repository = .*", lambda match: match[1] + line, text)
    return text.replace("[project.optional-dependencies]", f"[project.urls]\n{line}\n\n[project.optional-dependencies]")


def update(root: Path, address: str) -> list[str]:
    """Write the address everywhere under a checkout; return the files that changed.

    Raises:
        ValueError: the address is not that of a repository on GitHub, which Binder's and Colab's links need.
    """
    if address and not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+(?<!\.git)", address):
        raise ValueError(f"Expected an address such as https://github.com/you/deqflow, got {address!r}.")
    made = {root / "README.md": with_badges((root / "README.md").read_text(), address)}
    if address:
        made[root / "pyproject.toml"] = with_address((root / "pyproject.toml").read_text(), address)
    for path in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        made[path] = with_install(path.read_text(), address, path.stem)
    changed = [path for path, text in made.items() if path.read_text() != text]
    for path in changed:
        write_whole(path, made[path])
    return [str(path.relative_to(root)) for path in changed]


if __name__ == "__main__":
    changed_files = update(ROOT, sys.argv[1] if len(sys.argv) > 1 else address_of(ROOT))
    print("\n".join(changed_files) or "Nothing to change.")
