import copy
from dataclasses import FrozenInstanceError, dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deqflow.solvers import (
    Anderson,
    Broyden,
    OutsideSolver,
    Picard,
    SolverError,
    Status,
    Stop,
    rms,
    scipy_solver,
    solve,
)

OURS = {
    "picard": Picard(),
    "picard-damped": Picard(damping=0.7),
    "anderson-1": Anderson(history=1),
    "anderson-3": Anderson(history=3),
    "anderson-5": Anderson(history=5),
    "anderson-mixed": Anderson(history=3, mixing=0.6),
    "broyden-1": Broyden(history=1),
    "broyden-8": Broyden(history=8),
    "broyden-damped": Broyden(history=3, damping=0.8),
}
RULES = OURS | {"scipy-krylov": scipy_solver("krylov"), "scipy-anderson": scipy_solver("anderson")}
ours = pytest.mark.parametrize("rule", OURS.values(), ids=OURS.keys())
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
NEVER = Stop(max_evals=12, atol=0.0)
SHAPE = (2, 1, 3)


@dataclass(frozen=True)
class Problem:
    """f(z) = A z + b, or A tanh(z) + b; a row of the batch at a time, so that bits do not depend on the others."""

    matrix: torch.Tensor
    offset: torch.Tensor
    bent: bool = False

    def __call__(self, z):
        flat = (z.tanh() if self.bent else z).flatten(1)
        return torch.stack([self.matrix @ row.clone() for row in flat]).view_as(z) + self.offset

    def rows(self, rows):
        return replace(self, offset=self.offset[rows])

    def solution(self):
        assert not self.bent
        return torch.linalg.solve(torch.eye(len(self.matrix)) - self.matrix, self.offset.flatten(1).T).T


def problem(*, radius=0.6, batch=3, shape=SHAPE, seed=0, dtype=torch.float64, bent=False):
    generator = torch.Generator().manual_seed(seed)
    size = torch.Size(shape).numel()
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = radius * matrix / torch.linalg.matrix_norm(matrix, 2)
    offset = torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
    return Problem(matrix.to(dtype), offset.to(dtype), bent), torch.zeros(batch, *shape, dtype=dtype)


@dataclass
class Counting:
    """Counts calls; in call ``bad``, one element of ``row`` becomes ``value``."""

    f: Problem
    bad: int = 0
    row: int = 0
    value: float = torch.nan
    calls: int = 0

    def __call__(self, z):
        self.calls += 1
        fz = self.f(z)
        if self.calls == self.bad:
            fz[self.row].view(-1)[1] = self.value
        return fz


def assert_same(one, other, rows=slice(None)):
    for name in ("z", "fz", "residual"):
        assert torch.equal(getattr(one, name)[rows], getattr(other, name)[rows]), name


