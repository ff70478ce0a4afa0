"""The ready solvers: what they solve, in how many steps, one by one and mapped."""

from __future__ import annotations

import pytest
import torch
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat.implicit import anderson, argmin, cg, dense, fixed_point, gmres, linear_solve, newton, root

pytestmark = pytest.mark.filterwarnings("ignore::torch_func_compat.FallbackWarning")

F64 = torch.float64
ARGUMENTS = torch.tensor([2.0, 50.0, 1e4, 3e-5], dtype=F64)
ONE = torch.ones((), dtype=F64)


def square(z, a):
    return z**2 - a


def matrix(n, seed=0, symmetric=False, dtype=F64):
    entries = torch.randn(n, n, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    if symmetric:
        return entries @ entries.conj().transpose(0, 1) + torch.eye(n, dtype=dtype)
    return entries + n**0.5 * torch.eye(n, dtype=dtype)


def product(x, a):
    return a @ x


@pytest.fixture(autouse=True)
def _silently():
    with tfc.use_fallback("silent"):
        yield


LINEAR = {
    "default": dict(),
    "dense": dict(solve=dense()),
    "dense, symmetric": dict(solve=dense, symmetric=True),
    "cg": dict(solve=cg, symmetric=True),
    "cg, preconditioned": dict(solve=cg(), symmetric=True, preconditioner=lambda r, a: r / torch.diagonal(a)),
    "gmres": dict(solve=gmres),
    "gmres, preconditioned": dict(solve=gmres(restart=16), preconditioner=lambda r, a: r / torch.diagonal(a)),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("name", LINEAR)
def test_linear_systems(backend, name, dtype):
    options = LINEAR[name]
    n = 12
    if dtype.is_complex:
        real = {torch.complex64: torch.float32, torch.complex128: F64}[dtype]
        a = torch.complex(matrix(n, 0, dtype=real), matrix(n, 1, dtype=real) / 5)
        b = torch.complex(matrix(n, 2, dtype=real)[0], matrix(n, 3, dtype=real)[0])
    else:
        a, b = matrix(n, dtype=dtype), matrix(n, 2, dtype=dtype)[0]
    if options.get("symmetric"):
        a = a @ a.conj().transpose(0, 1) + torch.eye(n, dtype=dtype)
    expected = torch.inverse(a) @ b
    tolerance = 1e-3 if dtype in (torch.float32, torch.complex64) else 1e-8
    assert_close(linear_solve(product, b, a, **options), expected, rtol=tolerance, atol=tolerance)
    batch = torch.stack([b, 2 * b, torch.zeros_like(b)])
    found = tfc.vmap(lambda b: linear_solve(product, b, a, **options))(batch)
    assert_close(found, torch.stack([expected, 2 * expected, 0 * b]), rtol=tolerance, atol=tolerance)
    if backend != "functorch" or not dtype.is_complex:
        by_b = tfc.vjp(lambda b: linear_solve(product, b, a, **options), b)[1](b)[0]
        assert_close(by_b, torch.inverse(a).conj().transpose(0, 1) @ b, rtol=tolerance, atol=tolerance)


def counted(func):
    def wrapped(*args):
        wrapped.calls += 1
        return func(*args)

    wrapped.calls = 0
    return wrapped


def test_cg_takes_no_more_steps_than_eigenvalues():
    a = torch.diag(torch.tensor([1.0, 2.0, 5.0] * 20, dtype=F64))
    matvec = counted(product)
    assert_close(linear_solve(matvec, torch.ones(60, dtype=F64), a, solve=cg, symmetric=True), 1 / torch.diagonal(a))
    assert matvec.calls <= 3 + 3  # one to look at it, and two for symmetry


def test_gmres_takes_no_more_steps_than_eigenvalues():
    a = torch.diag(torch.tensor([1.0, -2.0, 5.0] * 20, dtype=F64))
    matvec = counted(product)
    assert_close(linear_solve(matvec, torch.ones(60, dtype=F64), a, solve=gmres), 1 / torch.diagonal(a))
    assert matvec.calls <= 3 + 2


def test_a_solved_system_takes_no_step():
    matvec = counted(product)
    linear_solve(matvec, torch.zeros(60, dtype=F64), torch.eye(60, dtype=F64), solve=gmres)
    assert matvec.calls == 1  # which looks at it


def test_large_systems_are_not_assembled():
    n = 600
    diagonal = torch.linspace(1, 3, n, dtype=F64)
    shapes = []

    def matvec(x, d):
        shapes.append(tuple(x.shape))
        return d * x

    assert_close(linear_solve(matvec, torch.ones(n, dtype=F64), diagonal), 1 / diagonal, rtol=1e-8)
    assert set(shapes) == {(n,)} and len(shapes) < 60
    assert_close(
        tfc.grad(lambda d: linear_solve(lambda x, d: d * x, torch.ones(n, dtype=F64), d).sum())(diagonal),
        -1 / diagonal**2,
        rtol=1e-8,
    )
    low = argmin(lambda z, d: (d * z**2 / 2 - z).sum())
    assert_close(tfc.grad(lambda d: low(torch.zeros(n, dtype=F64), d).sum())(diagonal), -1 / diagonal**2, rtol=1e-8)


def test_preconditioned_roots(backend):
    """What is known of the Jacobian saves products with it."""
    diagonal = torch.logspace(0, 4, 40, dtype=F64)

    def residual(z, params):
        residual.calls += 1
        return {"z": params["d"] * z["z"] ** 3 + torch.roll(z["z"], 1) / 10 - params["d"]}

    z0, results = {"z": torch.ones(40, dtype=F64)}, []
    for preconditioner in (None, lambda r, z, params: {"z": r["z"] / (3 * params["d"] * z["z"] ** 2)}):
        solution = root(residual, linear=gmres(restart=40), preconditioner=preconditioner)
        residual.calls = 0
        gradient = tfc.grad(lambda d, solution=solution: solution(z0, {"d": d})["z"].sum())(diagonal)
        results.append((gradient, residual.calls))
    assert_close(results[0][0], results[1][0], rtol=1e-6)
    exact = root(residual)
    assert_close(results[1][0], tfc.grad(lambda d: exact(z0, {"d": d})["z"].sum())(diagonal), rtol=1e-9)


def test_badly_scaled_is_not_singular():
    scales = torch.tensor([1.0, 1e-30, 1e20], dtype=F64)
    for symmetric in (False, True):
        found = linear_solve(lambda x, s: s * x, torch.ones(3, dtype=F64), scales, symmetric=symmetric)
        assert_close(found, 1 / scales)


def test_transpose_solve_is_used():
    a, used = matrix(3), []

    def solve(matvec, b):
        used.append("forward")
        return torch.inverse(a) @ b

    def transposed(vecmat, b):
        used.append("transposed")
        assert_close(vecmat(b), a.t() @ b)
        return torch.inverse(a).t() @ b

    func = lambda b: linear_solve(product, b, a, solve=solve, transpose_solve=transposed)
    assert_close(tfc.jacrev(func)(a[0]), torch.inverse(a))
    assert set(used) == {"forward", "transposed"}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_newton(backend, dtype):
    solution = root(square, newton, has_aux=True)
    args = ARGUMENTS.to(dtype)
    one = ONE.to(dtype)
    z, info = tfc.vmap(lambda a: solution(one, a))(args)
    assert_close(z, args.sqrt(), rtol=1e-6 if dtype == torch.float32 else 1e-12)
    assert info.iterations.dtype == torch.int64
    # each as if it were alone
    alone = [solution(one, a) for a in args]
    assert_close(info.iterations, torch.stack([info.iterations for _, info in alone]))
    assert_close(z, torch.stack([z for z, _ in alone]))
    assert len(set(info.iterations.tolist())) > 1


def test_newton_halves_steps_that_go_too_far(backend):
    """Full steps of atan(z) = a from here go to infinity."""
    z, info = root(lambda z, a: torch.atan(z) - a, newton, has_aux=True)(5 * ONE, 0.3 * ONE)
    assert_close(z, torch.tan(0.3 * ONE))
    assert info.iterations < 15


@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e20])
def test_tolerances_know_no_units(backend, unit):
    """The same steps, whatever the unknown and the residual are measured in."""
    for scale in (1e-15, 1e15):
        solution = root(lambda z, a, scale=scale: scale * (z**2 - a), newton, has_aux=True)
        z, info = solution(unit * ONE, 2 * unit**2 * ONE)
        assert_close(z, 2**0.5 * unit * ONE, rtol=1e-12, atol=0)
        assert info.iterations == root(square, newton, has_aux=True)(ONE, 2 * ONE)[1].iterations
        found = fixed_point(lambda z, a: (z + a / z) / 2)(unit * ONE, 2 * unit**2 * ONE)
        assert_close(found, 2**0.5 * unit * ONE, rtol=1e-9, atol=0)


