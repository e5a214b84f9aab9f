import numpy as np
import pytest
import torch

from deqflow.data.datasets import FlowSample, motorcycle, own_pair
from deqflow.data.flow_files import write_image
from deqflow.data.metrics import mean_endpoint_error
from deqflow.model.geometry import warp


@pytest.fixture(scope="module")
def pair() -> FlowSample:
    return motorcycle()


def test_the_motorcycle_has_its_size_and_types(pair):
    for image in (pair.image1, pair.image2):
        assert image.shape == (3, 500, 741)
        assert image.dtype == torch.float32
        assert image.min() >= 0
        assert 200 < image.max() <= 255
    assert pair.flow.shape == (2, 500, 741)
    assert pair.flow.dtype == torch.float32
    assert pair.valid.shape == pair.occluded.shape == (500, 741)
    assert pair.valid.dtype == pair.occluded.dtype == torch.bool


def test_the_motorcycles_truth_has_its_known_numbers(pair):
    assert round(100 * pair.valid.float().mean().item(), 1) == 92.7
    error = mean_endpoint_error(torch.zeros_like(pair.flow)[None], pair.flow[None], pair.valid[None])
    assert abs(error.item() - 34.34) < 0.005
    assert not pair.occluded.any()


def test_the_motorcycles_flow_goes_left_and_is_zero_where_unknown(pair):
    assert torch.isfinite(pair.flow).all()
    assert (pair.flow[0][pair.valid] < 0).all()
    assert (pair.flow[1] == 0).all()
    assert (pair.flow[:, ~pair.valid] == 0).all()


def test_the_motorcycles_flow_leads_to_the_same_colours(pair):
    def difference(flow: torch.Tensor) -> float:
        error = (warp(pair.image2[None], flow[None])[0] - pair.image1).abs().mean(0)
        return error[pair.valid].median().item()

    assert difference(pair.flow) < 0.5 * difference(torch.zeros_like(pair.flow))
    assert difference(pair.flow) < 0.5 * difference(-pair.flow)


def test_the_motorcycle_is_read_anew_each_time(pair):
    other = motorcycle()
    other.image1.zero_()
    other.valid.zero_()
    assert all(torch.equal(a, b) for a, b in zip(motorcycle(), pair, strict=True))


def test_nothing_is_known_of_the_flow_of_an_own_pair(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    paths = [write_image(tmp_path / f"{i}.png", picture) for i, picture in enumerate(pictures)]
    pair = own_pair(paths[0], str(paths[1]))
    for image, picture in zip((pair.image1, pair.image2), pictures, strict=True):
        assert torch.equal(image, torch.from_numpy(picture).permute(2, 0, 1).float())
    assert pair.flow.shape == (2, 20, 30)
    assert pair.valid.shape == pair.occluded.shape == (20, 30)
    assert pair.valid.dtype == pair.occluded.dtype == torch.bool
    assert not pair.valid.any()
    assert not pair.occluded.any()
    with pytest.raises(ValueError, match="at least one valid pixel"):
        mean_endpoint_error(pair.flow[None], pair.flow[None], pair.valid[None])


def test_an_own_pair_must_have_one_size(tmp_path):
    paths = [
        write_image(tmp_path / f"{i}.png", np.zeros((*size, 3), np.uint8))
        for i, size in enumerate([(20, 30), (30, 20)])
    ]
    with pytest.raises(ValueError, match=r"one size, got 30x20 and 20x30 \(width x height\): crop or resize"):
        own_pair(*paths)


def test_an_own_pair_must_be_pictures(tmp_path):
    path = write_image(tmp_path / "a.png", np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(FileNotFoundError, match=r"No file at .*b\.png"):
        own_pair(path, tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"b\.png can't be read"):
        own_pair(tmp_path / "b.png", path)
