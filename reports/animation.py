"""The moving picture of README.md: the flow of a pair after each evaluation, until the solve converges.

Run it again after a change of the shipped weights: ``.venv/bin/python reports/animation.py``.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import deqflow
from deqflow.data.colors import flow_to_rgb
from deqflow.data.datasets import FlowSample
from deqflow.data.metrics import mean_endpoint_error
from deqflow.data.writing import whole
from deqflow.evidence.evaluation import procedural_pairs

OUT = Path(__file__).parents[1] / "docs" / "converging.webp"
EVALUATIONS = 40
SHOWN = (*range(1, 13), 14, 16, 20, 24, 32, 40)  # the flow moves less and less
MILLISECONDS, LAST_MILLISECONDS = 350, 2500  # that a frame stays
CAPTION = 26  # height in pixels
PAIR = 21  # which of the held-out procedural pairs


@torch.no_grad()
def frames(pair: FlowSample, estimator: deqflow.FlowEstimator) -> Iterator[Image.Image]:
    """Image, flow after some evaluations, and true flow side by side: one frame for each of ``SHOWN``."""
    problem = estimator.problem(*(estimator.encode(image[None]) for image in (pair.image1, pair.image2)))
    largest = float(torch.quantile(torch.linalg.vector_norm(pair.flow[:, pair.valid], dim=0), 0.99))
    photo = pair.image1.permute(1, 2, 0).clamp(0, 255).byte().numpy()
    truth = flow_to_rgb(torch.where(pair.valid, pair.flow, torch.nan), largest=largest)
    z = problem.z0
    for number in range(1, EVALUATIONS + 1):
        before, z = z, problem.f(z)
        if number in SHOWN:
            flow = problem.flow(z)
            moved = float(problem.residual(z - before))
            error = float(mean_endpoint_error(flow, pair.flow[None], pair.valid[None]))
            texts = ("first image", f"evaluation {number}: moves {moved:.2f} px", f"true flow (error {error:.2f} px)")
            yield captioned(np.hstack((photo, flow_to_rgb(flow[0], largest=largest), truth)), texts)


def captioned(pixels: np.ndarray, texts: tuple[str, ...]) -> Image.Image:
    """Tiles of equal width, (H, W, 3), with a line of text above each."""
    height, width = pixels.shape[:2]
    frame = Image.new("RGB", (width, height + CAPTION), "white")
    frame.paste(Image.fromarray(pixels), (0, CAPTION))
    draw = ImageDraw.Draw(frame)
    for i, text in enumerate(texts):
        draw.text((width * i // len(texts) + 6, 5), text, fill="black", font=ImageFont.load_default(14))
    return frame


def main(out: str | Path = OUT) -> None:
    """Write the picture."""
    first, *others = frames(procedural_pairs(PAIR + 1)[PAIR], deqflow.load("deqflow-small"))
    durations = [MILLISECONDS] * len(others) + [LAST_MILLISECONDS]
    with whole(out) as path:
        first.save(path, save_all=True, append_images=others, duration=durations, loop=0, quality=80, method=6)
    print(f"{out}: {1 + len(others)} frames, {Path(out).stat().st_size / 1000:.0f} KB.")


if __name__ == "__main__":
    main(*sys.argv[1:])
