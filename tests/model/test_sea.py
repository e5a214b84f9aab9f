import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pairs import problem_of
from reference.weights_from_names import published_state_dict
from safetensors.torch import save_file
from test_published import REFERENCE, run
from torch import nn

import deqflow
from deqflow.equilibrium import Phantom, Unrolled
from deqflow.model.correlation import CorrelationPyramid, all_pairs
from deqflow.model.correlation.volume import halve
from deqflow.model.published import from_published
from deqflow.model.sea import ConvNextBlock, SeaUpdate
from deqflow.solvers import Stop
from deqflow.video import VideoFlow


def seaweights():
    return published_state_dict(REFERENCE / "searaft_S.keys.json", prefix="")


@pytest.fixture(scope="module")
def published():
    with np.load(REFERENCE / "searaft_S.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def frames(published):
    return [published[name].permute(2, 0, 1)[None].float() for name in ("frame1", "frame2")]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_published_program_gives_the_same_flow_and_mixture(tmp_path, published, frames, suffix):
    path = tmp_path / f"published{suffix}"
    save_file(seaweights(), path) if suffix == ".safetensors" else torch.save(seaweights(), path)
    estimator = deqflow.load_published(path)
    assert (estimator.config.size, estimator.config.recurrent, estimator.config.max_evals) == ("sea-s", True, 4)
    assert isinstance(estimator.equilibrium.gradient, Unrolled)
    assert not estimator.training
    with torch.no_grad():
        first = problem_of(estimator, *frames).z0[0, -2:]
    torch.testing.assert_close(first, published["low_0"], rtol=0, atol=1e-4)
    for evals in (1, 4, 12):
        output = run(estimator, *frames, evals)
        torch.testing.assert_close(output.state.flow[0], published[f"low_{evals}"], rtol=0, atol=1e-4)
        if evals > 1:
            torch.testing.assert_close(output.flow[0], published[f"up_{evals}"], rtol=0, atol=1e-3)
        if evals == 4:
            torch.testing.assert_close(output.mixture[0], published["info_4"], rtol=0, atol=1e-3)
    with torch.no_grad():
        assert int(estimator(*frames).solve.evals) == 4


@pytest.mark.parametrize("kept", ["bn3", "downsample.1"])
def test_a_file_that_has_shared_modules_once_is_read_under_either_name(kept):
    tensors, expected = seaweights(), from_published(seaweights()).state_dict()
    other = {"bn3": "downsample.1", "downsample.1": "bn3"}[kept]
    once = {}
    for name in tensors:
        if f".{other}." not in name:
            once[name] = tensors[name.replace(".bn3.", ".downsample.1.")]  # the one that is loaded last
    found = from_published(once).state_dict()
    assert len(once) < len(tensors)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize("change", ["missing", "more", "shape"])
def test_it_is_loaded_strictly(change):
    tensors, name = seaweights(), "update_block.refine.1.pwconv2.weight"
    if change == "missing":
        del tensors[name]
    elif change == "more":
        tensors["update_block.refine.2.gamma"] = torch.ones(384)
    else:
        tensors[name] = tensors[name][:-1]
    with pytest.raises(deqflow.CheckpointError, match=r"nearest is recurrent sea-s, from which 1 tensors differ"):
        from_published(tensors)


def test_as_an_equilibrium_it_starts_from_the_first_flow(frames):
    torch.manual_seed(0)
    recurrent = deqflow.build("sea-s", recurrent=True).eval()
    estimator = deqflow.build("sea-s", weight_norm=False).eval()
    estimator.load_state_dict(recurrent.state_dict())
    assert isinstance(estimator.equilibrium.gradient, Phantom)
    with torch.no_grad():
        problem, same = problem_of(estimator, *frames), problem_of(recurrent, *frames)
        assert torch.equal(problem.z0, same.z0)
        hidden, flow = problem.z0[:, :-2], problem.z0[:, -2:]
        head = estimator.update.head
        expected = head.conv2(head.conv1(hidden).relu())
        torch.testing.assert_close(flow, expected[:, :2])
        assert flow.abs().max() > 0
        torch.testing.assert_close(estimator.update.mixture_of(hidden), expected[:, 2:])


def test_an_image_is_encoded_once_for_all_pairs_that_it_is_in(frames):
    torch.manual_seed(0)
    estimator = deqflow.build("sea-s", recurrent=True).eval()
    calls = {"features": 0, "context": 0}
    estimator.feature_encoder.register_forward_hook(lambda *_: calls.update(features=calls["features"] + 1))
    estimator.context_encoder.register_forward_hook(lambda *_: calls.update(context=calls["context"] + 1))
    with torch.no_grad():
        features = [estimator.encode(frame) for frame in frames]
        there, back = estimator.problem(*features).solve(), estimator.problem(*reversed(features)).solve()
        assert calls == {"features": 2, "context": 2}
        torch.testing.assert_close(there.flow, estimator(*frames).flow)
        torch.testing.assert_close(back.flow, estimator(*reversed(frames)).flow)


def direct_block(block: ConvNextBlock, hidden, context, motion):
    """The block as its authors describe it, step by step."""
    x = torch.cat([hidden, context, motion], 1)
    y = F.conv2d(x, block.depthwise.weight, block.depthwise.bias, padding=3, groups=x.shape[1]).permute(0, 2, 3, 1)
    mean, variance = y.mean(-1, keepdim=True), y.var(-1, correction=0, keepdim=True)
    y = (y - mean) / (variance + 1e-6).sqrt() * block.norm.weight + block.norm.bias
    y = y @ block.widen.weight.flatten(1).T + block.widen.bias
    y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
    y = block.gamma * (y @ block.narrow.weight.flatten(1).T + block.narrow.bias)
    return block.merge(x + y.permute(0, 3, 1, 2))


def small_update(weight_norm=False):
    torch.manual_seed(0)
    update = SeaUpdate(
        hidden=6,
        context=5,
        motion=8,
        correlation=9,
        correlation_widths=(7, 6),
        flow_widths=(6, 4),
        head=10,
        weight_norm=weight_norm,
    ).double()
    for name, parameter in update.named_parameters():
        if name.endswith("gamma"):
            nn.init.normal_(parameter)
    return update


def operands(generator):
    return [torch.randn(2, c, 5, 7, generator=generator, dtype=torch.float64) for c in (6, 2, 9, 5)]


@pytest.mark.parametrize("weight_norm", [False, True])
def test_the_prepared_update_and_its_gradients_equal_a_direct_transcription(generator, weight_norm):
    update = small_update(weight_norm)
    hidden, flow, found, context = operands(generator)
    prepared = update.prepare(context)
    got = update(hidden, flow, found, prepared)
    motion = update.motion.prepare()(found, flow)
    expected = hidden
    for block in update.blocks:
        expected = direct_block(block, expected, context, motion)
    increment = update.head.conv2(update.head.conv1(expected).relu())[:, :2]
    torch.testing.assert_close(got, (expected, increment))
    weights = torch.randn(got[0].shape, generator=generator, dtype=torch.float64)
    parameters = list(update.parameters())
    for ours, theirs in zip(
        torch.autograd.grad((weights * got[0]).sum() + got[1].sum(), parameters, retain_graph=True),
        torch.autograd.grad((weights * expected).sum() + increment.sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_in_bfloat16_gradients_reach_all_parameters(generator):
    update = small_update().float()
    hidden, flow, found, context = (tensor.float() for tensor in operands(generator))
    with torch.autocast("cpu", torch.bfloat16):
        prepared = update.prepare(context)
        next_hidden, increment = update(hidden, flow, found, prepared)
        mixture = update.mixture_of(next_hidden)
    assert increment.dtype == torch.bfloat16
    (next_hidden.sum() + increment.sum() + mixture.sum()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in update.parameters())


def test_without_a_head_of_its_own_an_operator_starts_from_zero_flow(frames):
    class Still(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.hidden_channels = size.hidden

        def prepare(self, context):
            return None

        def forward(self, hidden, flow, found, prepared):
            return hidden, torch.zeros_like(flow)

    estimator = deqflow.build("sea-s", Still).eval()
    output = run(estimator, *frames, 1)
    assert output.flow.abs().max() == 0
    assert output.state.hidden.abs().max() > 0
    assert output.mixture is None


@pytest.mark.parametrize(("height", "width"), [(16, 20), (5, 7), (9, 2)])
def test_halving_features_bilinearly_gives_the_pooled_volume(generator, height, width):
    first, second = (torch.randn(2, 6, height, width, generator=generator, dtype=torch.float64) for _ in range(2))
    pooled = CorrelationPyramid(first, second, levels=2).volumes[1]
    halved = F.interpolate(second, scale_factor=0.5, mode="bilinear", align_corners=False)
    torch.testing.assert_close(halved, halve(second))
    products = torch.einsum("bchw,bcij->bhwij", first, halved).flatten(1, 2) / math.sqrt(6)
    torch.testing.assert_close(pooled, products)
    torch.testing.assert_close(all_pairs(first, second), CorrelationPyramid(first, second, levels=1).volumes[0])


def test_a_video_and_two_scales_carry_its_state(frames):
    torch.manual_seed(0)
    estimator = deqflow.build("sea-s", recurrent=True, max_evals=2).eval()
    video = VideoFlow(estimator, policy="warp")
    steps = [step for _, step in video.run([*frames, frames[0]])]
    assert [step.reset for step in steps] == [True, steps[1].cut]
    assert all(torch.isfinite(step.flow).all() for step in steps)
    with torch.no_grad():
        scaled = deqflow.estimate_at_scales(estimator, *frames, (0.5, 1.0))
    assert torch.isfinite(scaled.flow).all()
    assert int(scaled.outputs[1].solve.evals) == 2


def test_training_reaches_every_parameter(frames):
    torch.manual_seed(0)
    estimator = deqflow.build("sea-s", recurrent=True, train_evals=2)
    output = estimator(*(torch.cat([frame, frame.flip(-1)])[..., :64, :64] for frame in frames))
    assert len(output.flows) == len(output.mixtures) == 2
    (output.flow.abs().sum() + output.mixture.sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in estimator.parameters())
    with torch.no_grad():
        estimator.eval()
        assert torch.isfinite(estimator(*frames, stop=Stop(max_evals=1, atol=0.0)).flow).all()
