import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deqflow.evidence.diagnostics import KeptForBackward
from deqflow.model.encoders import BottleneckBlock, Encoder, InstanceNorm, ResidualBlock, checkpointed

WIDTHS = (8, 8, 12, 16)


def make(norm="none", block="residual", **options):
    torch.manual_seed(0)
    return Encoder(widths=WIDTHS, outputs=10, norm=norm, block=block, **options)


def images(generator, batch, height, width):
    return 2 * torch.rand(batch, 3, height, width, generator=generator) - 1


@pytest.mark.parametrize("block", ["residual", "bottleneck"])
@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 40), (72, 8)])
def test_features_are_an_eighth_of_the_image(generator, norm, block, height, width):
    features = make(norm, block)(images(generator, 2, height, width))
    assert features.shape == (2, 10, height // 8, width // 8)
    assert torch.isfinite(features).all()
    assert features.min() < 0 < features.max()  # no rectifier at the end


def test_an_image_of_one_feature_pixel_goes_through_where_nothing_is_normalised(generator):
    assert make("none")(images(generator, 1, 8, 8)).shape == (1, 10, 1, 1)


def test_stages_have_their_depths_widths_and_strides():
    encoder = make(depths=(1, 2, 3))
    assert [len(stage) for stage in encoder.stages] == [1, 2, 3]
    assert [block.conv1.stride[0] for stage in encoder.stages for block in stage] == [1, 2, 1, 2, 1, 1]
    assert [stage[-1].conv2.out_channels for stage in encoder.stages] == list(WIDTHS[1:])
    assert isinstance(encoder.stages[0][0].shortcut, nn.Identity)
    assert all(isinstance(stage[0].shortcut, nn.Sequential) for stage in encoder.stages[1:])
    assert all(isinstance(stage[1].shortcut, nn.Identity) for stage in encoder.stages[1:])


@pytest.mark.parametrize(
    ("norm", "kind"), [("instance", InstanceNorm), ("batch", nn.BatchNorm2d), ("none", nn.Identity)]
)
@pytest.mark.parametrize(("block", "each"), [("residual", 2), ("bottleneck", 3)])
def test_every_convolution_but_the_last_has_its_norm(norm, kind, block, each):
    encoder = make(norm, block)
    norms = [module for name, module in encoder.named_modules() if "norm" in name or name.endswith("shortcut.1")]
    assert len(norms) == 1 + 6 * each + 2  # stem, blocks, the two strided shortcuts
    assert {type(module) for module in norms} == {kind}
    convolutions = sum(isinstance(module, nn.Conv2d) for module in encoder.modules())
    assert convolutions == len(norms) + 1


def test_instance_norm_is_by_sample_and_channel_and_has_no_parameters(generator):
    x = 3 + 5 * torch.randn(2, 4, 6, 7, generator=generator, dtype=torch.float64)
    mean = x.mean((2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((2, 3), keepdim=True)
    torch.testing.assert_close(InstanceNorm()(x), (x - mean) / (variance + 1e-5).sqrt())
    assert not list(InstanceNorm().parameters())
    assert not list(InstanceNorm().buffers())


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(8, 8, 1), (8, 12, 2), (8, 12, 1)])
def test_a_residual_block_equals_its_transcription(generator, inputs, outputs, stride):
    block = ResidualBlock(inputs, outputs, stride=stride, norm="instance").double()
    x = torch.randn(2, inputs, 6, 10, generator=generator, dtype=torch.float64)
    y = F.instance_norm(F.conv2d(x, block.conv1.weight, block.conv1.bias, stride, 1)).relu()
    y = F.instance_norm(F.conv2d(y, block.conv2.weight, block.conv2.bias, 1, 1)).relu()
    shortcut = x
    if (inputs, stride) != (outputs, 1):
        shortcut = F.instance_norm(F.conv2d(x, block.shortcut[0].weight, block.shortcut[0].bias, stride))
    torch.testing.assert_close(block(x), (shortcut + y).relu())


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(8, 8, 1), (8, 12, 2)])
def test_a_bottleneck_block_goes_through_a_quarter_of_the_channels(generator, inputs, outputs, stride):
    block = BottleneckBlock(inputs, outputs, stride=stride, norm="none").double()
    assert block.conv1.weight.shape == (outputs // 4, inputs, 1, 1)
    assert block.conv2.weight.shape == (outputs // 4, outputs // 4, 3, 3)
    assert block.conv3.weight.shape == (outputs, outputs // 4, 1, 1)
    x = torch.randn(2, inputs, 6, 10, generator=generator, dtype=torch.float64)
    y = F.conv2d(x, block.conv1.weight, block.conv1.bias).relu()
    y = F.conv2d(y, block.conv2.weight, block.conv2.bias, stride, 1).relu()
    y = F.conv2d(y, block.conv3.weight, block.conv3.bias).relu()
    shortcut = x if stride == 1 else F.conv2d(x, block.shortcut[0].weight, block.shortcut[0].bias, stride)
    torch.testing.assert_close(block(x), (shortcut + y).relu())


def test_batch_norm_in_evaluation_uses_what_training_saw_and_leaves_it(generator):
    encoder, batch = make("batch"), images(generator, 3, 16, 24)
    fresh = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder(batch)
    trained = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    changed = [name for name in fresh if not torch.equal(fresh[name], trained[name])]
    assert len(changed) == len(fresh) == 3 * 15
    encoder.eval()
    with torch.no_grad():
        together, alone = encoder(batch), encoder(batch[1:2])
    torch.testing.assert_close(together[1:2], alone)
    assert all(torch.equal(trained[name], buffer) for name, buffer in encoder.named_buffers())
    encoder.stem_norm.running_mean += 1
    with torch.no_grad():
        assert not torch.allclose(encoder(batch), together, atol=1e-3)


def test_batch_norm_in_training_mixes_samples_and_instance_norm_never_does(generator):
    batch = images(generator, 2, 16, 24)
    other = torch.cat([batch[:1], images(generator, 1, 16, 24)])
    for norm, same in (("batch", False), ("instance", True), ("none", True)):
        encoder = make(norm)
        with torch.no_grad():
            assert torch.equal(encoder(batch)[0], encoder(other)[0]) is same


def test_weights_start_as_he_et_al_with_fan_out():
    torch.manual_seed(0)
    encoder = Encoder(widths=(64, 64, 96, 128), outputs=256, norm="batch")
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            assert float(module.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
            assert abs(float(module.weight.detach().mean())) < 0.1 * math.sqrt(2 / fan_out)
        elif isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert bool((module.bias == 0).all())


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    first, second = make().state_dict(), make().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(1)
    assert not torch.equal(Encoder(widths=WIDTHS, outputs=10, norm="none").stem.weight, first["stem.weight"])


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_checkpointing_changes_neither_values_nor_gradients_nor_statistics(generator, norm, training):
    batch = images(generator, 3, 24, 16)
    plain, lean = make(norm).train(training), make(norm).train(training)
    first, second = plain(batch), checkpointed(lean, batch)
    direction = torch.randn(first.shape, generator=generator)
    (first * direction).sum().backward()
    (second * direction).sum().backward()
    torch.testing.assert_close(second, first, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(lean.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    for (name, ours), theirs in zip(lean.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")
    assert all(module.momentum == 0.1 for module in lean.modules() if isinstance(module, nn.BatchNorm2d))


def test_checkpointing_keeps_the_images_alone(generator):
    batch = images(generator, 2, 32, 32)
    with KeptForBackward(apart_from=make("instance").parameters()) as plain:
        features = make("instance")(batch)
    with KeptForBackward() as lean:
        features = checkpointed(make("instance"), batch)
    assert features.requires_grad
    assert lean.bytes <= 2 * batch.nbytes < plain.bytes / 4


@pytest.mark.parametrize(("norm", "at_once"), [("instance", 1), ("batch", 3)])
def test_checkpointing_takes_an_image_at_a_time_unless_statistics_need_all(generator, norm, at_once):
    encoder, seen = make(norm), []
    encoder.stem.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    checkpointed(encoder, images(generator, 3, 16, 16)).sum().backward()
    assert seen == 2 * (3 // at_once) * [at_once]  # forward, and again in backward


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_instance_norm_is_pytorchs_in_values_gradients_and_layout(generator, dtype, layout):
    x = 5 + 3 * torch.randn(2, 4, 9, 12, generator=generator).to(dtype).contiguous(memory_format=layout)
    x = x.requires_grad_()
    direction = torch.randn(2, 4, 9, 12, generator=generator).to(dtype)
    ours, theirs = InstanceNorm()(x), F.instance_norm(x)
    assert ours.dtype == dtype
    assert ours.is_contiguous(memory_format=layout)
    exact = torch.finfo(dtype).eps ** 0.5 / 5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=exact)
    gradients = [torch.autograd.grad(y, x, direction, retain_graph=True)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=exact)


def test_instance_norm_says_that_it_has_no_second_derivative(generator):
    x = torch.randn(1, 2, 3, 4, generator=generator, requires_grad=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(InstanceNorm()(x).square().sum(), x, create_graph=True)
