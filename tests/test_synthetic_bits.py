"""The shipped weights were trained on pairs that a seed made: the same seed must go on making them."""

import hashlib
from dataclasses import fields

import cv2
import numpy as np
import pytest

from deqflow.synthetic import SceneConfig, SyntheticPairs, random_layers

CONFIGS = {
    "default": SceneConfig(),
    "first": SceneConfig(plain=0.0, struts=0.0),
    "third": SceneConfig(objects=(3, 12), texture_step=(0.5, 1.8), motion_scales=(0.1, 0.4, 1.0, 1.0, 1.0)),
    "small": SceneConfig(height=48, width=64, photometric=0.0),
}
# Of pairs 0, 1 and 7, by the generator that made the shipped weights' pairs: what their bits hash to, the mean of
# both pictures and of the flow's components, and the share that is occluded.
PAIRS = {
    ("default", 0): ("6b38405217985f8e", 15.6419, 12.4066, -1.7994, -0.1908, 0.0610),
    ("default", 1): ("f55141f4d3f291ca", 124.6489, 129.3523, 31.1580, -8.8618, 0.3926),
    ("default", 7): ("037635ae765711d3", 120.1819, 129.0588, -14.5189, 0.7470, 0.0913),
    ("first", 0): ("85c3c761cc65f52b", 99.1856, 85.9392, -0.0140, -0.1357, 0.0354),
    ("first", 1): ("814f236c918c1843", 22.6836, 17.3038, 13.8374, 19.5187, 0.1887),
    ("first", 7): ("504fb0c6187fd0a7", 136.7598, 126.5004, -19.2905, 27.9413, 0.2517),
    ("third", 0): ("8232e5ba3866a590", 89.5901, 81.5645, 4.5614, 0.7702, 0.2121),
    ("third", 1): ("82b6c5792cf6af4b", 86.9171, 80.9661, 2.6386, 0.2982, 0.1021),
    ("third", 7): ("d377d2e802bce87a", 145.9854, 145.9689, 1.0556, 0.6864, 0.1325),
    ("small", 0): ("b568ee9eeb293fce", 97.1605, 97.7231, 23.8603, -0.9521, 0.4150),
    ("small", 1): ("81ec9bd8da00d02d", 99.5210, 96.9613, -11.2429, 5.3333, 0.2926),
    ("small", 7): ("fb69a177a5f9d4f2", 46.7003, 31.1427, -4.7745, -0.1753, 0.3900),
}
# What this processor's arithmetic makes of fixed numbers. Another one rounds otherwise, and so makes other bits.
ARITHMETIC = "cf09f1d9623c2404"


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[:16]


def arithmetic() -> str:
    """A hash of what scenes are computed with: warps, cubic enlargement, blur, powers."""
    numbers = np.random.default_rng(0)
    image = numbers.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    matrix = np.array([[0.8, -0.3, 20.0], [0.25, 0.9, 5.0]])
    warped = cv2.warpAffine(image, matrix, (256, 192), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    coarse = numbers.standard_normal((8, 8, 3)).astype(np.float32)
    large = cv2.resize(coarse, (256, 256), interpolation=cv2.INTER_CUBIC)
    powers = cv2.GaussianBlur(numbers.random((192, 256, 3)) ** np.exp(0.1), (0, 0), 0.7)
    return digest(warped, large, powers)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("index", [0, 1, 7])
def test_todays_pairs_are_those_that_the_shipped_weights_were_trained_on(name, index):
    seed = list(CONFIGS).index(name)
    pair = SyntheticPairs(8, seed=seed, config=CONFIGS[name])[index]
    expected, *numbers = PAIRS[name, index]
    got = [pair.image1.mean(), pair.image2.mean(), *pair.flow.mean((1, 2)), pair.occluded.float().mean()]
    np.testing.assert_allclose(got, numbers, rtol=2e-3, atol=2e-3)
    if arithmetic() == ARITHMETIC:
        assert digest(*(tensor.numpy() for tensor in pair)) == expected


def test_later_options_draw_nothing_unless_they_are_asked_for():
    later = [field.name for field in fields(SceneConfig)]
    later = later[later.index("similarity") : later.index("packages")]
    assert len(later) == 12
    for name in later:
        drawn = [np.random.default_rng(5), np.random.default_rng(5)]
        for share, rng in zip((0.0, 1.0), drawn, strict=True):
            config = SceneConfig(height=32, width=32, **{name: share})
            assert getattr(SceneConfig(), name) == 0
            random_layers(config, rng)
        untouched = name in ("shading", "fog", "defocus")  # drawn after the layers
        assert (drawn[0].random() == drawn[1].random()) == untouched, name