@every_rule
@pytest.mark.parametrize("evals", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("bent", [False, True])
def test_the_residual_is_that_of_the_returned_state(rule, evals, bent):  # pitfall 1
    f, z0 = problem(bent=bent)
    result = solve(f, z0, rule, replace(NEVER, max_evals=evals))
    assert torch.equal(result.fz, f(result.z))
    assert torch.equal(result.residual, rms(f(result.z) - result.z).float())


@every_rule
@pytest.mark.parametrize("evals", [1, 2, 3, 4, 7])
def test_a_small_budget_is_kept_and_gives_a_real_iterate(rule, evals):  # pitfall 2
    f, z0 = problem(batch=1, bent=True, radius=1.5)
    seen = []
    counting = Counting(f)
    result = solve(counting, z0, rule, replace(NEVER, max_evals=evals), on_eval=seen.append)
    assert counting.calls == len(seen) == len(result.trace) == int(result.evals) <= evals
    assert torch.isfinite(result.z).all()
    assert float(result.residual) < 1e3
    newest = isinstance(rule, Picard)
    assert torch.equal(result.residual[0], result.trace[-1, 0] if newest else result.trace.min())
    expected = seen[-1] if newest else min(seen, key=lambda e: float(e.residual))
    assert_same(result, expected)


@every_rule
@pytest.mark.parametrize("spoilt", [0, 4])
def test_keeping_k_is_stopping_at_k(rule, spoilt):  # pitfall 3
    f, z0 = problem(radius=0.3, bent=True)
    z0[1] = 3.0
    stop = Stop(max_evals=14, atol=2e-3)
    rows = slice(0, 1) if isinstance(rule, OutsideSolver) else slice(None)  # these solve a row at a time
    f, z0 = f.rows(rows), z0[rows]
    full = solve(Counting(f, spoilt), z0, rule, stop, keep=range(1, 15))
    assert len(full.trace) < stop.max_evals  # some of the kept numbers lie beyond the end
    assert list(full.kept) == list(range(1, 15))
    for k, kept in full.kept.items():
        assert_same(kept, solve(Counting(f, spoilt), z0, rule, replace(stop, max_evals=k)))
        assert_same(kept, solve(Counting(f, spoilt), z0, rule, stop, keep=[k]).kept[k])
    assert_same(full.kept[14], full)


@every_rule
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("bad", [1, 2, 3, 6])
def test_one_bad_evaluation_ends_the_sample_at_its_best_iterate(rule, bad, value):  # pitfall 4
    f, z0 = problem(batch=1)
    result = solve(Counting(f, bad, value=value), z0, rule, NEVER)
    assert result.status.tolist() == [Status.NON_FINITE]
    assert result.evals.tolist() == [bad]
    assert torch.isfinite(result.z).all()
    if bad > 1:
        assert_same(result, solve(f, z0, rule, replace(NEVER, max_evals=bad - 1)))
    else:
        assert torch.equal(result.z, z0)
        assert not torch.isfinite(result.fz).all()
        assert result.residual.tolist() == [torch.inf]


@ours
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
@pytest.mark.parametrize("bad", [1, 2, 5])
def test_a_bad_sample_leaves_its_neighbours_alone(rule, bad, value):  # pitfall 4, pitfall 5
    f, z0 = problem()
    seen = []
    spoilt = solve(Counting(f, bad, row=1, value=value), z0, rule, NEVER, keep=[bad, 12], on_eval=seen.append)
    good = solve(f, z0, rule, NEVER, keep=[bad, 12])
    assert spoilt.status.tolist() == [Status.MAX_EVALS, Status.NON_FINITE, Status.MAX_EVALS]
    assert spoilt.evals.tolist() == [12, bad, 12]
    assert_same(spoilt, good, [0, 2])
    for k in (bad, 12):
        assert_same(spoilt.kept[k], good.kept[k], [0, 2])
    assert torch.equal(spoilt.trace[:, [0, 2]], good.trace[:, [0, 2]])
    assert torch.isnan(spoilt.trace[bad:, 1]).all()
    assert all(torch.equal(e.z[1], spoilt.z[1]) for e in seen[bad:])
    assert torch.equal(spoilt.kept[bad].residual[1], spoilt.residual[1])


@ours
@pytest.mark.parametrize(("bad", "status"), [(1, Status.NON_FINITE), (5, Status.CONVERGED)])
def test_what_became_of_a_frozen_sample_is_settled(rule, bad, status):  # pitfall 4, pitfall 5
    f, z0 = problem()
    z0[1] = f.solution()[1].view(SHAPE)
    result = solve(Counting(f, bad, row=1), z0, rule, Stop(max_evals=12, atol=1e-12))
    assert result.status[1] == status
    assert result.evals[1] == 1


@ours
def test_a_bad_sample_leaves_the_gradients_of_its_neighbours_alone(rule):  # pitfall 4
    f, z0 = problem(bent=True)

    def gradient(bad):
        matrix = f.matrix.clone().requires_grad_()
        spoilt = Counting(replace(f, matrix=matrix), bad, row=1)
        return torch.autograd.grad(solve(spoilt, z0, rule, NEVER).fz[[0, 2]].sum(), matrix)[0]

    torch.testing.assert_close(gradient(bad=3), gradient(bad=0))


@every_rule
@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_together_are_rows_alone_bit_for_bit(rule, bent, dtype):  # pitfall 5
    f, z0 = problem(bent=bent, dtype=dtype, shape=(37,))
    z0[2] = 5.0
    stop = Stop(max_evals=15, atol=1e-4)
    together = solve(f, z0, rule, stop, keep=[3])
    for row in range(3):
        alone = solve(f.rows([row]), z0[[row]], rule, stop, keep=[3])
        assert_same(alone, replace(together, **{n: getattr(together, n)[[row]] for n in ("z", "fz", "residual")}))
        assert torch.equal(alone.kept[3].z, together.kept[3].z[[row]])
        assert (alone.status, alone.evals) == (together.status[row], together.evals[row])
        assert torch.equal(alone.trace[:, 0], together.trace[: len(alone.trace), row])


@every_rule
def test_converged_samples_freeze(rule):  # pitfall 5
    f, z0 = problem(batch=3)
    z0[1] = f.solution()[1].view(SHAPE)
    f.offset[2] *= 10  # takes longest
    seen = []
    result = solve(f, z0, rule, Stop(max_evals=200, atol=1e-6), on_eval=seen.append).check()
    assert result.evals[1] == 1
    assert result.evals[1] < result.evals[0] < result.evals[2] == len(result.trace)
    for row in range(3):
        assert torch.isfinite(result.trace[: result.evals[row], row]).all()
        assert torch.isnan(result.trace[result.evals[row] :, row]).all()
    if not isinstance(rule, OutsideSolver):
        assert all(torch.equal(e.z[1], z0[1]) for e in seen)
        assert [int(e.active.sum()) for e in seen] == [int((result.evals > n + 1).sum()) for n in range(len(seen))]


@ours
def test_the_tolerance_does_not_know_the_size_of_the_picture(rule):  # pitfall 6
    f, z0 = problem(shape=(6, 1, 1))
    stop = Stop(max_evals=60, atol=1e-5)

    def tiled(z):  # every pixel the same small problem
        return f(z[..., :1, :1]).expand_as(z) + 0 * z

    small, large = solve(f, z0, rule, stop).check(), solve(tiled, z0.repeat(1, 1, 7, 9), rule, stop).check()
    assert torch.equal(small.evals, large.evals)
    torch.testing.assert_close(small.residual, large.residual, rtol=1e-3, atol=0)
    torch.testing.assert_close(small.z.expand_as(large.z), large.z, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", [Stop, Picard, Anderson, Broyden, scipy_solver])
def test_a_misspelt_option_is_refused(kind):  # pitfall 9
    with pytest.raises(TypeError, match="unexpected keyword argument 'mxa_evals'"):
        kind(mxa_evals=3)


@pytest.mark.parametrize("options", [Stop(), *RULES.values()], ids=["stop", *RULES])
def test_options_cannot_be_assigned(options):  # pitfall 9
    name = next(iter(options.__dataclass_fields__))
    with pytest.raises(FrozenInstanceError):
        setattr(options, name, 1)


@every_rule
def test_nothing_the_caller_passed_is_changed(rule):  # pitfall 9
    f, z0 = problem(bent=True)
    before, keep, offset, options = z0.clone(), [5, 2, 5], f.offset.clone(), copy.deepcopy(rule)
    first = solve(f, z0, rule, NEVER, keep=keep)
    assert torch.equal(z0, before)
    assert torch.equal(f.offset, offset)
    assert keep == [5, 2, 5]
    assert rule == options
    assert_same(first, solve(f, z0, rule, NEVER))  # and a second solve knows nothing of the first


@every_rule
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_every_rule_finds_the_analytic_fixed_point(rule, dtype, atol):
    f, z0 = problem(dtype=dtype)
    result = solve(f, z0, rule, Stop(max_evals=200, atol=atol)).check()
    assert result.z.dtype == result.fz.dtype == dtype
    expected = problem()[0].solution().view(3, *SHAPE).to(dtype)
    torch.testing.assert_close(result.z, expected, rtol=0, atol=20 * atol)


@given(
    name=st.sampled_from(sorted(OURS)),
    batch=st.integers(1, 3),
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
    radius=st.sampled_from([0.0, 0.2, 0.5]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_contraction_is_solved_within_its_error_bound(name, batch, shape, radius, seed):
    f, z0 = problem(radius=radius, batch=batch, shape=shape, seed=seed)
    result = solve(f, z0, OURS[name], Stop(max_evals=150, atol=1e-6)).check()
    error = rms(result.z.flatten(1) - f.solution())
    assert (error <= result.residual / (1 - radius) + 1e-12).all()
    assert (result.residual <= 1e-6).all()


@every_rule
def test_on_eval_is_told_each_evaluation(rule):
    f, z0 = problem(batch=1)
    seen = []
    result = solve(f, z0, rule, Stop(max_evals=6, atol=1e-3), on_eval=seen.append)
    assert [e.number for e in seen] == list(range(1, len(result.trace) + 1))
    assert torch.equal(seen[0].z, z0)
    for evaluation, residual in zip(seen, result.trace, strict=True):
        assert torch.equal(evaluation.fz, f(evaluation.z))
        assert torch.equal(evaluation.residual, residual)
        assert evaluation.active.tolist() == [float(residual) > 1e-3]


@every_rule
def test_on_eval_ends_the_solve_where_it_returns_true(rule):
    f, z0 = problem(batch=1)
    result = solve(f, z0, rule, Stop(max_evals=9, atol=0.0), on_eval=lambda evaluation: evaluation.number == 4)
    assert result.evals.tolist() == [4]
    assert result.status.tolist() == [Status.INTERRUPTED]
    assert_same(result, solve(f, z0, rule, Stop(max_evals=4, atol=0.0)))
    with pytest.raises(SolverError, match="The time was up, or on_eval ended the solve"):
        result.check()


@every_rule
def test_a_time_budget_stands_beside_the_evaluations(rule):
    f, z0 = problem(batch=1)
    result = solve(f, z0, rule, Stop(max_evals=500, atol=0.0, max_seconds=1e-9))
    assert result.evals.tolist() == [1]  # the evaluation that exceeds it is the last
    assert result.status.tolist() == [Status.INTERRUPTED]
    assert torch.isfinite(result.z).all()
    assert solve(f, z0, rule, Stop(max_evals=5, atol=0.0, max_seconds=3600)).status.tolist() == [Status.MAX_EVALS]


@every_rule
def test_a_relative_tolerance_is_measured_against_f_of_z(rule):
    f, z0 = problem()
    f.offset[1] *= 1000
    result = solve(f, z0, rule, Stop(max_evals=100, atol=0.0, rtol=1e-4)).check()
    assert (result.residual <= 1e-4 * rms(result.fz)).all()
    assert float(result.residual[1]) > 1e-4 or rule == scipy_solver("krylov")  # which lands far below
    for row in range(3):  # and at no evaluation before
        earlier = result.trace[: result.evals[row] - 1, row]
        assert (earlier > 0.5e-4 * rms(result.fz)[row]).all()


@pytest.mark.parametrize("rule", [Anderson(), Broyden()], ids=str)
def test_what_has_met_a_relative_tolerance_is_reported_though_a_residual_before_was_smaller(rule):
    result = solve(lambda z: 2 * z + 1, torch.zeros(1, 1), rule, Stop(atol=0.0, rtol=0.7)).check()
    assert result.trace.tolist() == [[1.0], [2.0]]
    assert (result.z, result.residual) == (1, 2)
    assert solve(lambda z: z + 1, torch.zeros(1, 1), rule, Stop(atol=0.0, rtol=1.0)).check().evals == 1


def test_stop_is_absolute_by_default_and_takes_any_norm():
    assert Stop().rtol == 0
    f, z0 = problem()
    result = solve(f, z0, Picard(), Stop(atol=1e-4, norm=lambda x: x.abs().flatten(1).amax(1))).check()
    assert torch.equal(result.residual, (f(result.z) - result.z).abs().flatten(1).amax(1).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_states_do_not_overflow(dtype):
    large = torch.full((2, 30_000), 300.0, dtype=dtype)  # sum of squares 2.7e9
    assert rms(large).dtype == torch.float32
    assert rms(large).tolist() == pytest.approx([300, 300], rel=1e-4)
    for rule in OURS.values():
        result = solve(lambda z: 0.5 * z + large / 2, torch.zeros_like(large), rule, Stop(max_evals=60, atol=4.0))
        assert result.check().z.dtype == dtype
        torch.testing.assert_close(result.z, large, rtol=0.05, atol=0)


@ours
def test_gradients_follow_the_callers_grad_mode(rule):
    f, z0 = problem(bent=True, radius=0.8)

    def run(offset, z0):
        return solve(replace(f, offset=offset), z0, rule, Stop(max_evals=4, atol=0.0)).fz

    inputs = f.offset.clone().requires_grad_(), z0 + 0.1
    assert torch.autograd.gradcheck(run, inputs)
    with torch.no_grad():
        assert not run(*inputs).requires_grad


def test_check_and_summary_say_how_it_went():
    f, z0 = problem()
    good = solve(f, z0, Anderson(), Stop(max_evals=60, atol=1e-5))
    assert good.check() is good
    assert good.converged.all()
    worst = f"worst residual {float(good.residual.max()):.3g} (tolerance atol=1e-05, rtol=0)."
    assert good.summary() == f"3 of 3 samples converged; {len(good.trace)} evaluations at most; {worst}"
    with pytest.raises(SolverError, match=r"0 of 3 samples converged; 2 .*Raise Stop\(max_evals=...\)"):
        solve(f, z0, Picard(), replace(NEVER, max_evals=2)).check()
    with pytest.raises(SolverError, match=r"2 of 3 samples converged.*worst residual.*f returned NaN or infinity"):
        solve(Counting(f, 2, row=2), z0, Picard(), Stop(max_evals=60)).check()
    assert all(status.advice for status in Status)


def test_stop_refuses_options_out_of_range():
    for evals in (0, -1, 2.0, True, None):
        with pytest.raises(ValueError, match=f"max_evals to be a whole number of at least 1, got {evals!r}"):
            Stop(max_evals=evals)
    for tolerance in ({"atol": -1.0}, {"rtol": -1e-9}, {"atol": torch.nan}):
        with pytest.raises(ValueError, match="Stop expects tolerances of 0 or more, got atol="):
            Stop(**tolerance)
    for seconds in (0, -1.0, torch.nan):
        with pytest.raises(ValueError, match="Stop expects max_seconds to be more than 0, got"):
            Stop(max_seconds=seconds)


@pytest.mark.parametrize(
    ("kind", "option", "values"),
    [
        (Picard, "damping", (0.0, 1.1, torch.nan)),
        (Broyden, "damping", (0.0, -0.5)),
        (Anderson, "mixing", (0.0, 2.0)),
        (Anderson, "ridge", (-1e-9, torch.nan)),
        (Anderson, "history", (0, 1.5, True)),
        (Broyden, "history", (0, 2.0, False)),
    ],
)
def test_rules_refuse_options_out_of_range(kind, option, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"{kind.__name__} expects .*{option}.* got {value!r}"):
            kind(**{option: value})


def test_parts_of_another_type_are_refused():
    start, stop = torch.zeros(1, 2), Stop(max_evals=3, atol=0.0)
    with pytest.raises(TypeError, match=r"stop expects a Stop\(max_evals=..., atol=...\), got 3"):
        solve(lambda z: z, start, Picard(), 3)
    with pytest.raises(TypeError, match=r"rule expects a solver such as Picard\(\)"):
        solve(lambda z: z, start, "picard", stop)
    with pytest.raises(TypeError, match=r"one truth value .* got Tensor with several"):
        solve(lambda z: z + 1, start, Picard(), stop, on_eval=lambda evaluation: evaluation.fz > 0)


@every_rule
def test_solve_refuses_what_it_cannot_use(rule):
    f, z0 = problem()
    for start in (z0[0, 0, 0], z0[:0], z0.long()):
        with pytest.raises(ValueError, match="expects a floating-point start of shape"):
            solve(f, start, rule, NEVER)
    for keep in ([0], [3, 13]):
        with pytest.raises(ValueError, match=r"keep expects evaluation numbers from 1 to max_evals=12, got \("):
            solve(f, z0, rule, NEVER, keep=keep)
    for wrong in (lambda z: f(z)[..., :2], lambda z: f(z).float()):
        with pytest.raises(ValueError, match="f must return the shape and dtype it was given: expected"):
            solve(wrong, z0, rule, NEVER)
