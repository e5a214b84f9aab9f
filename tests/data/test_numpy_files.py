import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from deqflow.data.flow_files import read_flow, write_flow
from deqflow.data.numpy_files import read_arrays

FLOW = np.random.default_rng(0).normal(0, 9, (3, 5, 2)).astype(np.float32)


def test_numpy_reads_what_is_written(tmp_path):
    flow, valid = torch.from_numpy(FLOW).permute(2, 0, 1), torch.arange(15).reshape(3, 5) % 4 != 1
    expected = np.where(valid.numpy()[..., None], FLOW, np.nan)
    assert np.array_equal(np.load(write_flow(tmp_path / "a.npy", flow, valid)), expected, equal_nan=True)
    with np.load(write_flow(tmp_path / "a.npz", flow, valid)) as saved:
        assert set(saved) == {"flow", "valid"}
        assert np.array_equal(saved["flow"], expected, equal_nan=True)
        assert np.array_equal(saved["valid"], valid.numpy())


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i2"])
@pytest.mark.parametrize("first", [True, False])
def test_arrays_of_any_number_order_and_layout_are_read(tmp_path, suffix, dtype, first):
    values = FLOW.astype(dtype)
    array = np.asfortranarray(values.transpose(2, 0, 1)) if first else values
    path = tmp_path / f"a{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, flow=array, other=np.arange(3))
    flow, valid = read_flow(path)
    assert flow.dtype == torch.float32
    assert torch.equal(flow, torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1))
    assert valid.all()


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays) if path.suffix == ".npz" else np.save(path, arrays["flow"], allow_pickle=True)
    return path


@pytest.mark.parametrize(
    ("name", "arrays", "sentence"),
    [
        ("a.npz", {"other": FLOW}, "expected an array named flow in it, got none"),
        ("a.npz", {"flow": FLOW[..., 0]}, r"expects a flow of shape \(H, W, 2\) or \(2, H, W\), got .*\(3, 5\)"),
        ("a.npy", {"flow": FLOW[:0]}, r"expects a flow of shape .*got an array of float32 \(0, 5, 2\)"),
        ("a.npy", {"flow": FLOW > 0}, r"expects a flow of shape .*got an array of bool"),
        ("a.npz", {"flow": FLOW, "valid": FLOW[..., 0]}, r"expects valid to be booleans of shape \(3, 5\), got"),
        ("a.npz", {"flow": FLOW, "valid": FLOW[1:, :, 0] > 0}, r"expects valid to be booleans .*\(2, 5\)"),
        ("a.npy", {"flow": np.array([{"code": 1}])}, "can't be read as .npy: expected numbers of up to 64 bits, got"),
    ],
)
def test_arrays_that_are_not_a_flow_are_named(tmp_path, name, arrays, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_flow(write(tmp_path / name, **arrays))


@pytest.mark.parametrize("shape", [(2**40, 2**20, 2), (1000, 1000, 2), (-1, 5, 2), (3, 5, 3)])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_false_size_is_named_before_memory_is_taken(tmp_path, suffix, shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    content, path = header.getvalue() + FLOW.tobytes(), tmp_path / f"a{suffix}"
    if suffix == ".npy":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("flow.npy", content)
    with pytest.raises(ValueError, match=rf"can't be read as {suffix}: an array of shape .* does not fit in the"):
        read_arrays(path)
