import math

import pytest
import torch

from deqflow.training.losses import correction_loss, jacobian_penalty, mixture_loss


def flows(generator, count=3, batch=2, height=4, width=5, dtype=torch.float64):
    return [3 * torch.randn(batch, 2, height, width, generator=generator, dtype=dtype) for _ in range(count)]


def everywhere(target):
    return torch.ones_like(target[:, 0], dtype=torch.bool)


def slow_loss(predictions, target, valid, gamma, largest):
    """The published loss, pixel by pixel."""
    total = 0.0
    for i, flow in enumerate(predictions):
        errors = []
        for b, y, x in torch.cartesian_prod(*(torch.arange(n) for n in valid.shape)).tolist():
            u, v = target[b, :, y, x].tolist()
            counts = bool(valid[b, y, x]) and (u**2 + v**2) ** 0.5 < largest
            errors += [abs(float(flow[b, c, y, x] - target[b, c, y, x])) if counts else 0.0 for c in (0, 1)]
        total += gamma ** (len(predictions) - 1 - i) * sum(errors) / len(errors)
    return total


@pytest.mark.parametrize("gamma", [0.8, 1.0, 0.5])
@pytest.mark.parametrize("largest", [400.0, 3.0])
@pytest.mark.parametrize("count", [1, 3])
def test_the_loss_equals_its_formula(generator, gamma, largest, count):
    target, *predictions = flows(generator, count + 1)
    valid = torch.rand(target[:, 0].shape, generator=generator) < 0.7
    got = correction_loss(predictions, target, valid, gamma=gamma, largest=largest)
    assert got.shape == ()
    assert float(got) == pytest.approx(slow_loss(predictions, target, valid, gamma, largest), rel=1e-12)


def test_without_options_it_is_the_published_one(generator):
    target, *predictions = flows(generator, 4)
    got = correction_loss(predictions, target, everywhere(target))
    expected = sum(0.8**k * (flow - target).abs().mean() for k, flow in zip((2, 1, 0), predictions, strict=True))
    torch.testing.assert_close(got, expected)


def test_later_corrections_weigh_more(generator):
    target = torch.zeros(1, 2, 3, 4)
    right, wrong, valid = target, target + 1, everywhere(target)
    losses = [
        float(correction_loss([wrong if i == late else right for i in range(3)], target, valid)) for late in range(3)
    ]
    assert losses == pytest.approx([0.64, 0.8, 1.0])


def slow_mixture_loss(predictions, mixtures, target, valid, gamma, largest):
    """SEA-RAFT's loss from the density of the distribution, pixel by pixel."""
    total = 0.0
    for i, (flow, mixture) in enumerate(zip(predictions, mixtures, strict=True)):
        losses = []
        for b, y, x in torch.cartesian_prod(*(torch.arange(n) for n in valid.shape)).tolist():
            u, v = target[b, :, y, x].tolist()
            if not (bool(valid[b, y, x]) and (u**2 + v**2) ** 0.5 < largest):
                continue
            first, second, log_scale, _ = mixture[b, :, y, x].tolist()
            share = math.exp(first) / (math.exp(first) + math.exp(second))
            scale = math.exp(min(max(log_scale, 0.0), 10.0))
            for c in (0, 1):
                error = abs(float(flow[b, c, y, x] - target[b, c, y, x]))
                density = share * math.exp(-error / scale) / (2 * scale) + (1 - share) * math.exp(-error) / 2
                losses.append(-math.log(density))
        total += gamma ** (len(predictions) - 1 - i) * sum(losses) / max(len(losses), 1)
    return total


@pytest.mark.parametrize("gamma", [0.85, 1.0])
@pytest.mark.parametrize("largest", [400.0, 3.0])
@pytest.mark.parametrize("count", [1, 3])
def test_the_mixture_loss_equals_its_density(generator, gamma, largest, count):
    target, *predictions = flows(generator, count + 1)
    mixtures = [
        4 * torch.randn(2, 4, 4, 5, generator=generator, dtype=torch.float64) for _ in predictions
    ]  # log scales on both sides of 0 and some past 10
    mixtures[0][0, 2, 0] = 12.0
    valid = torch.rand(target[:, 0].shape, generator=generator) < 0.7
    got = mixture_loss(predictions, mixtures, target, valid, gamma=gamma, largest=largest)
    assert got.shape == ()
    assert float(got) == pytest.approx(
        slow_mixture_loss(predictions, mixtures, target, valid, gamma, largest), rel=1e-9
    )
    if gamma == 0.85:
        assert torch.equal(got, mixture_loss(predictions, mixtures, target, valid, largest=largest))


def test_the_mixture_loss_has_finite_gradients_whatever_is_unknown(generator):
    target, flow = flows(generator, 2)
    mixture = torch.randn(2, 4, 4, 5, generator=generator, dtype=torch.float64).requires_grad_()
    flow.requires_grad_()
    valid = everywhere(target)
    target[0, :, 1, 2], valid[0, 1, 2] = torch.nan, False
    mixture_loss([flow], [mixture], target, valid).backward()
    for tensor in (flow, mixture):
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad[0, :, 1, 2].abs().max() == 0
    assert mixture.grad[:, 3].abs().max() == 0  # the second component's scale is 1 px, whatever its number says
    nothing = mixture_loss([flow], [mixture], target, torch.zeros_like(valid))
    assert float(nothing.detach()) == 0.0


