"""The wheel carries the package with weights and typing marker, and nothing else of the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> list[str]:
    """The names in a wheel that is built from a copy of the checkout, without network."""
    source, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for name in ("deqflow", "reports", "tests", "notebooks", "docs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--quiet", "--wheel-dir", str(out)], check=True)
    (path,) = out.iterdir()
    with zipfile.ZipFile(path) as file:
        return file.namelist()


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel}
    assert tops - {name for name in tops if name.endswith(".dist-info")} == {"deqflow"}


def test_the_wheel_holds_every_file_of_the_package(wheel):
    package = (path for path in (ROOT / "deqflow").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    expected = {path.relative_to(ROOT).as_posix() for path in package}
    assert {"deqflow/py.typed", "deqflow/weights/deqflow-small.safetensors"} <= expected
    assert {name for name in wheel if name.startswith("deqflow/")} == expected