@pytest.mark.parametrize("history, steps", [(0, 60), (5, 12)])
def test_anderson(backend, history, steps):
    solution = fixed_point(lambda z, a: torch.cos(a * z), anderson(history=history), has_aux=True)
    args = torch.tensor([0.1, 0.7, 1.0], dtype=F64)
    z, info = tfc.vmap(lambda a: solution(ONE, a))(args)
    assert_close(torch.cos(args * z), z, rtol=1e-11)
    assert int(info.iterations.max()) <= steps + 20 * (history == 0)
    assert_close(info.iterations, torch.stack([solution(ONE, a)[1].iterations for a in args]))
    assert int(info.iterations[0]) < int(info.iterations[2])


def test_anderson_solves_linear_steps_at_once():
    """With as much history as unknowns it is GMRES."""
    a = matrix(4) / 20
    z, info = fixed_point(lambda z, b: a @ z + b, anderson(history=5), has_aux=True)(a[0], a[1])
    assert_close(z, torch.inverse(torch.eye(4, dtype=F64) - a) @ a[1], rtol=1e-9)
    assert info.iterations <= 8


def test_a_guess_of_zero(backend):
    """Which tells nothing of how large the residual may be: here it is zero, and does not depend on the parameter."""
    for solve in (anderson(), newton()):
        z, info = fixed_point(lambda z, a: 0.3 + a * z**2, solve, has_aux=True)(0 * ONE, ONE / 2)
        assert_close(z, 1 - (1 - 0.6 * ONE).sqrt(), rtol=1e-10)
        assert info.iterations < 20


