"""Commands about images that move: the flow of a pair, a video or many of them, and clips to try it on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from deqflow.commands.jobs import Job, join_processes, name_failures, share_out
from deqflow.commands.shared import PairProgress, load_model, refuse_overwriting, refuse_without_effect
from deqflow.commands.sources import Pair, find_films, is_collection, read_pairs, whole_output

if TYPE_CHECKING:
    from torch import Tensor

    from deqflow.model.estimator import FlowEstimator
    from deqflow.model.scales import ScaledOutput
    from deqflow.solvers import SolverResult, Stop
    from deqflow.video import Statistics

    Work = Callable[[FlowEstimator], object]

# The choices of deqflow.video and deqflow.data.synthetic, repeated here since help does without torch; a test holds
# that they agree.
Policy = Literal["reset", "reuse", "warp", "flow"]
Drawing = Literal["colors", "arrows", "side"]
FileFormat = Literal["flo", "pfm", "kitti", "flo5", "npy", "npz"]
Speed = Literal["slow", "ordinary", "fast"]

FINE = 0.2  # px; see verdict


@dataclass(frozen=True)
class Flow:
    """Estimate the flow between two images, or of a video, and write it.

    A list of pairs and a folder of films are worked off one after another, under accelerate launch by several
    processes: outputs that exist are skipped, and what failed is named at the end.

    Attributes:
        image1: path of the first image. Alone, it is the path of a video or of a folder of images; of a list of pairs
            (.txt), with two paths a line; or of a folder of films and of folders of images.
        image2: path of the second image, of the same size.
        out: where to write. For two images: the flow in colours (.png, .jpg), or as numbers (.flo, .pfm, .flo5, .npy,
            .npz); flow.png if not given. For a video: a film (.mp4, .avi), or a folder with one file a frame; flow.mp4
            if not given. For many pairs or films: a folder; flow if not given.
        files: format of the numbers, for two images and for the files in a folder; kitti is KITTI's 16-bit .png. If not
            given, it is that of the suffix of --out, and flo in a folder or for a list of pairs. A folder of films
            becomes a folder of films unless it is given.
        scales: factors by which the images are resized, one solve after another, each of which starts where the last
            one ended. "1 2" takes about four times as long, and finds edges and small motion far better.
        model: name of a shipped model, or path of a checkpoint: deqflow's own or a published one.
        device: where to run, such as cpu or cuda; auto takes a GPU where there is one.
        max_evals: budget of each pair in evaluations; the model's own if not given.
        atol: tolerance in px, how far one more evaluation would move the flow; the model's own if not given.
        largest: length in px that gets the full colour. If not given, the longest vector's, at least 2 px; for a video,
            1.5 times the 99th percentile of its first pair.
        key: add a key to the colours: a colour wheel, and the length that its rim stands for.
        policy: only for a video: what a solve starts from. "warp" is the last state moved along the flow; "reuse" the
            same with the hidden state left in place, as published; "flow" the moved flow alone, as RAFT does it;
            "reset" the model's own start. If not given, "flow" for recurrent models and "warp" for others.
        drawing: only for a film: what it shows; colors if not given.
        statistics: only for a video: where to write the numbers of each pair (.npz).
    """

    image1: tyro.conf.Positional[Path]
    image2: tyro.conf.Positional[Path | None] = None
    out: Path | None = None
    files: FileFormat | None = None
    scales: tuple[float, ...] = (1.0,)
    model: str = "deqflow-small"
    device: str = "auto"
    max_evals: int | None = None
    atol: float | None = None
    largest: float | None = None
    key: tyro.conf.FlagCreatePairsOff[bool] = False
    policy: Policy | None = None
    drawing: Drawing | None = None
    statistics: Path | None = None

    def __call__(self) -> int:
        """Run the command."""
        if self.largest is not None and not 0 < self.largest < float("inf"):
            raise ValueError(f"--largest expects a positive length in pixels, got {self.largest}.")
        self._check_solve()
        if self.image2 is not None:
            return self._pair(self.image2)
        if self.image1.suffix.lower() == ".txt" and self.image1.is_file():
            return self._pairs()
        return self._films() if is_collection(self.image1) else self._film()

    def _check_solve(self) -> None:
        """Raise now what would else be raised for each pair."""
        from deqflow.model.scales import check_scales
        from deqflow.solvers import Stop

        check_scales(self.scales)
        Stop().with_changes(max_evals=self.max_evals, atol=self.atol)

    def _pair(self, second: Path) -> int:
        import torch

        import deqflow

        refuse_without_effect(
            {"--policy": self.policy, "--drawing": self.drawing, "--statistics": self.statistics},
            "on two images, for it is for videos: leave it out",
        )
        out, numbers = self._target()
        refuse_overwriting(out, self.image1, second)
        image1, image2 = deqflow.read_image(self.image1), deqflow.read_image(second)
        estimator = load_model(self.model, self.device)
        found = self.estimate(estimator, image1, image2)
        flow = found.flow[0].cpu()
        lengths = torch.linalg.vector_norm(flow, dim=0)
        print(f"Motion: median {float(lengths.median()):.2f} px, longest {float(lengths.max()):.2f} px.")
        if numbers:
            print(f"Wrote {deqflow.write_flow(out, flow)}.")
        else:
            print(f"Wrote {out}: full colour is {self._write_colors(out, flow):.3g} px.")
        spent = " + ".join(str(int(output.solve.evals.max())) for output in found.outputs)
        spent += " evaluation." if spent == "1" else " evaluations."
        print(f"{spent} {verdict(found.outputs[-1].solve, recurrent=estimator.recurrent)}")
        return 0

    def estimate(self, estimator: "FlowEstimator", image1: "Tensor", image2: "Tensor") -> "ScaledOutput":
        """The flow of a pair, (1, 3, H, W) each, by the command's settings."""
        import torch

        import deqflow

        device = next(estimator.parameters()).device
        with torch.no_grad():
            return deqflow.estimate_at_scales(
                estimator, image1.to(device), image2.to(device), self.scales, stop=self.stop(estimator)
            )

    def _target(self) -> tuple[Path, bool]:
        """Where the flow of a pair goes, and whether as numbers. The one place that decides it."""
        from deqflow.data.flow_files import check_flow_path, holds_numbers
        from deqflow.video.filming import SUFFIXES

        if self.files is not None:
            suffix = SUFFIXES[self.files]
            out = self.out or Path("flow").with_suffix(suffix)
            if out.suffix.lower() != suffix:
                raise ValueError(
                    f"--files {self.files} writes a {suffix} file, got --out {out}: leave out one of them."
                )
        else:
            out = self.out or Path("flow.png")
        if out.is_dir():
            raise ValueError(f"--out {out} is a folder: name a file in it, such as {out / 'flow.png'}.")
        if self.files is not None:
            check_flow_path(out)
        numbers = self.files is not None or holds_numbers(out)
        if numbers:
            refuse_without_effect(
                {"--largest": self.largest, "--key": self.key},
                f"on numbers, for it is about colours: leave it out, or write an image instead of {out}",
            )
        return out, numbers

    def _write_colors(self, out: Path, flow: "Tensor") -> float:
        """Write the image, and return the length that has the full colour."""
        from deqflow.data.colors import add_key, color_scale, flow_to_rgb
        from deqflow.data.flow_files import write_image

        scale = self.largest or color_scale(flow)
        drawn = flow_to_rgb(flow, largest=scale)
        write_image(out, add_key(drawn, scale) if self.key else drawn)
        return scale

    def _film(self) -> int:
        from deqflow.data.flow_files import IMAGE_SUFFIXES

        if self.image1.suffix.lower() in IMAGE_SUFFIXES and not self.image1.is_dir():
            raise ValueError(
                f"flow expects two images, or one video or folder of images, got the one image {self.image1}: name the "
                "second image as well."
            )
        out = self.out or (Path("flow") if self.files else Path("flow.mp4"))
        if out.suffix:
            refuse_without_effect(
                {"--files": self.files}, f"on a film, for it is for folders: give --out a name without {out.suffix}"
            )
        else:
            refuse_without_effect(
                {"--drawing": self.drawing, "--largest": self.largest, "--key": self.key},
                f"on files of numbers: leave it out, or write a film instead of the folder {out}",
            )
        estimator = load_model(self.model, self.device)
        numbers, interrupted = self._film_flow(estimator, self.image1, out)
        pairs = len(numbers.rows)
        if pairs:
            cost = f"{numbers['evaluations'].mean():.1f} evaluations and {numbers['seconds'].mean():.2f} s a frame"
            print(f"{pairs} flow fields, {cost}; cuts: {int(numbers['cut'].sum())}.")
            print(f"{'Interrupted; what is done is in' if interrupted else 'Wrote'} {out}.")
        return 130 if interrupted else 0

    def _film_flow(
        self, estimator: "FlowEstimator", film: Path, out: Path, progress: bool = True
    ) -> "tuple[Statistics, bool]":
        from deqflow import video

        return video.film_flow(
            film,
            out,
            video.VideoFlow(estimator, policy=self.policy, stop=self.stop(estimator), scales=self.scales),
            drawing=self.drawing or "colors",
            files=self.files or "flo",
            largest=self.largest,
            key=self.key,
            statistics=self.statistics,
            progress=progress,
        )

    def _pairs(self) -> int:
        """Write a file of numbers for each pair of a list."""
        from deqflow.video.filming import SUFFIXES

        refuse_without_effect(
            {
                "--policy": self.policy,
                "--drawing": self.drawing,
                "--statistics": self.statistics,
                "--largest": self.largest,
                "--key": self.key,
            },
            "on a list of pairs, whose flow is written as numbers: leave it out",
        )
        out = self._folder("a list of pairs")
        pairs = read_pairs(self.image1, out, SUFFIXES[self.files or "flo"])
        jobs = {f"{pair.image1} {pair.image2}": (partial(self._write_pair, pair=pair), pair.out) for pair in pairs}
        return self._work_off(jobs, out, "pairs")

    def _write_pair(self, estimator: "FlowEstimator", pair: Pair) -> None:
        import deqflow
        from deqflow.solvers import Status

        found = self.estimate(estimator, deqflow.read_image(pair.image1), deqflow.read_image(pair.image2))
        solve = found.outputs[-1].solve
        if int(solve.status.max()) == Status.NON_FINITE:
            raise FloatingPointError(verdict(solve))
        deqflow.write_flow(pair.out, found.flow[0].cpu())

    def _films(self) -> int:
        """Write a film, or a folder of numbers, for each film in a folder."""
        from deqflow.data.writing import is_same_file

        refuse_without_effect(
            {"--statistics": self.statistics}, "on a folder of films, for it is for one video: leave it out"
        )
        if self.files:
            refuse_without_effect(
                {"--drawing": self.drawing, "--largest": self.largest, "--key": self.key},
                "on files of numbers: leave it out, or leave out --files to write films",
            )
        out = self._folder("a folder of films")
        if is_same_file(out, self.image1):
            raise ValueError(f"The flow of {self.image1} would go among its films: choose another --out.")
        films = find_films(self.image1, out, "" if self.files else ".mp4")
        jobs = {str(film): (partial(self._write_film, film=film, target=to), to) for film, to in films.items()}
        return self._work_off(jobs, out, "films")

    def _write_film(self, estimator: "FlowEstimator", film: Path, target: Path) -> None:
        from deqflow.video.reading import ShortVideoError

        with whole_output(target) as unfinished:
            try:
                _, interrupted = self._film_flow(estimator, film, unfinished, progress=False)
            except ShortVideoError as error:  # without the words on where a part of it is: a part is not kept
                raise error.__cause__ or error from None
            if interrupted:
                raise KeyboardInterrupt

    def _folder(self, what: str) -> Path:
        out = self.out or Path("flow")
        if out.suffix or out.is_file():
            raise ValueError(f"--out expects a folder for {what}, got {out}: give a name without a suffix.")
        return out

    def _work_off(
        self, jobs: "Mapping[str, tuple[Callable[[FlowEstimator], object], Path]]", out: Path, kind: str
    ) -> int:
        """Do the jobs whose outputs are not there, and say what became of all; jobs and outputs by name."""
        processes, device = join_processes(self.device)
        estimator = load_model(self.model, device)
        todo = [Job(name, partial(run, estimator), target.exists) for name, (run, target) in jobs.items()]
        of = f" in the first of {processes.count} processes" if processes.count > 1 else ""
        try:
            outcome = share_out(todo, processes, partial(PairProgress(), f"{self.image1}{of}", kind=kind))
        except KeyboardInterrupt:
            print(f"Interrupted; what is done is in {out}, and is skipped next time.")
            return 130
        if not processes.is_first:
            return int(bool(outcome.failed))
        earlier = f", {outcome.skipped} of them by an earlier run" if outcome.skipped else ""
        print(f"{len(todo) - len(outcome.failed)} of {len(todo)} {kind} are done{earlier}; their flow is in {out}.")
        return name_failures(outcome.failed, len(todo))

    def stop(self, estimator: "FlowEstimator") -> "Stop":
        """The budget and tolerance of each solve."""
        return estimator.equilibrium.eval_stop.with_changes(max_evals=self.max_evals, atol=self.atol)


