"""``python -m deqflow flow``: what is written where, what is refused, and what the last line says."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import deqflow
from deqflow.__main__ import main
from deqflow.commands.flow import verdict
from deqflow.data.colors import add_key, color_scale, flow_to_rgb
from deqflow.solvers import SolverResult, Status, Stop
from deqflow.video import Movie


@pytest.fixture
def pair(tmp_path, generator) -> list[str]:
    texture = 255 * torch.rand(1, 3, 12, 16, generator=generator)
    texture = torch.nn.functional.interpolate(texture, scale_factor=4, mode="bicubic").clamp(0, 255)
    paths = []
    for name, shift in (("a.png", 0), ("b.png", 2)):
        image = texture.roll(shift, 3)[0].byte().permute(1, 2, 0).numpy()
        paths.append(str(deqflow.write_image(tmp_path / name, np.ascontiguousarray(image))))
    return paths


@pytest.fixture
def clip(tmp_path) -> str:
    with Movie(tmp_path / "clip.avi") as movie:
        for i in range(3):
            movie.add(np.full((32, 48, 3), 20 * i, np.uint8))
    return str(tmp_path / "clip.avi")


@pytest.fixture
def expected(pair) -> torch.Tensor:
    with torch.no_grad():
        images = [deqflow.read_image(path) for path in pair]
        return deqflow.load("deqflow-small")(*images, stop=Stop(max_evals=3)).flow[0]


@pytest.mark.parametrize("name", ["f.flo", "f.pfm", "f.flo5", "f.npy", "f.npz", "F.FLO"])
def test_the_suffix_chooses_numbers(pair, tmp_path, expected, name):
    assert main(["flow", *pair, "--out", str(tmp_path / name), "--max-evals", "3"]) == 0
    assert torch.equal(deqflow.read_flow(tmp_path / name)[0], expected)


@pytest.mark.parametrize("source", ["pair", "list", "film"])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--scales", "nan"], "scales expects one or more positive factors"),
        (["--scales", "1", "inf"], "scales expects one or more positive factors"),
        (["--max-evals", "0"], "Stop expects max_evals"),
        (["--atol", "nan"], "Stop expects tolerances"),
    ],
)
def test_a_solve_that_makes_no_sense_is_refused_at_once(pair, clip, tmp_path, capsys, source, options, sentence):
    (tmp_path / "list.txt").write_text("\t".join(pair))
    images = {"pair": pair, "list": [str(tmp_path / "list.txt")], "film": [clip]}[source]
    suffix = {"pair": ".png", "list": "", "film": ".avi"}[source]
    assert main(["flow", *images, "--out", str(tmp_path / f"out{suffix}"), *options]) == 1
    assert capsys.readouterr().err.startswith(f"deqflow: {sentence}")
    assert not list(tmp_path.glob("*out*"))


def test_an_output_where_a_folder_or_a_file_stands_is_refused_before_work(pair, clip, tmp_path, capsys):
    for name in ("f.png", "f.avi"):
        (tmp_path / name).mkdir()
    for images, out, sentence in (
        (pair, "f.png", "is a folder: name a file in it, such as"),
        ([clip], "f.avi", "expects to be a film, but there is a folder of this name: choose another --out"),
    ):
        assert main(["flow", *images, "--out", str(tmp_path / out), "--max-evals", "1"]) == 1
        assert sentence in capsys.readouterr().err
    (tmp_path / "numbers").write_text("")
    assert main(["flow", clip, "--out", str(tmp_path / "numbers"), "--max-evals", "1"]) == 1
    assert "expects to be a folder, but there is a file of this name" in capsys.readouterr().err
    assert main(["flow", *pair, "--out", str(tmp_path / "numbers" / "f.flo"), "--max-evals", "1"]) == 1
    assert f"{tmp_path / 'numbers'} is a file, where a folder is needed: choose another" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["f.png", "f.jpg", "f.ppm", "f.PNG"])
def test_the_suffix_chooses_colours(pair, tmp_path, expected, name):
    assert main(["flow", *pair, "--out", str(tmp_path / name), "--max-evals", "3"]) == 0
    image = deqflow.read_image(tmp_path / name)[0].permute(1, 2, 0)
    assert (image - torch.from_numpy(flow_to_rgb(expected)).float()).abs().mean() < 6


def test_files_makes_a_png_kittis(pair, tmp_path, expected, monkeypatch):
    for out in (["--out", str(tmp_path / "f.png")], []):
        monkeypatch.chdir(tmp_path)
        assert main(["flow", *pair, "--files", "kitti", *out, "--max-evals", "3"]) == 0
        flow, _ = deqflow.read_flow(tmp_path / ("f.png" if out else "flow.png"))
        assert (flow - expected).abs().max() <= 1 / 128


def test_the_key_stands_beside_the_flow(pair, tmp_path, capsys, expected):
    assert main(["flow", *pair, "--out", str(tmp_path / "f.png"), "--key", "--max-evals", "3"]) == 0
    scale = color_scale(expected)
    keyed = add_key(flow_to_rgb(expected), scale)
    assert np.array_equal(deqflow.read_image(tmp_path / "f.png")[0].permute(1, 2, 0).numpy(), keyed)
    assert f"full colour is {scale:.3g} px" in capsys.readouterr().out


def test_the_film_has_the_key(clip, tmp_path):
    for name, options in (("plain.avi", []), ("key.avi", ["--key"])):
        assert main(["flow", clip, "--out", str(tmp_path / name), "--max-evals", "1", *options]) == 0
    plain, keyed = (next(iter(deqflow.video.read_frames(tmp_path / name))) for name in ("plain.avi", "key.avi"))
    assert keyed.shape[3] > plain.shape[3]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
def test_an_input_is_not_replaced(pair, tmp_path, capsys, which, link):
    out = tmp_path / ("link.png" if link else "new/../" + os.path.basename(pair[which]))
    (tmp_path / "new").mkdir()
    if link:
        getattr(out, link)(pair[which])
    before = [Path(path).read_bytes() for path in pair]
    assert main(["flow", *pair, "--out", str(out), "--max-evals", "1"]) == 1
    assert f"would replace the input {pair[which]}" in capsys.readouterr().err
    assert [Path(path).read_bytes() for path in pair] == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--policy", "warp"], "--policy has no effect on two images"),
        (["--drawing", "side"], "--drawing has no effect on two images"),
        (["--statistics", "s.npz"], "--statistics has no effect on two images"),
        (["--out", "f.flo", "--key"], "--key has no effect on numbers"),
        (["--out", "f.npy", "--largest", "4"], "--largest has no effect on numbers"),
        (["--files", "kitti", "--key"], "--key has no effect on numbers"),
        (["--files", "flo", "--out", "f.png"], "--files flo writes a .flo file, got --out f.png"),
        (["--files", "kitti", "--out", "f.flo"], "--files kitti writes a .png file, got --out f.flo"),
        (["--largest", "0"], "--largest expects a positive length"),
        (["--largest", "nan"], "--largest expects a positive length"),
        (["--out", "f.exr"], "Can't write the image f.exr"),
        (["--out", "f.flo6"], "Can't write the image f.flo6"),
        (["--out", "folder"], "Can't write the image folder"),
        (["--device", "cuda"], "No device cuda"),
        (["--device", "toaster"], "Expected a device such as auto, cpu"),
        (["--scales", "2", "1"], "ascending order"),
    ],
)
def test_what_has_no_effect_or_makes_no_sense_for_a_pair_is_refused(pair, tmp_path, monkeypatch, capsys, options, told):
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    assert main(["flow", *pair, *options]) == 1
    assert told in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--files", "flo", "--out", "f.avi"], "--files has no effect on a film"),
        (["--out", "folder", "--drawing", "side"], "--drawing has no effect on files of numbers"),
        (["--out", "folder", "--largest", "3"], "--largest has no effect on files of numbers"),
        (["--files", "npz", "--key"], "--key has no effect on files of numbers"),
        (["--statistics", "s.csv"], "Statistics are written as .npz"),
    ],
)
def test_what_has_no_effect_on_a_video_is_refused(clip, tmp_path, monkeypatch, capsys, options, told):
    monkeypatch.chdir(tmp_path)
    assert main(["flow", clip, *options]) == 1
    assert told in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["clip.avi"]


def test_one_image_asks_for_a_second(pair, capsys):
    assert main(["flow", pair[0]]) == 1
    assert f"got the one image {pair[0]}: name the second image as well" in capsys.readouterr().err


def test_a_folder_in_place_of_an_image_is_named(pair, tmp_path, capsys):
    assert main(["flow", str(tmp_path), pair[1], "--out", str(tmp_path / "f.png")]) == 1
    assert f"No file at {tmp_path}: check the path, for there is a folder of this name" in capsys.readouterr().err


def solved(residual: float, status: Status, evals: int = 40) -> SolverResult:
    one = torch.zeros(1, 3, 2, 2)
    return SolverResult(
        z=one,
        fz=one,
        residual=torch.tensor([residual]),
        status=torch.tensor([int(status)]),
        evals=torch.tensor([evals]),
        trace=torch.tensor([[residual]]),
        stop=Stop(max_evals=evals, atol=0.02),
    )


@pytest.mark.parametrize(
    ("residual", "status", "recurrent", "told"),
    [
        (0.011, Status.CONVERGED, False, "0.011 px .*, within the tolerance of 0.02 px: the flow has converged"),
        (0.034, Status.MAX_EVALS, False, "0.034 px .* more than the tolerance of 0.02 px, but fine"),
        (0.9, Status.MAX_EVALS, False, "0.9 px .* That is not fine: .* Raise --max-evals"),
        (0.9, Status.INTERRUPTED, False, "0.9 px .* That is not fine"),
        (0.9, Status.MAX_EVALS, True, "0.9 px .*: recurrent models do not converge"),
        (float("nan"), Status.NON_FINITE, False, "NaN or infinity came up, so the flow is not to be trusted"),
    ],
)
def test_the_last_line_says_what_the_end_of_the_solve_means(residual, status, recurrent, told):
    assert re.search(told, verdict(solved(residual, status), recurrent=recurrent))


def test_flow_ends_with_what_it_means_in_pixels(pair, tmp_path, capsys):
    assert main(["flow", *pair, "--out", str(tmp_path / "f.png")]) == 0
    assert "One more would move the flow by" in capsys.readouterr().out.splitlines()[-1]
