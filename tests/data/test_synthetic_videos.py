from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from deqflow.data.synthetic import (
    RICH_SCENES,
    SceneConfig,
    SyntheticPairs,
    SyntheticVideo,
    VideoFrame,
    out_of_frame,
    videos,
)
from deqflow.model.geometry import warp

SMALL = SceneConfig(height=48, width=64)
RICH = replace(RICH_SCENES, height=48, width=64, packages=("scikit-image",))
# Smooth textures: what is left after warping is then the flow's error, not that of resampling.
PURE = SceneConfig(height=96, width=128, photometric=0.0, texture_step=(0.2, 0.4), projective=0.5, nonrigid=0.5)


def equal(one: tuple, other: tuple) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_frame_has_its_shapes_and_ranges():
    video = SyntheticVideo(3, config=SMALL)
    assert len(video) == 3
    frame = video[0]
    assert frame.image.shape == (3, 48, 64)
    assert 0 <= frame.image.min() < frame.image.max() <= 255
    assert frame.flow.shape == (2, 48, 64)
    assert frame.image.dtype == frame.flow.dtype == torch.float32
    for mask in frame[2:]:
        assert mask.shape == (48, 64)
        assert mask.dtype == torch.bool


@pytest.mark.parametrize("config", [SMALL, RICH], ids=["plain", "rich"])
def test_frames_depend_on_their_index_alone(config):
    frames = list(SyntheticVideo(6, seed=3, config=config, cuts=(2, 4)))
    again = SyntheticVideo(6, seed=3, config=config, cuts=(2, 4))
    for i in (5, 0, 3, 1, 4, 2, 0):
        assert equal(again[i], frames[i])
    other = SyntheticVideo(6, seed=4, config=config)[0]
    assert not torch.equal(other.image, frames[0].image)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_make_the_same_bits(workers):
    video = SyntheticVideo(6, seed=1, config=RICH, cuts=(3,))
    pairs = SyntheticPairs(6, seed=1, config=RICH)
    for items in (video, pairs):
        loader = DataLoader(items, None, num_workers=workers)
        assert all(equal(got, items[i]) for i, got in enumerate(loader))


# Where motion is under a pixel, the rounding of colours and the edges' mixed pixels are most of what warping leaves.
@pytest.mark.parametrize(("speed", "fold"), [("slow", 2.5), ("ordinary", 5), ("fast", 5)])
def test_the_flow_leads_to_the_next_frame(speed, fold):
    video = SyntheticVideo(20, seed=5, config=PURE, speed=speed, cuts=(5, 10, 15))
    true, still, aside = [], [], []
    for i in range(0, 20, 2):
        frame, following = video[i], video[min(i + 1, 19)]
        if not frame.valid.all():
            continue
        whole = warp(torch.ones(1, 1, 96, 128), frame.flow[None])[0, 0] > 0.999  # no neighbour out of the frame
        offset = torch.tensor([0.2, -0.2]).view(2, 1, 1)
        for flow, errors in ((frame.flow, true), (0 * frame.flow, still), (frame.flow + offset, aside)):
            error = (warp(following.image[None], flow[None])[0] - frame.image).abs().mean(0)
            errors.append(error[~frame.occluded & whole].mean().item())
    assert len(true) == 8
    assert fold * np.mean(true) < np.mean(still)
    assert 1.15 * np.mean(true) < np.mean(aside)


def test_motion_is_smooth():
    video = SyntheticVideo(12, seed=7, config=replace(PURE, objects=(0, 0)), speed="fast")
    flows = [video[i].flow for i in range(11)]
    steps = [(b - a).norm(dim=0).mean() / a.norm(dim=0).mean() for a, b in pairwise(flows)]
    assert 0 < max(steps) < 0.5


def test_no_flow_leads_over_a_cut():
    config = replace(SMALL, photometric=0.0)
    cut = list(SyntheticVideo(9, seed=2, config=config, cuts=(3, 6)))
    for i, frame in enumerate(cut):
        last = i in (2, 5, 8)
        assert frame.valid.all() == (not last)
        assert frame.valid.any() == (not last)
        if last:
            assert not frame.flow.any()
            assert not frame.occluded.any()
    changes = [(b.image - a.image).abs().mean().item() for a, b in pairwise(cut)]
    within = [change for i, change in enumerate(changes) if i not in (2, 5)]
    assert min(changes[2], changes[5]) > 2 * max(within)
    # Before its first cut a video is as it is without.
    uncut = SyntheticVideo(9, seed=2, config=config)
    assert equal(uncut[1], cut[1])
    assert torch.equal(uncut[2].image, cut[2].image)
    assert uncut[2].valid.all()


