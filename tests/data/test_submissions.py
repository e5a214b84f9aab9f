import zipfile
from pathlib import Path

import cv2
import layouts
import numpy as np
import pytest
import torch
from layouts import without
from torch import Tensor

from deqflow.data.flow_files import read_flow, read_image
from deqflow.data.submissions import write_kitti_submission, write_sintel_submission


def brightness(image1: Tensor, image2: Tensor) -> Tensor:
    """No flow, but it tells which two images it was given."""
    means = [float(image.mean()) for image in (image1, image2)]
    return torch.tensor(means).reshape(1, 2, 1, 1).expand(1, 2, *image1.shape[2:]) - 100


def test_sintels_folder_is_what_its_bundler_takes(tmp_path):
    root, written = layouts.write_sintel(tmp_path), []
    folder = write_sintel_submission(root, tmp_path / "out", brightness, on_pair=written.append)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    assert names == [
        f"{render}/{scene}_test/frame_000{number}.flo"
        for render in ("clean", "final")
        for scene in ("alley_1", "market_2")
        for number in (1, 2)
    ]
    assert sorted(written) == [folder / name for name in names]
    flow, valid = read_flow(folder / "final/market_2_test/frame_0002.flo")
    frames = [read_image(root / f"test/final/market_2_test/frame_000{number}.png") for number in (2, 3)]
    assert valid.all()
    assert torch.equal(flow, brightness(*frames)[0])


def test_an_interrupted_sintel_submission_goes_on(tmp_path):
    root, calls = layouts.write_sintel(tmp_path), []

    def counted(image1: Tensor, image2: Tensor) -> Tensor:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return brightness(image1, image2)

    with pytest.raises(KeyboardInterrupt):
        write_sintel_submission(root, tmp_path / "out", counted)
    again = []
    write_sintel_submission(root, tmp_path / "out", brightness, on_pair=again.append)
    assert len(again) == 8 - 3
    assert len(list((tmp_path / "out").rglob("*.flo"))) == 8


def test_one_pass_of_sintel_is_enough(tmp_path):
    folder = write_sintel_submission(layouts.write_sintel(tmp_path), tmp_path / "out", brightness, renders=("final",))
    assert [path.name for path in folder.iterdir()] == ["final"]


@pytest.mark.parametrize(("year", "place"), [(2012, ""), (2015, "flow/")])
def test_kittis_archive_is_what_its_server_takes(tmp_path, year, place):
    root, seen = layouts.write_kitti(tmp_path, year, pairs=3), []
    archive = write_kitti_submission(root, tmp_path / "new" / "a.zip", brightness, year=year, on_pair=seen.append)
    with zipfile.ZipFile(archive) as file:
        assert file.namelist() == [f"{place}00000{number}_10.png" for number in range(3)]
        pixels = cv2.imdecode(np.frombuffer(file.read(f"{place}000001_10.png"), np.uint8), cv2.IMREAD_UNCHANGED)
    assert [path.name for path in seen] == [f"00000{number}_10.png" for number in range(3)]
    expected = brightness(*(read_image(seen[1].with_name(f"000001_{frame}.png")) for frame in (10, 11)))[0]
    assert pixels.dtype == np.uint16
    assert (pixels[..., 0] == 1).all()  # blue: every pixel is estimated
    assert abs((pixels[..., 2].astype(float) - 2**15) / 64 - expected[0].numpy()).max() <= 1 / 128
    assert abs((pixels[..., 1].astype(float) - 2**15) / 64 - expected[1].numpy()).max() <= 1 / 128
    assert [path.name for path in archive.parent.iterdir()] == ["a.zip"]


def test_a_kitti_submission_clamps_what_its_format_cannot_hold(tmp_path):
    root = layouts.write_kitti(tmp_path)
    archive = write_kitti_submission(root, tmp_path / "a.zip", lambda a, b: a[:, :2] * 0 + 9000)
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    assert (read_flow(tmp_path / "flow/000000_10.png")[0] == 511.984375).all()


def test_a_failed_kitti_submission_leaves_the_old_archive(tmp_path):
    root, archive = layouts.write_kitti(tmp_path), tmp_path / "out" / "a.zip"
    before = write_kitti_submission(root, archive, brightness).read_bytes()

    def fails(image1: Tensor, image2: Tensor) -> Tensor:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        write_kitti_submission(root, archive, fails)
    assert archive.read_bytes() == before
    assert [path.name for path in archive.parent.iterdir()] == ["a.zip"]


@pytest.mark.parametrize(
    ("flow", "told"),
    [
        (torch.zeros(1, 2, 12, 16), r"a flow \(1, 2, 96, 128\) for .*frame_0001\.png, got \(1, 2, 12, 16\)"),
        (torch.full((1, 2, 96, 128), float("nan")), r"a finite flow for .*frame_0001\.png, got NaN or infinity"),
    ],
)
def test_what_is_no_flow_is_not_handed_in(tmp_path, flow, told):
    root = layouts.write_sintel(tmp_path)
    with pytest.raises(ValueError, match=f"Expected estimate to return {told}"):
        write_sintel_submission(root, tmp_path / "out", lambda image1, image2: flow)
    assert not (tmp_path / "out").exists()


def test_a_missing_test_part_is_told_before_anything_is_estimated(tmp_path):
    def never(image1: Tensor, image2: Tensor) -> Tensor:
        raise AssertionError

    sintel, kitti, out = layouts.write_sintel(tmp_path), layouts.write_kitti(tmp_path), tmp_path / "out"
    without(sintel, "test/final")
    with pytest.raises(
        FileNotFoundError, match=r"No folder at .*test.final: expected Sintel's test frames, a folder a"
    ):
        write_sintel_submission(sintel, out, never)
    without(sintel, "test/clean/market_2_test/frame_0002.png")
    with pytest.raises(FileNotFoundError, match=r"No file at .*market_2_test.frame_0002\.png: the test part is incom"):
        write_sintel_submission(sintel, out, never, renders=("clean",))
    without(kitti, "testing/image_2/000001_11.png")
    with pytest.raises(FileNotFoundError, match=r"No file at .*000001_11\.png: the test part is incomplete"):
        write_kitti_submission(kitti, out / "a.zip", never)
    without(kitti, "testing")
    with pytest.raises(FileNotFoundError, match=r"No folder at .*testing.image_2: expected KITTI 2015's test pictures"):
        write_kitti_submission(kitti, out / "a.zip", never)
    assert not out.exists()


def test_wrong_arguments_of_a_submission_are_told(tmp_path):
    with pytest.raises(ValueError, match="each render to be one of clean, final, got 'albedo'"):
        write_sintel_submission(tmp_path, Path("out"), brightness, renders=("albedo",))
    with pytest.raises(ValueError, match="year to be one of 2012, 2015, got '2014'"):
        write_kitti_submission(tmp_path, "a.zip", brightness, year=2014)
    with pytest.raises(ValueError, match=r"a path that ends in \.zip, got a\.tar"):
        write_kitti_submission(tmp_path, "a.tar", brightness)
