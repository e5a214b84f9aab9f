"""Lists of pairs, folders of films and evaluations: shared out, skipped, gone on with, and what failed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import write_kitti

import deqflow
from deqflow.__main__ import main
from deqflow.commands import flow, jobs, sources
from deqflow.commands.jobs import Job, name_failures, share_out
from deqflow.commands.sources import find_films, is_collection, read_pairs, whole_output
from deqflow.evidence.evaluation import PairMeasurement
from deqflow.training import Processes
from deqflow.video import Movie, read_frames

QUICK = ["--max-evals", "1", "--device", "cpu"]


def write_image(path: Path, shift: int = 0) -> Path:
    y, x = np.mgrid[:32, :48]
    pixels = np.stack([5 * x + 7 * shift, 6 * y, 255 - 4 * x], -1).clip(0, 255).astype(np.uint8)
    return deqflow.write_image(path, pixels)


def write_film(path: Path, frames: int = 3) -> Path:
    with Movie(path) as movie:
        for i in range(frames):
            y, x = np.mgrid[:32, :48]
            movie.add(np.stack([5 * x + 3 * i, 6 * y, 255 - 4 * x], -1).clip(0, 255).astype(np.uint8))
    return path


@pytest.fixture
def listed(tmp_path) -> Path:
    """A list of three pairs, of which the second one's first image is damaged."""
    lines = ["# first second", ""]
    for i, scene in enumerate(("a", "b", "c")):
        first, second = (write_image(tmp_path / "in" / scene / f"{k}.png", i + k) for k in (1, 2))
        lines.append(f"{first} {second}")
    (tmp_path / "in" / "b" / "1.png").write_bytes(b"damaged")
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    return tmp_path / "pairs.txt"


@pytest.fixture
def films(tmp_path) -> Path:
    """A folder with a film, a folder of images, and a film that is not one."""
    folder = tmp_path / "films"
    write_film(folder / "one.avi")
    for i in range(3):
        write_image(folder / "deep" / "v1.5" / f"{i}.png", i)
    (folder / "three.mp4").write_bytes(b"no film")
    return folder


