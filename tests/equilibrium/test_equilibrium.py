from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv2d

from deqflow.equilibrium import Equilibrium, Implicit, Phantom, Unrolled
from deqflow.solvers import Anderson, Broyden, Picard, SolverError, SolverResult, Status, Stop, scipy_solver, solve

PICARD = Picard()
EXACT = Stop(max_evals=200, atol=1e-13)
OURS = {"picard": Picard(), "damped": Picard(damping=0.7), "anderson": Anderson(), "broyden": Broyden()}
RULES = OURS | {"krylov": scipy_solver("krylov"), "scipy-anderson": scipy_solver("anderson")}
MODES = {"implicit": Implicit(stop=EXACT), "phantom": Phantom(), "unrolled": Unrolled()}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def linear(z, matrix, offset):
    return z @ matrix.T + offset


def bent(z, matrix, offset):
    return torch.tanh(z @ matrix.T + offset)


def row_by_row(z, offset):
    return 0.5 * torch.tanh(z) + offset


def problem(*, radius=0.6, batch=3, size=4, seed=0):
    """A matrix of the given 2-norm and an offset (B, N), to be differentiated; then a start and dL/dz."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = (radius * matrix / torch.linalg.matrix_norm(matrix, 2)).requires_grad_()
    offset, v = torch.randn(2, batch, size, generator=generator, dtype=torch.float64)
    return (matrix, offset.requires_grad_()), torch.zeros(batch, size, dtype=torch.float64), v


def run(f, inputs, z0, mode, rule=PICARD, stop=EXACT, corrections=1):
    layer = Equilibrium(rule=rule, stop=stop, gradient=mode, corrections=corrections)
    return layer(lambda z: f(z, *inputs), z0)


def same(got, expected):
    return all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


def gradients(f, inputs, z0, v, mode, rule=PICARD, stop=EXACT):
    (state,), _ = run(f, inputs, z0, mode, rule, stop)
    return torch.autograd.grad((v * state).sum(), inputs)


def solution(f, inputs, z0):
    with torch.no_grad():
        return solve(lambda z: f(z, *inputs), z0, Anderson(), EXACT).check().fz


def analytic(f, inputs, z0, v):
    """D g and sum g z^T with g = (I - J^T)^-1 v: gradients of v . z for the offset and the matrix."""
    matrix, z = inputs[0].detach(), solution(f, inputs, z0)
    slope = 1 - z**2 if f is bent else torch.ones_like(z)
    jacobian = slope[..., None] * matrix  # (B, N, N)
    eye = torch.eye(len(matrix), dtype=z.dtype)
    g = slope * torch.linalg.solve((eye - jacobian).mT, v[..., None])[..., 0]
    return g.T @ z, g


def assert_close(got, expected, tolerance=1e-10):
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("f", [linear, bent])
@pytest.mark.parametrize("mode", [Implicit(stop=EXACT), Unrolled()], ids=["implicit", "unrolled"])
def test_implicit_is_unrolled_is_analytic(f, mode):
    inputs, z0, v = problem()
    assert_close(gradients(f, inputs, z0, v, mode), analytic(f, inputs, z0, v))


@every_rule
def test_the_backward_solve_takes_every_rule(rule):
    inputs, z0, v = problem(radius=0.7)
    results = []
    mode = Implicit(rule=rule, stop=Stop(max_evals=300, atol=1e-11), on_backward=results.append)
    assert_close(gradients(bent, inputs, z0, v, mode), analytic(bent, inputs, z0, v))
    assert results[0].check().stop == mode.stop


@every_rule
def test_the_implicit_gradient_does_not_know_the_forward_rule(rule):
    inputs, z0, v = problem()
    stop = Stop(max_evals=300, atol=1e-12)
    assert_close(gradients(bent, inputs, z0, v, Implicit(stop=EXACT), rule, stop), analytic(bent, inputs, z0, v))


@pytest.mark.parametrize("rule", OURS.values(), ids=OURS)
def test_unrolled_differentiates_through_every_step_rule(rule):
    inputs, z0, v = problem(radius=0.3)
    stop = Stop(max_evals=60, atol=1e-12)
    assert_close(gradients(bent, inputs, z0, v, Unrolled(), rule, stop), analytic(bent, inputs, z0, v), 1e-7)


def test_implicit_passes_gradcheck_on_pictures(generator):
    kernel = 0.2 * torch.randn(1, 1, 3, 3, generator=generator, dtype=torch.float64)
    image = torch.randn(2, 1, 3, 4, generator=generator, dtype=torch.float64)

    def state(kernel, image):
        def f(z, kernel, image):
            return torch.tanh(conv2d(z, kernel, padding=1) + image)

        mode = Implicit(rule=Anderson(), stop=EXACT)
        (state,), result = run(f, (kernel, image), torch.zeros_like(image), mode, Anderson())
        result.check()
        return state

    assert torch.autograd.gradcheck(state, (kernel.requires_grad_(), image.requires_grad_()))


@given(
    radius=st.sampled_from([0.0, 0.3, 0.8]), batch=st.integers(1, 3), size=st.integers(1, 5), seed=st.integers(0, 99)
)
@settings(max_examples=25, deadline=None)
def test_implicit_is_exact_for_any_contraction(radius, batch, size, seed):
    inputs, z0, v = problem(radius=radius, batch=batch, size=size, seed=seed)
    mode = Implicit(rule=Anderson(), stop=EXACT)
    assert_close(gradients(bent, inputs, z0, v, mode, Anderson()), analytic(bent, inputs, z0, v))


def test_the_default_backward_tolerance_is_relative():
    inputs, z0, v = problem()
    expected = analytic(bent, inputs, z0, v)
    for scale in (1e-12, 1.0, 1e12):
        got = [g / scale for g in gradients(bent, inputs, z0, scale * v, Implicit())]
        assert_close(got, expected, 1e-4)


def series(matrix, v, steps, damping=1.0):
    """Sum of d v M^j for j < k, with M = (1 - d) I + d A: the damped Neumann sum for rows of v."""
    total, term = torch.zeros_like(v), damping * v
    for _ in range(steps):
        total, term = total + term, (1 - damping) * term + damping * term @ matrix
    return total


@pytest.mark.parametrize("damping", [1.0, 0.5, 0.3])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_phantom_is_the_neumann_sum_of_as_many_terms(steps, damping):
    inputs, z0, v = problem()
    got = gradients(linear, inputs, z0, v, Phantom(steps=steps, damping=damping))
    g = series(inputs[0].detach(), v, steps, damping)
    assert_close(got, (g.T @ solution(linear, inputs, z0), g), 1e-11)


@pytest.mark.parametrize("evals", [1, 2, 5])
def test_implicit_uses_the_last_evaluation_of_a_short_backward_solve(evals):
    inputs, z0, v = problem()
    got = gradients(linear, inputs, z0, v, Implicit(stop=Stop(max_evals=evals, atol=0.0)))
    g = series(inputs[0].detach(), v, evals + 1)
    assert_close(got, (g.T @ solution(linear, inputs, z0), g), 1e-11)


@pytest.mark.parametrize("rule", OURS.values(), ids=OURS)
def test_phantom_of_one_step_is_one_evaluation_at_the_detached_state(rule):
    inputs, z0, v = problem()
    (state,), result = run(bent, inputs, z0, Phantom(), rule, Stop(max_evals=4, atol=0.0))
    assert not result.z.requires_grad
    assert torch.equal(state, result.fz)
    one_step = torch.autograd.grad((v * bent(result.z, *inputs)).sum(), inputs)
    assert same(torch.autograd.grad((v * state).sum(), inputs), one_step)


@pytest.mark.parametrize("damping", [1.0, 0.25])
def test_phantom_takes_its_steps_from_the_reported_state(damping):
    inputs, z0, v = problem()
    (state,), result = run(bent, inputs, z0, Phantom(steps=3, damping=damping), stop=Stop(max_evals=2, atol=0.0))
    z = result.z
    for _ in range(3):
        z = (1 - damping) * z + damping * bent(z, *inputs)
    torch.testing.assert_close(state, z, rtol=1e-14, atol=1e-14)
    expected = torch.autograd.grad((v * z).sum(), inputs)
    assert_close(torch.autograd.grad((v * state).sum(), inputs), expected, 1e-13)


def test_unrolled_is_autograd_through_the_loop():
    inputs, z0, v = problem()
    z = z0
    for _ in range(5):
        z = bent(z, *inputs)
    expected = torch.autograd.grad((v * z).sum(), inputs)
    got = gradients(bent, inputs, z0, v, Unrolled(), stop=Stop(max_evals=5, atol=0.0))
    assert_close(got, expected, 1e-14)


@pytest.mark.parametrize("mode", [Implicit(stop=EXACT), Phantom(steps=2)], ids=["implicit", "phantom"])
def test_nothing_flows_back_to_the_start_but_unrolled(mode):
    inputs, z0, v = problem()
    z0.requires_grad_()
    (state,), _ = run(bent, inputs, z0, mode, stop=Stop(max_evals=3, atol=0.0))
    assert torch.autograd.grad((v * state).sum(), z0, allow_unused=True) == (None,)
    (state,), _ = run(bent, inputs, z0, Unrolled(), stop=Stop(max_evals=3, atol=0.0))
    assert torch.autograd.grad((v * state).sum(), z0)[0].abs().min() > 0


def kept_for_backward(mode, rule, evals):
    """Bytes of the tensors that autograd saves, each storage once, and evaluations made with a graph."""
    inputs, z0, _ = problem(size=8, radius=0.95)
    storages, recorded = {}, []

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    def f(z, matrix, offset):
        fz = bent(z, matrix, offset)
        recorded.append(fz.requires_grad)
        return fz

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states, _ = run(f, inputs, z0, mode, rule, Stop(max_evals=evals, atol=0.0))
    assert states[0].requires_grad
    return sum(storage.nbytes() for storage in storages.values()), sum(recorded)


@pytest.mark.parametrize("rule", OURS.values(), ids=OURS)
@pytest.mark.parametrize(("mode", "evaluations"), [(Implicit(), 1), (Phantom(), 1), (Phantom(steps=4), 4)], ids=str)
def test_what_is_kept_for_backward_does_not_grow_with_the_evaluations(mode, evaluations, rule):
    few, many = kept_for_backward(mode, rule, 3), kept_for_backward(mode, rule, 24)
    assert few == many
    assert few[0] > 0
    assert few[1] == evaluations


@pytest.mark.parametrize("rule", OURS.values(), ids=OURS)
def test_what_unrolled_keeps_grows_with_the_evaluations(rule):
    few, many = kept_for_backward(Unrolled(), rule, 3), kept_for_backward(Unrolled(), rule, 24)
    assert many[0] > 4 * few[0]
    assert (few[1], many[1]) == (3, 24)


def test_on_backward_is_told_each_backward_solve():
    inputs, z0, v = problem()
    told = []
    mode = Implicit(rule=Anderson(), stop=EXACT, on_backward=told.append)
    states, _ = run(bent, inputs, z0, mode, stop=replace(EXACT, max_evals=90), corrections=3)
    assert told == []
    (v * states[-1]).sum().backward(retain_graph=True)
    assert len(told) == 1
    assert isinstance(told[0], SolverResult)
    assert told[0].converged.all()
    slope = 1 - states[-1].detach() ** 2
    assert_close([inputs[1].grad], [slope * told[0].fz])
    (states[0] + states[1] + states[2]).sum().backward()
    assert len(told) == 4
    short = Implicit(stop=Stop(max_evals=2, atol=0.0), on_backward=told.append)
    gradients(bent, inputs, z0, v, short)
    assert told[-1].status.tolist() == [Status.MAX_EVALS] * 3


def test_backward_can_be_repeated_and_gradients_of_zero_are_zero():
    inputs, z0, v = problem()
    (state,), _ = run(bent, inputs, z0, Implicit(stop=EXACT))
    first = torch.autograd.grad((v * state).sum(), inputs, retain_graph=True)
    again = torch.autograd.grad((v * state).sum(), inputs, retain_graph=True)
    assert same(first, again)
    for zero in torch.autograd.grad((0 * state).sum(), inputs):
        assert not zero.any()


def test_a_map_that_ignores_the_state_has_its_plain_gradient():
    (_, offset), z0, v = problem()
    (state,), result = run(lambda z, offset: offset.tanh(), (offset,), z0, Implicit())
    assert result.evals.tolist() == [2, 2, 2]
    expected = torch.autograd.grad((v * offset.tanh()).sum(), offset)
    assert_close(torch.autograd.grad((v * state).sum(), offset), expected, 1e-14)


@every_mode
def test_gradients_of_a_row_do_not_depend_on_the_others(mode):
    (_, offset), z0, v = problem(size=7)
    stop = Stop(max_evals=40, atol=1e-6)

    (together,) = gradients(row_by_row, (offset,), z0, v, mode, Broyden(), stop)
    for row in range(3):
        one = slice(row, row + 1)
        (alone,) = gradients(row_by_row, (offset[one],), z0[one], v[one], mode, Broyden(), stop)
        assert torch.equal(alone, together[one])


@every_mode
def test_a_sample_that_fails_leaves_the_gradients_of_the_others_alone(mode):
    (_, offset), z0, v = problem()

    broken = offset.detach().clone()
    broken[1, 2] = torch.nan
    (good,) = gradients(row_by_row, (offset,), z0, v, mode)
    (spoilt,) = gradients(row_by_row, (broken.requires_grad_(),), z0, v, mode)
    assert torch.equal(spoilt[[0, 2]], good[[0, 2]])


@pytest.mark.parametrize(
    ("evals", "corrections", "points"),
    [(12, 1, (12,)), (12, 3, (4, 8, 12)), (10, 4, (2, 5, 8, 10)), (4, 4, (1, 2, 3, 4)), (4, None, (1, 2, 3, 4))],
)
@every_mode
def test_corrections_are_evenly_placed_in_training_and_one_in_evaluation(mode, evals, corrections, points):
    inputs, z0, _ = problem()
    stop = Stop(max_evals=evals, atol=0.0)
    layer = Equilibrium(rule=Anderson(), stop=stop, gradient=mode, corrections=corrections)
    states, result = layer(lambda z: bent(z, *inputs), z0)
    assert layer.correction_points(evals) == points
    assert tuple(result.kept) == points
    assert len(states) == len(points)
    layer.eval()
    states, result = layer(lambda z: bent(z, *inputs), z0)
    assert tuple(result.kept) == layer.correction_points(evals) == (evals,)
    assert len(states) == 1
    assert states[0].requires_grad


@given(evals=st.integers(1, 60), count=st.integers(1, 60))
def test_no_two_corrections_fall_together(evals, count):
    layer = Equilibrium(rule=Picard(), stop=Stop(), gradient=Phantom(), corrections=min(count, evals))
    points = layer.correction_points(evals)
    assert len(points) == min(count, evals)
    assert points[0] >= 1
    assert points[-1] == evals
    gaps = {after - before for before, after in zip((0, *points), points, strict=False)}
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("rule", OURS.values(), ids=OURS)
@pytest.mark.parametrize("mode", [*MODES.values(), Phantom(steps=3, damping=0.5)], ids=[*MODES, "phantom-damped"])
def test_a_correction_is_what_stopping_there_gives_with_its_gradient(mode, rule):
    inputs, z0, v = problem()
    stop = Stop(max_evals=9, atol=0.0)
    states, result = run(bent, inputs, z0, mode, rule, stop, corrections=3)
    for k, state in zip((3, 6, 9), states, strict=True):
        (alone,), stopped = run(bent, inputs, z0, mode, rule, replace(stop, max_evals=k))
        assert torch.equal(state, alone)
        assert torch.equal(result.kept[k].residual, stopped.residual)
        got = torch.autograd.grad((v * state).sum(), inputs, retain_graph=True)
        expected = torch.autograd.grad((v * alone).sum(), inputs)
        assert same(got, expected)


@every_mode
def test_a_solve_that_stops_early_drops_no_correction(mode):
    inputs, z0, v = problem(radius=0.2)
    states, result = run(bent, inputs, z0, mode, Picard(), Stop(max_evals=40, atol=1e-6), corrections=8)
    assert len(result.trace) < 15
    assert len(states) == 8
    final = torch.autograd.grad((v * states[-1]).sum(), inputs, retain_graph=True)
    for state in states[3:]:  # from evaluation 20 on
        assert torch.equal(state, states[-1])
        got = torch.autograd.grad((v * state).sum(), inputs, retain_graph=True)
        assert same(got, final)
    assert not torch.equal(states[0], states[-1])


@every_rule
@pytest.mark.parametrize("training", [True, False])
def test_without_gradients_the_values_are_the_same(rule, training):
    inputs, z0, _ = problem()
    outside = rule not in OURS.values()
    for mode in MODES.values():
        layer = Equilibrium(rule=rule, stop=Stop(max_evals=9, atol=1e-6), gradient=mode, corrections=3).train(training)
        with torch.no_grad():
            plain, result = layer(lambda z: bent(z, *inputs), z0)
        assert not any(state.requires_grad for state in plain)
        if isinstance(mode, Unrolled) and outside:
            continue
        with torch.no_grad():
            direct, _ = mode.run(lambda z: bent(z, *inputs), z0, rule, layer.stop, tuple(result.kept))
        assert same(direct, plain)
        assert not any(state.requires_grad for state in direct)
        states, _ = layer(lambda z: bent(z, *inputs), z0)
        assert len(states) == len(plain) == (3 if training else 1)
        assert all(state.requires_grad for state in states)
        assert same(states, plain)


def test_a_call_may_bring_its_own_rule_and_stop():
    inputs, z0, _ = problem()
    train_stop, eval_stop = Stop(max_evals=6, atol=0.0), Stop(max_evals=9, atol=0.0)
    layer = Equilibrium(rule=Picard(), stop=train_stop, gradient=Phantom(), corrections=2, eval_stop=eval_stop)

    def f(z):
        return bent(z, *inputs)

    own = Stop(max_evals=4, atol=0.0)
    for training, expected in ((True, train_stop), (False, eval_stop)):
        layer.train(training)
        assert layer(f, z0)[1].stop is expected
        states, result = layer(f, z0, rule=Broyden(), stop=own)
        assert result.stop is own
        assert len(result.trace) == 4
        assert tuple(result.kept) == ((2, 4) if training else (4,))
        assert torch.equal(states[-1], solve(f, z0, Broyden(), own).fz)
        with torch.no_grad():
            assert torch.equal(layer(f, z0, rule=Broyden(), stop=own)[0][-1], states[-1])
    assert layer(f, z0)[1].stop is eval_stop
    assert Equilibrium(rule=Picard(), stop=train_stop, gradient=Phantom()).eval()(f, z0)[1].stop is train_stop


def test_a_layer_in_a_network_fills_the_gradients_of_its_parameters():
    torch.manual_seed(0)
    linear_map = torch.nn.Linear(4, 4)
    with torch.no_grad():
        linear_map.weight *= 0.5
    layer = Equilibrium(rule=Anderson(), stop=Stop(max_evals=60, atol=1e-6), gradient=Implicit())
    (state,), _ = layer(lambda z: torch.tanh(linear_map(z)), torch.zeros(2, 4))
    assert state.dtype == torch.float32
    state.sum().backward()  # dL/dz is an expanded tensor
    assert linear_map.weight.grad.abs().max() > 0
    assert list(layer.parameters()) == []


def test_phantom_refuses_steps_and_damping_out_of_range():
    for steps in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"Phantom expects steps to be a whole number of at least 1, got {steps}"):
            Phantom(steps=steps)
    for damping in (0.0, 1.5, -0.1, torch.nan):
        with pytest.raises(ValueError, match=f"Phantom expects 0 < damping <= 1, got {damping}"):
            Phantom(damping=damping)


def test_there_is_at_least_one_correction_and_an_evaluation_for_each():
    inputs, z0, _ = problem()
    for corrections in (0, -2):
        with pytest.raises(ValueError, match="corrections of at least 1"):
            Equilibrium(rule=Picard(), stop=Stop(), gradient=Phantom(), corrections=corrections)
    with pytest.raises(ValueError, match="4 corrections need at least as many evaluations, got max_evals=3"):
        run(linear, inputs, z0, Phantom(), stop=Stop(max_evals=3), corrections=4)
    layer = Equilibrium(rule=Picard(), stop=Stop(max_evals=4, atol=0.0), gradient=Phantom(), corrections=4)
    with pytest.raises(ValueError, match="4 corrections need at least as many evaluations, got max_evals=2"):
        layer(lambda z: z, z0, stop=Stop(max_evals=2))
    assert len(layer.eval()(lambda z: z, z0, stop=Stop(max_evals=2))[0]) == 1


@pytest.mark.parametrize("method", ["krylov", "anderson"])
def test_unrolled_refuses_a_solver_from_outside(method):
    inputs, z0, _ = problem()
    with pytest.raises(TypeError, match="Unrolled expects a step rule such as Picard, got ScipySolver: use Implicit"):
        run(linear, inputs, z0, Unrolled(), scipy_solver(method))


@pytest.mark.parametrize("f", [linear, bent])
def test_implicit_refuses_second_derivatives_that_would_be_wrong(f):
    inputs, z0, _ = problem()
    (state,), _ = run(f, inputs, z0, Implicit(stop=EXACT))
    with pytest.raises(RuntimeError, match="first derivatives only, got create_graph=True: use Unrolled"):
        torch.autograd.grad((state**3).sum(), inputs, create_graph=True)
    assert torch.autograd.gradgradcheck(
        lambda *inputs: run(f, inputs, z0, Unrolled(), stop=Stop(max_evals=5, atol=0.0))[0][0], inputs
    )


def test_a_gradient_that_has_not_converged_is_warned_of():
    b = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    results = []

    def gradient(**options):
        mode = Implicit(on_backward=results.append, **options)
        (state,), _ = run(lambda z, b: 0.95 * z + b, (b,), torch.zeros_like(b), mode, Anderson())
        return float(torch.autograd.grad(state.sum(), b)[0])

    with pytest.warns(UserWarning, match=r"not converged after 50 evaluations: its residual is 0\.0042 of") as seen:
        assert gradient() == pytest.approx(20 * (1 - 0.95**51))  # 18.5 for 20
    assert len(seen) == 1
    assert "Raise Implicit(stop=Stop(max_evals=...)), loosen its rtol" in str(seen[0].message)
    assert float(results[0].residual / results[0].fz) == pytest.approx(0.004, rel=0.1)
    with pytest.raises(SolverError, match="backward solve of Implicit has not converged after 50 evaluations"):
        gradient(check=True)
    assert gradient(check=True, stop=Stop(max_evals=400, atol=0.0, rtol=1e-6)) == pytest.approx(20, rel=1e-4)
    assert gradient(check=True, rule=Anderson()) == pytest.approx(20, rel=1e-4)
    # Without a tolerance the budget is meant to be spent, whatever comes of it.
    assert gradient(check=True, stop=Stop(max_evals=9, atol=0.0)) == pytest.approx(20 * (1 - 0.95**10))


def test_transforms_of_torch_func_are_refused_with_what_to_use_instead():
    inputs, z0, v = problem()

    def loss(offset, mode):
        (state,), _ = run(bent, (inputs[0].detach(), offset), z0, mode)
        return (v * state).sum()

    offset = inputs[1].detach()
    for transform in (torch.func.grad, torch.func.jacrev):
        with pytest.raises(RuntimeError, match=r"Implicit does not support torch\.func .*: use torch\.autograd"):
            transform(loss)(offset, Implicit())
        (expected,) = torch.autograd.grad(loss(inputs[1], Unrolled()), inputs[1])
        torch.testing.assert_close(transform(loss)(offset, Unrolled()), expected)
    for mode in (Implicit(), Phantom(), Unrolled()):
        with pytest.raises(RuntimeError, match=r"solve does not support torch\.func\.vmap, .* batch dimension"):
            torch.func.vmap(loss, in_dims=(0, None))(offset[None], mode)


@pytest.mark.parametrize("kind", [Implicit, Phantom, Unrolled])
def test_options_of_a_mode_are_spelt_right_and_cannot_be_assigned(kind):
    with pytest.raises(TypeError, match="unexpected keyword argument 'stpes'"):
        kind(stpes=2)
    with pytest.raises(FrozenInstanceError):
        kind().steps = 2
    assert kind() == kind()
