"""The step rules against their formulas; what holds for every solver alike is in test_solvers.py."""

import pytest
import torch

from deqflow.solvers import Anderson, Broyden, Picard, Status, Stop, scipy_solver, solve

NEVER = Stop(max_evals=12, atol=0.0)


def affine(*, radius=0.6, batch=3, size=6, seed=0, dtype=torch.float64):
    """A, b and z0 of z -> A z + b for rows z, with a random A of the given 2-norm."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = radius * matrix / torch.linalg.matrix_norm(matrix, 2)
    offset = torch.randn(batch, size, generator=generator, dtype=torch.float64)
    return matrix.to(dtype), offset.to(dtype), torch.zeros(batch, size, dtype=dtype)


def bent(matrix, offset):
    return lambda z: z.tanh() @ matrix.T + offset


def slow_problem(size=24):
    """Symmetric and affine, with eigenvalues up to 0.95."""
    matrix, offset, z0 = affine(size=size, batch=1)
    basis = torch.linalg.qr(matrix)[0]
    matrix = basis @ torch.diag(torch.linspace(-0.5, 0.95, size).double()) @ basis.T
    return (lambda z: z @ matrix.T + offset), z0


def visited(f, z0, rule, evals=10):
    """The states that f was evaluated at, for the first row."""
    seen = []
    solve(f, z0, rule, Stop(max_evals=evals, atol=0.0), on_eval=seen.append)
    return [evaluation.z[0] for evaluation in seen]


def assert_each_close(got, expected):
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("damping", [1.0, 0.7, 0.2])
def test_picard_takes_damped_steps(damping):
    matrix, offset, z0 = affine()
    f, states = bent(matrix, offset), [z0]
    for _ in range(9):
        states.append((1 - damping) * states[-1] + damping * f(states[-1]))
    assert_each_close(visited(f, z0, Picard(damping=damping)), [z[0] for z in states])


@pytest.mark.parametrize("ridge", [0.0, 1e-2])
@pytest.mark.parametrize("mixing", [1.0, 0.6])
@pytest.mark.parametrize("history", [1, 2, 4])
def test_anderson_takes_the_steps_of_walker_and_ni(history, mixing, ridge):
    matrix, offset, z0 = affine(radius=0.9, size=12)
    f, z, states, residuals = bent(matrix, offset), z0, [], []
    for _ in range(10):
        g = (f(z) - z)[0]
        states.append(z[0])
        residuals.append(g)
        step = mixing * g
        if len(states) > 1:
            dz = torch.stack(states, 1).diff(dim=1)[:, -history:]  # (N, m)
            dg = torch.stack(residuals, 1).diff(dim=1)[:, -history:]
            weight = (ridge * (dg**2).sum(0).mean()) ** 0.5 * torch.eye(dg.shape[1])
            # The ridge as rows below the least-squares problem, which squares no condition number.
            wide, zeros = torch.cat([dg, weight]), torch.zeros(dg.shape[1])
            gamma = torch.linalg.lstsq(wide, torch.cat([g, zeros])[:, None]).solution[:, 0]
            step = step - (dz + mixing * dg) @ gamma
        z = torch.cat([(z[0] + step)[None], z[1:]])
    assert_each_close(visited(f, z0, Anderson(history=history, mixing=mixing, ridge=ridge)), states)


@pytest.mark.parametrize("damping", [1.0, 0.7])
@pytest.mark.parametrize("history", [1, 3, 20])
def test_broyden_takes_the_steps_of_the_dense_inverse_jacobian(history, damping):
    matrix, offset, z0 = affine(radius=0.9)
    f, z, states, before, updates = bent(matrix, offset), z0, [], None, 0
    inverse = -torch.eye(6, dtype=torch.float64)
    for _ in range(10):
        g = (f(z) - z)[0]
        states.append(z[0])
        if before is not None:
            if updates == history:
                inverse, updates = -torch.eye(6, dtype=torch.float64), 0
            dz, dg = z[0] - before[0], g - before[1]
            inverse = inverse + torch.outer(dz - inverse @ dg, dz @ inverse) / (dz @ inverse @ dg)
            updates += 1
            torch.testing.assert_close(inverse @ dg, dz)
        before = z[0], g
        z = torch.cat([(z[0] - damping * inverse @ g)[None], z[1:]])
    assert_each_close(visited(f, z0, Broyden(history=history, damping=damping)), states)


@pytest.mark.parametrize("ridge", [0.0, 1e-5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_anderson_survives_a_singular_small_system(ridge, dtype):  # pitfall 7
    rule = Anderson(history=5, ridge=ridge)
    start = torch.zeros(3, 1, dtype=dtype)
    line = solve(lambda z: 0.9 * z + 1, start, rule, Stop(max_evals=20, atol=0.0))  # five differences, one dimension
    torch.testing.assert_close(line.z, torch.full_like(start, 10), rtol=1e-5, atol=1e-5)
    _, offset, z0 = affine(dtype=dtype)
    constant = solve(lambda z: offset.clone(), z0, rule, Stop(atol=0.0)).check()
    assert constant.evals.tolist() == [2, 2, 2]
    drift = solve(lambda z: z + 1, z0, rule, NEVER)  # no fixed point, no change of the residual
    assert torch.isfinite(drift.z).all()
    assert drift.residual.tolist() == [1, 1, 1]


def test_anderson_falls_back_on_a_plain_step_where_its_system_has_no_solution():  # pitfall 7
    rule, memory = Anderson(history=2, ridge=0.0, mixing=0.5), ()
    for position, residual in ((0.0, 4.0), (1.0, 3.0), (2.0, 2.0)):  # equal differences: two equal rows
        z = torch.full((1, 2), position)
        proposal, memory = rule.step(z, z + residual, memory)
    assert proposal.tolist() == [[3.0, 3.0]]


def test_repeated_iterates_leave_anderson_and_broyden_with_a_plain_step():  # pitfall 7
    for rule in (Anderson(), Anderson(ridge=0.0), Broyden(), Broyden(history=1)):
        memory = ()
        for _ in range(4):
            proposal, memory = rule.step(torch.zeros(1, 2), torch.ones(1, 2), memory)
            assert proposal.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("rule", [Anderson(history=3, ridge=1e-2), Broyden(history=3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_a_step_means_the_same_at_every_scale(scale, dtype, rule):  # pitfall 7
    matrix, offset, z0 = affine(dtype=dtype)
    f = bent(matrix, offset)
    plain, scaled = visited(f, z0, rule), visited(lambda z: scale * f(z / scale), z0, rule)
    assert all(torch.equal(one, scale * other) for one, other in zip(scaled, plain, strict=True))


@pytest.mark.parametrize("rule", [Anderson(), Broyden()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_states_are_solved_in_float32(dtype, rule):  # pitfall 7
    z, memory = torch.zeros(1, 4, dtype=dtype), rule.init(torch.zeros(1, 4))
    for _ in range(3):
        z, memory = rule.step(z, 0.5 * z + 1, memory)
        assert z.dtype == dtype
        assert all(m.dtype == torch.float32 for m in memory)


@pytest.mark.parametrize("kind", [Broyden, Anderson])
@pytest.mark.parametrize("history", [1, 2, 8])
def test_memory_is_bounded_by_the_history(kind, history):  # pitfall 8
    matrix, offset, z = affine()
    f, rule, lengths = bent(matrix, offset), kind(history=history), []
    memory = rule.init(z)
    for _ in range(20):
        z, memory = rule.step(z, f(z), memory)
        lengths.append(sum(m.numel() for m in memory) / z.numel())
    assert max(lengths) == 2 + 2 * history  # the last pair, and two vectors for each step of history


@pytest.mark.parametrize("history", [2, 4, 8, 20])
@pytest.mark.parametrize("size", [24, 100])
def test_broyden_with_little_memory_does_not_diverge(size, history):  # pitfall 8
    f, z0 = slow_problem(size)
    result = solve(f, z0, Broyden(history=history), Stop(max_evals=150, atol=1e-6)).check()
    assert float(result.trace.max()) < 100 * float(result.trace[0])


@pytest.mark.parametrize("rule", [Anderson(), Anderson(history=10), Broyden(), Broyden(history=20)], ids=str)
def test_acceleration_needs_fewer_evaluations_where_picard_is_slow(rule):
    f, z0 = slow_problem()
    stop = Stop(max_evals=500, atol=1e-6)
    picard, fast = solve(f, z0, Picard(), stop).check(), solve(f, z0, rule, stop).check()
    assert int(picard.evals) > 150
    assert int(fast.evals) < int(picard.evals) / 2


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_anderson_with_full_history_ends_after_as_many_steps_as_dimensions(size):
    matrix, offset, z0 = affine(size=size, radius=0.9)
    rule = Anderson(history=size, ridge=0.0)
    result = solve(lambda z: z @ matrix.T + offset, z0, rule, Stop(max_evals=50, atol=1e-9)).check()
    assert int(result.evals.max()) <= size + 2


def test_scipy_gives_up_without_a_crash_where_the_residual_is_flat():
    result = solve(lambda z: z + 1, affine()[2], scipy_solver("krylov"), NEVER)
    assert result.residual.tolist() == [1, 1, 1]
    assert result.status.tolist() == [Status.MAX_EVALS] * 3


def test_scipy_solves_a_row_while_the_others_wait_at_their_start():
    matrix, offset, z0 = affine()
    calls = []

    def f(z):
        calls.append(z.clone())
        return z @ matrix.T + offset

    result = solve(f, z0 + 1, scipy_solver("krylov"), Stop(max_evals=60, atol=1e-9)).check()
    rows = [row for row in range(3) for _ in range(int(result.evals[row]))]
    for z, row in zip(calls, rows, strict=True):
        waiting = [other for other in range(3) if other != row]
        assert torch.equal(z[waiting], z0[waiting] + 1)


def test_scipy_hands_on_what_f_raises():
    def f(z):
        raise ValueError("from f")

    with pytest.raises(ValueError, match="from f"):
        solve(f, affine()[2], scipy_solver("krylov"), NEVER)


def test_scipy_has_two_methods():
    with pytest.raises(ValueError, match="expects a method of krylov, anderson, got 'newton'"):
        scipy_solver("newton")