def test_masks_are_of_where_the_flow_ends():
    video = SyntheticVideo(6, seed=1, config=replace(SMALL, nonrigid=0.5), speed="fast")
    for i in range(5):
        frame = video[i]
        assert torch.equal(frame.out_of_frame, out_of_frame(frame.flow))
        assert not (frame.out_of_frame & ~frame.occluded).any()
    assert any((video[i].occluded & ~video[i].out_of_frame).any() for i in range(5))
    assert any(video[i].out_of_frame.any() for i in range(5))


def test_a_long_video_needs_no_more_than_a_short_one(monkeypatch):
    made = []
    scene = videos._Scene
    monkeypatch.setattr(videos, "_Scene", lambda *arguments: made.append(1) or scene(*arguments))
    video = SyntheticVideo(10**9, config=SMALL, cuts=range(1000, 10**6, 1000))
    frame = video[500_123]
    assert made == [1]  # not one for each scene before it
    assert torch.isfinite(frame.flow).all()
    video[500_124], video[999_999_999]
    assert made == [1, 1]


def test_layers_stay_in_the_picture():
    video = SyntheticVideo(10**6, seed=3, config=replace(SMALL, objects=(6, 6)), speed="fast")
    scene = video._scene(0)
    seen = [len(np.unique(scene.frame(time, np.random.default_rng(0))[1])) for time in range(0, 10**6, 33_333)]
    assert np.mean(seen) > 4
    assert np.mean(seen[20:]) > 3


@pytest.mark.parametrize("speed", videos.SPEEDS)
def test_shapes_move_as_fast_as_asked_for(speed):
    rng = np.random.default_rng(0)
    config, pace = SceneConfig(), videos.SPEEDS[speed]
    centre = np.array([128.0, 96.0])
    squares = []
    for _ in range(30):
        track = videos._Track.draw(config, centre, pace, rng)
        path = np.array([track.pose(time).matrix @ [*centre, 1] for time in range(0, 400)])
        path = path[:, :2] / path[:, 2:]
        squares.append((np.diff(path, axis=0) ** 2).sum(1).mean())
        assert np.abs(path - centre).max() < 0.36 * 256 * max(1.0, pace / 4)
    assert 0.8 < np.sqrt(np.mean(squares)) / pace < 1.2


def test_noise_is_new_in_every_frame_and_light_drifts():
    still = replace(SMALL, objects=(0, 0), photometric=1.0, noise=0.0)
    with_noise, without = (
        SyntheticVideo(3, seed=1, config=still),
        SyntheticVideo(3, seed=1, config=replace(still, photometric=0.0)),
    )
    changes = [with_noise[i].image - without[i].image for i in range(2)]
    assert (changes[0] - changes[1]).std() > 0.1
    assert torch.equal(with_noise[0].flow, without[0].flow)


@pytest.mark.parametrize("length", [0, -3])
def test_a_video_has_at_least_one_frame(length):
    with pytest.raises(ValueError, match=f"length of at least 1, got {length}"):
        SyntheticVideo(length)


@pytest.mark.parametrize("cuts", [(0,), (5,), (3, 2), (2, 2), (-1,)])
def test_cuts_are_in_order_and_inside(cuts):
    with pytest.raises(ValueError, match="cuts in order, from 1 to 4, got"):
        SyntheticVideo(5, cuts=cuts)


def test_speeds_have_names():
    with pytest.raises(ValueError, match="speed of slow, ordinary, fast, got 'quick'"):
        SyntheticVideo(5, speed="quick")


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_lies_within_the_video(index):
    video = SyntheticVideo(3, config=SMALL)
    with pytest.raises(IndexError, match=f"from 0 to 2, got {index}"):
        video[index]
    assert len(list(video)) == 3


def test_a_frame_is_a_named_tuple():
    assert VideoFrame._fields == ("image", "flow", "valid", "occluded", "out_of_frame")
