import torch

from deqflow.data.datasets import motorcycle
from deqflow.data.metrics import mean_endpoint_error
from deqflow.evidence.baselines import dis_flow


def test_dis_reaches_its_known_error_on_the_motorcycle():
    pair = motorcycle()
    error = mean_endpoint_error(dis_flow(pair.image1, pair.image2)[None], pair.flow[None], pair.valid[None])
    assert abs(error.item() - 2.63) < 0.01


def test_dis_follows_a_shift(generator):
    picture = 255 * torch.rand(3, 12, 16, generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    flow = dis_flow(picture, picture.roll(3, 2))
    assert flow.shape == (2, 96, 128)
    assert (flow[:, 16:-16, 16:-16].median(2)[0].median(1)[0] - torch.tensor([3.0, 0.0])).abs().max() < 0.2