def verdict(solve: "SolverResult", *, recurrent: bool = False) -> str:
    """What the end of a solve of one pair means, in pixels, and whether that is fine.

    On the pairs of docs/measured.md, the shipped model's error after 12 evaluations, where one more moves the flow by
    about 0.2 px, differs by at most 8 % from that after 96. So less than that is fine.

    Args:
        solve: of one pair; its residual is in pixels.
        recurrent: whether the model is a recurrent one, whose updates are not made to converge.
    """
    from deqflow.solvers import Status

    moved, status = float(solve.residual.max()), Status(int(solve.status.max()))
    move = f"One more would move the flow by {moved:.2g} px (root mean square)"
    if status == Status.NON_FINITE:
        return f"NaN or infinity came up, so the flow is not to be trusted. {status.advice}"
    if status == Status.CONVERGED:
        return f"{move}, within the tolerance of {solve.stop.atol:g} px: the flow has converged."
    if recurrent:
        return f"{move}: recurrent models do not converge, and that is no sign of how good the flow is."
    if moved <= FINE:
        return (
            f"{move}. That is more than the tolerance of {solve.stop.atol:g} px, but fine: more evaluations hardly "
            "change the error."
        )
    return (
        f"{move}. That is not fine: the flow has not converged. Raise --max-evals; if that does not help, the motion "
        "may be too large (begin with --scales 0.5 1), or the images may not fit each other."
    )


@dataclass(frozen=True)
class Clip:
    """Make a procedural video to try things on.

    Attributes:
        out: where to write (.mp4, .avi).
        frames: number of frames.
        speed: shapes move by 1, 4 or 12 px a frame.
        cuts: numbers of the frames that begin a new scene.
        height: of the frames, in px.
        width: of the frames, in px.
        seed: of the scene.
    """

    out: Path = Path("clip.mp4")
    frames: int = 48
    speed: Speed = "ordinary"
    cuts: tuple[int, ...] = ()
    height: int = 192
    width: int = 256
    seed: int = 5

    def __call__(self) -> int:
        """Run the command."""
        from deqflow import video
        from deqflow.data import synthetic

        config = synthetic.SceneConfig(height=self.height, width=self.width)
        clip = synthetic.SyntheticVideo(self.frames, seed=self.seed, config=config, speed=self.speed, cuts=self.cuts)
        with video.Movie(self.out) as movie:
            for i in range(self.frames):
                movie.add(clip[i].image.clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy())
        print(f"Wrote {self.out}.")
        return 0