def written(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def test_a_list_of_pairs_is_worked_off_and_what_failed_is_named(listed, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["flow", str(listed), "--out", str(out), *QUICK]) == 1
    said = capsys.readouterr()
    assert written(out) == ["a/1.flo", "c/1.flo"]
    assert f"2 of 3 pairs are done; their flow is in {out}." in said.out
    assert "1 of 3 failed, the others are done:" in said.err
    assert f"in/b/1.png {tmp_path}/in/b/2.png: {tmp_path}/in/b/1.png" in said.err.replace(os.sep, "/")
    with torch.no_grad():
        images = [deqflow.read_image(tmp_path / "in" / "c" / f"{k}.png") for k in (1, 2)]
        expected = deqflow.load("deqflow-small")(*images, max_evals=1).flow[0]
    assert torch.equal(deqflow.read_flow(out / "c" / "1.flo")[0], expected)

    write_image(tmp_path / "in" / "b" / "1.png")
    before = (out / "a" / "1.flo").stat().st_mtime_ns
    assert main(["flow", str(listed), "--out", str(out), *QUICK]) == 0
    assert "3 of 3 pairs are done, 2 of them by an earlier run" in capsys.readouterr().out
    assert written(out) == ["a/1.flo", "b/1.flo", "c/1.flo"]
    assert (out / "a" / "1.flo").stat().st_mtime_ns == before


def test_a_folder_of_films_is_worked_off_and_what_failed_is_named(films, tmp_path, capsys):
    out = films / "flow"  # inside the folder itself
    assert main(["flow", str(films), "--out", str(out), *QUICK]) == 1
    assert written(out) == ["deep/v1.5.mp4", "one.mp4"]
    assert len(list(read_frames(out / "deep" / "v1.5.mp4"))) == 2
    assert "three.mp4: " in (said := capsys.readouterr()).err
    assert "can't be read as a video" in said.err
    assert main(["flow", str(films), "--out", str(out), *QUICK]) == 1
    assert "2 of 3 films are done, 2 of them by an earlier run" in capsys.readouterr().out
    shutil.rmtree(out)
    (films / "three.mp4").unlink()
    assert main(["flow", str(films), "--out", str(tmp_path / "numbers"), "--files", "npy", *QUICK]) == 0
    frames = ["frame_000001.npy", "frame_000002.npy"]
    assert written(tmp_path / "numbers") == [f"{name}/{frame}" for name in ("deep/v1_5", "one") for frame in frames]


def test_a_film_that_is_cut_short_or_interrupted_is_not_done(films, tmp_path, capsys, monkeypatch):
    (films / "three.mp4").unlink()
    whole = write_film(films / "one.avi", 20).read_bytes()
    (films / "one.avi").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    assert main(["flow", str(films), "--out", str(out), *QUICK]) == 1
    said = capsys.readouterr().err
    assert "one.avi is cut short or damaged: " in said
    assert "before that is in" not in said
    assert written(out) == ["deep/v1.5.mp4"]
    (films / "one.avi").write_bytes(whole)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("deqflow.video.VideoFlow.step", interrupted)
        assert main(["flow", str(films), "--out", str(out), *QUICK]) == 130
    assert f"Interrupted; what is done is in {out}, and is skipped next time." in capsys.readouterr().out
    assert written(out) == ["deep/v1.5.mp4"]
    assert main(["flow", str(films), "--out", str(out), *QUICK]) == 0
    assert len(list(read_frames(out / "one.mp4"))) == 19


def test_what_a_killed_process_left_is_replaced(tmp_path):
    target = tmp_path / "flow"
    (tmp_path / ".flow.part" / "flow").mkdir(parents=True)
    (tmp_path / ".flow.part" / "flow" / "frame_000009.flo").write_text("of a killed run")
    with whole_output(target) as unfinished:
        unfinished.mkdir()
        (unfinished / "frame_000001.flo").write_text("new")
        assert not target.exists()
    assert written(tmp_path) == ["flow/frame_000001.flo"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_flow_that_is_not_finite_is_a_failure(listed, tmp_path, capsys, monkeypatch):
    model = deqflow.load("deqflow-small")
    with torch.no_grad():
        next(model.update.parameters()).fill_(torch.nan)
    monkeypatch.setattr(flow, "load_model", lambda *_: model)
    write_image(tmp_path / "in" / "b" / "1.png")
    assert main(["flow", str(listed), "--out", str(tmp_path / "out"), *QUICK]) == 1
    assert capsys.readouterr().err.count("NaN or infinity came up, so the flow is not to be trusted") == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "names no pair: expected two paths a line"),
        ("# nothing\n\n", "names no pair"),
        ("a.png\n", "line 1: expected two paths, and the output's name if wanted, got 1 parts"),
        ("a.png b.png c.flo d\n", "got 4 parts: separate them by tabs if they contain spaces"),
        ("a.png\t\tc.flo\n", "line 1: expected two paths"),
        ("a.png b.png\na.png c.png\n", "line 2: the output out/a.flo is another pair's too"),
        ("a.png b.png ../c.flo\n", "line 1: the output ../c.flo lies outside out"),
        ("a.png b.png /c.flo\n", "the output /c.flo lies outside out"),
        ("a.png b.png c.pfm\n", "expected an output that ends in .flo, got c.pfm"),
        (b"\xff\xfe\x00", "is not a list of pairs: expected text with two paths a line"),
    ],
)
def test_a_list_that_is_none_ends_with_an_error_message(tmp_path, monkeypatch, capsys, content, told):
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["flow", "list.txt", "--out", "out"]) == 1
    assert told in capsys.readouterr().err.replace(os.sep, "/")
    assert os.listdir() == ["list.txt"]


def test_outputs_are_named_by_the_list_or_by_the_first_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("x/a/1.png\tx/a/2 b.png\nx/b/1.png x/b/2.png\nx/b/1.png x/b/0.png back/1.npz\n")
    with pytest.raises(ValueError, match=r"ends in \.flo, got back/1\.npz"):
        read_pairs(Path("list.txt"), Path("o"), ".flo")
    Path("list.txt").write_text(Path("list.txt").read_text().replace("npz", "flo"))
    pairs = read_pairs(Path("list.txt"), Path("o"), ".flo")
    assert [pair.out for pair in pairs] == [Path("o/a/1.flo"), Path("o/b/1.flo"), Path("o/back/1.flo")]
    assert pairs[0].image2 == Path("x/a/2 b.png")


