"""Search for the data sets in a folder."""

from collections.abc import Callable
from pathlib import Path

from deqflow.data.datasets.benchmarks import HD1K, FlyingChairs, FlyingThings3D, Kitti, Middlebury, Sintel, Spring
from deqflow.data.datasets.files import ADVICE, FlowDataset, SetNotFoundError, one_of

# The names that a set's folder may have. Only letters and digits are compared, and case is ignored. Error messages
# suggest the first name.
FOLDERS: dict[str, tuple[str, ...]] = {
    "chairs": ("FlyingChairs", "FlyingChairs_release"),
    "things": ("FlyingThings3D", "FlyingThings"),
    "sintel": ("Sintel", "MPI-Sintel", "MPI-Sintel-complete"),
    "kitti-2012": ("KITTI-2012", "data_stereo_flow", "KITTI"),
    "kitti-2015": ("KITTI-2015", "data_scene_flow", "KITTI"),
    "hd1k": ("HD1K",),
    "spring": ("Spring",),
    "middlebury": ("Middlebury",),
}

# Name of a benchmark: its set, and how it is opened. Of FlyingChairs and FlyingThings3D, a part that is not trained on
# is opened.
BENCHMARKS: dict[str, tuple[str, Callable[[Path], FlowDataset]]] = {
    "chairs-validation": ("chairs", lambda root: FlyingChairs(root, "validation")),
    "chairs-samples": ("chairs", lambda root: FlyingChairs(root, "samples")),
    "things-clean": ("things", lambda root: FlyingThings3D(root, "test", render="clean")),
    "things-final": ("things", lambda root: FlyingThings3D(root, "test", render="final")),
    "sintel-clean": ("sintel", lambda root: Sintel(root, "clean")),
    "sintel-final": ("sintel", lambda root: Sintel(root, "final")),
    "sintel-albedo": ("sintel", lambda root: Sintel(root, "albedo")),
    "kitti-2012": ("kitti-2012", lambda root: Kitti(root, 2012)),
    "kitti-2015": ("kitti-2015", lambda root: Kitti(root, 2015)),
    "hd1k": ("hd1k", HD1K),
    "spring": ("spring", Spring),
    "middlebury": ("middlebury", Middlebury),
}


def set_folders(root: str | Path, name: str) -> list[Path]:
    """The folders of a set under a root, such as ``data/FlyingChairs_release`` for "chairs"; at least one.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the name is not that of a set.
    """
    one_of(name, tuple(FOLDERS), "the set")
    root, names = Path(root), [_plain(folder) for folder in FOLDERS[name]]
    folders = (path for path in root.iterdir() if path.is_dir()) if root.is_dir() else ()
    there = sorted(path for path in folders if not path.name.startswith("."))
    found = [path for wanted in names for path in there if _plain(path.name) == wanted]
    if not found:
        raise SetNotFoundError(f"No folder of the set {name} in {root}: expected {root / FOLDERS[name][0]}. {ADVICE}")
    return found


def open_set(root: str | Path, name: str, opened: Callable[[Path], FlowDataset]) -> FlowDataset:
    """Open a set in the first of its folders that holds the part that is asked for.

    Args:
        root: where the sets' folders lie, such as ``data``.
        name: the name of the set, a key of ``FOLDERS``.
        opened: the function that opens the set in a folder.

    Raises:
        FileNotFoundError: no folder holds that part, or a file of it is missing.
        ValueError: the name is not that of a set, or a split file is damaged.
    """
    told = []
    for folder in set_folders(root, name):
        try:
            return opened(folder)
        except SetNotFoundError as error:
            told.append(error)
    raise told[0]


def available_benchmarks(root: str | Path) -> dict[str, FlowDataset]:
    """Open every benchmark that is found under a root, by name, a key of ``BENCHMARKS``.

    Raises:
        FileNotFoundError: a benchmark is incomplete; the error message names the missing file.
        ValueError: a split file is damaged.
    """
    found = {}
    for name, (of_set, opened) in BENCHMARKS.items():
        try:
            found[name] = open_set(root, of_set, opened)
        except SetNotFoundError:
            continue
    return found


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