def test_the_mixture_loss_wants_a_mixture_for_each_prediction(generator):
    target, flow = flows(generator, 2)
    with pytest.raises(
        ValueError, match="a mixture for each of 1 predictions, got 0: build the model with mixture=True"
    ):
        mixture_loss([flow], [], target, everywhere(target))


def test_the_right_flow_costs_nothing(generator):
    target = flows(generator, 1)[0]
    assert float(correction_loss([target, target], target, everywhere(target))) == 0.0


def test_a_target_as_long_as_the_largest_does_not_count():
    target = torch.zeros(1, 2, 1, 4)
    target[0, :, 0, 1] = torch.tensor([299.0, 0.0])
    target[0, :, 0, 2] = torch.tensor([240.0, 320.0])  # 400 long, though no component is
    target[0, :, 0, 3] = torch.tensor([-1e9, 0.0])
    flow = (target + 1).requires_grad_()
    loss = correction_loss([flow], target, everywhere(target))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(4 / 8)
    assert flow.grad[0, 0, 0].tolist() == [1 / 8, 1 / 8, 0, 0]


@pytest.mark.parametrize("unknown", [torch.nan, torch.inf, -1e10])
def test_an_unknown_target_may_be_anything(generator, unknown):
    target, first, second = flows(generator, 3)
    valid = torch.rand(target[:, 0].shape, generator=generator) < 0.5
    predictions = [first.requires_grad_(), second.requires_grad_()]
    expected = correction_loss(predictions, target, valid)
    expected_gradients = torch.autograd.grad(expected, predictions)
    spoilt = torch.where(valid[:, None], target, unknown)
    got = correction_loss(predictions, spoilt, valid)
    assert torch.equal(got, expected)
    for one, other in zip(torch.autograd.grad(got, predictions), expected_gradients, strict=True):
        assert torch.equal(one, other)
        assert bool((one.abs().sum(1)[~valid] == 0).all())


def test_the_gradient_is_a_sign_weighted_and_shared_out(generator):
    target, first, second = flows(generator, 3)
    predictions = [first.requires_grad_(), second.requires_grad_()]
    gradients = torch.autograd.grad(correction_loss(predictions, target, everywhere(target), gamma=0.25), predictions)
    for weight, flow, gradient in zip((0.25, 1.0), predictions, gradients, strict=True):
        torch.testing.assert_close(gradient, weight * (flow.detach() - target).sign() / target.numel())


def test_where_nothing_is_known_the_loss_is_zero_and_its_gradient_too(generator):
    target, flow = flows(generator, 2)
    loss = correction_loss([flow.requires_grad_()], target, ~everywhere(target))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert not flow.grad.any()


def test_a_flow_that_is_not_finite_is_not_hidden(generator):
    target, flow = flows(generator, 2)
    flow[0, 0, 1, 1] = torch.nan
    assert correction_loss([flow], target, everywhere(target)).isnan()


def linear(generator, batch=3, size=5):
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64).requires_grad_()
    return matrix, torch.randn(batch, size, generator=generator, dtype=torch.float64)


def test_the_jacobian_penalty_is_in_the_mean_the_squared_norm_over_the_size(generator):
    matrix, z = linear(generator)
    estimates = torch.stack([jacobian_penalty(lambda z: z @ matrix.T, z, generator).detach() for _ in range(4000)])
    expected = float((matrix**2).sum().detach()) / z.shape[1]
    error = float(estimates.std()) / 4000**0.5
    assert abs(float(estimates.mean()) - expected) < 4 * error < 0.1 * expected


def test_the_jacobian_penalty_is_that_of_the_transpose_times_a_random_vector(generator):
    matrix, z = linear(generator)
    got = jacobian_penalty(lambda z: torch.tanh(z @ matrix.T), z, torch.Generator().manual_seed(7))
    v = torch.randn(z.shape, generator=torch.Generator().manual_seed(7), dtype=z.dtype)
    slope = 1 - torch.tanh(z @ matrix.T) ** 2
    torch.testing.assert_close(got, ((v * slope) @ matrix).square().mean())


def test_the_jacobian_penalty_has_an_exact_gradient_and_leaves_the_point_alone(generator):
    matrix, z = linear(generator, batch=2, size=3)
    z.requires_grad_()

    def penalty(matrix):
        return jacobian_penalty(lambda z: torch.tanh(z @ matrix.T), z, torch.Generator().manual_seed(1))

    assert torch.autograd.gradcheck(penalty, (matrix,))
    penalty(matrix).backward()
    assert z.grad is None


def test_the_jacobian_penalty_makes_the_jacobian_smaller(generator):
    norms = []
    for weight in (0.0, 0.3):
        torch.manual_seed(0)
        layer = torch.nn.Linear(6, 6)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        z, target = torch.randn(32, 6), torch.randn(32, 6)
        for _ in range(150):
            loss = (layer(z).tanh() - target).square().mean()
            loss = loss + weight * jacobian_penalty(lambda z, layer=layer: layer(z).tanh(), z, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        jacobians = [torch.autograd.functional.jacobian(lambda x, layer=layer: layer(x).tanh(), row) for row in z]
        norms.append(float(torch.stack(jacobians).square().sum((1, 2)).mean()))
    assert norms[1] < 0.5 * norms[0]


def test_the_jacobian_penalty_works_where_gradients_are_off(generator):
    matrix, z = linear(generator)
    with torch.no_grad():
        assert float(jacobian_penalty(lambda z: z @ matrix.T, z, generator).detach()) > 0
