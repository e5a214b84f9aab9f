"""Whatever file a model is named by: suffixes, wrappers and prefixes that programs leave on what they save."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_published import REFERENCE, state_dict
from torch import nn

import deqflow
from deqflow.commands.shared import load_model
from deqflow.model.checkpoints import read_recipe
from deqflow.model.published import from_published
from deqflow.model.tensor_files import plain_names, read_tensors

LOADERS = pytest.mark.parametrize("read", [deqflow.load, deqflow.load_published, load_model])
SUFFIXES = pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".safetensors", ""])


@pytest.fixture(scope="module")
def expected():
    return from_published(state_dict("raft_small")).state_dict()


def write(folder, content, suffix=".pth"):
    path = folder / f"any{suffix}"
    save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    return path


def assert_same(estimator, expected):
    tensors = estimator.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    assert not estimator.training


@LOADERS
@SUFFIXES
def test_a_published_checkpoint_is_read_whatever_its_suffix(tmp_path, expected, read, suffix):
    estimator = read(str(write(tmp_path, state_dict("raft_small"), suffix)))
    assert estimator.origin == "RAFT-small"
    assert_same(estimator, expected)


@pytest.mark.parametrize("names", [("published.pth", "safetensors"), ("published.safetensors", "pickled")])
def test_a_files_content_decides_and_not_its_suffix(tmp_path, expected, names):
    name, kind = names
    (save_file if kind == "safetensors" else torch.save)(state_dict("raft_small"), tmp_path / name)
    assert_same(deqflow.load(tmp_path / name), expected)


@LOADERS
@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"model": tensors, "optimizer": {"state": {}, "lr": 1e-4}, "epoch": 3},
        lambda tensors: {"state_dict": tensors, "epoch": 3, "pytorch-lightning_version": "2.5"},
        lambda tensors: {"model_state_dict": tensors, "loss": torch.zeros(())},
        lambda tensors: {"model": {"state_dict": tensors}},
    ],
)
def test_what_training_programs_wrap_is_unwrapped(tmp_path, expected, read, wrap):
    assert_same(read(str(write(tmp_path, wrap(state_dict("raft_small")), ".ckpt"))), expected)


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "model.", "_orig_mod.module.", "module._orig_mod.", "model.module._orig_mod."],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_prefixes_are_taken_off_alone_and_combined(tmp_path, expected, prefix, suffix):
    assert_same(deqflow.load(write(tmp_path, state_dict("raft_small", prefix), suffix)), expected)


def test_parts_compiled_one_by_one_are_unwrapped_too(expected):
    tensors = {name.replace("fnet.", "fnet._orig_mod."): value for name, value in state_dict("raft_small", "").items()}
    assert_same(from_published(tensors), expected)


def test_names_that_merely_look_like_a_prefix_stay():
    named = {"model.a": 0, "modules.b": 1, "submodule.c": 2}
    assert plain_names(named) == named


def test_one_tensor_under_two_names_is_an_error(tmp_path):
    tensors = state_dict("raft_small")
    name = "module.cnet.conv1.bias"
    path = write(tmp_path, tensors | {name.removeprefix("module."): tensors[name]})
    with pytest.raises(
        deqflow.CheckpointError, match=r"has cnet\.conv1\.bias twice, with and without the name of a wrap"
    ):
        read_tensors(path)


@SUFFIXES
def test_our_own_checkpoint_is_read_whatever_its_suffix(tmp_path, suffix):
    torch.manual_seed(0)
    estimator = deqflow.build("mini", attraction="mean", max_evals=7).eval()
    path = tmp_path / f"ours{suffix}"
    deqflow.save(estimator, path, recipe={"origin": "here"})
    for read in (deqflow.load, deqflow.load_published, load_model):
        found = read(str(path))
        assert found.config == estimator.config
        assert found.origin == "here"
        assert_same(found, estimator.state_dict())
    assert read_recipe(path) == {"origin": "here"}


def test_the_recipe_of_a_published_checkpoint_is_its_origin(tmp_path):
    assert read_recipe(write(tmp_path, state_dict("raft_small"), ".pt")) == {"origin": "RAFT-small"}
    with pytest.raises(FileNotFoundError, match="No checkpoint at"):
        read_recipe(tmp_path / "nothing.pt")


def test_our_tensors_without_their_configuration_are_told(tmp_path):
    path = write(tmp_path, {"model": deqflow.build("mini").state_dict()}, ".pt")
    with pytest.raises(
        deqflow.CheckpointError, match=r"by deqflow's own names, but not the configuration .* deqflow\.save"
    ):
        deqflow.load(path)


def test_unknown_tensors_are_told_with_the_nearest_model(tmp_path):
    path = write(tmp_path, {"state_dict": {"backbone.weight": torch.zeros(3)}}, ".pt")
    with pytest.raises(
        deqflow.CheckpointError, match=r"any\.pt fits no model that is known\. The nearest is .*backbone"
    ):
        deqflow.load(path)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda model: nn.DataParallel(torch.compile(model))])
def test_a_wrapped_model_is_saved_with_plain_names(tmp_path, wrap):
    torch.manual_seed(0)
    estimator = deqflow.build("mini").eval()
    path = deqflow.save(wrap(estimator), tmp_path / "model.safetensors")
    assert_same(deqflow.load(path), estimator.state_dict())


def test_a_model_with_compiled_parts_is_saved_with_plain_names(tmp_path):
    torch.manual_seed(0)
    estimator = deqflow.build("mini").eval()
    plain = {name: tensor.clone() for name, tensor in estimator.state_dict().items()}
    estimator.update = torch.compile(estimator.update)
    assert any("_orig_mod" in name for name in estimator.state_dict())
    path = deqflow.save(estimator, tmp_path / "model.safetensors")
    assert load_file(path).keys() == plain.keys()
    assert_same(deqflow.load(path), plain)


def test_every_published_list_of_names_has_no_wrapper_of_its_own():
    for path in REFERENCE.glob("*.keys.json"):
        tensors = state_dict(path.name.removesuffix(".keys.json"), "")
        assert plain_names(tensors).keys() == tensors.keys()
