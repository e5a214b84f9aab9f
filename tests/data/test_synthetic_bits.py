"""The shipped weights were trained on pairs that a seed made: the same seed must go on making them."""

import hashlib
from dataclasses import fields

import cv2
import numpy as np
import pytest

from deqflow.data.synthetic import SceneConfig, SyntheticPairs, random_layers
from deqflow.training.recipes import RECIPES

CONFIGS = {
    "default": SceneConfig(),
    **{f"stage {number}": stage.scenes for number, stage in enumerate(RECIPES["deqflow-small"][:3], 1)},
    "small": SceneConfig(height=48, width=64, photometric=0.0),
    "stage 4": RECIPES["deqflow-small"][3].scenes,
}
# Of pairs 0, 1 and 7, by the generator that made the shipped weights' pairs: what their bits hash to, the mean of
# both pictures and of the flow's components, and the share that is occluded.
PAIRS = {
    ("default", 0): ("548146af7d32bf06", 15.6435, 15.2141, -1.7994, -0.1908, 0.0610),
    ("default", 1): ("34a026a159296660", 124.6388, 110.9210, 31.1580, -8.8618, 0.3926),
    ("default", 7): ("a453cd4022ceb517", 120.1898, 121.6607, -14.5189, 0.7470, 0.0913),
    ("stage 1", 0): ("fb0bdd82eec6f26f", 103.7316, 100.7783, 21.8045, 0.0000, 0.1483),
    ("stage 1", 1): ("4f8a868f2dd06315", 198.0058, 195.9352, -6.3168, 1.5096, 0.0422),
    ("stage 1", 7): ("6719686dca5a3c34", 117.9675, 126.1889, -22.9646, 27.2429, 0.3033),
    ("stage 2", 0): ("652909c699823f0e", 156.6053, 155.0927, 22.5583, 0.8786, 0.2017),
    ("stage 2", 1): ("19b782c63bc3805f", 114.8806, 112.2832, 0.1481, 0.4241, 0.0412),
    ("stage 2", 7): ("0b8983b50bf91f18", 154.6207, 148.8717, -0.2460, 7.4666, 0.0952),
    ("stage 3", 0): ("bcc5863e6ec64f84", 84.1559, 83.6348, -4.5662, 0.7086, 0.0699),
    ("stage 3", 1): ("edf69e3749ddb754", 147.3577, 142.3939, 0.8029, 11.5319, 0.3821),
    ("stage 3", 7): ("924f11ace8099cfb", 170.7589, 171.6104, -0.7478, -8.0739, 0.0566),
    ("small", 0): ("1697e1dbc3690ca0", 104.6001, 120.0548, 41.3085, 21.5344, 0.8444),
    ("small", 1): ("07830406182ef450", 136.2223, 136.2197, 4.1962, -0.1854, 0.2057),
    ("small", 7): ("551d9b60b4fdaf92", 133.1801, 132.0361, 4.1171, 3.1301, 0.1283),
    ("stage 4", 0): ("9feb3a30fe1091ea", 184.4452, 180.9988, -0.5576, 0.6565, 0.1985),
    ("stage 4", 1): ("3c5e49ed64cbc3e9", 108.0027, 107.7384, -0.4888, 1.1745, 0.0247),
    ("stage 4", 7): ("2047b36620e4cdfa", 127.5107, 124.8435, -0.3425, 0.1852, 0.0316),
}
# What this processor's arithmetic makes of fixed numbers. Another one rounds otherwise, and so makes other bits.
ARITHMETIC = "f3707b8f4a2e039c"


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
    single = numbers.random((192, 256, 3), dtype=np.float32) ** np.float32(1.1)
    powers = cv2.GaussianBlur(single, (0, 0), 0.7)
    return digest(warped, large, powers)


@pytest.mark.claims
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
