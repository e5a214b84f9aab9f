"""The Python snippets of README.md and docs: each page's blocks run, in order, in a folder with the files they name."""

import re
from pathlib import Path

import pytest
import torch
from reference.weights_from_names import published_state_dict

import deqflow
from deqflow.data.datasets import motorcycle

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = ROOT / "tests" / "reference"


def snippets(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """Stay in a folder with two images under the names that pages use, and a published checkpoint."""
    pair = motorcycle()
    for names, image in ((("a.png", "first.jpg"), pair.image1), (("b.png", "second.jpg"), pair.image2)):
        for name in names:
            deqflow.write_image(tmp_path / name, image[:, 200:264, 300:380].byte().permute(1, 2, 0).numpy())
    torch.save(published_state_dict(REFERENCE / "raft_small.keys.json"), tmp_path / "raft-small.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_snippets_on_both_pages():
    assert {page.name for page in PAGES if snippets(page)} >= {"README.md", "using.md"}


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda page: page.name)
def test_snippets_run(page, files):
    # What a page leaves to the reader: an update operator of one's own.
    names = {"MyUpdate": lambda size: deqflow.build("mini").update}
    for number, code in enumerate(snippets(page), 1):
        exec(compile(code, f"{page.name}, snippet {number}", "exec"), names)
