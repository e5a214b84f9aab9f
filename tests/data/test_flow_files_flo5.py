import sys
from collections.abc import Callable

import h5py
import numpy as np
import pytest
import torch

from deqflow.data.flow_files import read_flow, write_flow

FLOW = torch.arange(2 * 12 * 16).reshape(2, 12, 16) / 4 - 40


def test_a_flo5_is_what_spring_has(tmp_path):
    path = write_flow(tmp_path / "a.flo5", FLOW, FLOW[0] > -40)
    with h5py.File(path, "r") as file:
        values = file["flow"][()]
    assert values.dtype == np.float32
    assert values.shape == (12, 16, 2)
    assert np.isnan(values[0, 0]).all()
    assert np.array_equal(values[1:], FLOW.permute(1, 2, 0)[1:].numpy())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_flo5_made_by_h5py_is_read(tmp_path, dtype, compression):
    values = FLOW.permute(1, 2, 0).numpy().astype(dtype)
    values[3, 4, 1] = np.nan
    with h5py.File(tmp_path / "a.flo5", "w") as file:
        file.create_dataset("flow", data=values, compression=compression)
    flow, valid = read_flow(tmp_path / "a.flo5")
    assert flow.dtype == torch.float32
    assert flow.is_contiguous()
    assert (~valid).nonzero().tolist() == [[3, 4]]
    assert torch.equal(flow, FLOW * valid)


def test_a_constant_flow_compresses_well_and_is_read(tmp_path):
    flow = torch.full((2, 700, 900), 1.5)
    path = write_flow(tmp_path / "a.flo5", flow)
    assert path.stat().st_size < 4 * flow.numel() / 100
    assert torch.equal(read_flow(path)[0], flow)


def elsewhere(file: h5py.File) -> None:
    file["flow"] = h5py.ExternalLink("other.flo5", "flow")


def soft(file: h5py.File) -> None:
    file["other"] = np.zeros((2, 2, 2), np.float32)
    file["flow"] = h5py.SoftLink("/other")


def group(file: h5py.File) -> None:
    file.create_group("flow")


def external(file: h5py.File) -> None:
    file.create_dataset("flow", (2, 2, 2), np.float32, external=[("other.raw", 0, h5py.h5f.UNLIMITED)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((2, 2, 2), np.float32)
    layout[:] = h5py.VirtualSource("other.flo5", "flow", (2, 2, 2))
    file.create_virtual_dataset("flow", layout)


def huge(file: h5py.File) -> None:
    file.create_dataset("flow", (10**6, 10**6, 2), np.float32, chunks=(64, 64, 2), compression="gzip")


def data(values: object) -> Callable[[h5py.File], None]:
    return lambda file: file.__setitem__("flow", values)


@pytest.mark.parametrize(
    ("fill", "told"),
    [
        (lambda file: None, "expected a dataset named flow"),
        (elsewhere, "expected a dataset named flow"),
        (soft, "expected a dataset named flow"),
        (group, "with its values in the file"),
        (external, "with its values in the file"),
        (virtual, "with its values in the file"),
        (huge, "a flow of 1000000x1000000 does not fit in the 0 bytes that the file holds"),
        (data(np.zeros((3, 4, 3), np.float32)), r"floats of shape \(H, W, 2\), got float32 \(3, 4, 3\)"),
        (data(np.zeros((3, 4), np.float32)), r"got float32 \(3, 4\)"),
        (data(np.zeros((3, 4, 2), np.int32)), r"got int32 \(3, 4, 2\)"),
        (data(np.zeros((0, 4, 2), np.float32)), r"got float32 \(0, 4, 2\)"),
        (data("text"), r"got object \(\)"),
    ],
)
def test_hdf5_without_a_flow_is_told(tmp_path, fill, told):
    with h5py.File(tmp_path / "a.flo5", "w") as file:
        fill(file)
    with pytest.raises(ValueError, match=rf"a\.flo5 can't be read as \.flo5: .*{told}\. Copy it again"):
        read_flow(tmp_path / "a.flo5")


def test_without_h5py_a_flo5_says_what_to_install(tmp_path, monkeypatch):
    path = write_flow(tmp_path / "a.flo5", FLOW)
    monkeypatch.setitem(sys.modules, "h5py", None)
    for use in (lambda: read_flow(path), lambda: write_flow(tmp_path / "b.flo5", FLOW)):
        with pytest.raises(ImportError, match=r"\.flo5 needs the package h5py: pip install 'deqflow\[data\]'"):
            use()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.flo5"]
