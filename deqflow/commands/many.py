"""The flow of a list of pairs and of a folder of films, which several processes may share."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deqflow.commands.jobs import Job, join_processes, name_failures, share_out
from deqflow.commands.shared import PairProgress, load_model, refuse_without_effect
from deqflow.commands.sources import Pair, find_films, read_pairs, whole_output

if TYPE_CHECKING:
    from deqflow.commands.flow import Flow
    from deqflow.model.estimator import FlowEstimator


def flow_of_pairs(command: "Flow") -> int:
    """Write a file of numbers for each pair of a list.

    Raises:
        ValueError, OSError: an option has no effect, or the list is not one, see :func:`read_pairs`.
    """
    from deqflow.video.filming import SUFFIXES

    refuse_without_effect(
        {
            "--policy": command.policy,
            "--drawing": command.drawing,
            "--statistics": command.statistics,
            "--largest": command.largest,
            "--key": command.key,
        },
        "on a list of pairs, whose flow is written as numbers: leave it out",
    )
    out = _folder(command, "a list of pairs")
    pairs = read_pairs(command.image1, out, SUFFIXES[command.files or "flo"])

    def jobs(estimator: "FlowEstimator", _: bool) -> list[Job]:
        return [
            Job(
                f"{pair.image1} {pair.image2}", lambda pair=pair: _write_pair(command, estimator, pair), pair.out.exists
            )
            for pair in pairs
        ]

    return _work_off(command, out, jobs, "pairs")


def _write_pair(command: "Flow", estimator: "FlowEstimator", pair: Pair) -> None:
    import deqflow
    from deqflow.commands.flow import verdict
    from deqflow.solvers import Status

    found = command.estimate(estimator, deqflow.read_image(pair.image1), deqflow.read_image(pair.image2))
    solve = found.outputs[-1].solve
    if int(solve.status.max()) == Status.NON_FINITE:
        raise FloatingPointError(verdict(solve))
    deqflow.write_flow(pair.out, found.flow[0].cpu())


def flow_of_films(command: "Flow") -> int:
    """Write a film, or a folder of numbers, for each film in a folder.

    Raises:
        ValueError: an option has no effect, or there is no film, see :func:`find_films`.
    """
    from deqflow.data.writing import is_same_file

    refuse_without_effect(
        {"--statistics": command.statistics}, "on a folder of films, for it is for one video: leave it out"
    )
    if command.files:
        refuse_without_effect(
            {"--drawing": command.drawing, "--largest": command.largest, "--key": command.key},
            "on files of numbers: leave it out, or leave out --files to write films",
        )
    out = _folder(command, "a folder of films")
    if is_same_file(out, command.image1):
        raise ValueError(f"The flow of {command.image1} would go among its films: choose another --out.")
    films = find_films(command.image1, out, "" if command.files else ".mp4")

    def jobs(estimator: "FlowEstimator", alone: bool) -> list[Job]:
        return [
            Job(str(film), lambda film=film, to=to: _write_film(command, estimator, film, to, alone), to.exists)
            for film, to in films.items()
        ]

    return _work_off(command, out, jobs, "films")


def _write_film(command: "Flow", estimator: "FlowEstimator", film: Path, target: Path, progress: bool) -> None:
    from deqflow import video
    from deqflow.video.reading import ShortVideoError

    flows = video.VideoFlow(estimator, policy=command.policy, stop=command.stop(estimator), scales=command.scales)
    with whole_output(target) as unfinished:
        try:
            _, interrupted = video.film_flow(
                film,
                unfinished,
                flows,
                drawing=command.drawing or "colors",
                files=command.files or "flo",
                largest=command.largest,
                key=command.key,
                progress=progress,
            )
        except ShortVideoError as error:  # without the words on where a part of it is: a part is not kept
            raise error.__cause__ or error from None
        if interrupted:
            raise KeyboardInterrupt


def _folder(command: "Flow", what: str) -> Path:
    out = command.out or Path("flow")
    if out.suffix or out.is_file():
        raise ValueError(f"--out expects a folder for {what}, got {out}: give a name without a suffix.")
    return out


def _work_off(command: "Flow", out: Path, jobs: "Callable[[FlowEstimator, bool], Sequence[Job]]", kind: str) -> int:
    processes, device = join_processes(command.device)
    estimator = load_model(command.model, device)
    progress = PairProgress()

    def say(done: int, total: int) -> None:
        of = f" in the first of {processes.count} processes" if processes.count > 1 else ""
        progress(f"{command.image1}{of}", done, total, kind)

    todo = jobs(estimator, processes.count == 1 and kind == "films")
    try:
        outcome = share_out(todo, processes, say)
    except KeyboardInterrupt:
        print(f"Interrupted; what is done is in {out}, and is skipped next time.")
        return 130
    if not processes.is_first:
        return 1 if outcome.failed else 0
    earlier = f", {outcome.skipped} of them by an earlier run" if outcome.skipped else ""
    print(f"{len(todo) - len(outcome.failed)} of {len(todo)} {kind} are done{earlier}; their flow is in {out}.")
    return name_failures(outcome.failed, len(todo))
