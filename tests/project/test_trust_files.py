"""Every writer of the package on a full disk and in a folder that is read-only: the file as it was, and no other."""

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deqflow
from deqflow.__main__ import main
from deqflow.data.submissions import write_kitti_submission
from deqflow.data.writing import whole, write_whole
from deqflow.evidence.results import save_results
from deqflow.training import TrainConfig, read_config
from deqflow.training.files import write_config
from deqflow.training.logs import write_row
from deqflow.training.states import save_state, write_tensors
from deqflow.video import Movie, read_frames

resource = pytest.importorskip("resource", reason="needs POSIX's limit on the size of files")

PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
FLOW = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
LONG = {f"epe_{k}": k / 7 for k in range(200)}
FILMS = (".mp4", ".mov", ".mkv", ".avi", ".webm")


def write_film(path: Path, count: int = 4) -> None:
    """Noise that moves, of which each frame takes some kB."""
    with Movie(path) as movie:
        for k in range(count):
            movie.add(np.roll(PICTURE, k, 1))


WRITERS: dict[str, Callable[[Path], object]] = {
    **{f"image{end}": lambda path: deqflow.write_image(path, PICTURE) for end in (".png", ".jpg", ".ppm", ".bmp")},
    **{f"flow{end}": lambda path: deqflow.write_flow(path, FLOW) for end in (".flo", ".pfm", ".kitti.png", ".flo5")},
    "model.safetensors": lambda path: deqflow.save(deqflow.build("mini"), path),
    "results.json": lambda path: save_results({"runs": [LONG]}, path),
    "config.yaml": lambda path: write_config(TrainConfig(), path),
    "log.csv": lambda path: write_row({"step": 1, **LONG}, path),
    "not-finite.pt": lambda path: write_tensors({"image1": torch.randn(3, 32, 32)}, path),
    "state-0000001.pt": lambda path: save_state({"weights": torch.randn(3, 32, 32)}, path.parent, 1),
    "page.html": lambda path: write_whole(path, "<p>" + 900 * "é"),
    **{f"film{end}": write_film for end in FILMS},
}  # fmt: skip


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process may grow beyond ``size`` bytes: who writes more gets half of it done, and an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("there_before", [True, False])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_nothing_half_written(tmp_path, name, there_before):
    path, write = tmp_path / name, WRITERS[name]
    write(path)
    size = path.stat().st_size
    if name == "log.csv" or not there_before:
        path.unlink()
    before = contents(tmp_path)
    for room in (size - 1, size // 2, 0):
        with (
            room_for(room),
            pytest.raises(OSError, match=rf"Writing .*{name} failed: check .* disk is not full \(.+\)"),
        ):
            write(path)
        assert contents(tmp_path) == before
    write(path)
    assert path.stat().st_size >= size - 64


@pytest.mark.parametrize("end", [".mp4", ".mkv", ".avi"])
@pytest.mark.parametrize("freed", [False, True])
def test_a_film_cut_off_on_its_way_is_told_also_if_room_comes_again(tmp_path, end, freed):
    path = tmp_path / f"film{end}"
    write_film(path)
    before = contents(tmp_path)

    def write() -> None:  # longer than the buffer of what writes the file, a quarter of a megabyte
        with Movie(path) as movie:
            with room_for(100_000):
                for k in range(300):
                    movie.add(np.roll(PICTURE, k, 1))
                if not freed:
                    movie.close()
            for k in range(10):
                movie.add(np.roll(PICTURE, k, 1))

    with pytest.raises(OSError, match=rf"Writing .*film{end} failed: .*only a part of the film was written"):
        write()
    assert contents(tmp_path) == before


def test_a_films_every_box_counts(tmp_path):
    path = tmp_path / "film.mp4"
    write_film(path)
    content = path.read_bytes()
    end = content.rindex(b"moov") - 4  # of what comes before, which fills the file if there is room for no more
    path.unlink()
    with room_for(end), pytest.raises(OSError, match="only a part of the film was written"):
        write_film(path)
    assert contents(tmp_path) == {}


def test_a_command_whose_film_does_not_fit_fails(tmp_path, capsys):
    out = tmp_path / "clip.mkv"
    with room_for(10_000):
        assert main(["clip", "--out", str(out), "--frames", "8", "--height", "96", "--width", "128"]) == 1
    said = capsys.readouterr()
    assert f"deqflow: Writing {out} failed: check" in said.err
    assert "Wrote" not in said.out
    assert contents(tmp_path) == {}


def test_ctrl_c_leaves_a_film_with_the_disk_nearly_full(tmp_path):
    path = tmp_path / "film.avi"
    write_film(path, 6)

    def write() -> None:
        with Movie(path) as movie:
            for k in range(5):
                movie.add(np.roll(PICTURE, k, 1))
            raise KeyboardInterrupt

    with room_for(path.stat().st_size), pytest.raises(KeyboardInterrupt):
        write()
    assert len(list(read_frames(path))) == 5


def test_a_full_disk_leaves_no_half_submission(tmp_path):
    root, archive = layouts.write_kitti(tmp_path / "kitti"), tmp_path / "out" / "a.zip"
    write_kitti_submission(root, archive, lambda image1, _: torch.zeros(1, 2, *image1.shape[2:]))
    before = contents(archive.parent)
    with room_for(len(before["a.zip"]) // 2), pytest.raises(OSError, match="File too large"):
        write_kitti_submission(root, archive, lambda image1, _: torch.zeros(1, 2, *image1.shape[2:]))
    assert contents(archive.parent) == before


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """This process can't write to a folder; as an administrator, whom modes don't stop, it is somebody else."""
    user = os.geteuid()
    for path in (*folder.iterdir(), folder):
        path.chmod(0o555)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


@pytest.mark.parametrize("name", WRITERS)
def test_a_read_only_folder_stays_as_it_is(name):
    told = rf"Writing .*{name} failed: check that its folder can be written to .*Permission denied"
    with tempfile.TemporaryDirectory() as folder:  # not pytest's, which nobody else may enter
        path, write = Path(folder) / name, WRITERS[name]
        write(path)
        before = contents(path.parent)
        with read_only(path.parent), pytest.raises(OSError, match=told):
            write(path)
        assert contents(path.parent) == before


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    path = write_whole(tmp_path / "a.txt", "old")

    def fails() -> None:
        with whole(path) as unfinished:
            assert unfinished.suffix == ".txt"
            unfinished.write_text("new")
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert contents(tmp_path) == {"a.txt": b"old"}


NAMES = st.sampled_from(
    ["steps", "lr", "size", "evals", "scenes", "preset", "crop", "step", "2001-13-01", "!!int 3", "?"]
)
PLAIN = ["3", "1e-4", "[1, 2]", "{height: 64}", "mini", "chairs", "null", "2001-13-01", 300 * "[", 5000 * "9", "*a"]
ODD = ["!!python/object/apply:os.mkdir [run]", "!!python/name:os.mkdir", "!!binary x", "\0", "\udcff", "{[1]: 2}"]
VALUES = st.sampled_from([*PLAIN, *ODD])
LINES = st.lists(st.tuples(NAMES, VALUES), max_size=4).map(lambda pairs: "\n".join(f"{k}: {v}" for k, v in pairs))


@settings(deadline=None, max_examples=60)
@given(st.one_of(st.binary(max_size=60), LINES.map(lambda text: text.encode(errors="surrogateescape"))))
def test_any_yaml_is_a_configuration_or_told_and_runs_nothing(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    try:
        config = read_config(path)
    except ValueError as error:
        assert str(error).startswith(str(path))  # noqa: PT017, either may come
    else:
        assert isinstance(config, TrainConfig)
    assert not Path("run").exists()