def test_mixing():
    """The plain iteration of -3 z overshoots."""
    for solve in (anderson(history=0, mixing=0.25), anderson(), newton()):
        assert_close(fixed_point(lambda z, a: -3 * z + a, solve)(ONE, ONE), ONE / 4, rtol=1e-10)


def test_samples_that_have_converged_stand_still():
    """Their last residual is what it was when they had."""
    if tfc.get_backend() != "torch.func":
        pytest.skip("elsewhere vmap is a loop")
    seen = []

    def residual(z, a):
        seen.append(1)
        return z**2 - a

    solution = root(residual, newton, has_aux=True)
    easy, hard = ONE * 1.01, ONE * 1e8
    with tfc.use_checks("off"):
        z, info = tfc.vmap(lambda a: solution(ONE, a))(torch.stack([easy, hard]))
    calls = len(seen)
    del seen[:]
    solution(ONE, hard)
    assert calls <= len(seen) + 2  # as many steps as the hardest alone, and a look at the easy one
    assert torch.equal(z[0], solution(ONE, easy)[0])
    assert info.iterations[0] < info.iterations[1]


def test_progress(capsys):
    root(square, newton(progress=True))(ONE, 2 * ONE)
    fixed_point(torch.cos, anderson(progress=True))(ONE)
    said = capsys.readouterr().err
    assert "newton: step 2, 0 of 1 solved" in said and "1 of 1 solved" in said and "anderson: step" in said


