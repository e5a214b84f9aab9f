"""The moving picture of README.md."""

from pathlib import Path

import animation
from PIL import Image

import deqflow
from deqflow.data.synthetic import SceneConfig, SyntheticPairs

ROOT = Path(__file__).parents[2]


def test_a_frame_for_each_of_the_evaluations_shown_and_only_the_flow_changes():
    pair = SyntheticPairs(1, config=SceneConfig(height=64, width=96))[0]
    frames = list(animation.frames(pair, deqflow.load("deqflow-small")))
    assert len(frames) == len(animation.SHOWN)
    assert {frame.size for frame in frames} == {(3 * 96, 64 + animation.CAPTION)}
    below = [frame.crop((0, animation.CAPTION, *frame.size)) for frame in (frames[0], frames[-1])]
    image, flow, truth = ([part.crop((x, 0, x + 96, 64)) for part in below] for x in (0, 96, 192))
    assert image[0] == image[1]
    assert truth[0] == truth[1]
    assert flow[0] != flow[1]


def test_the_picture_on_the_page_moves_and_is_small():
    name = animation.OUT.relative_to(ROOT).as_posix()
    assert f"]({name})" in (ROOT / "README.md").read_text()
    assert animation.OUT.stat().st_size < 1_000_000
    with Image.open(animation.OUT) as picture:
        assert picture.n_frames == len(animation.SHOWN)
