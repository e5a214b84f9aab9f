"""The effect of unusual images on the shipped model, as docs/trust.md describes it."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import deqflow
from deqflow.data.datasets import motorcycle
from deqflow.solvers import SolverError, Status, Stop


@pytest.fixture(scope="module")
def shipped() -> deqflow.FlowEstimator:
    return deqflow.load("deqflow-small")


@pytest.fixture(scope="module")
def photographs() -> tuple[Tensor, Tensor]:
    """A part of the motorcycle pair, (1, 3, 96, 128) each."""
    sample = motorcycle()
    return sample.image1[None, :, 200:296, 300:428], sample.image2[None, :, 200:296, 300:428]


def estimate(estimator, images, evals=3, **options) -> deqflow.FlowOutput:
    with torch.no_grad():
        return estimator(*images, stop=Stop(max_evals=evals, atol=0.02), **options)


def random_pair(generator, height=48, width=64) -> tuple[Tensor, Tensor]:
    return tuple(255 * torch.rand(2, 1, 3, height, width, generator=generator))


def test_a_megapixel_has_its_flow(shipped):
    sample = motorcycle()
    images = [torch.nn.functional.interpolate(image[None], (1000, 1001)) for image in sample[:2]]
    output = estimate(shipped, images, 1)
    assert output.flow.shape == (1, 2, 1000, 1001)
    assert torch.isfinite(output.flow).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_any_floating_point_precision_are_taken(shipped, photographs, dtype):
    expected = estimate(shipped, photographs).flow
    output = estimate(shipped, [image.to(dtype) for image in photographs])
    assert output.flow.dtype == torch.float32
    assert torch.equal(output.flow, expected)  # values of 0 to 255 are whole in each
    mixed = estimate(shipped, (photographs[0], photographs[1].to(dtype)))
    assert torch.equal(mixed.flow, expected)


def test_sixteen_bits_taken_for_eight_are_warned_of(shipped, photographs):
    with pytest.warns(UserWarning, match="largest value is .*: divide by 257 if they have 16 bits") as caught:
        estimate(shipped, [257 * image for image in photographs], 1)
    assert caught[0].filename == __file__


def test_channels_that_come_last_are_refused_with_advice(shipped, photographs):
    last = [image.movedim(1, -1) for image in photographs]
    with pytest.raises(ValueError, match=r"got \(1, 96, 128, 3\).*come last with image\.movedim\(-1, -3\)"):
        shipped(*last)
    assert estimate(shipped, [image.movedim(-1, -3) for image in last]).flow.shape == (1, 2, 96, 128)


@pytest.mark.claims
def test_red_and_blue_exchanged_cannot_be_seen_and_change_little(shipped, photographs):
    expected, flow = (estimate(shipped, [image.flip(1) if flip else image for image in photographs], 12).flow
                      for flip in (False, True))  # fmt: skip
    difference = torch.linalg.vector_norm(flow - expected, dim=1).mean()
    assert 0 < difference < 0.03 * torch.linalg.vector_norm(expected, dim=1).mean()


@pytest.mark.claims
def test_identical_frames_have_a_small_flow(shipped, photographs):
    output = estimate(shipped, (photographs[0], photographs[0].clone()), 40)
    assert torch.linalg.vector_norm(output.flow, dim=1).mean() < 0.1
    assert output.flow.abs().max() < 0.8
    assert output.solve.status.tolist() == [Status.CONVERGED]


@pytest.mark.claims
@pytest.mark.parametrize("grey", [0.0, 255.0])
def test_frames_without_texture_have_a_finite_flow_and_a_status(shipped, grey):
    output = estimate(shipped, 2 * [torch.full((1, 3, 48, 64), grey)], 40)
    assert output.flow.abs().max() < 2
    assert int(output.solve.status) in (Status.CONVERGED, Status.MAX_EVALS)


@pytest.mark.claims
def test_noise_has_a_finite_flow_and_an_honest_status(shipped, generator):
    output = estimate(shipped, random_pair(generator), 12)
    assert output.flow.abs().max() < 100
    assert output.solve.status.tolist() == [Status.MAX_EVALS]
    with pytest.raises(SolverError, match="0 of 1 samples converged"):
        output.solve.check()


def test_half_precision_gives_nearly_the_same_flow(shipped, photographs):
    images = [image[..., :48, :64] for image in photographs]
    expected = estimate(shipped, images).flow
    with torch.autocast("cpu", dtype=torch.float16):
        output = estimate(shipped, images)
    assert 0 < (output.flow - expected).abs().max() < 0.01 * expected.abs().max()


# A scaled weight whose result is too large for float16.
PLACES = {
    "encoder": "feature_encoder.head.weight",
    "update": "update.head.conv2.weight",
    "upsampling": "upsampler.mask.2.weight",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("recurrent", [False, True])
def test_what_overflows_in_half_precision_ends_with_status_and_warning(generator, place, recurrent):
    torch.manual_seed(0)
    estimator = deqflow.build(
        "mini" if place != "upsampling" else "tiny", recurrent=recurrent, weight_norm=False
    ).eval()
    estimator.get_parameter(PLACES[place]).data.mul_(1e7)
    images = random_pair(generator, 16, 16)
    told = "NaN or infinity came up in sample 0, .*use bfloat16 or float32 instead of float16"
    with torch.autocast("cpu", dtype=torch.float16), pytest.warns(UserWarning, match=told) as caught:
        output = estimate(estimator, images)
    assert [warning.filename for warning in caught] == [__file__]
    assert output.solve.status.tolist() == [Status.NON_FINITE]
    with pytest.raises(SolverError, match="NaN or infinity"):
        output.solve.check()


def test_two_threads_get_what_one_would(shipped, generator):
    pairs = [random_pair(generator, 40 + 8 * i, 56) for i in range(6)]
    expected = [estimate(shipped, pair, 6) for pair in pairs]
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        outputs = list(pool.map(lambda pair: estimate(shipped, pair, 6), pairs))
    for output, one in zip(outputs, expected, strict=True):
        assert torch.equal(output.flow, one.flow)
        assert torch.equal(output.solve.trace, one.solve.trace)
