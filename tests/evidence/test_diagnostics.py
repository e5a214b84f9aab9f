import gc
import math

import pytest
import torch

from deqflow.equilibrium import Implicit, Phantom, Unrolled
from deqflow.evidence.diagnostics import (
    ALL,
    KeptForBackward,
    anchored,
    audit,
    compare,
    exact_gradient,
    jacobian_norm,
    measure_gradient,
    path_independence,
    spectral_radius,
)
from deqflow.solvers import Anderson, Picard, SolverError, Stop, rms

SIZE = 6


def matrix(generator, radius):
    a = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    return a * radius / torch.linalg.eigvals(a).abs().max()


def jacobians(f, z):
    """The Jacobian of each sample, (B, N, N), built in full."""
    whole = torch.autograd.functional.jacobian(f, z).reshape(len(z), z[0].numel(), len(z), -1)
    return torch.stack([whole[b, :, b] for b in range(len(z))])


def bent(generator):
    """A map of states (B, 2, 3) that is not linear, with a different Jacobian for each sample."""
    a = matrix(generator, 1.5)
    return lambda z: (z.flatten(1) @ a.T + 0.3).tanh().view_as(z)


@pytest.mark.parametrize("seed", range(6))
def test_spectral_radius_is_the_largest_modulus_of_the_jacobians_eigenvalues(seed):
    generator = torch.Generator().manual_seed(seed)
    f, z = bent(generator), torch.randn(3, 2, 3, generator=generator, dtype=torch.float64)
    expected = torch.linalg.eigvals(jacobians(f, z)).abs().amax(1)
    found = spectral_radius(f, z, generator=generator, steps=3000)
    torch.testing.assert_close(found.radius, expected, rtol=1e-3, atol=0)
    assert found.steps == 3000
    assert (found.unsettled < 0.05).all()


def test_a_turning_pair_of_eigenvalues_settles_at_once(generator):
    turn = 0.7 * torch.tensor([[math.cos(1.0), -math.sin(1.0)], [math.sin(1.0), math.cos(1.0)]], dtype=torch.float64)
    found = spectral_radius(lambda z: z @ turn.T, torch.zeros(1, 2, dtype=torch.float64), generator=generator, steps=2)
    assert found.radius.item() == pytest.approx(0.7)
    assert found.unsettled.item() < 1e-12


def test_an_unsettled_radius_says_so(generator):
    slow = torch.linspace(0.8, 0.9, 50, dtype=torch.float64)
    z = torch.zeros(1, 50, dtype=torch.float64)
    early, late = (spectral_radius(lambda z: slow * z, z, generator=generator, steps=n) for n in (4, 3000))
    assert early.unsettled.item() > 0.01 > late.unsettled.item()
    assert late.radius.item() == pytest.approx(0.9, rel=1e-4)


@pytest.mark.parametrize("f", [lambda z: torch.ones_like(z), lambda z: 0 * z, lambda z: 0.25 * z])
def test_radius_and_norm_of_maps_that_are_a_multiple_of_the_identity(f, generator):
    z = torch.ones(2, 4, dtype=torch.float64)
    factor = 0.25 * float(f(2 * z).sum() / f(z).sum() == 2) if f(z).any() else 0.0
    assert spectral_radius(f, z, generator=generator, steps=3).radius.tolist() == pytest.approx([factor] * 2)
    assert jacobian_norm(f, z, generator=generator, probes=2).norm.tolist() == pytest.approx([2 * factor] * 2)


def test_jacobian_norm_is_frobeniuss_within_its_standard_error(generator):
    f, z = bent(generator), torch.randn(3, 2, 3, generator=generator, dtype=torch.float64)
    expected = torch.linalg.matrix_norm(jacobians(f, z))
    found = jacobian_norm(f, z, generator=generator, probes=2000)
    assert ((found.norm - expected).abs() < 4 * found.error).all()
    assert (found.error < 0.02 * expected).all()


def test_radius_and_norm_repeat_themselves_and_keep_the_dtype():
    z = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1))
    a = matrix(torch.Generator().manual_seed(2), 0.5).float()
    for measure in (spectral_radius, jacobian_norm):
        with torch.no_grad():
            one, other = (
                measure(lambda z: (z.flatten(1) @ a).view_as(z), z, generator=torch.Generator().manual_seed(0))
                for _ in range(2)
            )
        for name in vars(one):
            assert torch.equal(torch.as_tensor(getattr(one, name)), torch.as_tensor(getattr(other, name)))
        assert (one.radius if measure is spectral_radius else one.norm).dtype == torch.float32


@pytest.mark.parametrize(
    ("measure", "options"), [(spectral_radius, {"steps": 1}), (jacobian_norm, {"probes": 1})], ids=["radius", "norm"]
)
def test_too_few_products_are_refused(measure, options, generator):
    with pytest.raises(ValueError, match="at least 2"):
        measure(lambda z: z, torch.ones(1, 2), generator=generator, **options)


