import contextlib
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference.weights_from_names import published_state_dict
from safetensors.torch import save_file

import deqflow
from deqflow.data.datasets import motorcycle
from deqflow.data.metrics import mean_endpoint_error
from deqflow.model.published import from_published, read_tensors, translate
from deqflow.solvers import Picard, Stop

REFERENCE = Path(__file__).parents[1] / "reference"
PROGRAMS = {"raft_basic": ("base", True), "raft_small": ("small", True), "deqflow2_base": ("base", False)}
PREFIXES = pytest.mark.parametrize("prefix", ["module.", ""])


def state_dict(program, prefix="module."):
    return published_state_dict(REFERENCE / f"{program}.keys.json", prefix=prefix)


def run(estimator, image1, image2, evals):
    with torch.no_grad():
        return estimator(image1, image2, rule=Picard(), stop=Stop(max_evals=evals, atol=0.0))


@PREFIXES
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_published_program_gives_the_same_flow(tmp_path, program, prefix):
    torch.save(state_dict(program, prefix), tmp_path / "published.pth")
    estimator = deqflow.load_published(tmp_path / "published.pth")
    assert (estimator.config.size, estimator.config.recurrent) == PROGRAMS[program]
    assert not estimator.training
    with np.load(REFERENCE / f"{program}.npz") as file:
        expected = {name: torch.from_numpy(file[name]) for name in file.files}
    frames = [expected[name].permute(2, 0, 1)[None].float() for name in ("frame1", "frame2")]
    for evals in (1, 4, 12):
        output = run(estimator, *frames, evals)
        torch.testing.assert_close(output.state.flow[0], expected[f"low_{evals}"], rtol=0, atol=1e-4)
    torch.testing.assert_close(output.flow[0], expected["up_12"], rtol=0, atol=1e-3)


def test_a_safetensors_file_is_as_good(tmp_path):
    tensors = state_dict("raft_small")
    save_file(tensors, tmp_path / "published.safetensors")
    estimator, expected = deqflow.load_published(tmp_path / "published.safetensors"), from_published(tensors)
    assert estimator.config == expected.config
    for name, tensor in expected.state_dict().items():
        assert torch.equal(estimator.state_dict()[name], tensor)


def extents(program):
    """Estimator, and how many numbers of the published file it has not read."""
    tensors = state_dict(program)
    estimator = from_published(tensors)
    return estimator, sum(t.numel() for t in tensors.values()) - sum(t.numel() for t in estimator.state_dict().values())


@pytest.mark.parametrize("program", sorted(path.name.removesuffix(".keys.json") for path in REFERENCE.glob("*.json")))
def test_every_published_model_is_recognised_and_named(program):
    estimator, unread = extents(program)
    named = {
        "deqflow1_base": "DEQ-Flow version 1, base",
        "deqflow1_huge": "DEQ-Flow version 1, huge",
        "deqflow2_base": "DEQ-Flow version 2, base",
        "deqflow2_base+gma": "DEQ-Flow version 2, base + GMA",
        "deqflow2_huge": "DEQ-Flow version 2, huge",
        "deqflow2_tiny": "DEQ-Flow version 2, tiny",
        "gma_base": "GMA",
        "raft_basic": "RAFT",
        "raft_small": "RAFT-small",
        "searaft_M": "SEA-RAFT M",
        "searaft_S": "SEA-RAFT S",
        "torchvision_raft_large": "torchvision raft_large",
        "torchvision_raft_small": "torchvision raft_small",
    }
    assert estimator.origin == named[program]
    # The context encoder's shortcuts list their normalisation twice: 96 and 128 channels, 4 numbers each, 2 counters.
    twice = 0 if "small" in program or "torchvision" in program else 4 * (96 + 128) + 2
    if "searaft" in program:  # the feature encoder's too, of 128 and 256 channels
        twice = 2 * (4 * (128 + 256) + 2)
    positions = 160 * 160 + 2 * 319 * 128 if program == "gma_base" else 0  # what GMA's own attention reads no more
    assert unread == twice + positions


def rename(tensors, *pairs):
    """The same tensors under the names that another program gives them."""
    for old, new in pairs:
        tensors = {re.sub(old, new, name): tensor for name, tensor in tensors.items()}
    return tensors


def as_published(size, *, version, gma):
    """A state dict of DEQ-Flow in another size than the lists have, made from the names and shapes of the base list."""
    program = "deqflow2_base+gma" if gma else f"deqflow{version}_base"
    ours = deqflow.build(size, update="gma" if gma else "raft", flow_head=256 if version == 1 else None).state_dict()
    tensors = {}
    for name, tensor in state_dict(program, "").items():
        if ".norm3." in name:  # filled below with what it is a second name of
            tensors[name] = tensor
            continue
        renamed = next(iter(translate({name: tensor})))
        if re.search(r"gru\.conv[zrq]", name):
            tensors[name] = ours[renamed].chunk(3)["zrq".index(name.split("conv")[1][0])]
        else:
            tensors[name] = ours[renamed]
    for name in [n for n in tensors if ".norm3." in n]:
        tensors[name] = tensors[name.replace("norm3", "downsample.1")]
    if version == 1 and gma:
        tensors = rename(tensors, (r"^mask\.", "update_block.mask."), ("^attn", "att"), (r"\.gma\.", ".aggregator."))
    return tensors, ours


