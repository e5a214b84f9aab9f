import dataclasses

import numpy as np
import pytest
import torch

from deqflow.data.synthetic import Layer, Pose, SceneConfig, SyntheticPairs, Waves, out_of_frame, random_layers, render
from deqflow.data.synthetic.motions import STEEPEST, Region, random_disparity, random_motion, random_tilt, random_waves
from deqflow.data.synthetic.rendering import render_poses, streak, true_flow
from deqflow.model.geometry import warp

PURE = SceneConfig(height=96, width=128, photometric=0.0, motion_scales=(1.0,))
KINDS = [
    {"similarity": 1.0},
    {},  # affine
    {"projective": 1.0},
    {"nonrigid": 1.0},
    {"projective": 1.0, "nonrigid": 1.0},
    {"stereo": 1.0},
    {"tail": 1.0},
    {"holes": 1.0},
    {"wires": 1.0},
    {"recolour": 1.0},
]


def with_options(**options) -> SceneConfig:
    return dataclasses.replace(PURE, **options)


def random_pose(seed: int) -> Pose:
    rng = np.random.default_rng(seed)
    centre = np.array([64.0, 48.0])
    motion = random_motion(centre, 10.0, 1.0, 80.0, False, rng) @ random_tilt(centre, 1.0, 96, 128, rng)
    return Pose(motion, random_waves(1.0, 96, 128, rng))


@pytest.mark.parametrize("seed", range(8))
def test_a_pose_is_inverted(seed):
    pose = random_pose(seed)
    x, y = np.random.default_rng(seed).uniform(-40, 140, (2, 500))
    np.testing.assert_allclose(pose.invert(*pose.apply(x, y)), [x, y], atol=1e-5)
    assert np.abs(np.subtract(pose.apply(x, y), [x, y])).max() > 0.5


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("region", [Region(0, 0, 128, 96), Region(5, 3, 6, 4), Region(100, 50, 128, 57)])
def test_pixels_are_inverted_to_a_hundredth_of_a_pixel(seed, region):
    pose = random_pose(seed)
    y, x = np.mgrid[region.top : region.bottom, region.left : region.right].astype(float)
    got = pose.invert_region(region)
    assert got[0].dtype == np.float32
    np.testing.assert_allclose(got, pose.invert(x, y), atol=0.01)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_folds(seed):
    rng = np.random.default_rng(seed)
    waves = random_waves(5.0, 96, 128, rng)
    steepness = np.linalg.norm(waves.shifts, axis=1) @ np.linalg.norm(waves.vectors, axis=1)
    assert steepness <= STEEPEST + 1e-9
    tilt = random_tilt(np.array([64.0, 48.0]), 5.0, 96, 128, rng)
    corners = np.array([[0, 0, 1], [128, 0, 1], [0, 96, 1], [128, 96, 1]]).T
    assert (tilt @ corners)[2].min() > 0.5


def test_waves_are_the_sum_they_are_said_to_be():
    waves = Waves(np.array([[2.0, 0.0], [0.0, 3.0]]), np.array([[0.1, 0.0], [0.0, 0.2]]), np.array([0.0, np.pi / 2]))
    across, down = waves.displacement(np.array([5.0]), np.array([7.0]))
    np.testing.assert_allclose([across[0], down[0]], [2 * np.sin(0.5), 3 * np.cos(1.4)])


def test_a_tilt_keeps_its_centre():
    centre = np.array([30.0, 70.0])
    tilt = random_tilt(centre, 1.0, 96, 128, np.random.default_rng(0))
    np.testing.assert_allclose(Pose(tilt).apply(*centre), centre)
    assert not Pose(tilt).affine


def test_a_similarity_has_no_shear():
    rng = np.random.default_rng(0)
    for similarity in (0.0, 1.0):
        motions = [random_motion(np.zeros(2), 5.0, 1.0, 9.0, False, rng, similarity=similarity) for _ in range(20)]
        stretches = [np.linalg.svd(motion[:2, :2])[1] for motion in motions]
        assert np.allclose(*np.transpose(stretches)) == bool(similarity)


