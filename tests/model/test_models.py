from typing import get_args

import pytest
import torch
from pairs import map_of
from torch import nn

import deqflow
from deqflow.equilibrium import Implicit, Phantom, Unrolled
from deqflow.model.sizes import SIZES, UpdateName
from deqflow.solvers import Picard, Stop

UPDATES = get_args(UpdateName)


def pair(generator, batch=1, height=32, width=40):
    return [255 * torch.rand(batch, 3, height, width, generator=generator) for _ in range(2)]


def parameters(*args, **options):
    with torch.device("meta"):
        return sum(p.numel() for p in deqflow.build(*args, **options).parameters())


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("size", ["tiny", "small", "mini", "mini-warp"])
def test_each_update_works_in_each_size_both_ways(generator, size, update, recurrent):
    torch.manual_seed(0)
    estimator = deqflow.build(size, update, recurrent=recurrent, train_evals=3)
    output = estimator(*pair(generator))
    output.flow.abs().sum().backward()
    assert output.flow.shape == (1, 2, 32, 40)
    assert torch.isfinite(output.flow).all()
    # GMA's share starts at nothing, so what leads to it has no gradient yet.
    waits = ("update.attention", "update.aggregation.values", "update.aggregation.projection", "upsampler")
    for name, parameter in estimator.named_parameters():
        if not name.startswith(waits):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(
    ("size", "update", "millions"),
    [
        ("tiny", "raft", 2.49),
        ("base", "raft", 5.24),
        ("large", "raft", 8.67),
        ("huge", "raft", 13.40),
        ("gigantic", "raft", 23.25),
        ("base", "gma", 5.78),
        ("huge", "gma", 15.56),
    ],
)
def test_parameters_are_as_many_as_published(size, update, millions):
    assert abs(parameters(size, update) / 1e6 - millions) < 0.006


@pytest.mark.parametrize("size", SIZES)
def test_naming_the_sizes_own_update_changes_nothing(size):
    with torch.device("meta"):
        named, plain = deqflow.build(size, SIZES[size].update), deqflow.build(size)
    assert named.config == plain.config
    assert named.state_dict().keys() == plain.state_dict().keys()


def test_an_update_that_nobody_knows_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match="Unknown update 'gru': expected one of raft, raft-small, gma, sea, or a function"
    ):
        deqflow.build("tiny", "gru")


class Average(nn.Module):
    """The least of an operator of one's own."""

    def __init__(self, size):
        super().__init__()
        self.hidden_channels = size.hidden
        self.mix = nn.Conv2d(size.hidden + 2 + size.lookup + size.context, size.hidden + 2, 3, padding=1)

    def prepare(self, context):
        return context

    def forward(self, hidden, flow, correlation, context):
        mixed = self.mix(torch.cat([hidden, flow, correlation, context], 1)).tanh()
        return mixed[:, :-2], mixed[:, -2:]


def test_an_operator_of_ones_own_makes_an_equilibrium_model_in_one_line(generator):
    estimator = deqflow.build("mini", Average, gradient=Phantom(steps=2), corrections=2, train_evals=6)
    output = estimator(*pair(generator))
    output.flow.sum().backward()
    assert len(output.flows) == 2
    assert estimator.config is None
    assert all(p.grad is not None for p in estimator.update.parameters())


def test_damping_goes_to_the_solver_and_to_the_phantom_gradient(generator):
    estimator = deqflow.build("tiny", damping=0.5)
    assert estimator.equilibrium.rule == Picard(damping=0.5)
    assert estimator.equilibrium.gradient == Phantom(steps=1, damping=0.5)
    assert deqflow.build("tiny", damping=0.5, gradient=Implicit()).equilibrium.gradient == Implicit()
    assert deqflow.build("tiny", damping=0.5, recurrent=True).equilibrium.gradient == Unrolled()
    with pytest.raises(ValueError, match="damping"):
        deqflow.build("tiny", damping=0.0)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_dropout_outside_its_range_is_refused(dropout):
    with pytest.raises(ValueError, match="dropout of at least 0 and less than 1"):
        deqflow.build("tiny", dropout=dropout)


def test_dropout_draws_one_mask_a_solve_so_that_f_stays_the_same_map(generator):
    torch.manual_seed(0)
    estimator = deqflow.build("tiny", dropout=0.3)
    images = pair(generator, batch=2)
    with torch.no_grad():
        f, z0 = map_of(estimator, *images, generator=torch.Generator().manual_seed(1))
        same, _ = map_of(estimator, *images, generator=torch.Generator().manual_seed(1))
        other, _ = map_of(estimator, *images, generator=torch.Generator().manual_seed(2))
        z = f(z0)
        assert torch.equal(f(z), f(z))
        assert torch.equal(f(z), same(z))
        assert not torch.equal(f(z), other(z))


def test_dropout_hides_whole_channels_and_keeps_their_mean():
    estimator = deqflow.build("tiny", dropout=0.25)
    mask = estimator._dropout_mask(torch.zeros(200, 1), 100, torch.Generator().manual_seed(0))
    assert mask is not None
    assert mask.shape == (200, 100, 1, 1)
    assert mask.unique().tolist() == pytest.approx([0, 4 / 3])
    assert mask.mean().item() == pytest.approx(1, abs=0.02)


def test_dropout_is_for_training_alone(generator):
    torch.manual_seed(0)
    with_dropout = deqflow.build("tiny", dropout=0.5).eval()
    without = deqflow.build("tiny").eval()
    without.load_state_dict(with_dropout.state_dict())
    images, stop = pair(generator), Stop(max_evals=3, atol=0.0)
    with torch.no_grad():
        assert torch.equal(with_dropout(*images, stop=stop).flow, without(*images, stop=stop).flow)
        assert not torch.equal(with_dropout.train()(*images, stop=stop).flow, without.train()(*images, stop=stop).flow)


@pytest.mark.parametrize(
    ("options", "description"),
    [
        ({}, "equilibrium tiny"),
        ({"update": "gma"}, "equilibrium tiny with GMA"),
        ({"recurrent": True, "update": "raft-small"}, "recurrent tiny with RAFT-SMALL"),
    ],
)
def test_a_configuration_says_what_it_is(options, description):
    with torch.device("meta"):
        estimator = deqflow.build("tiny", **options)
    assert estimator.config is not None
    assert estimator.config.description == description


@pytest.mark.parametrize("options", [{"update": "gma", "dropout": 0.1, "damping": 0.7}, {"flow_head": 100}])
def test_a_checkpoint_brings_back_every_option(tmp_path, options):
    torch.manual_seed(0)
    estimator = deqflow.build("tiny", **options)
    loaded = deqflow.load(deqflow.save(estimator, tmp_path / "model.safetensors"))
    assert loaded.config == estimator.config
    assert loaded.equilibrium.rule == estimator.equilibrium.rule
    assert loaded.dropout == estimator.dropout
    for name, tensor in estimator.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