def test_a_list_may_begin_with_a_mark_of_windows_and_have_indented_comments(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa.png\tb.png\r\n  # c d\r\n")
    (pair,) = read_pairs(tmp_path / "list.txt", tmp_path / "out", ".flo")
    assert (pair.image1, pair.image2) == (Path("a.png"), Path("b.png"))


def test_an_output_that_is_an_input_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_image(Path("a.png"))
    before = Path("a.png").read_bytes()
    Path("list.txt").write_text("a.png a.png a.png\n")
    assert main(["flow", "list.txt", "--out", "flow", "--files", "kitti", *QUICK]) == 0
    assert main(["flow", "list.txt", "--out", ".", "--files", "kitti", *QUICK]) == 1
    assert "would replace the input" in capsys.readouterr().err
    assert Path("a.png").read_bytes() == before


@pytest.mark.parametrize(
    ("source", "options", "told"),
    [
        ("pairs.txt", ["--policy", "warp"], "--policy has no effect on a list of pairs"),
        ("pairs.txt", ["--key"], "--key has no effect on a list of pairs"),
        ("pairs.txt", ["--out", "flow.flo"], "--out expects a folder for a list of pairs, got flow.flo"),
        ("films", ["--statistics", "s.npz"], "--statistics has no effect on a folder of films"),
        ("films", ["--files", "flo", "--drawing", "side"], "--drawing has no effect on files of numbers"),
        ("films", ["--out", "flow.mp4"], "--out expects a folder for a folder of films, got flow.mp4"),
        ("films", ["--out", "films"], "The flow of films would go among its films: choose another --out"),
        ("empty", [], "No image, film or folder of images in empty: expected films such as .mp4"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, monkeypatch, capsys, listed, films, source, options, told):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    before = written(tmp_path)
    assert main(["flow", source, *options]) == 1
    assert told in capsys.readouterr().err
    assert written(tmp_path) == before


def test_films_are_found_without_hidden_ones_and_outputs(tmp_path):
    for name in ("a.mp4", ".b.mp4", "c/d.avi", ".e/f.avi", "out/a.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    found = find_films(tmp_path, tmp_path / "out", ".mp4")
    assert {film.relative_to(tmp_path).as_posix() for film in found} == {"a.mp4", "c/d.avi"}
    assert found[tmp_path / "c" / "d.avi"] == tmp_path / "out" / "c" / "d.mp4"
    (tmp_path / "a.avi").write_text("")
    with pytest.raises(ValueError, match=r"a\.avi and .*a\.mp4 would have one output, .*: rename one of them"):
        find_films(tmp_path, tmp_path / "out", ".mp4")
    assert is_collection(tmp_path)
    write_image(tmp_path / "x.png")
    assert not is_collection(tmp_path)
    assert not is_collection(tmp_path / "x.png")
    assert ".mp4" in sources.FILMS


def test_jobs_that_fail_keep_no_other_from_being_run(capsys):
    def fail():
        raise RuntimeError("out of memory")

    outcome = share_out([Job("a", lambda: 1), Job("b", fail), Job("c", lambda: 2, lambda: True)], Processes("cpu"))
    assert outcome.results == {0: 1}
    assert outcome.skipped == 1
    assert outcome.failed == {"b": "RuntimeError: out of memory"}
    assert name_failures(outcome.failed, 3) == 1
    assert "1 of 3 failed, the others are done:\n  b: RuntimeError: out of memory" in capsys.readouterr().err
    assert name_failures({}, 3) == 0


def evaluation(tmp_path, out: str) -> list[str]:
    options = ["--only", "kitti-2015", "--evals", "1", "--precision", "float32", "--device", "cpu"]
    return ["evaluate", "--root", str(tmp_path / "data"), *options, "--out", str(tmp_path / out)]


def without_times(results: dict) -> dict:
    return json.loads(json.dumps(results), object_pairs_hook=lambda rows: {k: v for k, v in rows if k != "ms"})


def test_an_evaluation_that_was_killed_goes_on(tmp_path, monkeypatch, capsys):
    write_kitti(tmp_path / "data")
    assert main(evaluation(tmp_path, "whole.json")) == 0
    whole = json.loads((tmp_path / "whole.json").read_text())["sets"]
    assert whole["kitti-2015"]["pairs"] == 2
    measured, call = [], PairMeasurement.__call__

    def watched(self, index):
        measured.append(index)
        if measured == [0, 1]:
            raise KeyboardInterrupt
        return call(self, index)

    monkeypatch.setattr(PairMeasurement, "__call__", watched)
    assert main(evaluation(tmp_path, "part.json")) == 130
    assert "Interrupted; the next run goes on from here." in capsys.readouterr().out
    assert not (tmp_path / "part.json").exists()
    assert main(evaluation(tmp_path, "part.json")) == 0
    assert measured == [0, 1, 1]
    part = json.loads((tmp_path / "part.json").read_text())["sets"]
    assert without_times(part) == without_times(whole)
    assert sorted(os.listdir(tmp_path)) == ["data", "part.json", "whole.json"]
    # Records of other settings are not mixed in.
    measured.clear()
    assert main(evaluation(tmp_path, "part.json")) == 130
    assert main([*evaluation(tmp_path, "part.json"), "--padding", "published"]) == 0
    assert "holds what another evaluation has measured" in capsys.readouterr().out
    assert measured == [0, 1, 0, 1]


def test_a_pair_that_fails_is_named_and_the_others_are_measured(tmp_path, capsys):
    write_kitti(tmp_path / "data")
    damaged = tmp_path / "data" / "KITTI-2015" / "training" / "image_2" / "000000_10.png"
    content = damaged.read_bytes()
    damaged.write_bytes(b"damaged")
    assert main(evaluation(tmp_path, "r.json")) == 1
    said = capsys.readouterr()
    assert "1 of 2 failed, the others are done:\n  kitti-2015, pair 1: " in said.err
    assert "kitti-2015, 1 pair, mean over pairs" in said.out
    results = json.loads((tmp_path / "r.json").read_text())["sets"]["kitti-2015"]
    assert list(results["failed"]) == ["kitti-2015, pair 1"]
    damaged.write_bytes(content)
    assert main(evaluation(tmp_path, "r.json")) == 0
    assert json.loads((tmp_path / "r.json").read_text())["sets"]["kitti-2015"]["pairs"] == 2


LAUNCHED = """
import sys
import torch
from deqflow.__main__ import main
from deqflow.training import Processes

torch.set_num_threads(1)
processes = Processes()
status = [main(arguments.split("|")) for arguments in sys.argv[1:]]
print(f"process {processes.index} of {processes.count}: {status}")
"""


def test_two_processes_give_what_one_gives(listed, films, tmp_path, capfd):
    write_kitti(tmp_path / "data")
    anywhere = ["--max-evals", "1"]
    commands = [
        ["flow", str(listed), "--out", str(tmp_path / "OUT" / "pairs"), *anywhere],
        ["flow", str(films), "--out", str(tmp_path / "OUT" / "films"), "--files", "flo", *anywhere],
        evaluation(tmp_path, "OUT.json"),
        ["flow", str(listed), "--out", str(tmp_path / "OUT" / "none"), *QUICK],
    ]
    commands[2] = [part for part in commands[2] if part not in ("--device", "cpu")]
    two, one = ([[part.replace("OUT", name) for part in command] for command in commands] for name in ("two", "one"))
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED)
    paths = [path for path in (str(Path(__file__).parents[2]), *sys.path) if path]
    child = subprocess.run(
        # accelerate launch is this for GPUs; for processors it wants MPI.
        [sys.executable, *["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"], str(script)]
        + ["|".join(command) for command in two],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
    for index in (0, 1):
        assert f"process {index} of 2: [1, 1, 0, 1]" in child.stdout
    assert child.stdout.count("2 of 3 pairs are done") == child.stdout.count("2 of 3 films are done") == 1
    assert child.stderr.count("three.mp4: ") == 1
    assert "accelerate launch gives each process its device, got cpu: leave it at auto." in child.stderr
    assert "in the first of 2 processes: 2 of 2 pairs" in child.stderr
    assert [main(command) for command in one] == [1, 1, 0, 1]
    for folder in ("pairs", "films"):
        names = written(tmp_path / "one" / folder)
        assert written(tmp_path / "two" / folder) == names
        assert len(names) == (2 if folder == "pairs" else 4)
        for name in names:
            found, expected = (deqflow.read_flow(tmp_path / run / folder / name)[0] for run in ("two", "one"))
            assert torch.equal(found, expected), name
    found, expected = (json.loads((tmp_path / f"{run}.json").read_text())["sets"] for run in ("two", "one"))
    assert without_times(found) == without_times(expected)
    assert jobs.PATIENCE.days > 1
