"""Help of every command: fast, in plain text, and in agreement with what it repeats."""

import subprocess
import sys
from typing import get_args, get_type_hints

import pytest

from deqflow import __version__, video
from deqflow.__main__ import main
from deqflow.commands import COMMANDS, flow, measure
from deqflow.data.synthetic.videos import Speed
from deqflow.evidence.confidence import FitConfig


def text_of(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_shown_without_importing_torch(name):
    program = f"""
import sys
from deqflow.__main__ import main
try:
    main(["{name}", "--help"])
except SystemExit:
    print(sorted({{"torch", "cv2", "numpy", "scipy"}} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["flwo"]])
def test_the_overview_and_the_version_take_no_torch(arguments):
    program = f"import sys; from deqflow.__main__ import main; main({arguments}); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_plain_text_and_begins_with_the_summary(capsys, name):
    said = text_of(capsys, name)
    assert f"deqflow {name}" in said
    for markup in ("``", ":func:", ":class:", ":data:", ":meth:"):
        assert markup not in said


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_is_the_docstrings_first_line(name):
    assert COMMANDS[name].load().__doc__.splitlines()[0] == COMMANDS[name].summary


@pytest.mark.parametrize("asked", ["--help", "-h", "help"])
def test_the_overview_sets_the_maintainers_commands_apart(capsys, asked):
    assert main([asked]) == 0
    said = capsys.readouterr().out
    users, maintainers = said.split("For maintainers of the project:")
    assert all(f"\n  {name} " in users for name in ("flow", "evaluate", "report", "doctor"))
    assert all(f"\n  {name} " in maintainers for name in ("experiment", "confidence"))
    assert all(f"\n  {name} " in said for name in COMMANDS)


@pytest.mark.parametrize("asked", ["--version", "-V"])
def test_the_version_is_the_packages(capsys, asked):
    assert main([asked]) == 0
    assert capsys.readouterr().out == f"deqflow {__version__}\n"


def test_an_unknown_command_is_named_with_the_nearest(capsys):
    assert main(["evalute"]) == 2
    assert "No command 'evalute': expected one of flow, clip" in (said := capsys.readouterr().err)
    assert said.endswith("Did you mean evaluate?\n")
    assert main(["xyz"]) == 2
    assert "Did you mean" not in capsys.readouterr().err
    assert main([]) == 2
    assert "usage: python -m deqflow COMMAND" in capsys.readouterr().err


def test_choices_that_help_repeats_agree():
    assert get_args(flow.Policy) == get_args(video.Policy)
    assert get_args(flow.Drawing) == get_args(video.Drawing)
    assert get_args(flow.FileFormat) == get_args(video.FileFormat) == tuple(video.filming.SUFFIXES)
    assert get_args(flow.Speed) == get_args(Speed)
    assert FitConfig.pairs == measure.FIT_PAIRS


@pytest.mark.parametrize("name", ["flow", "evaluate", "confidence", "export", "doctor"])
def test_commands_that_compute_take_a_device(capsys, name):
    assert "--device" in text_of(capsys, name)


@pytest.mark.parametrize("name", ["experiment", "confidence"])
def test_what_the_project_ships_is_not_written_by_default(capsys, name):
    arguments = [name, "corrections"] if name == "experiment" else [name]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "--out" in capsys.readouterr().err
    hints = get_type_hints(COMMANDS[name].load(), localns={"FlowEstimator": object})
    assert "out" in hints
