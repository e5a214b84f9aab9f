"""Models named on the command line, settings of reports, conversions, evaluation, doctor."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from reference.weights_from_names import published_state_dict
from test_main import REFERENCE

import deqflow
from deqflow.__main__ import main
from deqflow.commands import Entry, convert, measure
from deqflow.commands.report import parse_value
from deqflow.commands.shared import PairProgress, load_model, repeated
from deqflow.data.synthetic import SyntheticPairs
from deqflow.evidence import evaluation
from deqflow.evidence.confidence import SHIPPED_CONFIDENCE
from deqflow.model.checkpoints import CheckpointError


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    return published_state_dict(REFERENCE / "raft_small.keys.json")


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.ckpt", "a.tar", "a.bin", "a", "A.PTH"])
@pytest.mark.parametrize("old", [False, True])
def test_a_published_checkpoint_is_loaded_whatever_its_suffix(tmp_path, published, name, old):
    torch.save(published, tmp_path / name, _use_new_zipfile_serialization=not old)
    assert load_model(str(tmp_path / name)).origin == "RAFT-small"


def test_own_checkpoints_and_published_safetensors_are_loaded(tmp_path, monkeypatch, published):
    from safetensors.torch import save_file

    save_file(published, tmp_path / "published.safetensors")
    assert load_model(str(tmp_path / "published.safetensors")).origin == "RAFT-small"
    deqflow.save(deqflow.build("tiny"), tmp_path / "mine.safetensors")
    shutil.copy(tmp_path / "mine.safetensors", tmp_path / "mine.ckpt")
    for name in ("mine.safetensors", "mine.ckpt"):
        loaded = load_model(str(tmp_path / name)).config
        assert loaded is not None
        assert loaded.size == "tiny"
    (tmp_path / "raft-small-twin").write_text("another file of this name")
    monkeypatch.chdir(tmp_path)
    assert load_model("raft-small-twin").recurrent


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jpg", b"\xff\xd8\xff\xe0", "is not a checkpoint. Expected a file that torch.save has written"),
        ("a.pth", b"", "is not a checkpoint"),
        ("a.pth", b"<html>", "is not a checkpoint"),
        ("a.pt", b"PK\x03\x04 and no more", "can't be read as a checkpoint"),
        ("a.pth", b"\x80\x04cos\nmkdir\n.", "can't be read as a checkpoint: it is damaged, or holds code"),
        ("a.safetensors", b"\xff\xd8\xff\xe0", "is damaged or no safetensors file"),
    ],
)
def test_what_is_not_a_checkpoint_is_named_without_advice_to_run_code(tmp_path, capsys, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=told):
        load_model(str(tmp_path / name))
    if not name.endswith("safetensors"):
        assert main(["convert", str(tmp_path / name), str(tmp_path / "b.safetensors")]) == 1
        said = capsys.readouterr().err
        assert "a checkpoint" in said
        assert "weights_only" not in said


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected one of deqflow-small"):
        load_model("deqflow-smal")
    with pytest.raises(FileNotFoundError, match=r"No checkpoint at .*a\.pth"):
        convert.Convert(tmp_path / "a.pth", tmp_path / "b.safetensors")()


def test_a_name_that_is_nearly_a_models_is_guessed():
    for name in ("deqflow-smal", "deqflow_small", "DEQFLOW-small"):
        with pytest.raises(FileNotFoundError, match=r"or the path of a checkpoint\. Did you mean deqflow-small\?$"):
            deqflow.load(name)
    with pytest.raises(FileNotFoundError, match=r"No model 'nonsense', and no file of this name: .* checkpoint\.$"):
        deqflow.load("nonsense")
    with pytest.raises(ValueError, match=r"save expects an estimator made by deqflow.build, got int"):
        deqflow.save(3, "a.safetensors")  # pyright: ignore[reportArgumentType]


def test_suffixes_may_be_in_capitals(tmp_path, published, capsys):
    torch.save(published, tmp_path / "A.PTH")
    assert main(["convert", str(tmp_path / "A.PTH"), str(tmp_path / "B.SAFETENSORS")]) == 0
    assert deqflow.load(tmp_path / "B.SAFETENSORS").recurrent
    out = str(tmp_path / "M.PT2")
    assert main(["export", "--out", out, "--evals", "1", "--size", "32", "32", "--device", "cpu"]) == 0
    assert "32 x 32: at most" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx"])
def test_export_does_not_replace_its_model(tmp_path, published, capsys, name):
    path = tmp_path / name
    torch.save(published, path)
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(path)
    assert main(["export", "--model", str(tmp_path / "link"), "--out", str(path), "--evals", "1"]) == 1
    assert "would replace the input" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize("command", [["flow", "a.png", "b.png"], ["doctor"]])
def test_too_little_memory_ends_with_an_error_message(monkeypatch, capsys, command):
    def run(error: Exception) -> int:
        def fail() -> None:
            raise error

        monkeypatch.setattr(Entry, "parse", lambda *_: fail)
        return main(command)

    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")):
        assert run(error) == 1
        assert capsys.readouterr().err.startswith("deqflow: Not enough memory: use smaller images, scales or batches.")
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run(RuntimeError("a fault of ours"))


def test_clip_expects_a_seed_that_is_not_negative(tmp_path, capsys):
    assert main(["clip", "--out", str(tmp_path / "c.avi"), "--seed", "-1"]) == 1
    assert "SyntheticVideo expects a seed of at least 0, got -1" in capsys.readouterr().err
    with pytest.raises(ValueError, match="SyntheticPairs expects a seed of at least 0, got -1"):
        SyntheticPairs(1, seed=-1)


def test_convert_does_not_replace_its_source(tmp_path, published, capsys):
    from safetensors.torch import save_file

    save_file(published, tmp_path / "a.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()
    assert main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "a.safetensors")]) == 1
    assert "would replace the input" in capsys.readouterr().err
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_export_looks_for_its_packages_before_it_works(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(convert, "find_spec", lambda name: None)
    monkeypatch.setattr(convert, "load_model", lambda *_: pytest.fail("the model was loaded"))
    assert main(["export", "--out", str(tmp_path / "a.onnx")]) == 1
    said = capsys.readouterr().err
    assert "not installed (onnx, onnxscript, onnxruntime): pip install 'deqflow[export]'" in said
    assert main(["export", "--out", str(tmp_path / "a.onx")]) == 1
    assert "--out expects a name that ends in .onnx or .pt2" in capsys.readouterr().err


def test_a_device_for_onnx_has_no_effect(monkeypatch, capsys):
    monkeypatch.setattr(convert, "find_spec", lambda name: object())
    monkeypatch.setattr("deqflow.model.precision.choose_device", lambda name: torch.device("cuda"))
    assert main(["export", "--device", "cuda"]) == 1
    assert "--device cuda has no effect on ONNX" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("None", None), ("null", None), ("none", None), ("True", True), ("true", True)),
        *(("False", False), ("FALSE", False), ("3", 3), ("-7", -7), ("1e-3", 1e-3), ("0.5", 0.5), ("inf", math.inf)),
        *(("[1, 2]", [1, 2]), ("['a', None]", ["a", None]), ('{"a": [true]}', {"a": [True]}), ("[]", [])),
        *(('"5"', "5"), ("'None'", "None"), ("clip.mp4", "clip.mp4"), ("a b", "a b"), ("", ""), ("1,2", "1,2")),
        *(("[1,", "[1,"), ("C:\\new", "C:\\new"), ("a=b", "a=b"), ("nothing", "nothing"), (300 * "[", 300 * "[")),
    ],
)
def test_settings_are_read_as_papermill_reads_them(text, value):
    got = parse_value(text)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("text", ["True", "False", "None", "3", "-7", "1e-3", "0.5", "inf", "clip.mp4", "1,2", "1_0"])
def test_settings_agree_with_papermills_own(text):
    papermill = pytest.importorskip("papermill.cli")
    assert parse_value(text) == papermill._resolve_type(text)


def test_a_setting_that_comes_twice_is_refused(capsys):
    assert main(["report", "--set", "a=1", "--set", "a=2"]) == 1
    assert "--set expects each name once, got a twice" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--notebooks", "--published"])
def test_reports_do_not_replace_notebooks_or_published_results(tmp_path, capsys, option):
    (tmp_path / "00_a.ipynb").write_text("{}")
    assert main(["report", option, str(tmp_path), "--out", str(tmp_path / ".")]) == 1
    assert f"would replace the files of {option}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["00_a.ipynb"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["report", "--prepare", "--publish"], "--publish has no effect with --prepare"),
        (["evaluate", "--out", "model.safetensors"], "--out expects a name that ends in .json"),
        (["evaluate", "--root", "nowhere"], "--root nowhere is not a folder"),
        (
            ["evaluate", "--only", "motorcycle", "--procedural", "3"],
            "--procedural has no effect without procedural sets",
        ),
        (["evaluate", "--only", "nothing"], "No set 'nothing' under"),
        (["evaluate", "--model", "deqflow-small", "deqflow-small"], "--model names deqflow-small twice"),
        (["evaluate", "--precision", "float32", "--device", "toaster"], "Expected a device such as auto"),
        (["confidence", "--out", "a.txt"], "--out expects a name that ends in .json"),
        (["confidence", "--out", "a.json", "--fitted", "a.txt"], "--fitted expects a name that ends in .json"),
        (["confidence", "--out", "a.json", "--fitted", "a.json"], "--fitted a.json would replace the input a.json"),
        (["confidence", "--out", "a.json", "--data-root", "nowhere"], "--data-root nowhere is not a folder"),
        (["experiment", "nothing", "--out", "a.json"], "No experiment 'nothing'"),
        (["experiment", "corrections", "--out", "a.txt"], "--out expects a name that ends in .json"),
        (["experiment", "corrections", "--out", "a.json", "--data", "x"], "--data has no effect on corrections"),
        (["experiment", "video", "--out", "a.json", "--data", "nowhere"], "--data nowhere is not a folder"),
    ],
)
def test_what_has_no_effect_or_makes_no_sense_is_refused(tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_models_of_one_name_go_by_their_paths(tmp_path):
    for folder in ("one", "two"):
        deqflow.save(deqflow.build("tiny"), tmp_path / folder / "model.safetensors")
    paths = tuple(str(tmp_path / folder / "model.safetensors") for folder in ("one", "two"))
    assert list(measure.Evaluate(model=paths)._models()) == list(paths)
    assert list(measure.Evaluate(model=(paths[0], "deqflow-small"))._models()) == ["model", "deqflow-small"]
    assert repeated(["a", "b", "a", "a"]) == ["a", "a"]


def test_evaluate_says_how_far_it_is_and_in_which_precision(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "PairProgress", lambda: PairProgress(every=0))
    options = ["--procedural", "3", "--most", "2", "--evals", "1", "--precision", "float32", "--device", "cpu"]
    assert main(["evaluate", "--only", "procedural", *options, "--out", str(tmp_path / "r.json")]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines() == ["procedural: 1 of 2 pairs", "procedural: 2 of 2 pairs"]
    assert said.out.splitlines()[0] == "On cpu, in float32."
    assert json.loads((tmp_path / "r.json").read_text())["sets"]["procedural"]["pairs"] == 2


def test_progress_is_said_at_first_at_the_end_and_sometimes(capsys):
    times = iter([0.0, 1.0, 11.0, 12.0, 13.0])
    progress = PairProgress(every=10, clock=lambda: next(times))
    for done in range(1, 6):
        progress("set", done, 5)
    assert capsys.readouterr().err.splitlines() == [f"set: {done} of 5 pairs" for done in (1, 3, 5)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_evaluation_takes_the_precision_that_is_fast(monkeypatch, precision):
    monkeypatch.setattr("deqflow.model.precision.fast_precision", lambda device: getattr(torch, precision))
    config = evaluation.EvaluationConfig(device="cpu")
    assert config.precision == "auto"
    assert config.chosen_precision == precision
    assert evaluation.EvaluationConfig(device="cpu", precision="float32").chosen_precision == "float32"
    with config.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, precision)


def test_confidence_leaves_the_packaged_one_alone(tmp_path, monkeypatch, capsys):
    before = SHIPPED_CONFIDENCE.read_bytes()

    class Fitted:
        class model:  # noqa: N801
            save = staticmethod(lambda path: path.write_text("{}"))

    seen = []
    monkeypatch.setattr(
        "deqflow.evidence.confidence.run_confidence",
        lambda *arguments: seen.append(arguments) or (Fitted, {"rows": []}),
    )
    monkeypatch.chdir(tmp_path)
    assert main(["confidence", "--out", "c.json", "--pairs", "7", "--device", "cpu"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c-fitted.json", "c.json"]
    assert "Wrote c-fitted.json and c.json." in capsys.readouterr().out
    assert seen[0][3].pairs == 7
    assert SHIPPED_CONFIDENCE.read_bytes() == before


def test_doctor_says_in_ten_lines_what_the_machine_is_good_for(capsys, monkeypatch):
    monkeypatch.setattr("deqflow.commands.doctor.PROBE", (48, 64))
    assert main(["doctor", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 8 <= len(lines) <= 11
    assert [line.partition(":")[0] for line in lines[:5]] == ["Versions", "Packages", "System", "torch", "GPU"]
    said = "\n".join(lines)
    assert f"torch {torch.__version__}" in said
    assert f"{torch.get_num_threads()} threads, instructions {torch.backends.cpu.get_cpu_capability()}" in said
    for words in ("float32", "bfloat16", "GFLOP/s", "Fast precision: ", "GiB free of", "1280x720 px", "at two"):
        assert words in said
    assert np.prod([len(line) < 240 for line in lines])


def test_doctor_names_what_is_not_installed(monkeypatch):
    from deqflow.commands import doctor

    assert [doctor._rounded(seconds) for seconds in (0.123, 5.67, 234.5)] == ["0.12", "5.7", "230"]
    assert doctor._version("no-such-package") == "not installed"
    assert doctor._version("torch").startswith("2")
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    assert doctor._build() == "CUDA 12.9"


def test_export_looks_at_its_tolerance_before_it_works(tmp_path, capsys):
    assert main(["export", "--out", str(tmp_path / "a.pt2"), "--tolerance", "nan"]) == 1
    assert "--tolerance expects a number of 0 or more in px, got nan" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
