import contextlib
import dataclasses
import errno
import json
import struct
from importlib import resources
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import deqflow
from deqflow.model.build import build
from deqflow.model.checkpoints import FORMAT, SHIPPED, CheckpointError, load, read_metadata, save
from deqflow.model.estimator import FlowEstimator
from deqflow.model.sizes import EstimatorConfig


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Two pictures, (2, 1, 3, 32, 40)."""
    return 255 * torch.rand(2, 1, 3, 32, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A small checkpoint, not to be changed."""
    torch.manual_seed(0)
    return save(build("small"), tmp_path_factory.mktemp("saved") / "small.safetensors", recipe={"a": [1, "zwölf"]})


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    """A path to write damaged files to."""
    return tmp_path_factory.mktemp("scratch") / "damaged.safetensors"


def header_of(content: bytes) -> tuple[dict, bytes]:
    """The header of a safetensors file, and the tensors' bytes."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header: dict, tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def with_metadata(path: Path, content: bytes, **changes: str | None) -> Path:
    """Write the file with other metadata; None takes an entry away."""
    header, tensors = header_of(content)
    metadata = header["__metadata__"] | changes
    header["__metadata__"] = {key: value for key, value in metadata.items() if value is not None}
    path.write_bytes(with_header(header, tensors))
    return path


def flow_of(estimator: FlowEstimator, pictures: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return estimator.eval()(*pictures).flow


@pytest.mark.parametrize("size", ["tiny", "small", "mini", "mini-warp"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_a_model_comes_back_with_the_same_bits_and_output(tmp_path, pictures, size, recurrent):
    torch.manual_seed(1)
    options = {"all_gradients": not recurrent, "max_evals": 3, "atol": 0.125}
    estimator = build(size, recurrent=recurrent, **options)
    path = save(estimator, tmp_path / "new folder" / "mödel.safetensors")
    assert path == tmp_path / "new folder" / "mödel.safetensors"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    loaded = load(path)
    assert loaded.config == estimator.config
    assert loaded.config == EstimatorConfig(size=size, recurrent=recurrent, weight_norm=not recurrent, **options)
    expected, got = estimator.state_dict(), loaded.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert not loaded.training
    assert {tensor.device.type for tensor in got.values()} == {"cpu"}
    stop = loaded.equilibrium.eval_stop
    assert (stop.max_evals, stop.atol) == (3, 0.125)
    assert torch.equal(flow_of(loaded, pictures), flow_of(estimator, pictures))


def test_a_model_without_weight_norm_comes_back(tmp_path):
    loaded = load(save(build("tiny", weight_norm=False), tmp_path / "a.safetensors"))
    assert loaded.config.weight_norm is False


def test_a_path_may_be_text(saved, tmp_path):
    assert load(str(saved)).config.size == "small"
    assert save(load(saved), str(tmp_path / "a")) == tmp_path / "a"  # and have any suffix
    assert load(str(tmp_path / "a")).config.size == "small"


def test_saving_changes_no_weight_and_no_mode(tmp_path):
    estimator = build("tiny").train()
    before = {name: tensor.clone() for name, tensor in estimator.state_dict().items()}
    save(estimator, tmp_path / "a.safetensors")
    assert estimator.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in estimator.state_dict().items())
    assert all(parameter.requires_grad for parameter in estimator.parameters())


def test_configuration_and_recipe_lie_inside(saved):
    config, recipe = read_metadata(saved)
    assert config == build("small").config
    assert recipe == {"a": [1, "zwölf"]}
    metadata = header_of(saved.read_bytes())[0]["__metadata__"]
    assert metadata["format"] == FORMAT
    assert json.loads(metadata["config"]) == dataclasses.asdict(config)


def test_there_need_be_no_recipe(tmp_path):
    assert read_metadata(save(build("mini"), tmp_path / "a.safetensors"))[1] == {}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_loads_by_name(name, pictures):
    path = Path(str(resources.files("deqflow") / "weights" / f"{name}.safetensors"))
    assert path.stat().st_size <= 6e6
    estimator = deqflow.load(name)
    assert not estimator.training
    tensors = load_file(path)
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in estimator.state_dict().items())
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    flow = flow_of(estimator, pictures)
    assert flow.shape == (1, 2, 32, 40)
    assert torch.isfinite(flow).all()
    assert read_metadata(name) == read_metadata(path)
    assert read_metadata(name)[0] == estimator.config


@pytest.mark.claims
def test_the_shipped_model_sees_motion(generator):
    texture = 255 * torch.rand(1, 3, 12, 16, generator=generator)
    texture = torch.nn.functional.interpolate(texture, scale_factor=8, mode="bicubic").clamp(0, 255)
    flow = flow_of(deqflow.load("deqflow-small"), torch.stack([texture, texture.roll(5, 3)]))
    across, down = flow[0, :, 16:-16, 16:-16].flatten(1).median(1)[0]
    assert abs(across - 5) < 0.5
    assert abs(down) < 0.5


@pytest.mark.parametrize("name", ["deqflow-big", "nothing/at/all.safetensors", ""])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(
        FileNotFoundError,
        match=rf"No model '{name}', and no file .*: expected one of {', '.join(SHIPPED)}, .* or the path",
    ):
        load(name)


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="No model"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"No checkpoint at {tmp_path}"):
        read_metadata(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No checkpoint at .*missing"):
        read_metadata(tmp_path / "missing.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a zip file, as torch.save writes",
        b"\xff" * 64,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 90_000_000) + b"{}",
        struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
        struct.pack("<Q", 4) + b"[1]\n",
    ],
)
def test_what_is_no_safetensors_file_is_told(scratch, content):
    scratch.write_bytes(content)
    for read in (load, read_metadata):
        with pytest.raises(CheckpointError, match=r"damaged\.safetensors is damaged or no safetensors file"):
            read(scratch)


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c + b"\0", lambda c: c[: len(c) // 2], lambda c: c[:9]])
def test_a_file_of_another_length_is_damaged(saved, scratch, change):
    scratch.write_bytes(change(saved.read_bytes()))
    with pytest.raises(CheckpointError, match="damaged or no safetensors file"):
        load(scratch)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "deqflow-0", "config": "{}", "recipe": "{}"}])
def test_someone_elses_safetensors_are_told(scratch, metadata):
    save_file({"weight": torch.zeros(3)}, scratch, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"none of deqflow's: use deqflow\.load_published"):
        read_metadata(scratch)
    ours = bool(metadata) and "deqflow" in metadata["format"]  # of another version: then the tensors are not looked at
    with pytest.raises(CheckpointError, match="none of deqflow's" if ours else "fits no model that is known"):
        load(scratch)


@pytest.mark.parametrize(
    "changes",
    [
        {"config": None},
        {"recipe": None},
        {"config": "no json"},
        {"recipe": "{"},
        {"config": "[1, 2]"},
        {"config": "null"},
        {"config": '{"size": "small", "depth": 3}'},
        {"config": "[" * 100_000},
        {"config": '{"max_evals": ' + "9" * 10_000 + "}"},
    ],
)
def test_metadata_that_makes_no_sense_is_told(saved, scratch, changes):
    with_metadata(scratch, saved.read_bytes(), **changes)
    for read in (load, read_metadata):
        with pytest.raises(CheckpointError, match="damaged or no safetensors file"):
            read(scratch)


@pytest.mark.parametrize("size", ["medium", "", None, 5, ["small"], {"small": 1}])
def test_an_unknown_size_is_told(saved, scratch, size):
    with_metadata(scratch, saved.read_bytes(), config=json.dumps({"size": size}))
    with pytest.raises(CheckpointError, match=r"made for an unknown size .*: update deqflow"):
        load(scratch)


@pytest.mark.parametrize(
    "change",
    [
        {"size": "tiny"},
        {"recurrent": True},
        {"weight_norm": False},
        {"max_evals": -3},
        {"max_evals": 4.5},
        {"max_evals": "40"},
        {"atol": -0.02},
        {"atol": float("nan")},
        {"atol": [0.02]},
    ],
)
def test_weights_must_fit_their_own_configuration(saved, scratch, change):
    config = dataclasses.asdict(read_metadata(saved)[0]) | change
    with_metadata(scratch, saved.read_bytes(), config=json.dumps(config))
    with pytest.raises(CheckpointError, match="does not fit its own configuration"):
        load(scratch)


@pytest.mark.parametrize("kind", ["missing", "more", "shape"])
def test_each_tensor_must_be_there_in_its_shape(saved, scratch, kind):
    tensors = load_file(saved)
    name = next(iter(tensors))
    if kind == "missing":
        del tensors[name]
    elif kind == "more":
        tensors["another"] = torch.zeros(1)
    else:
        tensors[name] = tensors[name][..., None]
    save_file(tensors, scratch, metadata=header_of(saved.read_bytes())[0]["__metadata__"])
    with pytest.raises(
        CheckpointError, match=f"does not fit its own configuration.*\n.*{'another' if kind == 'more' else name}"
    ):
        load(scratch)


def test_a_kind_of_number_that_torch_lacks_is_told(saved, scratch):
    header, tensors = header_of(saved.read_bytes())
    header["odd"] = {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [len(tensors), len(tensors) + 3]}
    scratch.write_bytes(with_header(header, tensors + b"\0\0\0"))
    with pytest.raises(CheckpointError, match="does not fit its own configuration"):
        load(scratch)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_no_truncation_gets_past(saved, scratch, data):
    content = saved.read_bytes()
    scratch.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CheckpointError):
        load(scratch)


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_a_damaged_header_loads_or_is_told(saved, scratch, data):
    content = bytearray(saved.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    # Half of the flips hit the metadata, which come first.
    places = st.integers(0, 400) | st.integers(0, 8 + length - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=3)):
        content[place] = data.draw(st.integers(0, 255) | st.sampled_from(b'0123456789-.eE"{}[],: '))
    scratch.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        assert isinstance(load(scratch), FlowEstimator)


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from([field.name for field in dataclasses.fields(EstimatorConfig)]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda values: st.lists(values, max_size=2) | st.dictionaries(st.text(max_size=3), values, max_size=2),
            max_leaves=4,
        ),
    )
)
def test_any_configuration_loads_or_is_told(saved, scratch, changes):
    config = dataclasses.asdict(read_metadata(saved)[0]) | changes
    with_metadata(scratch, saved.read_bytes(), config=json.dumps(config))
    with contextlib.suppress(CheckpointError):
        assert isinstance(load(scratch), FlowEstimator)


def test_a_model_put_together_by_hand_has_nothing_to_store(tmp_path):
    parts = build("mini")
    estimator = FlowEstimator(
        feature_encoder=parts.feature_encoder,
        context_encoder=None,
        update=parts.update,
        upsampler=parts.upsampler,
        equilibrium=parts.equilibrium,
        context_channels=64,
        radius=3,
    )
    with pytest.raises(ValueError, match=r"made by deqflow\.build, got one without a configuration"):
        save(estimator, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there_before", [True, False])
def test_a_failed_save_leaves_the_old_file_whole(saved, tmp_path, monkeypatch, there_before):
    path = tmp_path / "a.safetensors"
    before = {}
    if there_before:
        save(load(saved), path)
        before = {path: path.read_bytes()}

    def full_disk(unfinished: Path, content: bytes) -> None:
        assert unfinished != path
        with open(unfinished, "wb") as file:
            file.write(content[:4])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(build("small"), path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_recipe_that_json_cannot_hold_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(build("small"), tmp_path / "a.safetensors", recipe={"path": Path("a")})
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_error_is_a_value_error():
    assert issubclass(CheckpointError, ValueError)
    assert deqflow.CheckpointError is CheckpointError
