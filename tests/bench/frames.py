"""Ten thousand frames of a video in a loop: does the process grow?"""

import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import deqflow
from bench.setting import Row, device
from deqflow.evidence.costs import MIB
from deqflow.solvers import Stop
from deqflow.video import VideoFlow

STATM = Path("/proc/self/statm")  # Linux's


def drifting(count: int, height: int = 64, width: int = 80) -> Iterator[Tensor]:
    """Frames of a texture that goes to and fro by a pixel a frame, (1, 3, height, width) each."""
    generator = torch.Generator().manual_seed(0)
    texture = 255 * torch.rand(1, 3, height, width + 64, generator=generator)
    for i in range(count):
        left = abs(i % 128 - 64)
        yield texture[..., left : left + width].clone().to(device())


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def frames(count: int = 10_000, warm: int = 500) -> list[Row]:
    """Growth of the process after its first frames, and time; the shipped model, six evaluations a frame."""
    video = VideoFlow(deqflow.load("deqflow-small").to(device()), stop=Stop(max_evals=6, atol=0.0))
    before, started = 0, time.perf_counter()
    for number, _ in enumerate(video.run(drifting(count))):
        if number == warm:
            before = resident()
    seconds = time.perf_counter() - started
    growth = (resident() - before) / MIB
    size = f"{count} frames of 64x80"
    return [
        Row(quantity=f"{size}: growth of the process after the first {warm}", value=growth, unit="MiB", at_most=16.0),
        Row(quantity=f"{size}: frames", value=(count - 1) / seconds, unit="1/s"),
    ]
