from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from deqflow.data.flow_files import write_image
from deqflow.data.synthetic import (
    PHOTOGRAPHS,
    RICH_SCENES,
    SceneConfig,
    SyntheticPairs,
    SyntheticVideo,
    Weather,
    photograph_files,
    random_shape,
    random_texture,
    textures,
)
from deqflow.data.synthetic.textures import random_colours, read_photograph

SMALL = SceneConfig(height=48, width=64)


@pytest.fixture
def own_photographs(tmp_path) -> Path:
    """Two pictures, one in a folder of its own, beside a file that is none."""
    (tmp_path / "more").mkdir()
    (tmp_path / "notes.txt").write_text("no picture")
    write_image(tmp_path / "red.png", np.full((40, 60, 3), [200, 10, 10], np.uint8))
    write_image(tmp_path / "more" / "wide.PNG", np.full((10, 1000, 3), [10, 10, 200], np.uint8))
    return tmp_path


def test_photographs_are_read_once_and_of_moderate_size():
    images = [read_photograph(path) for path in photograph_files()]
    assert all(image is read_photograph(path) for image, path in zip(images, photograph_files(), strict=True))
    assert len(images) == len(PHOTOGRAPHS) == len(set(PHOTOGRAPHS))
    for image in images:
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        assert max(image.shape) <= 800


def test_the_motorcycle_is_never_a_texture():
    files = photograph_files(("scikit-image",))
    assert tuple(file.name for file in files) == PHOTOGRAPHS
    assert not any("motorcycle" in file.name for file in files)


def test_packages_add_their_photographs():
    pytest.importorskip("matplotlib")
    names = [file.name for file in photograph_files(("scikit-image", "matplotlib"))]
    assert names == [*PHOTOGRAPHS, "grace_hopper.jpg"]
    assert read_photograph(photograph_files(("matplotlib",))[0]).shape[2] == 3


