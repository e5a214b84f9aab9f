import pytest
import torch
from pairs import map_of
from test_solvers import OURS, RULES, problem

from deqflow import build
from deqflow.solvers import OutsideSolver, Picard, Status, Stop, SubsetMap, scipy_solver, solve
from deqflow.solvers.loop import finite


class Offering:
    """A problem that offers itself for some rows; notes how many rows each call had."""

    def __init__(self, f, sizes=None):
        self.f, self.sizes = f, [] if sizes is None else sizes

    def __call__(self, z):
        self.sizes.append(len(z))
        return self.f(z)

    def subset(self, rows):
        return Offering(self.f.rows(rows), self.sizes)


def uneven(batch=8):
    """All but the last row start at their solution."""
    f, z0 = problem(batch=batch)
    z0[:-1] = f.solution()[:-1].view_as(z0[:-1])
    return f, z0


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_leaving_frozen_samples_out_changes_nothing_but_the_work(rule):
    f, z0 = problem(batch=5)
    f.offset[3] *= 100
    z0[1] = f.solution()[1].view_as(z0[1])
    offering = Offering(f)
    stop = Stop(max_evals=200, atol=1e-6)
    with torch.no_grad():
        whole, part = solve(f, z0, rule, stop, keep=(2, 9)), solve(offering, z0, rule, stop, keep=(2, 9))
    for name in ("z", "fz", "residual", "status", "evals"):
        assert torch.equal(getattr(part, name), getattr(whole, name)), name
    assert torch.equal(part.trace.nan_to_num(-1), whole.trace.nan_to_num(-1))
    for k in (2, 9):
        assert torch.equal(part.kept[k].fz, whole.kept[k].fz)
    if isinstance(rule, OutsideSolver):
        assert set(offering.sizes) == {1}
    else:
        assert offering.sizes[0] == 5
        assert offering.sizes[-1] < 4
        assert offering.sizes == sorted(offering.sizes, reverse=True)


@pytest.mark.parametrize("rule", OURS.values(), ids=OURS.keys())
def test_samples_that_have_converged_stop_costing_time(rule):
    f, z0 = uneven()
    offering = Offering(f)
    with torch.no_grad():
        result = solve(offering, z0, rule, Stop(max_evals=300, atol=1e-9)).check()
    assert result.evals[:-1].tolist() == [1] * 7
    assert offering.sizes == [8] + [1] * int(result.evals[-1] - 1)


def test_a_few_frozen_samples_are_carried_along():
    f, z0 = problem(batch=8)
    z0[0] = f.solution()[0].view_as(z0[0])
    offering = Offering(f)
    with torch.no_grad():
        solve(offering, z0, Picard(), Stop(max_evals=3, atol=1e-9))
    assert offering.sizes == [8, 8, 8]  # one of eight is less than a quarter


def test_where_a_graph_is_recorded_the_batch_stays_whole():
    f, z0 = uneven()
    offering = Offering(f)
    solve(offering, z0, Picard(), Stop(max_evals=4, atol=1e-9))
    assert offering.sizes == [8] * 4


def test_a_failed_sample_is_left_out_too():
    f, z0 = problem(batch=2)
    f.offset[0] = torch.nan
    offering = Offering(f)
    with torch.no_grad():
        result = solve(offering, z0, Picard(), Stop(max_evals=300, atol=1e-9))
    assert result.status.tolist() == [Status.NON_FINITE, Status.CONVERGED]
    assert offering.sizes == [2] + [1] * int(result.evals[1] - 1)


@pytest.mark.parametrize("update", ["raft", "gma"])
@pytest.mark.parametrize("correlation", ["volume", "sampled"])
def test_the_estimators_map_offers_the_same_for_some_samples(generator, update, correlation):
    torch.manual_seed(0)
    estimator = build("tiny", update, correlation=correlation).eval()
    images = 255 * torch.rand(2, 3, 3, 32, 40, generator=generator)
    with torch.no_grad():
        f, z0 = map_of(estimator, *images)
        assert isinstance(f, SubsetMap)
        z = z0 + torch.randn(z0.shape, generator=generator)
        rows = torch.tensor([2, 0])
        torch.testing.assert_close(f.subset(rows)(z[rows]), f(z)[rows], rtol=1e-5, atol=1e-5)
        last = torch.tensor([1])
        torch.testing.assert_close(f.subset(rows).subset(last)(z[:1]), f(z)[:1], rtol=1e-5, atol=1e-5)


def test_dropouts_mask_goes_with_its_sample(generator):
    torch.manual_seed(0)
    estimator = build("tiny", dropout=0.5).train()
    images = 255 * torch.rand(2, 3, 3, 16, 16, generator=generator)
    with torch.no_grad():
        f, z0 = map_of(estimator, *images, generator=generator)
        rows = torch.tensor([2, 0])
        torch.testing.assert_close(f.subset(rows)(z0[rows]), f(z0)[rows], rtol=1e-5, atol=1e-5)


def test_scipy_calls_an_estimators_map_for_one_sample_at_a_time(generator):
    torch.manual_seed(0)
    estimator = build("tiny", max_evals=8, atol=0.0).eval()
    images = 255 * torch.rand(2, 2, 3, 16, 16, generator=generator)
    with torch.no_grad():
        together = estimator(*images, rule=scipy_solver("anderson"))
        alone = estimator(images[0, 1:], images[1, 1:], rule=scipy_solver("anderson"))
    torch.testing.assert_close(together.flow[1:], alone.flow, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_sample_is_finite_if_all_of_its_numbers_are(dtype):
    x = torch.full((6, 2, 3), -torch.finfo(dtype).max, dtype=dtype)
    x[1, 0, 1], x[2, 1, 2], x[3, 1, 0] = torch.nan, torch.inf, -torch.inf
    x[4, 0], x[4, 1] = torch.inf, -torch.inf
    x[5] = 0.0
    assert finite(x).tolist() == [True, False, False, False, False, True]
    assert finite(x[:2, :, :0]).tolist() == [True, True]


@pytest.mark.parametrize("rule", [Picard(), Picard(damping=0.7)])
def test_numbers_are_read_once_an_evaluation(monkeypatch, rule):  # a GPU has nothing to do meanwhile
    reads = []
    for name in ("tolist", "item", "__bool__", "__int__", "__float__", "nonzero", "numpy", "cpu"):
        read = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda x, read=read, name=name: reads.append(name) or read(x))
    f, z0 = uneven()
    with torch.no_grad():
        result = solve(Offering(f), z0, rule, Stop(max_evals=6, atol=1e-9))
    assert len(result.trace) == 6
    assert reads.count("tolist") == 6
    assert [name for name in reads if name != "tolist"] == ["nonzero"]  # where most samples are left out
