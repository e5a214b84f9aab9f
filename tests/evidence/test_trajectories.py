import pytest
import torch

from deqflow.evidence.diagnostics import (
    Recording,
    Trajectory,
    asymptotic_alignment,
    principal_components,
    record_trajectories,
    separation,
)
from deqflow.solvers import Anderson, Picard, Stop, rms, solve

STOP = Stop(max_evals=8, atol=0.0)


def halve(z):
    return 0.5 * z + 1  # one fixed point, 2


def test_a_recording_keeps_what_stopping_there_would_return():
    z0 = torch.tensor([[0.0, 4.0], [1.0, 1.0]])
    recording = Recording([1, 3, 8])
    result = solve(halve, z0, Picard(), STOP, keep=(1, 3), on_eval=recording)
    assert recording.numbers == (1, 3, 8)
    assert recording.states.shape == recording.movements.shape == (3, 2, 2)
    for k, state, moved in zip((1, 3), recording.states, recording.movements, strict=False):
        assert torch.equal(state, result.kept[k].fz)
        assert torch.equal(moved, result.kept[k].fz - result.kept[k].z)
    assert torch.equal(recording.states[-1], result.fz)


def test_a_recording_keeps_all_if_not_told_otherwise_and_no_graph():
    recording = Recording()
    z0 = torch.zeros(1, 2, requires_grad=True)
    solve(halve, z0, Picard(), STOP, on_eval=recording)
    assert recording.numbers == tuple(range(1, 9))
    assert not recording.states.requires_grad
    assert not recording.movements.requires_grad


def test_a_recording_of_a_solve_that_ends_early_is_shorter():
    recording = Recording([1, 2, 50])
    solve(halve, torch.zeros(1, 2), Picard(), Stop(max_evals=50, atol=0.1), on_eval=recording)
    assert recording.numbers == (1, 2)


def test_evaluations_count_from_one():
    with pytest.raises(ValueError, match=r"from 1, got \[0, 3\]"):
        Recording([3, 0])


def test_trajectories_are_recorded_from_each_start_by_each_rule():
    starts = {"low": torch.zeros(1, 3), "high": torch.full((1, 3), 9.0)}
    paths = record_trajectories(halve, starts, {"Picard": Picard(), "Anderson": Anderson()}, STOP, numbers=iter([2, 4]))
    names = [(path.start, path.rule) for path in paths]
    assert names == [("low", "Picard"), ("low", "Anderson"), ("high", "Picard"), ("high", "Anderson")]
    assert torch.allclose(paths[0].states[:, 0, 0], torch.tensor([1.5, 1.875]))  # 2 - 2 / 2^k
    assert paths[2].numbers == (2, 4)
    assert paths[2].result.evals.item() == 8


def test_trajectories_need_a_start_and_a_rule():
    with pytest.raises(ValueError, match="got 0 and 1"):
        record_trajectories(halve, {}, {"Picard": Picard()}, STOP)


def test_paths_of_a_contraction_come_together_at_its_rate():
    starts = {"low": torch.zeros(2, 3), "high": torch.full((2, 3), 8.0)}
    apart = separation(record_trajectories(halve, starts, {"Picard": Picard()}, STOP), rms)
    assert apart == pytest.approx({k: 8 / 2**k for k in range(1, 9)})


def test_paths_that_rest_in_different_points_stay_apart():
    starts = {"left": torch.tensor([[-0.5]]), "right": torch.tensor([[0.5]])}
    stop = Stop(max_evals=60, atol=0.0)
    paths = record_trajectories(lambda z: (3 * z).tanh(), starts, {"Picard": Picard()}, stop)
    ends = [path.result.fz for path in paths]
    assert separation(paths, rms)[paths[0].numbers[-1]] == pytest.approx(2 * ends[1].item())
    assert asymptotic_alignment(ends) == pytest.approx(-1)


def test_a_path_that_ended_early_stays_where_it_ended():
    stop = Stop(max_evals=30, atol=0.01)
    starts = {"there": torch.full((1, 2), 2.0), "away": torch.full((1, 2), 10.0)}
    paths = record_trajectories(halve, starts, {"Picard": Picard()}, stop)
    assert len(paths[0].numbers) == 1 < len(paths[1].numbers)
    apart = separation(paths, rms)
    assert list(apart) == list(paths[1].numbers)
    assert apart[3] == pytest.approx(1.0)  # 2 + 8 / 2^3 against 2


def test_separation_needs_two_paths():
    (path,) = record_trajectories(halve, {"own": torch.zeros(1, 2)}, {"Picard": Picard()}, STOP)
    with pytest.raises(ValueError, match="two trajectories, got 1"):
        separation([path], rms)
    assert isinstance(path, Trajectory)


def test_alignment_is_the_mean_cosine_over_pairs_and_samples():
    x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [4.0, 0.0]])
    assert asymptotic_alignment([x, 5 * x]) == pytest.approx(1)
    assert asymptotic_alignment([x, y]) == pytest.approx(0.5)  # cosines 1 and 0
    assert asymptotic_alignment([x, x, -x]) == pytest.approx(-1 / 3)


def test_alignment_needs_two_ends():
    with pytest.raises(ValueError, match="two end points, got 1"):
        asymptotic_alignment([torch.ones(1, 2)])


def test_principal_components_of_a_line_in_many_dimensions(generator):
    direction = torch.randn(2, 5, 6, generator=generator)
    path = torch.linspace(-1, 2, 7)[:, None, None, None] * direction
    projection = principal_components([path[:3], path[3:]], components=2)
    assert [tuple(points.shape) for points in projection.paths] == [(3, 2), (4, 2)]
    assert projection.explained.tolist() == pytest.approx([1, 0], abs=1e-6)
    between = (projection.paths[0][0] - projection.paths[1][3]).norm()
    assert between.item() == pytest.approx(rms((path[0] - path[6])[None]).item(), rel=1e-5)


def test_principal_components_agree_with_the_singular_values(generator):
    points = torch.randn(9, 40, generator=generator, dtype=torch.float64)
    projection = principal_components([points], components=3)
    values = torch.linalg.svdvals(points - points.mean(0))
    assert torch.allclose(projection.explained, values[:3] ** 2 / (values**2).sum())
    assert torch.allclose(projection.paths[0].norm(dim=0), values[:3] / 40**0.5)
    assert (projection.paths[0].max(0).values >= -projection.paths[0].min(0).values).all()  # the sign is fixed


def test_principal_components_of_points_of_one_dimension_have_zeros_in_the_others():
    projection = principal_components([torch.arange(5.0)[:, None]], components=3)
    assert projection.paths[0].shape == (5, 3)
    assert projection.paths[0][:, 1:].abs().max() == 0
    assert projection.explained.tolist() == pytest.approx([1, 0, 0])


def test_principal_components_of_points_that_are_all_the_same_are_zero():
    projection = principal_components([torch.ones(5, 4)])
    assert torch.isfinite(projection.explained).all()
    assert projection.paths[0].abs().max() < 1e-12


@pytest.mark.parametrize("paths", [[torch.ones(3, 8)], [torch.ones(3, 8), torch.ones(3, 9)]])
def test_principal_components_need_enough_points_of_one_size(paths):
    with pytest.raises(ValueError, match=r"points of one size, more than 3 of them, got paths of \(3, 8\)"):
        principal_components(paths)
