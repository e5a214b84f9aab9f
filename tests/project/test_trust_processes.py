"""Other processes: workers of a data loader, and a machine without network, GPU and display."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import deqflow
from deqflow.data.synthetic import SceneConfig, SyntheticPairs
from deqflow.solvers import Stop

ROOT = Path(__file__).parents[2]
ALONE = """
import sys

def refuse(event, arguments):
    if event.startswith("socket.") and event != "socket.__new__":
        raise OSError(f"this machine has no network: {event} {arguments}")

sys.addaudithook(refuse)
import torch
import deqflow, deqflow.evidence.experiments, deqflow.lab.plots, deqflow.training, deqflow.video

torch.set_num_threads(1)
image1, image2 = (deqflow.read_image(path) for path in sys.argv[1:3])
with torch.no_grad():
    output = deqflow.load("deqflow-small")(image1, image2, stop=deqflow.solvers.Stop(max_evals=4, atol=0.0))
deqflow.write_flow(sys.argv[3], output.flow[0])
deqflow.write_image(sys.argv[4], deqflow.data.colors.flow_to_rgb(output.flow[0]))
assert not torch.cuda.is_available()
"""


def test_without_network_gpu_and_display_another_process_gets_the_same_bits(tmp_path, generator):
    folder = tmp_path / "a folder with spaces, ü and 画"
    images = (255 * torch.rand(2, 40, 56, 3, generator=generator)).byte().numpy()
    paths = [deqflow.write_image(folder / f"bild {i} é.png", image) for i, image in enumerate(images)]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    results = [folder / "flow ß.flo", folder / "colours ß.png"]
    command = [sys.executable, "-c", ALONE, *map(str, [*paths, *results])]
    subprocess.run(command, env=environment, cwd=ROOT, check=True)
    with torch.no_grad():
        output = deqflow.load("deqflow-small")(*map(deqflow.read_image, paths), stop=Stop(max_evals=4, atol=0.0))
    assert torch.equal(deqflow.read_flow(results[0])[0], output.flow[0])
    assert deqflow.read_image(results[1]).shape == (1, 3, 40, 56)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_may_be_forked_or_spawned(method):
    if method not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    pairs = SyntheticPairs(2, seed=3, config=SceneConfig(height=32, width=40))
    loader = DataLoader(pairs, batch_size=None, num_workers=1, multiprocessing_context=method)
    for got, expected in zip(loader, pairs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