def test_a_heavy_tail_is_even_in_the_logarithm_up_to_the_largest():
    rng = np.random.default_rng(0)
    motions = [random_motion(np.zeros(2), 2.0, 1.0, 80.0, False, rng, tail=1.0) for _ in range(400)]
    lengths = np.array([np.hypot(*motion[:2, 2]) for motion in motions])
    assert 2 <= lengths.min() < lengths.max() <= 80
    assert abs(np.median(lengths) - np.sqrt(2 * 80)) < 3
    # Where the mean is beyond the largest there is no tail to draw from.
    motion = random_motion(np.zeros(2), 1e9, 1.0, 7.0, False, rng, tail=1.0)
    assert np.isclose(np.hypot(*motion[:2, 2]), 7)


def test_stereo_moves_along_the_rows_the_nearer_the_faster():
    config = with_options(stereo=1.0, objects=(5, 5), largest=30.0)
    middle = np.array([64.0, 48.0, 1.0])
    signs = set()
    for seed in range(12):
        layers = random_layers(config, np.random.default_rng(seed))
        assert all(np.array_equal(layer.motion[1:], np.eye(3)[1:]) for layer in layers)
        far, near = layers[0].motion @ middle - middle, layers[-1].motion
        near_flow = near[0, 0] * 64 + near[0, 1] * 48 + near[0, 2] - 64
        signs.add(np.sign(far[0]))
        assert abs(far[0]) <= 30 * 0.7 + 1e-9
        if abs(far[0]) > 2:
            assert abs(near_flow) > abs(far[0])
    assert signs == {-1, 1}


def test_a_slanted_plane_has_its_disparity_at_its_centre():
    centre = np.array([20.0, 30.0])
    motion = random_disparity(centre, -12.5, np.random.default_rng(0))
    np.testing.assert_allclose(motion @ [*centre, 1], [20 - 12.5, 30, 1])
    assert motion[0, 0] != 1
    assert motion[0, 1] != 0


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "+".join(kind) or "affine")
def test_the_true_flow_leads_to_the_same_colours(kind):
    pairs = SyntheticPairs(8, seed=2, config=with_options(**kind))
    true = still = 0.0
    for i in range(8):
        pair = pairs[i]
        visible = ~pair.occluded
        for flow in (pair.flow, torch.zeros_like(pair.flow)):
            error = (warp(pair.image2[None], flow[None])[0] - pair.image1).abs().mean(0)[visible].mean().item()
            true, still = (true + error, still) if flow is pair.flow else (true, still + error)
    assert 5 * true < still


@pytest.mark.parametrize("kind", KINDS[:6], ids=lambda kind: "+".join(kind) or "affine")
def test_the_flow_is_the_motion_of_the_topmost_layer_and_what_is_covered_is_hidden(kind):
    config = with_options(**kind)
    pair = SyntheticPairs(3, seed=4, config=config)[2]
    layers = random_layers(config, np.random.default_rng([4, 2]))
    ids1, ids2 = (render(layers, config, second=second)[1] for second in (False, True))
    outside = out_of_frame(pair.flow)
    assert len(np.unique(ids1)) > 2
    for row, column in np.random.default_rng(0).integers((96, 128), size=(300, 2)):
        pose = layers[ids1[row, column]].poses[1]
        x, y = (float(value) for value in pose.apply(np.array(float(column)), np.array(float(row))))
        np.testing.assert_allclose(pair.flow[:, row, column], [x - column, y - row], atol=1e-4)
        x, y = int(np.rint(x)), int(np.rint(y))
        inside = 0 <= x < 128 and 0 <= y < 96
        assert bool(outside[row, column]) is not inside
        assert bool(pair.occluded[row, column]) is not (inside and ids2[y, x] == ids1[row, column])
    assert not (outside & ~pair.occluded).any()


