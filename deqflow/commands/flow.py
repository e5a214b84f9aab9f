"""Commands about pictures that move: the flow of a pair or a video, and clips to try it on."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

import deqflow
from deqflow import video
from deqflow.commands.shared import load_model
from deqflow.data import synthetic
from deqflow.data.colors import flow_to_rgb
from deqflow.data.synthetic.videos import Speed


@dataclass(frozen=True)
class Flow:
    """Estimate the flow between two pictures, or of a video, and write it.

    Attributes:
        image1: path of the first picture; or, alone, of a video or a folder of pictures.
        image2: path of the second picture, of the same size.
        out: where to. Of two pictures: the flow in colours (.png, .jpg), or as numbers (.flo); flow.png if not given.
            Of a video: a film (.mp4, .avi), or a folder for a file a frame; flow.mp4 if not given.
        scales: factors to resize pictures by before estimation, one after another, each solve begun where
            the last one ended. "1 2" takes some four times as long, and tells edges and small motion far better.
        model: a shipped model's name, a checkpoint of deqflow's (.safetensors), or a published one (.pth).
        max_evals: budget in evaluations, of each pair; the model's own if not given.
        atol: tolerance, how far one more evaluation would move the flow, in px; the model's own if not given.
        largest: length in px that gets the full colour; the longest vector's if not given, of a video one and a half
            times its first pair's 99th percentile.
        policy: of a video, what a solve starts from: "warp", the last state moved along the flow; "reuse", the same
            with the hidden state left in place, as published; "flow", the moved flow alone, as RAFT does it; "reset",
            the model's own start. If not given, "flow" for recurrent models and "warp" for others.
        drawing: of a video, what the film shows.
        files: of a video, what goes into a folder.
        statistics: of a video, where to write the numbers of each pair (.npz).
    """

    image1: tyro.conf.Positional[Path]
    image2: tyro.conf.Positional[Path | None] = None
    out: Path | None = None
    scales: tuple[float, ...] = (1.0,)
    model: str = "deqflow-small"
    max_evals: int | None = None
    atol: float | None = None
    largest: float | None = None
    policy: video.Policy | None = None
    drawing: video.Drawing = "colors"
    files: video.FileFormat = "flo"
    statistics: Path | None = None

    def __call__(self) -> int:
        """Run the command."""
        estimator = load_model(self.model)
        stop = estimator.equilibrium.eval_stop
        if self.max_evals is not None:
            stop = replace(stop, max_evals=self.max_evals)
        if self.atol is not None:
            stop = replace(stop, atol=self.atol)
        if self.image2 is None:
            return self._film(video.VideoFlow(estimator, policy=self.policy, stop=stop, scales=self.scales))
        with torch.no_grad():
            image1, image2 = deqflow.read_image(self.image1), deqflow.read_image(self.image2)
            found = deqflow.estimate_at_scales(estimator, image1, image2, self.scales, stop=stop)
        flow, out = found.flow[0], self.out or Path("flow.png")
        if out.suffix == ".flo":
            deqflow.write_flow(out, flow)
        else:
            deqflow.write_image(out, flow_to_rgb(flow, largest=self.largest))
        lengths = torch.linalg.vector_norm(flow, dim=0)
        print(f"Motion: median {float(lengths.median()):.2f} px, longest {float(lengths.max()):.2f} px.")
        for scale, output in zip(self.scales, found.outputs, strict=True):
            print(f"Solver{f' at {scale:g}' if len(self.scales) > 1 else ''}: {output.solve.summary()}")
        print(f"Wrote {out}.")
        return 0

    def _film(self, flows: video.VideoFlow) -> int:
        out = self.out or Path("flow.mp4")
        numbers, interrupted = video.film_flow(
            self.image1,
            out,
            flows,
            drawing=self.drawing,
            files=self.files,
            largest=self.largest,
            statistics=self.statistics,
        )
        pairs = len(numbers.rows)
        if pairs:
            cost = f"{numbers['evaluations'].mean():.1f} evaluations and {numbers['seconds'].mean():.2f} s a frame"
            print(f"{pairs} flow fields, {cost}; cuts: {int(numbers['cut'].sum())}.")
            print(f"{'Interrupted; what is done is in' if interrupted else 'Wrote'} {out}.")
        return 130 if interrupted else 0


@dataclass(frozen=True)
class Clip:
    """Make a procedural video to try things on.

    Attributes:
        out: where to (.mp4, .avi).
        frames: how many.
        speed: shapes move by 1, 4 or 12 px a frame.
        cuts: frames that begin a new scene.
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
        config = synthetic.SceneConfig(height=self.height, width=self.width)
        clip = synthetic.SyntheticVideo(self.frames, seed=self.seed, config=config, speed=self.speed, cuts=self.cuts)
        with video.Movie(self.out) as movie:
            for i in range(self.frames):
                movie.add(clip[i].image.clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy())
        print(f"Wrote {self.out}.")
        return 0
