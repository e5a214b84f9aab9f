"""Lists of pairs and folders of films: what is in them, and the name of each output."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deqflow.commands.shared import refuse_overwriting

FILMS = {".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv"}


@dataclass(frozen=True)
class Pair:
    """Two images, and where their flow goes."""

    image1: Path
    image2: Path
    out: Path


def read_pairs(path: Path, out: Path, suffix: str) -> list[Pair]:
    """Read a list of pairs: two paths a line, and the output's name if wanted.

    They are separated by tabs, or by spaces if a line has no tab. Paths count from the working folder, the output's
    name from ``out``; if it is not given, it is the first image's path from the folder that is common to all of them.
    Empty lines and those that begin with # are left out.

    Raises:
        ValueError: a line has another form, no line is left, two pairs have one output, an output is an input or lies
            outside ``out``, or the file is not text.
        OSError: it can't be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # without a mark of Windows
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a list of pairs: expected text with two paths a line.") from error
    rows: list[tuple[int, list[str]]] = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            parts = [part.strip() for part in line.split("\t")] if "\t" in line else line.split()
            if len(parts) not in (2, 3) or not all(parts):
                raise ValueError(
                    f"{path}, line {number}: expected two paths, and the output's name if wanted, got {len(parts)} "
                    "parts: separate them by tabs if they contain spaces."
                )
            rows.append((number, parts))
    if not rows:
        raise ValueError(f"{path} names no pair: expected two paths a line.")
    common = Path(os.path.commonpath([Path(parts[0]).absolute().parent for _, parts in rows]))
    pairs: dict[Path, Pair] = {}
    for number, (first, second, *named) in rows:
        name = Path(named[0]) if named else Path(first).absolute().relative_to(common).with_suffix(suffix)
        target = Path(os.path.normpath(out / name))
        if not target.is_relative_to(os.path.normpath(out)):
            raise ValueError(f"{path}, line {number}: the output {name} lies outside {out}: name it from there.")
        if target.suffix.lower() != suffix:
            raise ValueError(f"{path}, line {number}: expected an output that ends in {suffix}, got {name}.")
        if target in pairs:
            raise ValueError(
                f"{path}, line {number}: the output {target} is another pair's too: give each a name of its own as "
                "the third entry of its line."
            )
        pairs[target] = Pair(Path(first), Path(second), target)
    _refuse_inputs(set(pairs), {image.resolve() for pair in pairs.values() for image in (pair.image1, pair.image2)})
    return list(pairs.values())


def _refuse_inputs(targets: set[Path], inputs: set[Path]) -> None:
    """Raise if an output is an input. Only outputs that exist are looked at: there may be many thousands."""
    for target in targets:
        if target.exists() and target.resolve() in inputs:
            refuse_overwriting(target, target.resolve())


def is_collection(folder: Path) -> bool:
    """Whether a path is a folder that has no images of its own, so that it is not one video."""
    from deqflow.data.flow_files import image_files

    return folder.is_dir() and not any(True for _ in image_files(folder))


def find_films(folder: Path, out: Path, suffix: str) -> dict[Path, Path]:
    """The films in a folder and in those below it, files and folders of images, with their outputs under ``out``.

    What lies under ``out`` is left out, as are names that begin with a dot.

    Args:
        folder: where to look.
        out: folder of the outputs, which lie in it as the films lie in ``folder``.
        suffix: of the outputs; empty if each is a folder.

    Raises:
        ValueError: there is no film, or two films have one output.
    """
    from deqflow.data.flow_files import image_files

    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and (here / name).resolve() != out.resolve()
        )
        found += [here / name for name in sorted(files) if Path(name).suffix.lower() in FILMS and name[0] != "."]
        if here != folder and len(list(image_files(here))) > 1:
            found.append(here)
    if not found:
        raise ValueError(f"No image, film or folder of images in {folder}: expected films such as .mp4, or images.")
    outputs: dict[Path, Path] = {}
    for film in found:
        relative = film.relative_to(folder)
        name = relative.name if film.is_dir() else relative.stem
        target = out / relative.parent / (name + suffix if suffix else name.replace(".", "_"))  # a dot means a film
        if target in outputs:
            raise ValueError(f"{outputs[target]} and {film} would have one output, {target}: rename one of them.")
        outputs[target] = film
    return {film: target for target, film in outputs.items()}


@contextmanager
def whole_output(target: Path) -> Iterator[Path]:
    """Yield a temporary name for a file or a folder; when the block ends, it is renamed to ``target``.

    If the block raises an error, what it wrote is removed. What a killed process left is removed too.
    """
    aside = target.with_name(f".{target.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside / target.name
        os.replace(aside / target.name, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