def test_a_bent_square_lies_where_its_pose_says():
    config = SceneConfig(height=64, width=80)
    shape = np.zeros((64 + 40, 80 + 40), np.uint8)
    shape[20 + 20 : 20 + 44, 20 + 20 : 20 + 50] = 255
    texture = np.full((8, 8, 3), 200, np.uint8)
    pose = Pose(
        np.array([[1.0, 0.1, 3.0], [0.0, 1.0, -2.0], [1e-3, 0.0, 1.0]]),
        Waves(np.array([[3.0, 2.0]]), np.array([[0.03, 0.08]]), np.array([1.0])),
    )
    layers = [
        Layer(texture // 2, np.eye(3), None, np.eye(3)),
        Layer(texture, np.eye(3), shape, pose.matrix, pose.waves),
    ]
    frame, ids = render(layers, config, second=True)
    y, x = np.mgrid[:64, :80].astype(float)
    x, y = pose.invert(x, y)
    inside = np.minimum.reduce([x - 19.5, 49.5 - x, y - 19.5, 43.5 - y])
    assert (inside > 0).sum() > 300
    assert (ids[inside > 0.3] == 1).all()
    assert (ids[inside < -0.3] == 0).all()
    assert (frame[inside > 1.0] == 200).all()
    assert (frame[inside < -1.0] == 100).all()


def test_what_is_out_of_sight_is_not_drawn():
    config = SceneConfig(height=32, width=32)
    texture, shape = np.full((8, 8, 3), 90, np.uint8), np.zeros((48, 48), np.uint8)
    far = np.array([[1.0, 0.0, 500.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    layers = [Layer(texture, np.eye(3), None, np.eye(3)), Layer(texture * 2, np.eye(3), shape, np.eye(3))]
    assert not render(layers, config, second=True)[1].any()  # nothing to draw
    shape[10:20, 10:20] = 255
    assert render(layers, config, second=True)[1].any()
    layers[1] = dataclasses.replace(layers[1], motion=far)
    assert not render(layers, config, second=True)[1].any()


@pytest.mark.parametrize("shape", [(4, 4), (1, 3, 4, 4), (3, 4, 4)])
def test_out_of_frame_expects_a_flow(shape):
    with pytest.raises(ValueError, match=r"shape \(..., 2, H, W\), got"):
        out_of_frame(torch.zeros(shape))


def test_out_of_frame_is_where_the_flow_ends_beyond_the_last_pixels():
    flow = torch.zeros(2, 2, 4, 5)
    flow[0, 0], flow[1, 1] = 1.4, -0.6
    outside = out_of_frame(flow)
    assert outside.shape == (2, 4, 5)
    assert outside[0].sum(0).tolist() == [0, 0, 0, 0, 4]
    assert outside[1].sum(1).tolist() == [5, 0, 0, 0]


def test_motion_blur_is_the_mean_over_the_exposure():
    config = SceneConfig(height=64, width=80, motion_blur=1.0, photometric=0.0)
    rng = np.random.default_rng(0)
    shape = np.zeros((104, 120), np.uint8)
    shape[40:70, 40:75] = 255
    textures = rng.integers(0, 256, (2, 100, 100, 3), dtype=np.uint8)
    move = np.array([[1.0, 0.0, 12.0], [0.0, 1.0, 6.0], [0.0, 0.0, 1.0]])
    layers = [
        Layer(textures[0], np.eye(3), None, np.eye(3), exposure=0.5),
        Layer(textures[1], np.eye(3), shape, move, exposure=0.5),
    ]
    blurred, ids = render(layers, config, second=False)
    sharp = []
    for time in np.linspace(-0.25, 0.25, 33):
        moved = np.eye(3)
        moved[:2, 2] = time * move[:2, 2]
        sharp.append(render_poses(layers, [Pose(np.eye(3)), Pose(moved)], [None, None], config)[0])
    still = sharp[16]
    assert np.abs(blurred - np.mean(sharp, 0)).mean() < 0.15 * np.abs(blurred - still).mean()
    assert np.array_equal(
        ids, render([dataclasses.replace(layer, exposure=0.0) for layer in layers], config, second=False)[1]
    )
    assert (true_flow(layers, ids, ids)[0][ids == 1] == [12, 6]).all()


def test_a_streak_is_centred_and_no_longer_than_it_may():
    def kernel(x: float, y: float, exposure: float = 1.0) -> np.ndarray | None:
        after = Pose(np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]]))
        return streak(Pose(np.eye(3)), after, None, PURE, exposure)

    assert kernel(0.6, 0.7) is None
    assert kernel(50.0, 0.0, exposure=0.0) is None
    for x, y in ((4.0, 0.0), (-3.0, 5.0), (0.0, 6.0), (200.0, -90.0)):
        streaks = kernel(x, y)
        rows, columns = np.mgrid[: streaks.shape[0], : streaks.shape[1]] - streaks.shape[0] // 2
        assert np.isclose(streaks.sum(), 1)
        assert np.allclose([(streaks * columns).sum(), (streaks * rows).sum()], 0, atol=1e-5)
        # A line of length l has a variance of l^2 / 12 along it; bilinear weights add a little.
        length = np.sqrt(12 * (streaks * (columns**2 + rows**2)).sum())
        assert abs(length - min(np.hypot(x, y), 10)) < 0.8
        assert streaks.shape[0] <= 11