@pytest.mark.parametrize("gma", [False, True], ids=["", "gma"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", ["tiny", "base", "large", "huge"])
def test_deqflow_is_read_in_every_size_by_its_names_and_shapes(size, version, gma):
    tensors, ours = as_published(size, version=version, gma=gma)
    estimator = from_published(tensors)
    assert estimator.origin == f"DEQ-Flow version {version}, {size}" + (" + GMA" if gma else "")
    for name, tensor in estimator.state_dict().items():
        assert torch.equal(tensor, ours[name])


@pytest.mark.parametrize("size", ["large", "small"])
def test_torchvisions_raft_gives_the_flow_that_torchvision_computed(size):
    estimator = from_published(state_dict(f"torchvision_raft_{size}", ""))
    with np.load(REFERENCE / "raft_basic.npz") as file:
        frames = [torch.from_numpy(file[name]).permute(2, 0, 1)[None].float() for name in ("frame1", "frame2")]
    with np.load(REFERENCE / f"torchvision_raft_{size}.npz") as file:
        expected = torch.from_numpy(file["up_12"])  # every fourth pixel of it
    torch.testing.assert_close(run(estimator, *frames, 12).flow[0, :, ::4, ::4], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("module", ["update_block.gma.to_v", "attn.to_qk"])
def test_a_convolution_may_come_with_or_without_its_weight_norm(module):
    tensors = state_dict("deqflow2_base+gma", "")
    other = dict(tensors)
    if f"{module}.weight" in other:
        weight = other.pop(f"{module}.weight")
        length = torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True)
        other |= {f"{module}.weight_g": 3 * length, f"{module}.weight_v": weight / 3}
        expected = 3 * weight
    else:
        length, direction = other.pop(f"{module}.weight_g"), other.pop(f"{module}.weight_v")
        expected = direction * length / torch.linalg.vector_norm(direction, dim=(1, 2, 3), keepdim=True)
        other[f"{module}.weight"] = expected
    update = from_published(other).update
    got = (update.attention if module.startswith("attn") else update.aggregation.values).weight
    torch.testing.assert_close(got, expected)


def test_the_gates_are_joined_as_update_reset_candidate():
    tensors = state_dict("raft_small", "")
    joined = translate(tensors)["update.units.0.gates.weight"]
    parts = [tensors[f"update_block.gru.conv{gate}.weight"] for gate in "zrq"]
    assert torch.equal(joined, torch.cat(parts))


class Writes:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "code was run")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ""])
@pytest.mark.parametrize("zipped", [True, False, None])
def test_pickled_code_is_refused_and_not_run(tmp_path, zipped, suffix):
    trace, path = tmp_path / "trace", tmp_path / f"hostile{suffix}"
    content = state_dict("raft_small") | {"module.extra": Writes(trace)}
    if zipped is None:
        path.write_bytes(pickle.dumps(Writes(trace)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(deqflow.CheckpointError, match="damaged, or holds code instead of plain tensors"):
        deqflow.load_published(path)
    assert not trace.exists()
    if zipped is None:  # that the file would do harm
        pickle.loads(path.read_bytes())
        assert trace.read_text() == "code was run"


def as_bytes(folder, kind):
    tensors = {"a.weight": torch.ones(3), "a.bias": torch.zeros(2, 2)}
    path = folder / "whole"
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, kind):
    whole = as_bytes(tmp_path, kind)
    path = tmp_path / ("cut.safetensors" if kind == "safetensors" else "cut.pth")
    for length in [*range(0, len(whole), 29), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(deqflow.CheckpointError, match="can't be read as a checkpoint"):
            read_tensors(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_read_or_refused_in_our_own_words(tmp_path, kind, data):
    damaged = bytearray(as_bytes(tmp_path, kind))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / ("damaged.safetensors" if kind == "safetensors" else "damaged.pth")
    path.write_bytes(damaged)
    with contextlib.suppress(deqflow.CheckpointError):
        tensors = read_tensors(path)
        assert all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("content", [b"", b"(l", b"\x80\x02.", b"K", b"J", b"\x80\x02h\x01.", b"\x8c\x02\xff\xff."])
def test_bytes_that_stumble_the_unpickler_are_refused(tmp_path, content):
    path = tmp_path / "stump.pth"
    path.write_bytes(content)
    with pytest.raises(deqflow.CheckpointError, match="can't be read as a checkpoint"):
        deqflow.load_published(path)


@pytest.mark.parametrize("name", ["notes.pth", "notes.safetensors"])
def test_a_text_file_is_refused(tmp_path, name):
    (tmp_path / name).write_text("These are not the weights you are looking for.\n")
    with pytest.raises(deqflow.CheckpointError, match=f"{name} can't be read as a checkpoint"):
        deqflow.load_published(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ([torch.zeros(2)], "list"),
        (torch.zeros(2), "Tensor"),
        ({"weights": {"a": torch.zeros(2)}, "epoch": 3}, "dict in which 'weights' is dict. It may lie under one of"),
        ({"state_dict": {"a": torch.zeros(2), "b": 3}}, "dict in which 'b' is int"),
        ({0: torch.zeros(2)}, "dict in which 0 is Tensor"),
        ({}, "dict without entries"),
    ],
)
def test_anything_but_a_dictionary_of_tensors_by_name_is_refused(tmp_path, content, kind):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(deqflow.CheckpointError, match=f"expects a dictionary of tensors by name, got {kind}"):
        deqflow.load_published(tmp_path / "other.pth")


@pytest.mark.parametrize("name", ["missing.pth", "missing.safetensors", "."])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"No checkpoint at .*: expected a \.pth or \.safetensors file"):
        deqflow.load_published(tmp_path / name)


def test_tensors_that_fit_no_model_name_the_nearest_and_what_differs(tmp_path):
    path = tmp_path / "other.pth"
    tensors = rename(state_dict("gma_base"), ("to_qk", "to_kv"), ("aggregator.to_v", "aggregator.to_w"))
    torch.save(tensors, path)
    with pytest.raises(deqflow.CheckpointError) as caught:
        deqflow.load_published(path)
    message = str(caught.value)
    assert message.startswith(
        f"{path} fits no model that is known. The nearest is recurrent base with GMA, from which 4 tensors"
    )
    for name in ("att.to_kv.weight", "update_block.aggregator.to_w.weight", "update.attention.weight (missing"):
        assert name in message


def test_one_tensor_too_many_too_few_or_of_another_shape_is_enough():
    tensors = state_dict("raft_small")
    name = "module.update_block.flow_head.conv2.bias"
    other_shape = tensors | {name: torch.zeros(3)}
    for spoilt, told in (
        (tensors | {"module.unheard_of.weight": torch.zeros(1)}, r"unheard_of\.weight"),
        ({k: v for k, v in tensors.items() if k != name}, r"update\.head\.conv2\.bias \(missing"),
        (other_shape, r"update_block\.flow_head\.conv2\.bias"),
    ):
        with pytest.raises(
            deqflow.CheckpointError, match=rf"nearest is recurrent small, from which 1 tensors .* {told}"
        ):
            from_published(spoilt)


def test_gates_that_do_not_go_together_are_refused():
    tensors = state_dict("raft_small")
    tensors["module.update_block.gru.convr.weight"] = torch.zeros(96, 3, 3, 3)
    with pytest.raises(deqflow.CheckpointError, match="the state dict has gates of different shapes"):
        from_published(tensors)


def test_our_list_of_names_is_that_of_the_reference():
    shapes = json.loads((REFERENCE / "raft_small.keys.json").read_text())
    assert {name: list(tensor.shape) for name, tensor in state_dict("raft_small", "").items()} == shapes


@pytest.fixture(scope="module")
def raft_small(shared_data):
    return deqflow.load_published(shared_data / "published" / "raft-small.pth")


def error_after_12(estimator, image1, image2, flow, valid):
    output = run(estimator, image1, image2, 12)
    return mean_endpoint_error(output.flow, flow[None], valid[None]).item()


@pytest.mark.parametrize(
    ("scene", "expected"), [("RubberWhale", 0.320), ("Dimetrodon", 0.253), ("Venus", 0.381), ("Grove2", 0.355)]
)
def test_the_published_weights_reach_their_error_on_middlebury(shared_data, raft_small, scene, expected):
    frames = [shared_data / "middlebury" / "other-data" / scene / f"frame{n}.png" for n in (10, 11)]
    truth = deqflow.read_flow(shared_data / "middlebury" / "other-gt-flow" / scene / "flow10.flo")
    error = error_after_12(raft_small, *(deqflow.read_image(frame) for frame in frames), *truth)
    assert abs(error - expected) < 0.005


def test_the_published_weights_reach_their_error_on_flyingchairs(shared_data, raft_small):
    errors = []
    for number in range(9):
        start = shared_data / "flyingchairs" / f"{number:07d}"
        images = [deqflow.read_image(f"{start}-img{i}.ppm") for i in (0, 1)]
        errors.append(error_after_12(raft_small, *images, *deqflow.read_flow(f"{start}-gt.flo")))
    assert abs(sum(errors) / 9 - 1.51) < 0.005


def test_the_published_weights_reach_their_error_on_the_motorcycle(raft_small):
    sample = motorcycle()
    error = error_after_12(raft_small, sample.image1[None], sample.image2[None], sample.flow, sample.valid)
    assert abs(error - 1.87) < 0.005