def test_complex_unknowns(backend):
    if backend == "functorch":
        pytest.skip("functorch differentiates complex numbers wrongly")
    a = torch.complex(0.4 * ONE, 1.1 * ONE)
    start = torch.complex(ONE, ONE)
    cube = root(lambda z, a: z**3 - a)
    expected = torch.polar(a.abs() ** (1 / 3), torch.atan2(a.imag, a.real) / 3)
    assert_close(cube(start, a), expected)
    (gradient,) = tfc.vjp(lambda a: cube(start, a), a)[1](start)
    assert_close(gradient, start * (1 / (3 * expected**2)).conj())
    # not holomorphic: z + conj(z) / 2 = a
    half = root(lambda z, a: z + z.conj() / 2 - a)
    assert_close(half(start, a), torch.complex(a.real / 1.5, a.imag * 2))
    (gradient,) = tfc.vjp(lambda a: half(start, a), a)[1](start)
    assert_close(gradient, torch.complex(ONE / 1.5, 2 * ONE))


def test_sizes_that_are_none(backend):
    empty = torch.zeros(0, dtype=F64)
    for solution in (root(square), fixed_point(lambda z, a: z / 2 + a)):
        assert_close(solution(empty, empty), empty)
        assert_close(tfc.grad(lambda a, solution=solution: solution(empty, a).sum())(empty), empty)
    assert_close(linear_solve(lambda x, a: a * x, empty, empty), empty)
    assert_close(root(square)(ONE, ONE), ONE)


def test_unknowns_of_several_dtypes(backend):
    def residual(z, a):
        x, y = z
        return x - a, y - 2 * x.float().sum()

    z0 = (torch.zeros(2, dtype=F64), torch.zeros((), dtype=torch.float32))
    a = torch.tensor([1.0, 2.0], dtype=F64)
    x, y = root(residual)(z0, a)
    assert (x.dtype, y.dtype) == (F64, torch.float32)
    assert_close((x, y), (a, torch.tensor(6.0)), rtol=1e-5)
    assert_close(tfc.grad(lambda a: root(residual)(z0, a)[1])(a), torch.full((2,), 2.0, dtype=F64), rtol=1e-5)


def test_parameters_that_are_not_differentiable(backend):
    """Integers, booleans and what is no tensor."""

    def residual(z, params):
        chosen = torch.where(params["mask"], params["a"][params["index"]], params["a"])
        return z ** params["power"] - chosen

    params = {"index": torch.tensor([1, 0]), "mask": torch.tensor([True, False]), "power": 3, "none": None}
    solution = lambda a: root(residual)(torch.ones(2, dtype=F64), {"a": a, **params})
    a = torch.tensor([8.0, 27.0], dtype=F64)
    expected = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=F64) / 27
    for derivative in (tfc.jacrev, tfc.jacfwd):
        assert_close(derivative(solution)(a), expected)
        assert_close(tfc.vmap(derivative(solution))(torch.stack([a, a])), torch.stack([expected, expected]))


def test_half_precision(backend):
    a = torch.tensor([2.0, 3.0], dtype=torch.bfloat16)
    found = linear_solve(lambda x, a: a * x, torch.ones_like(a), a, solve=gmres)
    assert found.dtype == torch.bfloat16
    assert_close(found, 1 / a.float(), dtype=False, rtol=2e-2)
    z = root(lambda z, a: z * z - a)(torch.ones_like(a), a)
    assert_close(z, a.float().sqrt(), dtype=False, rtol=2e-2)
