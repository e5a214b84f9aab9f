import ast
import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook
from reference.weights_from_names import published_state_dict

import deqflow
from deqflow.__main__ import main
from deqflow.model.checkpoints import read_metadata

REFERENCE = Path(__file__).parents[1] / "reference"


@pytest.fixture
def pictures(tmp_path, generator):
    texture = 255 * torch.rand(1, 3, 12, 16, generator=generator)
    texture = torch.nn.functional.interpolate(texture, scale_factor=4, mode="bicubic").clamp(0, 255)
    paths = []
    for name, shift in (("a.png", 0), ("b.png", 2)):
        picture = texture.roll(shift, 3)[0].byte().permute(1, 2, 0).numpy()
        paths.append(str(deqflow.write_image(tmp_path / name, np.ascontiguousarray(picture))))
    return paths


def test_flow_writes_colors(pictures, tmp_path, capsys):
    out = tmp_path / "new folder" / "flow.png"
    assert main(["flow", *pictures, "--out", str(out), "--max-evals", "3"]) == 0
    assert deqflow.read_image(out).shape == (1, 3, 48, 64)
    assert "3 evaluations. One more would move the flow by" in capsys.readouterr().out


def test_flow_writes_numbers_that_are_those_of_the_estimator(pictures, tmp_path):
    out = tmp_path / "flow.flo"
    assert main(["flow", *pictures, "--out", str(out)]) == 0
    with torch.no_grad():
        expected = deqflow.load("deqflow-small")(*(deqflow.read_image(path) for path in pictures)).flow[0]
    assert torch.equal(deqflow.read_flow(out)[0], expected)


def test_flow_at_scales_tells_of_each(pictures, tmp_path, capsys):
    out = tmp_path / "flow.flo"
    assert main(["flow", *pictures, "--scales", "1", "1.5", "--out", str(out)]) == 0
    images = (deqflow.read_image(path) for path in pictures)
    with torch.no_grad():
        expected = deqflow.estimate_at_scales(deqflow.load("deqflow-small"), *images, (1.0, 1.5))
    assert torch.equal(deqflow.read_flow(out)[0], expected.flow[0])
    said = capsys.readouterr().out
    spent = [int(output.solve.evals) for output in expected.outputs]
    assert f"{spent[0]} + {spent[1]} evaluations. One more would move the flow by" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "nothing"], "expected one of deqflow-small"),
        (["--model", "nothing.pth"], "No checkpoint at nothing.pth"),
        (["--out", "flow.xyz"], "expected a suffix such as .png"),
        (["--max-evals", "0"], "max_evals"),
    ],
)
def test_bad_input_ends_with_a_sentence(pictures, capsys, arguments, sentence):
    assert main(["flow", *pictures, *arguments]) == 1
    assert sentence in capsys.readouterr().err


def test_a_missing_picture_ends_with_a_sentence(capsys):
    assert main(["flow", "missing.png", "missing.png"]) == 1
    assert "deqflow: No file at missing.png" in capsys.readouterr().err


def test_train_takes_the_fields_of_the_configuration(tmp_path, capsys):
    options = ["--size", "tiny", "--steps", "1", "--batch", "1", "--evals", "3", "3", "--workers", "0"]
    options += ["--no-bfloat16", "--validation-pairs", "1", "--scenes.height", "32", "--scenes.width", "32"]
    assert main(["train", "--folder", str(tmp_path / "run"), *options]) == 0
    assert "held-out error" in capsys.readouterr().out
    assert deqflow.load(tmp_path / "run" / "model.safetensors").config.size == "tiny"


def test_train_explains_a_bad_configuration(capsys):
    assert main(["train", "--steps", "0"]) == 1
    assert "at least 1 step" in capsys.readouterr().err


def test_convert_writes_what_load_reads_and_says_what_it_was(tmp_path, pictures, capsys):
    published = published_state_dict(REFERENCE / "raft_small.keys.json")
    torch.save(published, tmp_path / "published.pth")
    target = tmp_path / "mine.safetensors"
    assert main(["convert", str(tmp_path / "published.pth"), str(target)]) == 0
    assert "Found RAFT-small, 0.99 M parameters." in capsys.readouterr().out
    images = [deqflow.read_image(path) for path in pictures]
    with torch.no_grad():
        expected = deqflow.load_published(tmp_path / "published.pth")(*images).flow
        assert torch.equal(deqflow.load(target)(*images).flow, expected)
    assert deqflow.load(target).origin == "RAFT-small"
    assert read_metadata(target)[1] == {"origin": "RAFT-small", "file": "published.pth"}


def test_convert_writes_safetensors_only(tmp_path, capsys):
    assert main(["convert", "any.pth", str(tmp_path / "mine.pth")]) == 1
    assert "a target that ends in .safetensors" in capsys.readouterr().err


def test_reproduce_knows_its_recipes(capsys):
    assert main(["reproduce", "nothing"]) == 1
    assert "No recipe 'nothing': expected one of deqflow-small" in capsys.readouterr().err


def test_report_runs_notebooks_and_fails_if_one_does(tmp_path, capsys):
    cell = {
        "cell_type": "code",
        "id": "a",
        "metadata": {"tags": ["parameters"]},
        "execution_count": None,
        "outputs": [],
    }
    notebook = {
        "cells": [cell | {"source": "wanted = 1"}, cell | {"id": "b", "metadata": {}, "source": "assert wanted == 1"}],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (tmp_path / "00_a.ipynb").write_text(json.dumps(notebook))
    common = ["report", "--notebooks", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(common) == 0
    assert main([*common, "--set", "wanted=2"]) == 1
    assert "AssertionError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("None", None),
        ("null", None),
        ("False", False),
        ("true", True),
        ("1e-2", 0.01),
        ("[1, 2]", [1, 2]),
        ("a b", "a b"),
    ],
)
def test_report_sets_values_as_json_or_python_write_them(tmp_path, text, value):
    cell = new_code_cell("wanted = 1", metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=[cell], metadata={"kernelspec": kernel}), tmp_path / "00_a.ipynb")
    common = ["report", "--notebooks", str(tmp_path), "--prepare", "--out", str(tmp_path / "out")]
    assert main([*common, "--set", f"wanted={text}"]) == 0
    injected = nbformat.read(tmp_path / "out" / "00_a.ipynb", as_version=4).cells[1].source
    assert ast.literal_eval(injected.partition(" = ")[2]) == value


@pytest.mark.parametrize("text", ["wanted", "=2"])
def test_report_sets_parameters_by_name_and_value(text, capsys):
    assert main(["report", "--set", text]) == 1
    assert f"--set expects name=value, got '{text}'" in capsys.readouterr().err


def test_report_says_where_notebooks_are_expected(tmp_path, capsys):
    assert main(["report", "--notebooks", str(tmp_path)]) == 1
    assert "No numbered notebooks" in capsys.readouterr().err
