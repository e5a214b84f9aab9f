"""What an evaluation that is under way has measured, a file a pair, so that a run that was killed goes on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deqflow.commands.shared import print_line

if TYPE_CHECKING:
    from deqflow.training import Processes


class PairRecords:
    """The records of pairs by set and index: in files where there is a folder, handed back in any case.

    Args:
        folder: of the files; None to keep none.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def beside(cls, out: Path | None, processes: "Processes", identity: Callable[[], dict[str, Any]]) -> "PairRecords":
        """Those in the folder beside a results file, .NAME.pairs (collective).

        Args:
            out: the results file; without one no record is kept.
            processes: of which the first one looks at the folder, and empties it if another evaluation left it.
            identity: of the evaluation, asked for in the first process.
        """
        folder = None if out is None else out.with_name(f".{out.stem}.pairs")
        if folder is not None and processes.is_first:
            _begin(folder, identity())
        processes.wait()
        return cls(folder)

    def make(self, name: str, index: int, measure: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
        """Measure a pair, keep its record and return it."""
        from deqflow.data.writing import write_whole

        record = measure(index)
        if (path := self._path(name, index)) is not None:
            write_whole(path, json.dumps(record))
        return record

    def exists(self, name: str, index: int) -> bool:
        """Whether a record is kept."""
        path = self._path(name, index)
        return path is not None and path.exists()

    def all_of(self, name: str, made: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
        """The records of a set in the order of its pairs: those ``made`` in this run, and those of earlier ones."""
        kept = {} if self.folder is None else {int(path.stem): path for path in (self.folder / name).glob("*.json")}
        return [made[i] if i in made else json.loads(kept[i].read_text()) for i in sorted({*made, *kept})]

    def remove(self) -> None:
        """Delete the files: the results are written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str, index: int) -> Path | None:
        return None if self.folder is None else self.folder / name / f"{index:06d}.json"


def _begin(folder: Path, identity: dict[str, Any]) -> None:
    """Keep a folder's records if they are of this evaluation, else begin anew."""
    from deqflow.data.writing import write_whole

    path, text = folder / "evaluation.json", json.dumps(identity, indent=1)
    if path.exists() and path.read_text() == text:
        return
    if path.exists():
        print_line(f"{folder} holds what another evaluation has measured, by other settings or code: beginning anew.")
    shutil.rmtree(folder, ignore_errors=True)
    write_whole(path, text)
