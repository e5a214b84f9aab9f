import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from deqflow.data.datasets import FlowSample
from deqflow.data.synthetic import (
    Layer,
    SceneConfig,
    SyntheticPairs,
    change_light,
    make_pair,
    noise_texture,
    plain_texture,
    random_layers,
    random_motion,
    random_shape,
    random_texture,
    render,
    textures,
    true_flow,
)
from deqflow.data.synthetic.motions import chance
from deqflow.model.geometry import warp

SMALL = SceneConfig(height=48, width=64)
PURE = SceneConfig(height=96, width=128, photometric=0.0)


def equal(sample: FlowSample, other: FlowSample) -> bool:
    return all(torch.equal(a, b) for a, b in zip(sample, other, strict=True))


def shifted(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def hand_made_scene(background: tuple[float, float], square: tuple[float, float]) -> tuple[list[Layer], SceneConfig]:
    """A square of 8x8 px with its corner at (10, 10) before a background; both shift."""
    config = SceneConfig(height=32, width=40)
    margin = 10  # a quarter of the longer side
    shape = np.zeros((32 + 2 * margin, 40 + 2 * margin), np.uint8)
    shape[margin + 10 : margin + 18, margin + 10 : margin + 18] = 255
    textures = np.random.default_rng(0).integers(0, 256, (2, 100, 100, 3), dtype=np.uint8)
    to_texture = shifted(30, 30)
    return [
        Layer(textures[0], to_texture, None, shifted(*background)),
        Layer(textures[1], to_texture, shape, shifted(*square)),
    ], config


def rendered(layers: list[Layer], config: SceneConfig) -> tuple[np.ndarray, ...]:
    frame1, ids1 = render(layers, config, second=False)
    frame2, ids2 = render(layers, config, second=True)
    return frame1, ids1, frame2, ids2


def test_a_pair_has_its_shapes_and_ranges():
    pair = SyntheticPairs(1, config=SceneConfig(height=40, width=72))[0]
    for image in (pair.image1, pair.image2):
        assert image.shape == (3, 40, 72)
        assert image.dtype == torch.float32
        assert 0 <= image.min() < image.max() <= 255
    assert pair.flow.shape == (2, 40, 72)
    assert pair.flow.dtype == torch.float32
    assert pair.valid.shape == pair.occluded.shape == (40, 72)
    assert pair.valid.dtype == pair.occluded.dtype == torch.bool
    assert pair.valid.all()
    assert all(tensor.is_contiguous() for tensor in pair)


def test_an_item_depends_on_seed_and_index_alone():
    pairs = SyntheticPairs(6, seed=3, config=SMALL)
    forward = [pairs[i] for i in range(6)]
    np.random.seed(99)  # noqa: NPY002 (whoever seeds it, scenes must not care)
    torch.manual_seed(99)
    again = SyntheticPairs(60, seed=3, config=SMALL)
    for i in (5, 0, 3, 1, 4, 2, 0):
        assert equal(again[i], forward[i])


def test_scenes_leave_the_global_random_states_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    SyntheticPairs(1, config=SMALL)[0]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_make_the_same_bits_in_every_epoch(workers):
    pairs = SyntheticPairs(6, seed=1, config=SMALL)
    order = [4, 1, 5, 0, 2, 3]
    loader = DataLoader(pairs, 2, sampler=order, num_workers=workers)
    for _ in range(2 if workers else 1):
        batches = [FlowSample(*batch) for batch in loader]
        got = [FlowSample(*(tensor[i] for tensor in batch)) for batch in batches for i in range(2)]
        assert all(equal(sample, pairs[i]) for sample, i in zip(got, order, strict=True))


def test_no_two_scenes_are_alike():
    items = [SyntheticPairs(8, seed=seed, config=SMALL)[i] for seed in (0, 1, 2) for i in range(8)]
    for k, one in enumerate(items):
        for other in items[:k]:
            assert not torch.equal(one.image1, other.image1)
            assert not torch.equal(one.flow, other.flow)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_true_flow_leads_to_the_same_colours(seed):
    pairs = SyntheticPairs(10, seed=seed, config=PURE)

    def mean_difference(change) -> float:
        errors = []
        for i in range(len(pairs)):
            pair = pairs[i]
            error = (warp(pair.image2[None], change(pair.flow)[None])[0] - pair.image1).abs().mean(0)
            errors.append(error[~pair.occluded].mean().item())
        return float(np.mean(errors))

    true = mean_difference(lambda flow: flow)
    assert 5 * true < mean_difference(torch.zeros_like)
    # No convention is off by half a pixel: that would be seen.
    for offset in ((0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5)):
        assert true < 0.75 * mean_difference(lambda flow, offset=offset: flow + torch.tensor(offset).view(2, 1, 1))


@pytest.mark.parametrize("index", range(5))
def test_the_flow_of_a_background_alone_is_its_affine_motion(index):
    config = SceneConfig(height=48, width=64, objects=(0, 0))
    (background,) = random_layers(config, np.random.default_rng([7, index]))
    pair = SyntheticPairs(5, seed=7, config=config)[index]
    y, x = np.mgrid[:48, :64]
    (a, b, right), (c, d, down) = background.motion[:2]
    ends = np.stack([a * x + b * y + right, c * x + d * y + down])
    np.testing.assert_allclose(pair.flow.numpy(), ends - np.stack([x, y]), rtol=1e-6, atol=1e-5)
    # With one layer there is nothing to hide behind: hidden is what leaves the picture.
    columns, rows = np.rint(ends)
    outside = (columns < 0) | (columns > 63) | (rows < 0) | (rows > 47)
    assert np.array_equal(pair.occluded.numpy(), outside)


def test_a_shift_by_whole_pixels_moves_every_pixel_whole():
    layers, config = hand_made_scene((3, -2), (3, -2))
    frame1, ids1, frame2, ids2 = rendered(layers, config)
    assert np.array_equal(frame1[0, 0], layers[0].texture[30, 30])
    assert np.array_equal(frame2[:-2, 3:], frame1[2:, :-3])
    assert np.array_equal(ids2[:-2, 3:], ids1[2:, :-3])
    flow, occluded = true_flow(layers, ids1, ids2)
    assert (flow == [3, -2]).all()
    expected = np.zeros((32, 40), bool)
    expected[:2], expected[:, -3:] = True, True
    assert np.array_equal(occluded, expected)


def test_each_pixel_has_the_motion_of_the_topmost_layer():
    layers, config = hand_made_scene((0, 0), (6, 0))
    frame1, ids1, frame2, ids2 = rendered(layers, config)
    square = np.zeros((32, 40), bool)
    square[10:18, 10:18] = True
    assert np.array_equal(ids1 == 1, square)
    assert np.array_equal(ids2 == 1, np.roll(square, 6, 1))
    flow, occluded = true_flow(layers, ids1, ids2)
    assert (flow[square] == [6, 0]).all()
    assert (flow[~square] == 0).all()
    covered = np.roll(square, 6, 1) & ~square  # background that the square moves over
    assert np.array_equal(occluded, covered)
    ends = np.roll(frame2, -6, 1)
    assert np.array_equal(ends[square], frame1[square])
    assert np.array_equal(frame2[~square & ~covered], frame1[~square & ~covered])


def test_a_square_that_leaves_the_picture_is_occluded():
    layers, config = hand_made_scene((0, 0), (-14, 0))
    _, ids1, _, ids2 = rendered(layers, config)
    _, occluded = true_flow(layers, ids1, ids2)
    expected = np.zeros((32, 40), bool)
    expected[10:18, 10:14] = True  # these end at columns -4 to -1
    expected[10:18, :4] = True  # over these the rest comes to lie
    assert np.array_equal(occluded, expected)


def test_a_shape_comes_in_from_outside():
    layers, config = hand_made_scene((0, 0), (0, 0))
    margin_only = np.zeros_like(layers[1].shape)
    margin_only[20:28, :10] = 255  # left of the picture
    layers[1] = Layer(layers[1].texture, layers[1].to_texture, margin_only, shifted(10, 0))
    _, ids1, _, ids2 = rendered(layers, config)
    assert not ids1.any()
    assert np.array_equal(np.argwhere(ids2), [(row, column) for row in range(10, 18) for column in range(10)])


def test_nothing_comes_from_beyond_the_canvas():
    layers, config = hand_made_scene((0, 0), (0, 0))
    far_right = np.zeros_like(layers[1].shape)
    far_right[20:28, -10:] = 255
    layers[1] = Layer(layers[1].texture, layers[1].to_texture, far_right, shifted(15, 0))
    _, ids1, _, ids2 = rendered(layers, config)
    assert not ids1.any()
    assert not ids2.any()


@pytest.mark.parametrize(("opacity", "topmost"), [(0, 0), (127, 0), (128, 1), (255, 1)])
def test_an_edge_belongs_to_what_covers_more_of_it(opacity, topmost):
    layers, config = hand_made_scene((0, 0), (0, 0))
    layers[1].shape[layers[1].shape > 0] = opacity
    frame1, ids1, _, _ = rendered(layers, config)
    behind, before = (layer.texture[40:48, 40:48].astype(float) for layer in layers)
    np.testing.assert_allclose(frame1[10:18, 10:18], behind + opacity / 255 * (before - behind), atol=1e-3)
    assert (ids1[10:18, 10:18] == topmost).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_visible_pixels_end_on_their_own_layer(seed):
    shares = []
    for index in range(6):
        layers = random_layers(PURE, np.random.default_rng([seed, index]))
        _, ids1, _, ids2 = rendered(layers, PURE)
        pair = SyntheticPairs(6, seed=seed, config=PURE)[index]
        for row, column in np.random.default_rng(0).integers((96, 128), size=(400, 2)):
            motion = layers[ids1[row, column]].motion
            x, y, _ = motion @ [column, row, 1]
            assert np.allclose(pair.flow[:, row, column], [x - column, y - row], atol=1e-4)
            x, y = int(np.rint(x)), int(np.rint(y))
            inside = 0 <= x < 128 and 0 <= y < 96
            visible = inside and ids2[y, x] == ids1[row, column]
            assert bool(pair.occluded[row, column]) is not visible
        shares.append(pair.occluded.float().mean().item())
    assert 0.02 < np.mean(shares) < 0.5


def test_light_changes_the_pictures_but_not_the_truth():
    pure = SyntheticPairs(3, seed=5, config=SceneConfig(height=48, width=64, photometric=0.0))
    lit = SyntheticPairs(3, seed=5, config=SceneConfig(height=48, width=64, photometric=1.0))
    for i in range(3):
        assert torch.equal(pure[i].flow, lit[i].flow)
        assert torch.equal(pure[i].occluded, lit[i].occluded)
        assert (pure[i].image1 - lit[i].image1).abs().mean() > 1


def test_stronger_light_changes_more_and_stays_in_range():
    frames = np.random.default_rng(0).uniform(40, 200, (2, 24, 32, 3)).astype(np.float32)
    changes = []
    for strength in (1e-6, 0.1, 1.0, 5.0):
        runs = [change_light(*frames, strength, np.random.default_rng(seed)) for seed in range(20)]
        assert all(frame.dtype == np.float32 for run in runs for frame in run)
        assert all(frame.min() >= 0 and frame.max() <= 255 for run in runs for frame in run)
        changes.append(np.mean([np.abs(np.stack(run) - frames).mean() for run in runs]))
    assert changes[0] < 1e-2 < changes[1] < changes[2] < changes[3]


def test_displacements_are_cut_off():
    rng = np.random.default_rng(0)
    centre = np.array([20.0, 30.0])
    for sideways in (False, True):
        motion = random_motion(centre, 1e9, 1.0, 7.0, sideways, rng)
        moved = motion @ [*centre, 1] - [*centre, 1]
        assert np.isclose(np.linalg.norm(moved), 7.0)


def test_scales_multiply_all_motion():
    def mean_motion(scale: float) -> float:
        config = SceneConfig(height=48, width=64, motion_scales=(scale,))
        pairs = SyntheticPairs(12, config=config)
        return float(np.mean([torch.linalg.vector_norm(pairs[i].flow, dim=0).mean() for i in range(12)]))

    assert mean_motion(0.0) < 1e-4
    assert mean_motion(1.0) > 5
    assert 0.05 < mean_motion(0.1) / mean_motion(1.0) < 0.2


def test_sideways_scenes_move_sideways():
    def share(sideways: float) -> float:
        rng = np.random.default_rng(0)
        config = SceneConfig(height=48, width=64, sideways=sideways, objects=(0, 0))
        centre = np.array([32.0, 24.0, 1.0])
        moves = [(layers[0].motion @ centre - centre)[:2] for layers in (random_layers(config, rng) for _ in range(40))]
        return float(np.mean([abs(x) > 3 * abs(y) for x, y in moves]))

    assert share(1.0) == 1.0
    assert share(0.0) < 0.5


def test_scenes_have_as_many_objects_as_asked_for():
    rng = np.random.default_rng(0)
    config = SceneConfig(height=48, width=64, objects=(1, 3))
    scenes = [random_layers(config, rng) for _ in range(30)]
    assert {len(layers) - 1 for layers in scenes} == {1, 2, 3}
    for layers in scenes:
        assert layers[0].shape is None
        assert all(layer.shape.dtype == np.uint8 for layer in layers[1:])


def test_objects_move_against_the_camera():
    rng = np.random.default_rng(0)
    config = SceneConfig(height=48, width=64, motion_scales=(1.0,), motion=0.0, camera=200.0, largest=300.0)
    background, *objects = random_layers(config, rng)
    # With no motion of their own but a little turn and zoom, objects go where the camera takes them.
    centre = np.array([32.0, 24.0, 1.0])
    expected = background.motion @ centre
    assert np.linalg.norm(expected - centre) > 40
    assert all(np.linalg.norm(layer.motion @ centre - expected) < 25 for layer in objects)


def test_textures_step_through_their_pixels_as_asked_for():
    rng = np.random.default_rng(0)
    config = SceneConfig(texture_step=(0.5, 1.8))
    steps = [abs(np.linalg.det(random_texture(config, rng)[1][:2, :2])) ** 0.5 for _ in range(60)]
    assert 0.5 <= min(steps) < 0.7
    assert 1.4 < max(steps) <= 1.8


def test_noise_needs_no_photographs(monkeypatch):
    monkeypatch.setattr(textures, "read_photograph", lambda path: pytest.fail("a photograph was asked for"))
    make_pair(SceneConfig(height=48, width=64, noise=1.0), np.random.default_rng(0))


def test_a_plain_texture_has_one_colour_under_a_smooth_shading():
    def roughness(texture: np.ndarray) -> float:
        assert texture.dtype == np.uint8
        assert texture.shape == (256, 256, 3)
        return float(np.abs(np.diff(texture.astype(float), axis=1)).mean())

    for seed in range(5):
        rng = np.random.default_rng(seed)
        assert roughness(plain_texture(rng)) < 1.5 < 3 < roughness(noise_texture(rng))


def test_plain_shapes_come_as_often_as_asked_for(monkeypatch):
    drawn = []
    monkeypatch.setattr(textures, "plain_texture", lambda rng: drawn.append(1) or np.zeros((8, 8, 3), np.uint8))
    for share, number in ((0.0, 0), (1.0, 4)):
        drawn.clear()
        random_layers(SceneConfig(height=48, width=64, objects=(4, 4), plain=share), np.random.default_rng(0))
        assert len(drawn) == number  # never the background


def test_struts_are_thin_bars():
    def opaque(struts: float, seed: int) -> np.ndarray:
        config = SceneConfig(height=96, width=128, struts=struts)
        return random_shape(config, np.array([64.0, 48.0]), np.random.default_rng(seed)) > 127

    grown = 0
    for seed in range(12):
        without, with_struts = opaque(0.0, seed), opaque(1.0, seed)
        assert (with_struts | without == with_struts).all()
        grown += with_struts.sum() > without.sum()
    assert grown >= 8


def test_a_share_of_zero_draws_nothing():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert not chance(0.0, rng)
    assert rng.bit_generator.state == before
    assert chance(1.0, rng)
    assert rng.bit_generator.state != before


@pytest.mark.parametrize("size", [(15, 64), (64, 15), (0, 0), (-5, 64)])
def test_frames_must_not_be_too_small(size):
    with pytest.raises(ValueError, match=f"at least 16x16 px, got {size[1]}x{size[0]}"):
        SceneConfig(height=size[0], width=size[1])
    SceneConfig(height=16, width=16)


@pytest.mark.parametrize("objects", [(-1, 3), (4, 3), (-2, -1)])
def test_objects_are_least_and_greatest(objects):
    with pytest.raises(ValueError, match=r"objects as \(least, greatest\), got"):
        SceneConfig(objects=objects)


@pytest.mark.parametrize("length", [0, -1])
def test_a_set_has_at_least_one_pair(length):
    with pytest.raises(ValueError, match=f"length of at least 1, got {length}"):
        SyntheticPairs(length)


@pytest.mark.parametrize("index", [-1, 3, 100])
def test_an_index_lies_within_the_set(index):
    pairs = SyntheticPairs(3, config=SMALL)
    assert len(pairs) == 3
    with pytest.raises(IndexError, match=f"from 0 to 2, got {index}"):
        pairs[index]


def test_a_set_ends_when_it_is_walked_through():
    assert len(list(SyntheticPairs(3, config=SMALL))) == 3


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="hieght"):
        SceneConfig(hieght=48)


def test_the_smallest_frames_work():
    pair = SyntheticPairs(1, config=SceneConfig(height=16, width=16))[0]
    assert pair.flow.shape == (2, 16, 16)
    assert torch.isfinite(pair.flow).all()
