import math

import pytest
import torch

import deqflow
from deqflow.model.mixture import components, expected_error
from deqflow.model.sizes import SIZES
from deqflow.solvers import Stop


def pair(height=30, width=44, batch=2):
    generator = torch.Generator().manual_seed(0)
    image1 = 255 * torch.rand(batch, 3, height, width, generator=generator)
    return image1, image1.roll((1, 2), (2, 3))


def made(size="mini", **options):
    torch.manual_seed(0)
    return deqflow.build(size, mixture=True, **options)


@pytest.mark.parametrize("size", ["tiny", "small", "mini", "sea-s"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_a_mixture_comes_with_each_correction(size, recurrent):
    estimator = made(size, recurrent=recurrent, train_evals=3, corrections=None if recurrent else 2)
    output = estimator(*pair())
    assert len(output.mixtures) == len(output.flows) == (3 if recurrent else 2)
    assert output.mixture is output.mixtures[-1]
    assert output.mixture.shape == (2, 4, 30, 44)
    output.mixture.square().sum().backward()
    head = estimator.update.head if SIZES[size].update == "sea" else estimator.mixture_head
    assert all(parameter.grad.abs().max() > 0 for parameter in head.parameters())


@pytest.mark.parametrize("size", ["mini", "small"])
def test_it_is_the_heads_output_upsampled_as_the_flow_is(size):
    estimator = made(size).eval()
    with torch.no_grad():
        output = estimator(*pair(32, 40), stop=Stop(max_evals=2, atol=0.0))
        coarse = estimator.mixture_head(output.state.hidden)
        # Two channels of the mixture in the place of the flow, in pixels as small as they are.
        for half in (slice(0, 2), slice(2, 4)):
            state = deqflow.FlowState(output.state.hidden, coarse[:, half] / 8)
            torch.testing.assert_close(estimator.upsample(state), output.mixture[:, half])


def test_the_mixture_changes_no_flow_and_needs_no_evaluation(generator):
    estimator = made().eval()
    torch.manual_seed(0)
    plain = deqflow.build("mini").eval()
    plain.load_state_dict({k: v for k, v in estimator.state_dict().items() if not k.startswith("mixture_head.")})
    with torch.no_grad():
        with_mixture, without = estimator(*pair()), plain(*pair())
    torch.testing.assert_close(with_mixture.flow, without.flow)
    assert torch.equal(with_mixture.solve.evals, without.solve.evals)
    assert without.mixture is None
    assert without.mixtures == ()
    assert without.expected_error is None


def test_checkpointed_updates_give_the_same_gradients():
    gradients = []
    for kept in (False, True):
        estimator = made(train_evals=2)
        estimator.checkpoint_updates = kept
        output = estimator(*pair())
        (output.flow.sum() + output.mixture.square().sum()).backward()
        gradients.append([parameter.grad for parameter in estimator.parameters()])
    torch.testing.assert_close(*gradients)


def test_the_expected_error_is_the_mean_of_the_distribution():
    # By hand: weights 1/4 and 3/4; the first component's scale e^1 px, the second's 1 px whatever its number says.
    mixture = torch.tensor([0.0, math.log(3.0), 1.0, -7.0]).view(1, 4, 1, 1)
    assert float(expected_error(mixture)) == pytest.approx(0.25 * math.e + 0.75)
    # A log scale counts between 0 and 10.
    assert float(expected_error(torch.tensor([9.0, -99.0, -3.0, 5.0]).view(1, 4, 1, 1))) == pytest.approx(1.0)
    assert float(expected_error(torch.tensor([9.0, -99.0, 30.0, 5.0]).view(1, 4, 1, 1))) == pytest.approx(math.exp(10))
    # And by integration of the density.
    mixture = torch.tensor([0.3, -0.2, 1.2, 0.0], dtype=torch.float64).view(1, 4, 1, 1)
    error = torch.linspace(-200, 200, 400_001, dtype=torch.float64)
    weights, scales = (part.exp().view(2, 1) for part in components(mixture))
    density = (weights / (2 * scales) * (-error.abs() / scales).exp()).sum(0)
    assert float(torch.trapezoid(density, error)) == pytest.approx(1.0, abs=1e-6)
    assert float(expected_error(mixture)) == pytest.approx(
        float(torch.trapezoid(density * error.abs(), error)), abs=1e-6
    )


def test_at_another_scale_the_expected_error_is_in_pixels_of_the_images_given():
    estimator = made().eval()
    with torch.no_grad():
        scaled = deqflow.estimate_at_scales(estimator, *pair(), scales=(1.0, 2.0))
        once = deqflow.flow(*pair(), model=estimator, scales=(1.0,))
    output, fine = scaled.output, scaled.outputs[-1]
    assert output.mixture.shape == (2, 4, 30, 44)
    assert fine.mixture.shape == (2, 4, 60, 88)
    half = expected_error(output.mixture) / 2
    torch.testing.assert_close(output.expected_error, half)
    assert float(half.mean()) == pytest.approx(float(fine.expected_error.mean()) / 2, rel=0.1)
    torch.testing.assert_close(once.expected_error, expected_error(once.mixture))


def test_a_sample_that_is_not_finite_has_no_expected_error():
    estimator = made().eval()
    image1, image2 = pair()
    image1[1, 0, 3, 4] = torch.nan
    with torch.no_grad(), pytest.warns(UserWarning, match="sample 1"):
        output = estimator(image1, image2)
    assert torch.isfinite(output.expected_error[0]).all()
    assert torch.isnan(output.expected_error[1]).all()


def test_a_checkpoint_brings_the_head_back(tmp_path):
    estimator = made().eval()
    loaded = deqflow.load(deqflow.save(estimator, tmp_path / "model.safetensors"))
    assert loaded.config.mixture
    with torch.no_grad():
        assert torch.equal(loaded(*pair()).mixture, estimator(*pair()).mixture)
