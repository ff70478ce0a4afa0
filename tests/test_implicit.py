"""Derivatives of solutions under every transform, on every backend, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.function_transforms import BATCH, TRANSFORMS, Case, U, X
from support.functions import Kind
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat import implicit

MIX = torch.tensor(
    [[1.0, 0.2, 0.0, -0.1], [0.0, 0.9, 0.3, 0.0], [0.1, 0.0, 1.1, 0.2], [-0.2, 0.0, 0.0, 1.0]], dtype=torch.float64
)
UNMIX = torch.inverse(MIX)
START = torch.full((4,), 0.5, dtype=torch.float64)


def inverse_sine(x):
    """z of sinh(MIX z) = x."""
    return UNMIX @ torch.log(x + torch.sqrt(x**2 + 1))


def residual(z, x):
    return torch.sinh(MIX @ z) - x


def step(z, x):
    return z - 0.35 * UNMIX @ (torch.sinh(MIX @ z) - x)


def objective(z, x):
    y = MIX @ z
    return (torch.cosh(y) - x * y).sum()


def by_numpy(residual, z0, x):
    """Newton's method with a Jacobian by differences, where torch cannot see it."""
    z = z0.numpy().copy()
    for _ in range(60):
        value = residual(torch.from_numpy(z), x).numpy()
        if np.abs(value).max() < 1e-14:
            break
        columns = [(residual(torch.from_numpy(z + e), x).numpy() - value) / 1e-6 for e in 1e-6 * np.eye(4)]
        z = z - np.linalg.solve(np.stack(columns, 1), value)
    return z


def least_by_numpy(objective, z0, x):
    return by_numpy(lambda z, x: tfc.grad(lambda z: objective(z, x))(z), z0, x)


def tree_residual(z, params):
    a, (b,) = z["a"], z["b"]
    y = residual(torch.stack([a, b[0], b[1], b[2]]), params["x"] * params["factor"])
    return {"a": y[0], "b": (y[1:],)}


def as_tree(x):
    solution = implicit.root(tree_residual)
    z = solution({"a": START[0], "b": (START[1:],)}, {"x": x, "factor": 1.0, "name": "x"})
    return torch.cat([z["a"].reshape(1), z["b"][0]])


def matrix(x):
    return x.unsqueeze(0) * x.unsqueeze(1) / 2 + 3 * torch.eye(4, dtype=x.dtype) + MIX


def symmetric(x):
    return x.unsqueeze(0) * x.unsqueeze(1) / 2 + 3 * torch.eye(4, dtype=x.dtype)


def solve_by_numpy(matvec, b):
    columns = [matvec(torch.from_numpy(e)).numpy() for e in np.eye(4)]
    return np.linalg.solve(np.stack(columns, 1), b.numpy())


def linear(matrix, **options):
    return Kind(
        lambda x: implicit.linear_solve(lambda v, m: m @ v, x.sin(), matrix(x), **options),
        lambda x: torch.inverse(matrix(x)) @ x.sin(),
    )


def solution(solve, *args, **options):
    return Kind(lambda x: solve(*args, **options)(START, x), inverse_sine)


def jacobi(r, m):
    return r / torch.diagonal(m)


KINDS = {
    "linear_solve": linear(matrix),
    "linear_solve, gmres": linear(matrix, solve=implicit.gmres(restart=3)),
    "linear_solve, cg": linear(symmetric, solve=implicit.cg, symmetric=True, preconditioner=jacobi),
    "linear_solve, numpy": linear(matrix, solve=solve_by_numpy),
    "root": solution(implicit.root, residual),
    "root, gmres": solution(implicit.root, residual, implicit.newton(), linear=implicit.gmres()),
    "root, numpy": solution(implicit.root, residual, by_numpy, linear=solve_by_numpy),
    "root of pytrees": Kind(as_tree, inverse_sine),
    "fixed_point": solution(implicit.fixed_point, step, implicit.anderson(tol=1e-14)),
    "argmin": solution(implicit.argmin, objective),
    "argmin, cg": solution(implicit.argmin, objective, linear=implicit.cg),
    "argmin, numpy": solution(implicit.argmin, objective, least_by_numpy),
}
# The others are kept to some of the transforms, for time: their rules are the same, and their solvers are not.
EVERYWHERE = ("linear_solve", "root")
SOME = (
    *("value", "double backward", "vjp", "jacrev(jacfwd)", "jacfwd(jacrev)", "nested vmap", "vmap(vjp_fn)"),
    *("vmap(hessian)", "backward of grad"),
)
ALL = list(TRANSFORMS)
if not hasattr(torch, "func"):
    ALL.remove("jacfwd(jacfwd(jacfwd))")  # loops within loops, which take ten seconds: see "jvp(jvp(jvp))"
