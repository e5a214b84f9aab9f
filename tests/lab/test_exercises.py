"""The answers to the notebooks' exercises run, each by itself as a reader would paste it, and end with a check."""

import ast
import json
import re
from pathlib import Path

import pytest
import torch

import deqflow

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9]*.ipynb"))
FOLDED = re.compile(r"<details>(.*?)</details>", re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def answers(text: str) -> list[str]:
    """The Python blocks inside the folded parts of a page, in order."""
    return [block for folded in FOLDED.findall(text) for block in PYTHON.findall(folded)]


def prose(path: Path) -> str:
    """A notebook's Markdown cells, one after the other."""
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


ANSWERS = {
    f"{path.stem[:2]}, answer {i}": block for path in NOTEBOOKS for i, block in enumerate(answers(prose(path)), start=1)
}


def test_answers_are_found_where_they_are_folded():
    page = "```python\nopen = 1\n```\n<details>\n<summary>A</summary>\n\n```python\nfirst = 1\n```\n```text\nno\n```\n"
    assert answers(page + "</details>\n<details>\n```python\nsecond = 2\n```\n</details>") == [
        "first = 1\n",
        "second = 2\n",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_exercise_has_a_folded_answer(path):
    text = prose(path)
    assert "\n## Exercises" in text
    exercises = re.findall(r"^(?:\*\*)?\d\.(?=[ *])", text.split("\n## Exercises")[1], re.MULTILINE)
    assert len(exercises) == 3
    assert len(answers(text)) == 3


@pytest.mark.parametrize("block", ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_runs_by_itself(block):
    assert isinstance(ast.parse(block).body[-1], ast.Assert), "an answer ends with the check that it is right"
    state = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    torch.manual_seed(0)
    try:
        exec(compile(block, "answer", "exec"), {"__name__": "answer", "deqflow": deqflow, "torch": torch})
    finally:
        torch.set_rng_state(state[0])
        torch.set_default_dtype(state[1])
        torch.set_grad_enabled(state[2])