def test_an_anchored_map_has_a_scaled_jacobian_and_keeps_its_anchor_fixed(generator):
    f, z = bent(generator), torch.randn(2, 2, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(jacobians(anchored(f, z, 0.3), z), 0.3 * jacobians(f, z))
    assert torch.equal(anchored(lambda z: z, z, 0.3)(z), z)


def test_kept_bytes_count_each_storage_once_and_leave_out_what_is_there_anyway():
    x = torch.ones(10, 20, requires_grad=True)
    weight = torch.ones(20, 30, requires_grad=True)
    with KeptForBackward() as everything:
        y = (x @ weight).exp()  # keeps x, weight, and the result
    with KeptForBackward(apart_from=[weight]) as less:
        z = (x @ weight).exp() * x.sum()  # keeps the result for exp and for the product, and a sum
    assert everything.bytes == 4 * (10 * 20 + 20 * 30 + 10 * 30)
    assert less.bytes == 4 * (10 * 20 + 10 * 30 + 1)
    assert y.shape == z.shape


def test_kept_bytes_fall_when_the_graph_goes():
    x = torch.ones(100, requires_grad=True)
    with KeptForBackward() as kept:
        y = x.exp().sin()
    assert kept.bytes == 400  # exp's result is sin's argument
    y.sum().backward()
    del y
    gc.collect()
    assert kept.bytes == 0
    torch.testing.assert_close(x.grad, math.e * torch.full((100,), math.e).cos())


def test_nothing_is_kept_without_a_graph():
    with torch.no_grad(), KeptForBackward() as kept:
        torch.ones(5, requires_grad=True).exp()
    assert kept.bytes == 0


def test_the_bytes_of_an_unroll_grow_and_those_of_an_implicit_layer_do_not(generator):
    a = matrix(generator, 0.5).requires_grad_()
    z = torch.ones(1, SIZE, dtype=torch.float64)

    def kept(mode, evals):
        return measure_gradient(lambda: lambda z: (z @ a.T).tanh(), z, mode, lambda z: z.sum(), {"a": [a]}, evals=evals)

    assert kept(Implicit(), 3).bytes == kept(Implicit(), 30).bytes
    unrolled = [kept(Unrolled(), n).bytes for n in (3, 6, 9)]
    assert unrolled[2] - unrolled[1] == unrolled[1] - unrolled[0] > 0


def test_path_independence_of_one_fixed_point(generator):
    a, b = matrix(generator, 0.6), torch.randn(SIZE, generator=generator, dtype=torch.float64)
    starts = {"zero": torch.zeros(2, SIZE, dtype=torch.float64), "far": torch.full((2, SIZE), 9.0, dtype=torch.float64)}
    rules = {"Picard": Picard(), "Anderson": Anderson()}
    found = path_independence(lambda z: z @ a.T + b, starts, rules, Stop(max_evals=200, atol=1e-9))
    assert [(p.start, p.rule) for p in found.paths] == [(s, r) for s in starts for r in rules]
    assert found.distances.shape == (4, 4)
    assert found.spread < 1e-7
    fixed = torch.linalg.solve(torch.eye(SIZE, dtype=torch.float64) - a, b)
    for path in found.paths:
        torch.testing.assert_close(path.result.fz, fixed.expand(2, -1), rtol=0, atol=1e-7)
        assert path.seconds > 0
    rows = found.rows("px")
    assert rows[0]["converged"] is True
    assert rows[3]["evaluations"] == int(found.paths[3].result.evals.max())
    assert rows[0]["from the first end (px)"] == 0


def test_path_dependence_is_measured_in_the_norm_of_the_stopping_rule():
    starts = {"two": torch.full((2, 3), 2.0), "five": torch.tensor([[5.0] * 3, [3.0] * 3])}
    found = path_independence(lambda z: z, starts, {"Picard": Picard()}, Stop(norm=lambda d: 8 * rms(d)))
    assert found.distances.tolist() == [[0, 24], [24, 0]]  # the worse sample
    assert found.spread == 24


@pytest.mark.parametrize(("starts", "rules"), [({}, {"Picard": Picard()}), ({"one": torch.ones(1, 2)}, {})])
def test_path_independence_needs_a_start_and_a_rule(starts, rules):
    with pytest.raises(ValueError, match="starts and rules"):
        path_independence(lambda z: z, starts, rules, Stop())


@pytest.fixture
def linear(generator):
    """z = A z + W x: with loss c . z the gradient in b = W x is (I - A^T)^-1 c, a Neumann sum in powers of A."""
    a, c = matrix(generator, 0.8), torch.randn(SIZE, generator=generator, dtype=torch.float64)
    b = torch.randn(SIZE, generator=generator, dtype=torch.float64, requires_grad=True)
    other = torch.ones(3, dtype=torch.float64, requires_grad=True)
    eye = torch.eye(SIZE, dtype=torch.float64)
    z = torch.linalg.solve(eye - a, b.detach())[None]
    problem = {"z": z, "loss": lambda z: (z @ c).sum() + (2 * other).sum(), "groups": {"b": [b], "direct": [other]}}
    return a, c, torch.linalg.solve(eye - a.T, c), lambda: lambda z: z @ a.T + b, problem


def test_the_exact_gradient_is_exact_and_unrolling_agrees(linear):
    *_, expected, make, problem = linear
    found = exact_gradient(make, **problem, unroll=400)
    torch.testing.assert_close(found.gradient.groups["b"], expected, rtol=1e-9, atol=0)
    assert found.gradient.groups["direct"].tolist() == [2, 2, 2]
    assert found.residual < 1e-10
    assert set(found.unrolled_error) == {"b", "direct", ALL}
    assert max(found.unrolled_error.values()) < 1e-9
    assert exact_gradient(make, **problem).unrolled_error == {}


def test_an_unroll_goes_its_whole_length_even_from_an_exact_fixed_point():
    theta = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    found = measure_gradient(
        lambda: lambda z: 0.5 * z + (theta - 1), zero, Unrolled(), lambda z: z.sum(), {"theta": [theta]}, evals=4
    )
    assert found.groups["theta"].item() == 1 + 0.5 + 0.25 + 0.125


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_phantom_rows_are_the_neumann_sum_of_that_many_terms(linear, steps):
    a, c, expected, make, problem = linear
    terms = sum(torch.linalg.matrix_power(a.T, i) @ c for i in range(steps))
    found = audit({"phantom": (make, Phantom(steps=steps))}, exact_gradient(make, **problem), **problem)
    torch.testing.assert_close(found.gradients["phantom"].groups["b"], terms)
    row = found.row("phantom", "b")
    assert row.cosine == pytest.approx(float(torch.cosine_similarity(terms, expected, dim=0)))
    assert row.length == pytest.approx(float(terms.norm() / expected.norm()))
    assert row.error == pytest.approx(float((terms - expected).norm() / expected.norm()))
    direct = found.row("phantom", "direct")
    assert (direct.cosine, direct.length, direct.error) == pytest.approx((1, 1, 0))


def test_an_audit_holds_every_mode_and_group_and_what_each_cost(linear):
    *_, make, problem = linear
    loose = Implicit(stop=Stop(max_evals=500, atol=0.0, rtol=1e-2))
    attempts = {"one-step": (make, Phantom()), "loose": (make, loose), "five": (make, Phantom(steps=5))}
    found = audit(attempts, exact_gradient(make, **problem), **problem, repeats=2)
    assert [(row.mode, row.group) for row in found.rows] == [(m, g) for m in attempts for g in ("b", "direct", ALL)]
    assert found.row("loose").error < 0.1 < found.row("one-step").error
    assert found.gradients["one-step"].backward is None
    assert found.gradients["loose"].backward.converged.all()
    assert all(gradient.seconds > 0 for gradient in found.gradients.values())
    with pytest.raises(KeyError, match="'loose', 'one-step'"):
        found.row("two-step")


def test_a_mode_may_have_a_map_of_its_own(linear):
    a, c, _, make, problem = linear
    b = problem["groups"]["b"][0]
    cut = (lambda: lambda z: z.detach() @ a.T + b, Implicit())
    found = audit({"detached": cut}, exact_gradient(make, **problem), **problem)
    torch.testing.assert_close(found.gradients["detached"].groups["b"], c)


def test_a_gradient_of_zero_has_no_direction(linear):
    *_, make, problem = linear
    exact = exact_gradient(make, **problem).gradient
    zero = measure_gradient(make, problem["z"], Phantom(), lambda z: 0 * z.sum(), problem["groups"])
    row = compare("zero", zero, exact)[0]
    assert math.isnan(row.cosine)
    assert (row.length, row.error) == (0, 1)
    assert math.isnan(compare("exact", exact, zero)[0].error)


def test_the_callers_own_report_of_the_backward_solve_still_comes(linear):
    *_, make, problem = linear
    seen = []
    mode = Implicit(on_backward=seen.append, stop=Stop(max_evals=100, atol=0.0, rtol=1e-5))
    found = measure_gradient(make, problem["z"], mode, problem["loss"], problem["groups"])
    assert seen == [found.backward]


def test_what_an_audit_refuses(linear):
    *_, make, problem = linear
    wrong = problem | {"groups": {"empty": []}}
    with pytest.raises(ValueError, match="none in empty"):
        measure_gradient(make, mode=Phantom(), **wrong)
    with pytest.raises(ValueError, match="repeats"):
        measure_gradient(make, mode=Phantom(), **problem, repeats=0)
    with pytest.raises(TypeError, match="float64"):
        exact_gradient(make, **problem | {"z": problem["z"].float()})
    with pytest.raises(ValueError, match="depends on the state"):
        exact_gradient(make, **problem | {"loss": lambda z: problem["groups"]["b"][0].sum()})


def test_a_reference_that_is_not_exact_is_refused(linear):
    *_, make, problem = linear
    with pytest.raises(SolverError, match=r"exact gradient: The backward solve .* has not converged after 3"):
        exact_gradient(make, **problem, rule=Picard(), stop=Stop(max_evals=3, atol=0.0, rtol=1e-10))