def test_scikit_learn_brings_two(tmp_path, monkeypatch):
    places = {"sklearn": tmp_path / "sklearn" / "__init__.py"}
    images = tmp_path / "sklearn" / "datasets" / "images"
    images.mkdir(parents=True)
    for name in ("china.jpg", "flower.jpg"):
        write_image(images / name, np.zeros((20, 20, 3), np.uint8))
    monkeypatch.setattr(textures, "find_spec", lambda name: SimpleNamespace(origin=str(places[name])))
    files = photograph_files.__wrapped__(("scikit-learn",))  # past the cache
    assert [file.name for file in files] == ["china.jpg", "flower.jpg"]
    (images / "flower.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"scikit-learn is expected to bring .*flower.jpg"):
        photograph_files.__wrapped__(("scikit-learn",))


@pytest.mark.parametrize("kind", [SyntheticPairs, SyntheticVideo])
def test_a_missing_package_is_named_and_changes_nothing_silently(kind, monkeypatch):
    monkeypatch.setattr(textures, "find_spec", lambda name: None)
    photograph_files.cache_clear()
    config = replace(SMALL, packages=("scikit-learn",))
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn, or leave it out"):
        kind(1, config=config)
    kind(1, config=replace(config, noise=1.0))  # needs none


def test_a_folder_of_ones_own(own_photographs):
    files = photograph_files((), str(own_photographs))
    assert [file.name for file in files] == ["wide.PNG", "red.png"]
    assert read_photograph(files[0]).shape == (8, 800, 3)
    config = replace(SMALL, packages=(), photographs=str(own_photographs), noise=0.0, photometric=0.0, plain=0.0)
    pair = SyntheticPairs(1, config=config)[0]
    assert set(np.unique(pair.image1.round())) - {10, 200} <= set(range(10, 201))
    assert (pair.image1.amax(0) >= 100).all()  # red or blue, whatever the order of the channels
    both = photograph_files(("scikit-image",), str(own_photographs))
    assert len(both) == len(PHOTOGRAPHS) + 2


def test_a_folder_must_be_there_and_hold_photographs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a folder of photographs, got .*nowhere"):
        SyntheticPairs(1, config=replace(SMALL, photographs=str(tmp_path / "nowhere")))
    with pytest.raises(FileNotFoundError, match="Expected photographs such as"):
        SyntheticPairs(1, config=replace(SMALL, photographs=str(tmp_path)))


def test_textures_come_from_somewhere():
    with pytest.raises(ValueError, match="packages or a folder of photographs to take textures from, got neither"):
        SceneConfig(packages=())
    SceneConfig(packages=(), noise=1.0)
    SceneConfig(packages=(), photographs="mine")


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
@pytest.mark.parametrize("name", ["noise", "tail", "fog"])
def test_shares_lie_between_0_and_1(name, share):
    with pytest.raises(ValueError, match=f"{name} as a share from 0 to 1, got"):
        SceneConfig(**{name: share})


def test_recolouring_changes_photographs_alone():
    config = replace(SMALL, noise=0.0, recolour=1.0)
    drawn = [random_texture(config, np.random.default_rng(seed)) for seed in range(20)]
    assert all(texture.colours.shape == (3, 4) for texture in drawn)
    assert len({texture.colours.tobytes() for texture in drawn}) == 20
    noise = [random_texture(replace(config, noise=1.0), np.random.default_rng(seed)) for seed in range(5)]
    assert all(texture.colours is None for texture in noise)


def test_hue_turns_about_the_greys():
    for seed in range(10):
        colours = random_colours(np.random.default_rng(seed))
        dark, light = (colours @ [grey, grey, grey, 1] for grey in (0.0, 100.0))
        slopes = (light - dark) / 100
        assert np.allclose(slopes, slopes[0])
        assert 0.3 < abs(slopes[0]) < 3


def test_holes_and_wires():
    def covered(seed: int, **options) -> int:
        config = SceneConfig(height=96, width=128, struts=0.0, **options)
        return int((random_shape(config, np.array([64.0, 48.0]), np.random.default_rng(seed)) > 127).sum())

    seeds = range(20)
    plain = [covered(seed) for seed in seeds]
    with_holes = [covered(seed, holes=1.0) for seed in seeds]
    wires = [covered(seed, wires=1.0) for seed in seeds]
    assert all(one <= other for one, other in zip(with_holes, plain, strict=True))
    assert sum(with_holes) < 0.97 * sum(plain)
    assert min(wires) > 0
    assert np.median(wires) < 0.15 * 96 * 128


def test_no_weather_draws_nothing_and_changes_nothing():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    weather = Weather.draw(SMALL, rng)
    assert rng.bit_generator.state == before
    frame = np.random.default_rng(1).uniform(0, 255, (48, 64, 3)).astype(np.float32)
    assert np.array_equal(weather.apply(frame, 1.0), frame)


@pytest.mark.parametrize("name", ["shading", "fog", "defocus"])
def test_weather_changes_pictures_and_differs_between_them(name):
    frame = np.random.default_rng(1).uniform(0, 255, (48, 64, 3)).astype(np.float32)
    for seed in range(10):
        weather = Weather.draw(replace(SMALL, **{name: 1.0}), np.random.default_rng(seed))
        one, other = weather.apply(frame, -1.0), weather.apply(frame, 1.0)
        assert one.dtype == np.float32
        assert 0 <= one.min() <= one.max() <= 255
        assert np.abs(one - frame).mean() > 1 < np.abs(other - frame).mean()
        assert 0 < np.abs(one - other).mean() < np.abs(one - frame).mean() + np.abs(other - frame).mean()
        if name != "shading":
            assert one.std() < frame.std()  # fog and defocus flatten


@pytest.mark.parametrize("name", ["shading", "fog", "defocus"])
def test_weather_leaves_the_truth_alone(name):
    clear = SyntheticPairs(2, seed=5, config=SMALL)[1]
    dim = SyntheticPairs(2, seed=5, config=replace(SMALL, **{name: 1.0}))[1]
    assert (clear.flow == dim.flow).all()
    assert (clear.occluded == dim.occluded).all()
    assert (clear.image1 - dim.image1).abs().mean() > 0.5


def test_the_preset_has_some_of_everything():
    shares = ("similarity", "projective", "nonrigid", "tail", "stereo", "holes", "wires", "recolour")
    assert all(getattr(RICH_SCENES, name) > 0 for name in (*shares, "motion_blur", "shading", "fog", "defocus"))
