"""Names that begin with a dot are no images, wherever a folder is listed: macOS puts ``._x.png`` beside ``x.png``."""

import shutil
from pathlib import Path

import layouts
import numpy as np

import deqflow
from deqflow.data.datasets import available_benchmarks, set_folders
from deqflow.data.flow_files import image_files
from deqflow.data.synthetic import photograph_files
from deqflow.video import read_frames

IMAGE = np.full((20, 24, 3), 90, np.uint8)


def add_shadows(root: Path) -> int:
    """Put a ._NAME with other bytes beside every file, as macOS does on foreign disks; return how many."""
    files = [path for path in root.rglob("*") if path.is_file()]
    for path in files:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    return len(files)


def test_images_are_listed_without_hidden_ones(tmp_path):
    for name in ("b.png", "a.JPG", "sub/c.png", ".thumbnails/d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"any")
    (tmp_path / "folder.png").mkdir()
    assert add_shadows(tmp_path) == 5
    assert [path.name for path in image_files(tmp_path)] == ["a.JPG", "b.png"]
    assert [path.name for path in image_files(tmp_path, recursive=True)] == ["a.JPG", "b.png", "c.png"]


def test_a_hidden_folder_above_does_not_matter(tmp_path):
    folder = tmp_path / ".cache" / "images"
    deqflow.write_image(folder / "a.png", IMAGE)
    assert [path.name for path in image_files(folder)] == ["a.png"]
    assert [path.name for path in photograph_files((), str(folder))] == ["a.png"]


def test_frames_and_photographs_are_read_without_hidden_ones(tmp_path):
    for i in range(3):
        deqflow.write_image(tmp_path / f"{i}.png", IMAGE)
    add_shadows(tmp_path)
    assert len(list(read_frames(tmp_path))) == 3
    assert [path.name for path in photograph_files((), str(tmp_path))] == ["0.png", "1.png", "2.png"]


def test_published_sets_are_read_without_hidden_files(tmp_path):
    layouts.write_all(tmp_path)
    before = {name: [pair.flow for pair in pairs.files] for name, pairs in available_benchmarks(tmp_path).items()}
    assert len(before) > 8
    add_shadows(tmp_path)
    for folder in list(tmp_path.iterdir()):
        if folder.is_dir():
            shutil.copytree(folder, folder.with_name(f".{folder.name}"))
    after = {name: [pair.flow for pair in pairs.files] for name, pairs in available_benchmarks(tmp_path).items()}
    assert after == before


def test_hidden_folders_are_not_sets(tmp_path):
    (tmp_path / ".Sintel").mkdir()
    (tmp_path / "Sintel").mkdir()
    assert set_folders(tmp_path, "sintel") == [tmp_path / "Sintel"]
