"""What goes wrong is said: what is no solution, has no derivative, or is not an argument."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat import implicit
from torch_func_compat.implicit import (
    ConvergenceError,
    ConvergenceWarning,
    ImplicitError,
    IndefiniteError,
    NotASolutionError,
    SingularError,
    anderson,
    argmin,
    cg,
    dense,
    fixed_point,
    gmres,
    linear_solve,
    newton,
    root,
)

pytestmark = pytest.mark.filterwarnings("ignore::torch_func_compat.FallbackWarning")

F64 = torch.float64
ONE = torch.ones((), dtype=F64)
PAIR = torch.tensor([1.0, 2.0], dtype=F64)


@pytest.fixture(autouse=True)
def _silently():
    with tfc.use_fallback("silent"):
        yield


def square(z, a):
    return z**2 - a


def test_not_converged(backend):
    with pytest.raises(ConvergenceError, match=r"newton did not converge: residual norm \S+, .*after 2 iterations"):
        root(square, newton(max_iterations=2))(ONE, 1e4 * ONE)
    with pytest.raises(ConvergenceError, match=r"anderson did not converge.*after 3 iterations"):
        fixed_point(torch.cos, anderson(max_iterations=3))(ONE)
    diagonal = torch.linspace(1, 50, 50, dtype=F64)
    for solve in (cg(max_iterations=3), gmres(max_iterations=3)):
        with pytest.raises(ConvergenceError, match=r"linear_solve did not converge.*after 3 iterations"):
            linear_solve(lambda x, d: d * x, torch.ones(50, dtype=F64), diagonal, solve=solve)
    assert issubclass(ConvergenceError, ImplicitError) and issubclass(ImplicitError, RuntimeError)


def test_a_root_that_is_none(backend):
    """No z has z**2 = -1: the steps lead to where the residual is least, and that is not taken."""
    with pytest.raises(ConvergenceError, match="residual norm"):
        root(square)(ONE / 3, -ONE)


def test_how_many_samples_failed():
    args = torch.tensor([1.0, -1.0, 4.0, -2.0], dtype=F64)
    if tfc.get_backend() == "torch.func":
        with pytest.raises(ConvergenceError, match="in 2 of 4 samples"):
            tfc.vmap(lambda a: root(square)(0.9 * ONE, a))(args)
    with pytest.raises(ConvergenceError):
        tfc.vmap(lambda a: root(square)(0.9 * ONE, a))(args)


def test_nan(backend):
    solution = root(square, on_failure="nan")
    args = torch.tensor([1.0, -1.0, 4.0], dtype=F64)
    nan = float("nan")
    assert_close(tfc.vmap(lambda a: solution(ONE, a))(args), torch.tensor([1.0, nan, 2.0], dtype=F64))
    expected = torch.tensor([0.5, nan, 0.25], dtype=F64)
    assert_close(tfc.vmap(tfc.grad(lambda a: solution(ONE, a)))(args), expected)
    assert_close(tfc.vmap(tfc.jacfwd(lambda a: solution(ONE, a)))(args), expected)


def test_warn(backend):
    solution = root(square, newton(max_iterations=3), on_failure="warn")
    with pytest.warns(ConvergenceWarning, match="newton did not converge") as caught:
        z = solution(ONE, 7 * ONE)
    assert [warning.filename for warning in caught] == [__file__]
    assert 0 < abs(float(z) - 7**0.5) < 0.1
    with pytest.warns(ConvergenceWarning, match="singular"):
        found = linear_solve(lambda x, a: a * x, PAIR, 0 * PAIR, on_failure="warn")
    assert bool(torch.isnan(found).all())


def test_a_solver_that_finds_no_solution(backend):
    for solution in (
        root(square, lambda residual, z0, a: z0),
        fixed_point(lambda z, a: (z + a / z) / 2, lambda step, z0, a: step(z0, a)),
        argmin(lambda z, a: (z - a) ** 2, lambda objective, z0, a: z0),
    ):
        with pytest.raises(NotASolutionError, match="<lambda> returned a point that is no solution"):
            solution(ONE, 2 * ONE)
        assert_close(solution(ONE, ONE), ONE)  # it is one there
    with pytest.raises(NotASolutionError):
        linear_solve(lambda x, a: a * x, PAIR, PAIR, solve=lambda matvec, b: b)
    # within a larger tolerance it is one
    almost = lambda residual, z0, a: torch.sqrt(a) * 1.001
    assert_close(root(square, almost, tol=0.1)(ONE, 2 * ONE), (2 * ONE).sqrt() * 1.001)


def test_tol_is_that_of_the_solution_alone():
    """A linear system of a derivative is not solved the less accurately."""
    solution = root(square, lambda residual, z0, a: a.sqrt() * 1.01, tol=0.1, linear=lambda matvec, b: 1.01 * b / 2)
    with pytest.raises(NotASolutionError, match="linear system of root"):
        tfc.grad(lambda a: solution(ONE, a))(ONE)


def test_singular(backend):
    at_zero = root(lambda z, a: z**3 - a, lambda residual, z0, a: z0)
    zero = 0 * ONE
    assert_close(at_zero(zero, zero), zero)
    for derivative in (tfc.grad, tfc.jacfwd):
        with pytest.raises(SingularError, match="linear system of root met a singular matrix"):
            derivative(lambda a: at_zero(zero, a))(zero)
    a = torch.tensor([[1.0, 2.0], [2.0, 4.0]], dtype=F64)
    for options in (dict(solve=dense), dict(solve=dense, symmetric=True), dict(solve=gmres), dict(solve=cg)):
        with pytest.raises(SingularError, match="linear_solve met a singular matrix"):
            linear_solve(lambda x, a: a @ x, torch.tensor([1.0, 0.0], dtype=F64), a, **options)


def test_a_singular_sample_spoils_no_other():
    diagonals = torch.tensor([[1.0, 2.0], [0.0, 1.0], [4.0, 5.0]], dtype=F64)
    for solve in (dense, gmres, cg):
        found = tfc.vmap(
            lambda d, solve=solve: linear_solve(lambda x, d: d * x, PAIR, d, solve=solve, on_failure="nan")
        )(diagonals)
        assert_close(found[[0, 2]], PAIR / diagonals[[0, 2]])
        assert bool(torch.isnan(found[1]).all())


@pytest.mark.parametrize("linear", [dense, cg])
def test_indefinite(backend, linear):
    saddle = argmin(lambda z, a: z[0] ** 2 - z[1] ** 2 + (a * z).sum(), lambda objective, z0, a: z0, linear=linear)
    zero = torch.zeros(2, dtype=F64)
    with pytest.raises(IndefiniteError, match="linear system of argmin met a matrix that is not positive definite"):
        tfc.grad(lambda a: saddle(zero, a) @ torch.tensor([0.3, 1.0], dtype=F64))(zero)
    with pytest.raises(IndefiniteError):
        argmin(lambda z, a: z[0] ** 2 - z[1] ** 2 + (a * z).sum(), linear=linear)(zero, PAIR)


def test_numbers_that_are_not_finite(backend):
    nan = torch.full((2,), float("nan"), dtype=F64)
    for solve in (dense, gmres, cg):
        with pytest.raises(ConvergenceError, match="not finite"):
            linear_solve(lambda x, a: a * x, nan, PAIR, solve=solve)
    with pytest.raises(ConvergenceError, match="not finite"):
        root(square)(PAIR, nan)
    with pytest.raises(ConvergenceError, match="not finite"):
        fixed_point(lambda z, a: a * z**2, anderson(history=0))(3 * PAIR, PAIR)


def test_not_symmetric(backend):
    a = torch.tensor([[2.0, 1.0], [0.0, 3.0]], dtype=F64)
    for solve in (dense, gmres, lambda matvec, b: torch.inverse(a) @ b):
        with pytest.raises(ValueError, match="to be symmetric"):
            linear_solve(lambda x, a: a @ x, PAIR, a, solve=solve, symmetric=True)
    with pytest.raises(ValueError, match="to be symmetric"):
        root(lambda z, b: a @ z - b, symmetric=True)(PAIR, PAIR)
    # nor is a Jacobian that a solver of one's own did not need
    with pytest.raises(ValueError, match="to be symmetric"):
        tfc.grad(lambda b: root(lambda z, b: a @ z - b, by_inverse(a), symmetric=True)(PAIR, b)[1])(PAIR)


def by_inverse(a):
    return lambda residual, z0, b: torch.inverse(a) @ b


def test_a_guess_or_a_matrix_in_place_of_a_function():
    for solve in (root, fixed_point, argmin):
        with pytest.raises(TypeError, match=rf"got <class 'torch.Tensor'>.*as in {solve.__name__}\(f\)\(guess\)"):
            solve(torch.sin, PAIR)
    with pytest.raises(TypeError, match=r"expected matvec to be a function, got <class 'torch\.Tensor'>"):
        linear_solve(torch.eye(2), PAIR)


def test_shapes_before_the_first_iteration():
    def unused(residual, z0, a):
        raise AssertionError("it was called")

    for solve in (unused, newton()):
        with pytest.raises(ValueError, match=r"return the shape of z0, \(2,\), got \(\)"):
            root(lambda z, a: (z * a).sum(), solve)(PAIR, PAIR)
        with pytest.raises(TypeError, match="return the structure of z0"):
            root(lambda z, a: (z, a), solve)(PAIR, PAIR)
        with pytest.raises(TypeError, match=r"return the dtype of z0, torch\.float32, got torch\.float64"):
            root(lambda z, a: z - a, solve)(PAIR.float(), PAIR)
        with pytest.raises(TypeError, match=r"real or complex tensors, got one with a tensor of torch\.int64"):
            root(lambda z, a: z - a, solve)(torch.arange(2), PAIR)
        with pytest.raises(TypeError, match="no dimensions"):
            argmin(lambda z, a: z - a, solve)(PAIR, PAIR)
        with pytest.raises(ValueError, match="return the shape of z0"):
            fixed_point(lambda z, a: z.sum(), solve)(PAIR, PAIR)
    with pytest.raises(ValueError, match="return the shape of b"):
        linear_solve(lambda x, a: x.sum(), PAIR, PAIR)
    with pytest.raises(ValueError, match="return the shape of z0"):
        root(lambda z, a: z - a.sum(), lambda residual, z0, a: a)(ONE, PAIR)


def test_options_that_do_not_fit():
    with pytest.raises(TypeError, match="anderson, which iterates a step"):
        root(square, anderson)
    with pytest.raises(TypeError, match="a solver or a callable"):
        root(square, 3)
    with pytest.raises(ValueError, match="on_failure"):
        root(square, on_failure="ignore")
    with pytest.raises(TypeError, match="no preconditioner with dense"):
        root(square, linear=dense, preconditioner=lambda r, z, a: r)
    with pytest.raises(ValueError, match="max_iterations"):
        newton(max_iterations=0)
    with pytest.raises(ValueError, match="tol of newton"):
        newton(tol=0.0)
    with pytest.raises(ValueError, match="restart"):
        gmres(restart=0)
    with pytest.raises(TypeError, match=r"return \(z, aux\)"):
        root(square, lambda residual, z0, a: a.sqrt(), has_aux=True)(ONE, ONE)
    with pytest.raises(TypeError, match="tensors and numbers"):
        root(square, lambda residual, z0, a: (a.sqrt(), "text"), has_aux=True)(ONE, ONE)


def test_aux_of_a_solver(backend):
    solution = root(square, lambda residual, z0, a: (a.sqrt(), {"steps": 3, "norm": a * 0}), has_aux=True)
    z, aux = tfc.vmap(lambda a: solution(ONE, a))(PAIR)
    assert_close((z, aux), (PAIR.sqrt(), {"steps": torch.tensor([3, 3]), "norm": 0 * PAIR}))
    gradient, aux = tfc.grad(lambda a: solution(ONE, a), has_aux=True)(ONE)
    assert_close((gradient, aux["steps"]), (ONE / 2, torch.tensor(3)))
    assert not solution(ONE, ONE.clone().requires_grad_())[1]["norm"].requires_grad


def test_what_is_differentiated_may_not_be_closed_over(backend):
    calls = (
        lambda a: root(lambda z: z**2 - a)(PAIR),
        lambda a: fixed_point(lambda z, b: (z + a / z) / 2)(PAIR, PAIR),
        lambda a: argmin(lambda z: ((z - a) ** 2).sum())(PAIR),
        lambda a: linear_solve(lambda x: a * x, PAIR),
    )
    for call in calls:
        for derivative in (
            lambda f: tfc.grad(lambda a: f(a).sum()),
            tfc.jacfwd,
            lambda f: lambda a: tfc.jvp(f, (a,), (a,)),
            lambda f: lambda a: tfc.vmap(tfc.grad(lambda b: f(b * a).sum()))(torch.stack([a, a])),
            lambda f: tfc.grad(lambda a: tfc.vmap(lambda b: f(a) * b)(PAIR).sum()),
        ):
            with pytest.raises(RuntimeError, match="among its arguments"):
                derivative(call)(PAIR)
        with pytest.raises(RuntimeError, match="among its arguments"):
            call(PAIR.clone().requires_grad_())
        with torch.no_grad():
            assert_close(call(PAIR.clone().requires_grad_()), call(PAIR))


def test_what_is_mapped_may_be_closed_over(backend):
    for solve in (newton, lambda residual, z0: by_bisection(residual)):
        found = tfc.vmap(lambda a, solve=solve: root(lambda z: z**2 - a, solve)(ONE))(PAIR)
        assert_close(found, PAIR.sqrt())
        found = tfc.vmap(lambda a, z0, solve=solve: root(lambda z: z**2 - a, solve)(z0))(PAIR, PAIR)
        assert_close(found, PAIR.sqrt())
    found = tfc.vmap(lambda a: linear_solve(lambda x: a * x, ONE))(PAIR)
    assert_close(found, 1 / PAIR)


def by_bisection(residual):
    low, high = 0 * ONE, 4 * ONE
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if float(residual(middle)) > 0 else (middle, high)
    return low


def test_the_guess_has_no_influence(backend):
    solution = root(square)
    assert_close(tfc.grad(lambda z0: solution(z0, ONE) + 0 * z0)(2 * ONE), 0 * ONE)
    assert_close(tfc.jvp(lambda z0: solution(z0, ONE), (2 * ONE,), (ONE,)), (ONE, 0 * ONE))
    z0, a = (2 * ONE).requires_grad_(), (4 * ONE).requires_grad_()
    assert_close(torch.autograd.grad(solution(z0, a), (z0, a)), (0 * ONE, ONE / 4))


def test_solvers_may_overwrite_what_they_start_from(backend):
    def in_place(residual, z0, a):
        numbers = z0.numpy()
        for _ in range(40):
            numbers += (a / z0 - z0).numpy() / 2
        return numbers

    start = torch.tensor([1.0, 1.0], dtype=F64)
    assert_close(root(square, in_place)(start, PAIR), PAIR.sqrt())
    assert_close(start, torch.ones(2, dtype=F64))
    b = PAIR.clone()
    assert_close(linear_solve(lambda x, a: a * x, b, PAIR, solve=lambda matvec, b: b.div_(matvec(b / b))), PAIR / PAIR)
    assert_close(b, PAIR)


def test_modules_as_parameters(backend):
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 2).double()
    step = lambda z, params, x: torch.tanh(tfc.functional_call(layer, params, (z,)) / 4 + x)
    params = dict(layer.named_parameters())
    z = fixed_point(step)(torch.zeros(2, dtype=F64), params, PAIR)
    z.sum().backward()
    found = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    unrolled = torch.zeros(2, dtype=F64)
    for _ in range(60):
        unrolled = step(unrolled, params, PAIR)
    expected = torch.autograd.grad(unrolled.sum(), list(layer.parameters()))
    assert_close(found, list(expected), rtol=1e-8)


def test_nothing_is_kept_of_the_iterations():
    made = []

    def residual(z, a):
        value = z**2 - a
        made.append(weakref.ref(value))
        return value

    a = (100 * PAIR).requires_grad_()
    for solve in (newton(), lambda residual, z0, a: implicit.root(residual)(z0, a)):
        z = root(residual, solve)(PAIR, a)
        gc.collect()
        assert len(made) > 5 and not any(ref() is not None for ref in made)
        del made[:]
        z.sum().backward()
        assert 0 < len(made) < 10  # however many iterations there were
        assert_close(a.grad, 0.5 / a.detach().sqrt())
        a.grad, made[:] = None, []


def test_one_linear_solve_for_each_cotangent():
    solves = []

    def solve(matvec, b):
        solves.append(1)
        return torch.inverse(torch.stack([matvec(e) for e in torch.eye(2, dtype=F64)], 1)) @ b

    a = PAIR.clone().requires_grad_()
    z = root(square, linear=solve, solve=lambda residual, z0, a: a.sqrt())(PAIR, a)
    assert not solves
    torch.autograd.grad(z.sum(), a, retain_graph=True)
    assert len(solves) == 1
    torch.autograd.grad(z[0], a)
    assert len(solves) == 2


def test_no_graph_without_grad_mode():
    a = PAIR.clone().requires_grad_()
    with torch.no_grad():
        assert not root(square)(PAIR, a).requires_grad
    assert root(square)(PAIR, a).requires_grad
    assert not root(square)(PAIR, a.detach()).requires_grad