# functorch knows no custom Functions: it falls back, and what follows is computed by the autograd backend.
BY_FUNCTORCH = ("value", "vjp", "jvp", "jacfwd", "hessian", "jacfwd(jacrev)", "vmap", "vmap(vjp_fn)", "vmap(hessian)")


@pytest.mark.parametrize(
    "kind, transform", [(kind, name) for kind in KINDS for name in (ALL if kind in EVERYWHERE else SOME)]
)
def test_kind(backend, kind, transform):
    if backend == "functorch" and transform not in BY_FUNCTORCH:
        pytest.skip("the same calls of the autograd backend, after functorch has refused")
    case = Case(f"implicit {kind}", KINDS[kind])
    # natively, where torch.func knows custom Functions
    with tfc.use_fallback("silent" if backend == "functorch" else "error"):
        result, expected = (side(case) for side in TRANSFORMS[transform])
    assert_close(result, expected, rtol=1e-8, atol=1e-9)


MODES = {
    "reverse-reverse-reverse": lambda f: tfc.jacrev(tfc.jacrev(tfc.jacrev(f))),
    "forward-reverse-reverse": lambda f: tfc.jacfwd(tfc.jacrev(tfc.jacrev(f))),
    "reverse-forward-reverse": lambda f: tfc.jacrev(tfc.jacfwd(tfc.jacrev(f))),
    "forward-forward-forward": lambda f: tfc.jacfwd(tfc.jacfwd(tfc.jacfwd(f))),
    "reverse-reverse-forward": lambda f: tfc.jacrev(tfc.jacrev(tfc.jacfwd(f))),
    "forward-reverse-forward": lambda f: tfc.jacfwd(tfc.jacrev(tfc.jacfwd(f))),
}


# Without torch.func, each is a loop within loops, which takes a minute for a batch: see test_kind for the others there.
if not hasattr(torch, "func"):
    MODES = {name: MODES[name] for name in ("reverse-reverse-reverse", "forward-reverse-reverse")}


@pytest.mark.any_torch
@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["linear_solve", "root", "argmin"])
def test_third_derivatives_mapped_and_not(backend, kind, mode):
    if backend == "functorch":
        pytest.skip("the same calls of the autograd backend, after functorch has refused")
    case = Case(f"implicit {kind}", KINDS[kind])
    with tfc.use_fallback("error"):
        assert_close(MODES[mode](case.scalar)(X), case.ds(3), rtol=1e-8, atol=1e-9)
        assert_close(tfc.vmap(MODES[mode](case.scalar))(BATCH[:2]), case.ds(3, BATCH[:2]), rtol=1e-8, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear_solve", "linear_solve, numpy", "root", "fixed_point", "argmin"])
def test_by_differences(kind):
    x = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(KINDS[kind].func, x)
    assert torch.autograd.gradgradcheck(KINDS[kind].func, x)
    hessian, h = tfc.hessian(lambda x: KINDS[kind].func(x).sum()), 1e-4
    differences = [(hessian(X + e) - hessian(X - e)) / (2 * h) for e in h * torch.eye(4, dtype=X.dtype)]
    assert_close(tfc.jacrev(hessian)(X), torch.stack(differences, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not hasattr(torch, "func"), reason="torch.func is there from torch 2.0 on")
@pytest.mark.parametrize("kind", ["linear_solve", "root", "root, numpy", "fixed_point", "argmin"])
def test_under_the_transforms_of_torch_itself(kind):
    import torch.func as F

    case = Case(f"implicit {kind}", KINDS[kind])
    assert_close(F.jacrev(case.f)(X), case.d(1), rtol=1e-8)
    assert_close(F.jacfwd(case.f)(X), case.d(1), rtol=1e-8)
    assert_close(F.vmap(F.hessian(case.scalar))(BATCH), case.ds(2, BATCH), rtol=1e-8, atol=1e-9)
    assert_close(F.jacrev(F.vmap(F.grad(case.scalar)))(BATCH)[1, :, 1], case.ds(2, BATCH[1]), rtol=1e-8, atol=1e-9)


@pytest.mark.skipif(not hasattr(torch, "func"), reason="forward mode is off in an autograd.Function of torch < 2.0")
def test_dual_numbers_of_torch_itself():
    """Torch nests forward mode within its own transforms only; the rule's derivative is taken by the transpose."""
    from torch.autograd import forward_ad

    solve = lambda x: implicit.root(residual)(START, x)
    with forward_ad.dual_level(), tfc.use_fallback("silent"):
        tangent = forward_ad.unpack_dual(solve(forward_ad.make_dual(X, U))).tangent
    assert_close(tangent, tfc.jvp(solve, (X,), (U,))[1])
