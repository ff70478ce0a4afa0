"""Derivatives that torch gets wrong without an error are computed right, or raised."""

from __future__ import annotations

import cProfile
import functools
import math
import sys
from pathlib import Path

import pytest
import torch
from support import refused
from support.rows import by_rows
from support.tolerances import assert_close
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

import torch_func_compat as tfc
from torch_func_compat._guards.known_mistakes import WRONG_ANSWERS
from torch_func_compat._torch import engine, facts

pytestmark = pytest.mark.filterwarnings("ignore::torch_func_compat.FallbackWarning")

X = torch.linspace(-1.0, 1.3, 6, dtype=torch.float64)
Y = X.cos().reshape(3, 2)
ZERO = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
# cotangents of the distances between the rows of X and of Y
V = torch.sin(torch.arange(18.0, dtype=torch.float64)).reshape(2, 3, 3)


def distances(x):
    return torch.cdist(x.reshape(3, 2), Y)


def by_hand(x):
    return (x.reshape(3, 1, 2) - Y).norm(dim=-1)


def rows(func, x):
    x = x.clone().requires_grad_()
    output = func(x)
    found = [torch.autograd.grad(y, x, retain_graph=True)[0] for y in output.reshape(-1)]
    return torch.stack(found).reshape(output.shape + x.shape)


CDIST = {
    "jacrev": lambda f: tfc.jacrev(f)(X),
    "jacrev, called again": lambda f: [g(X) for g in [tfc.jacrev(f)] for _ in range(2)][1],
    "jacrev in chunks": lambda f: tfc.jacrev(f, chunk_size=4)(X),
    "jacfwd": lambda f: tfc.jacfwd(f)(X),
    "jacobians mapped": lambda f: tfc.vmap(tfc.jacrev(f))(torch.stack([X, 2 * X])),
    "vjp_fn mapped": lambda f: tfc.vmap(tfc.vjp(f, X)[1])(V)[0],
    "vjp within vmap": lambda f: tfc.vmap(lambda v: tfc.vjp(f, X)[1](v)[0])(V),
    "grad within vmap": lambda f: tfc.vmap(lambda v: tfc.grad(lambda x: (f(x) * v).sum())(X))(V),
}


@pytest.mark.parametrize("name", CDIST)
def test_cdist(backend, name):
    assert_close(CDIST[name](distances), CDIST[name](by_hand))


def test_cdist_by_hand_is_the_reference(backend):
    assert_close(tfc.jacrev(by_hand)(X), rows(distances, X))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 3 * x**2


class Half(Once):
    """Two thirds of the backward go through numpy."""

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x**2 + torch.as_tensor(2 * grad.detach().cpu().numpy() * x.detach().cpu().numpy() ** 2)


def hooked(x):
    y = x**3
    if y.requires_grad:
        y.register_hook(lambda grad: grad.detach().clone())
    return y * 1


@pytest.mark.parametrize("func", [Once.apply, Half.apply, hooked], ids=["once", "half", "hook"])
def test_forward_mode_through_a_backward_that_is_not_differentiable(func):
    with tfc.use_backend("autograd"):
        assert_close(tfc.jvp(func, (X,), (X,))[1], 3 * X**3)
        assert_close(tfc.jacfwd(func)(X), torch.diag(3 * X**2))
        assert_close(tfc.vmap(tfc.jacfwd(func))(X), 3 * X**2)
        assert_close(tfc.jvp(func, (X.sum(),), (X.sum() * 0 + 1,))[1], 3 * X.sum() ** 2)


SECOND = {
    "grad(grad)": lambda f: tfc.grad(lambda x: tfc.grad(lambda x: f(x).sum())(x).sum())(X),
    "hessian": lambda f: tfc.hessian(lambda x: f(x).sum())(X),
    "jacfwd(jacrev)": lambda f: tfc.jacfwd(tfc.jacrev(f))(X),
    "jacrev(jacfwd)": lambda f: tfc.jacrev(tfc.jacfwd(f))(X),
    "jvp(jvp)": lambda f: tfc.jvp(lambda x: tfc.jvp(f, (x,), (X,))[1], (X,), (X,)),
    "backward outside": lambda f: tfc.grad(lambda x: f(x).sum())(X.clone().requires_grad_()).sum().backward(),
}


@pytest.mark.parametrize("name", SECOND)
@pytest.mark.parametrize(
    "func", [Once.apply, Half.apply, lambda x: x * x * Once.apply(x)], ids=["once", "half", "product"]
)
def test_second_derivatives_through_it_raise(func, name):
    with tfc.use_backend("autograd"), pytest.raises(RuntimeError, match="cannot be differentiated again"):
        SECOND[name](func)


def test_first_derivatives_through_it_are_left_in_peace():
    with tfc.use_backend("autograd"):
        x = X.clone().requires_grad_()
        assert_close(tfc.grad(lambda x: Once.apply(x).sum())(x), 3 * X**2)
        assert_close(tfc.jacrev(Half.apply)(x), torch.diag(3 * X**2))


def test_a_differentiable_backward_is_not_sealed(backend):
    assert_close(tfc.hessian(lambda x: refused.OldSine.apply(x).sum())(X), torch.diag(-X.sin()))
    x = X.clone().requires_grad_()
    (second,) = torch.autograd.grad(tfc.grad(lambda x: refused.OldSine.apply(x).sum())(x).sum(), x)
    assert_close(second, -X.sin())


@pytest.mark.parametrize("transform", [tfc.grad, tfc.jacrev, tfc.jacfwd])
def test_differentiated_values_do_not_leak_into_captured_tensors(backend, transform):
    captured = torch.zeros_like(X)
    with pytest.raises(RuntimeError, match="mutate a captured Tensor"):
        transform(lambda x: captured.copy_(x).pow(2).sum())(X)
    assert not captured.requires_grad


def test_a_sparse_input_can_be_differentiated():
    matrix = torch.eye(3, dtype=torch.float64)
    with tfc.use_backend("autograd"):
        func = lambda a: torch.sparse.mm(a, torch.ones(3, 1, dtype=a.dtype)).pow(2).sum()
        gradient = tfc.grad(func)(matrix.to_sparse())
    assert_close(torch.diag(gradient.to_dense() if gradient.is_sparse else gradient), torch.full((3,), 2.0).double())


class Cube(torch.autograd.Function):
    """In torch's own words, with the rule that torch.func evaluates with forward mode off."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad

    @staticmethod
    def jvp(ctx, tangent):
        return 3 * ctx.saved_tensors[0] ** 2 * tangent


@pytest.mark.skipif(not hasattr(torch, "func"), reason="torch < 2.0 knows no setup_context")
def test_jvp_rules_of_torchs_functions_nest(backend):
    def cube(x):
        return Cube.apply(x)

    expected = torch.diag_embed(torch.diag(6 * X))
    with tfc.use_fallback("silent"):
        for mode in ("reverse-reverse", "forward-reverse", "reverse-forward", "forward-forward"):
            assert_close(tfc.hessian(cube, mode=mode)(X), expected)
        assert_close(tfc.jacfwd(tfc.jacfwd(cube))(X), expected)
        assert_close(tfc.vmap(tfc.jacfwd(tfc.jacfwd(cube)))(X[None])[0], expected)
        assert_close(
            tfc.jacfwd(tfc.jacfwd(tfc.jacfwd(lambda x: cube(x).sum())))(X).sum(), 6.0 * torch.ones_like(X).sum()
        )
    with tfc.use_fallback("error"):  # one level is torch's own
        assert_close(tfc.jacfwd(cube)(X), torch.diag(3 * X**2))


@pytest.mark.parametrize("i, j", [((2, 1), (2,)), ((3, 1), (2,)), ((2,), (2, 1)), ((2, 2), (2,))])
def test_indexing_by_mapped_tensors(backend, i, j):
    """functorch 0.1.1 mixes the samples up."""
    a = torch.arange(25.0).view(5, 5)
    i, j = (torch.randint(5, (2, *shape)) for shape in (i, j))
    with tfc.use_fallback("silent"):
        found = tfc.vmap(lambda i, j: a[i, j])(i, j)
    assert torch.equal(found, torch.stack([a[x, y] for x, y in zip(i, j)]))


# --- weight_norm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", [tfc.jacrev, tfc.jacfwd], ids=["jacrev", "jacfwd"])
@pytest.mark.parametrize("inner", [tfc.jacrev, tfc.jacfwd, tfc.grad], ids=["jacrev", "jacfwd", "grad"])
def test_second_derivatives_of_weight_norm(backend, inner, outer, without_checks):
    v, g = X.reshape(2, 3), X[:2].exp().reshape(2, 1)
    derivative = outer(inner(lambda v: torch._weight_norm(v, g, 0).sin().sum()))
    assert_close(derivative(v), outer(inner(lambda v: (v * g / v.norm(dim=1, keepdim=True)).sin().sum()))(v))


def test_second_derivatives_of_a_network_with_weight_norm_by_its_input(backend, without_checks):
    """Which pass its backward once, also where the weights are differentiated by afterwards."""
    v = X.reshape(2, 3).clone().requires_grad_()

    def derivatives(weight):
        second = tfc.hessian(lambda x: (weight() @ x).sin().sum())(X[:3])
        return second, torch.autograd.grad(second.sum(), v)[0]

    g = v[:, :1].detach()
    by_hand = derivatives(lambda: v * g / v.norm(dim=1, keepdim=True))
    assert_close(derivatives(lambda: torch._weight_norm(v, g, 0)), by_hand)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("take", [tfc.jacrev, tfc.hessian, tfc.grad], ids=["jacrev", "hessian", "grad"])
def test_mapped_rows_of_prelu(backend, take, size, without_checks):
    """From torch 2.0 on, they are those of other samples where there are as many samples as elements of one."""
    slope = torch.tensor([0.2], dtype=X.dtype)
    xs = X.reshape(3, 2).repeat(1, 2)[:, :size]

    def func(layer):
        return (lambda x: layer(x)) if take is tfc.jacrev else (lambda x: layer(x).pow(3).sum())

    if backend == "functorch":
        pytest.skip("functorch fails assertions of its own")
    with tfc.use_checks("off"):
        found = tfc.vmap(take(func(lambda x: torch.nn.functional.prelu(x, slope))))(xs)
    assert_close(found, tfc.vmap(take(func(lambda x: torch.where(x > 0, x, slope * x))))(xs))


ONE = {
    "grad": lambda f: tfc.grad(lambda *x: f(*x).sum()),
    "jacrev": tfc.jacrev,
    "jacfwd": tfc.jacfwd,
    "vjp": lambda f: lambda x, *y: tfc.vjp(lambda x: f(x, *y), x)[1](torch.ones_like(f(x, *y)))[0],
    "jvp": lambda f: lambda x, *y: tfc.jvp(lambda x: f(x, *y), (x,), (torch.ones_like(x),))[1],
    "linearize": lambda f: lambda x, *y: tfc.linearize(lambda x: f(x, *y), x)[1](torch.ones_like(x)),
    "mapped grad": lambda f: lambda x, *y: tfc.vmap(tfc.grad(lambda *x: f(*x).sum()), (0, None))(x[None], *y),
    "mapped jacfwd": lambda f: lambda x, *y: tfc.vmap(tfc.jacfwd(f), (0, None))(torch.stack([x, x]), *y),
}
FUSED = {
    "weight_norm": (
        lambda v, g: torch._weight_norm(v, g, 0).sin(),
        lambda v, g: (v * g / v.norm(dim=1, keepdim=True)).sin(),
        (X.reshape(2, 3), X[:2].exp().reshape(2, 1)),
    ),
    "kl_div": (
        lambda x, t: torch.nn.functional.kl_div(x, t.exp(), reduction="none").sin(),
        lambda x, t: (t.exp() * (t - x)).sin(),
        (X[:3], X[3:]),
    ),
}


@pytest.mark.parametrize("once_without", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("transform", ONE)
@pytest.mark.parametrize("name", FUSED)
def test_one_derivative_by_a_transform_and_one_by_plain_autograd(
    backend, name, transform, once_without, without_checks
):
    func, by_hand, values = FUSED[name]

    def then(func, first, second):
        def swapped(x, y):
            return func(x, y) if first == 0 else func(y, x)

        x = [value.clone() for value in (values if first == 0 else values[::-1])]
        transformed = ONE[transform](swapped)
        if once_without:
            transformed(*x)  # what was answered once is answered on a short way
        variable = x[first ^ second].requires_grad_()
        return torch.autograd.grad(transformed(*x).sin().sum(), variable)[0]

    for first, second in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert_close(then(func, first, second), then(by_hand, first, second))


# --- other operations --------------------------------------------------------------------------------------------


def matrix(x):
    return torch.outer(x[:2], x[2:4].sin()) + 2 * torch.eye(2, dtype=x.dtype)


def first_components(x):
    """Of the eigenvectors of a symmetric matrix, squared, by the larger eigenvalue's angle."""
    a = matrix(x) + matrix(x).t()
    angle = torch.atan2(2 * a[0, 1], a[0, 0] - a[1, 1]) / 2
    return torch.stack([angle.sin() ** 2, angle.cos() ** 2])


OPERATIONS = {
    "kl_div": (
        lambda x: torch.nn.functional.kl_div(x[:3], x[3:].exp(), reduction="sum"),
        lambda x: (x[3:].exp() * (x[3:] - x[:3])).sum(),
    ),
    "abs of a complex number": (
        lambda x: torch.complex(x[:3], x[3:]).abs(),
        lambda x: (x[:3] ** 2 + x[3:] ** 2).sqrt(),
    ),
    "abs of a product": (lambda x: (1j * x).abs() * x, lambda x: x.abs() * x),
    "norm of complex numbers": (
        lambda x: (x.sin() * torch.tensor([1 + 2j])).norm()[None] * x,
        lambda x: 5**0.5 * x.sin().norm()[None] * x,
    ),
    "angle": (lambda x: torch.complex(x[:3], x[3:]).angle(), lambda x: torch.atan2(x[3:], x[:3])),
    "cholesky_inverse": (
        lambda x: torch.cholesky_inverse(x[:4].reshape(2, 2).tril()),
        lambda x: torch.inverse(x[:4].reshape(2, 2).tril() @ x[:4].reshape(2, 2).tril().t()),
    ),
    "eigenvectors": (lambda x: torch.linalg.eigh(matrix(x) + matrix(x).t())[1][0] ** 2, first_components),
    "cumprod": (lambda x: (x * ZERO).cumprod(0), lambda x: torch.stack([(x * ZERO)[: k + 1].prod() for k in range(6)])),
    "logcumsumexp": (lambda x: torch.logcumsumexp(x, 0), lambda x: x.exp().cumsum(0).log()),
    "glu": (torch.nn.functional.glu, lambda x: x[:3] * x[3:].sigmoid()),
    "triangular solve": (
        lambda x: torch.linalg.solve_triangular(matrix(x).triu(), x[:2, None], upper=True),
        lambda x: torch.inverse(matrix(x).triu()) @ x[:2, None],
    ),
    "fft": (
        lambda x: torch.fft.rfft(x).abs() ** 2,
        lambda x: sum((wave(x.shape[0], part) @ x) ** 2 for part in (torch.cos, torch.sin)),
    ),
}
if refused.TORCH < (1, 11):
    del OPERATIONS["triangular solve"]
if refused.TORCH >= (1, 13):
    OPERATIONS["scatter_reduce"] = (
        lambda x: x[:3].scatter_reduce(0, torch.tensor([0, 0, 1]), x[3:], "prod"),
        lambda x: torch.stack([x[0] * x[3] * x[4], x[1] * x[5], x[2]]),
    )


def wave(size, part):
    frequencies, times = torch.arange(size // 2 + 1.0), torch.arange(float(size))
    return part(2 * math.pi * torch.outer(frequencies, times).double() / size)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_that_some_torch_gets_wrong(backend, name, without_checks):
    func, by_hand = OPERATIONS[name]
    assert_close(func(X), by_hand(X))
    assert_close(tfc.jacrev(func)(X), rows(by_hand, X))
    assert_close(tfc.jacfwd(func)(X), rows(by_hand, X))
    assert_close(tfc.linearize(func, X)[1](X), rows(by_hand, X) @ X)
    assert_close(tfc.jvp(func, (X,), (X,))[1], rows(by_hand, X) @ X)
    assert_close(tfc.vmap(tfc.jacrev(func))(X[None])[0], rows(by_hand, X))
    expected = tfc.jacrev(tfc.jacrev(by_hand))(X)
    for second in (tfc.jacrev(tfc.jacrev(func)), tfc.jacfwd(tfc.jacrev(func)), tfc.jacrev(tfc.jacfwd(func))):
        assert_close(second(X), expected)


COMPLEX = torch.tensor([0.3 - 0.8j, -0.5 + 0.2j, 1.1 + 0.4j, 0.7j, -0.2 - 0.6j, 0.9 + 0j], dtype=torch.complex128)
TWICE = {
    "abs of complex numbers": (
        lambda x: ((x * COMPLEX).abs() ** 1.5).sum(),
        lambda x: ((x * x).sqrt() * COMPLEX.abs()).pow(1.5).sum(),
    ),
    "sgn of complex numbers": (
        lambda x: ((x + COMPLEX).sgn() * COMPLEX).real.pow(3).sum(),
        lambda x: (
            (((x + COMPLEX.real) * COMPLEX.real - COMPLEX.imag**2) / ((x + COMPLEX.real) ** 2 + COMPLEX.imag**2).sqrt())
            .pow(3)
            .sum()
        ),
    ),
    "kl_div": (
        lambda x: torch.kl_div(x, x.exp(), 0).sin().sum(),
        lambda x: (x.exp() * (x - x)).sin().sum(),
    ),
    "layer_norm": (
        lambda x: (torch.nn.functional.layer_norm(x, (6,)) ** 3).sum(),
        lambda x: ((x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()).pow(3).sum(),
    ),
    "batch_norm": (
        lambda x: (torch.nn.functional.batch_norm(x[:, None], None, None, training=True) ** 3).sum(),
        lambda x: ((x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()).pow(3).sum(),
    ),
}
if refused.TORCH < (2, 0):
    TWICE["triangular_solve"] = (
        lambda x: torch.triangular_solve(x[:2, None], matrix(x).triu())[0].sum(),
        lambda x: (torch.inverse(matrix(x).triu()) @ x[:2, None]).sum(),
    )
NESTED_MODES = {
    "jacfwd of grad": lambda f: tfc.jacfwd(tfc.grad(f)),
    "mapped jacrev of grad": lambda f: lambda x: tfc.vmap(tfc.jacrev(tfc.grad(f)))(torch.stack([x, x.cos()])),
    "jacfwd of jacrev of grad": lambda f: tfc.jacfwd(tfc.jacrev(tfc.grad(f))),
}


@pytest.mark.parametrize("modes", NESTED_MODES)
@pytest.mark.parametrize("name", TWICE)
def test_derivatives_of_gradients(backend, name, modes, without_checks):
    func, by_hand = (NESTED_MODES[modes](f)(X) for f in TWICE[name])
    assert_close(func, by_hand)


# --- TorchScript --------------------------------------------------------------------------------------------------

MATRIX = torch.tensor([[0.9, -0.3, 0.2], [0.1, 0.7, -0.4], [-0.5, 0.6, 0.8]], dtype=torch.float64)
POINT = torch.tensor([0.3, -0.7, 0.9], dtype=torch.float64)
NESTED = {
    "jacfwd of jacfwd": lambda f: tfc.jacfwd(tfc.jacfwd(f))(POINT),
    "jacrev of jacfwd": lambda f: tfc.jacrev(tfc.jacfwd(f))(POINT),
    "jacfwd of jacrev": lambda f: tfc.jacfwd(tfc.jacrev(f))(POINT),
    "jacrev of jacrev": lambda f: tfc.jacrev(tfc.jacrev(f))(POINT),
    "mapped grad": lambda f: tfc.vmap(tfc.grad(f))(torch.stack([POINT, POINT.cos()])),
    "mapped hessian": lambda f: tfc.vmap(tfc.hessian(f))(torch.stack([POINT, POINT.cos()])),
    "plain": lambda f: plain_second(f),
}
CALLS = [  # what one call makes of the function that is traced shows in a later one
    ("jacrev of jacfwd", "jacfwd of jacrev", "plain"),
    ("mapped grad", "mapped grad", "jacrev of jacrev", "plain"),
    ("plain", "plain", "jacfwd of jacfwd", "jacrev of jacfwd", "jacrev of jacrev"),
    ("jacfwd of jacfwd", "mapped hessian", "mapped hessian", "plain", "jacrev of jacfwd"),
]


def plain_second(func):
    x = POINT.clone().requires_grad_()
    (first,) = torch.autograd.grad(func(x), x, create_graph=True)
    return torch.autograd.grad(first.pow(2).sum(), x)[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("calls", CALLS, ids=lambda calls: calls[0])
@pytest.mark.parametrize(
    "func",
    [lambda x: (x**2).sin(), lambda x: MATRIX.mv(x).sigmoid().exp(), lambda x: MATRIX.mv(x).tanh() * x],
    ids=["elementwise", "product", "mixed"],
)
def test_derivatives_of_torchscript_at_every_stage_of_its_optimizer(backend, func, calls):
    traced = torch.jit.trace(func, POINT.clone())
    for name in calls:
        assert_close(NESTED[name](lambda x: traced(x).sum()), NESTED[name](lambda x: func(x).sum()))


def test_a_running_profiler_keeps_running(backend):
    """Functions that functorch gets wrong are found by a profiler of ours, where there is no other."""
    called = []

    def profiler(frame, event, argument):
        called.append(frame.f_code.co_name)

    def func(x):
        return x.sin()

    sys.setprofile(profiler)
    try:
        result = tfc.vmap(func)(POINT)
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
    assert_close(result, POINT.sin())
    assert "func" in called
    tfc.vmap(func)(POINT)
    assert sys.getprofile() is None


def test_under_cprofile(backend):
    """Whose place cannot be shared: what would have to be watched is left to the autograd backend."""
    profile = cProfile.Profile()
    transform = tfc.vmap(tfc.grad(lambda x: x.sin()))
    with tfc.use_fallback("silent"):
        profile.runcall(lambda: assert_close(transform(POINT), POINT.cos()))
    assert ("autograd" in tfc.explain(transform)) == (backend == "autograd" or (1, 11) <= refused.TORCH < (1, 13))
    assert any("<lambda>" in str(entry.code) for entry in profile.getstats())


LAYERS = {
    "layer_norm": lambda x: torch.nn.functional.layer_norm(x, (4,)) ** 2,
    "batch_norm": lambda x: torch.nn.functional.batch_norm(x.reshape(4, 1), None, None, training=True).reshape(4) ** 2,
    "logdet": lambda x: torch.logdet(torch.diag(x) + torch.ger(x, x)).reshape(1),
    "det": lambda x: torch.det(torch.diag(x) + torch.ger(x, x)).reshape(1),
    "eigenvectors": lambda x: torch.linalg.eigh(torch.diag(x) + torch.ger(x, x))[1].reshape(-1)[:4] ** 2,
    "cumprod": lambda x: (x * ZERO[:4]).cumprod(0),
    "arithmetic": lambda x: x.exp() * x.sum(),
    "slogdet": lambda x: torch.slogdet(torch.diag(x) + torch.ger(x, x))[1].reshape(1),
    "solve": lambda x: torch.linalg.solve(torch.diag(x) + torch.ger(x, x), x[:, None]).reshape(4),
}
if refused.TORCH >= (1, 11):
    LAYERS["householder_product"] = lambda x: torch.linalg.householder_product(
        torch.stack([x[:2], x[2:]], 1).tril(), x[:2].sin()
    ).reshape(4)
    LAYERS["complex eigenvectors"] = lambda x: torch.linalg.eig(torch.diag(x) + torch.ger(x, x.sin()))[1].abs()[0] ** 2
TAKEN = {
    "jacfwd": tfc.jacfwd,
    "jvp": lambda f: (
        lambda x: torch.stack([tfc.jvp(f, (x,), (unit,))[1] for unit in torch.eye(4, dtype=x.dtype).unbind(0)], -1)
    ),
    "linearize": lambda f: lambda x: tfc.vmap(tfc.linearize(f, x)[1])(torch.eye(4, dtype=x.dtype)).t(),
    "vmap": lambda f: lambda x: tfc.vmap(tfc.jacfwd(f))(x[None])[0],
    "batch_jacobian": lambda f: lambda x: tfc.batch_jacobian(lambda xs: f(xs[0])[None], mode="forward")(x[None])[0],
    "captured": lambda f: lambda x: tfc.jacfwd(lambda z: f(x + z))(torch.zeros_like(x.detach())),
}


@pytest.mark.parametrize("way", TAKEN)
@pytest.mark.parametrize("layer", LAYERS)
def test_forward_mode_that_plain_autograd_differentiates(backend, layer, way, without_checks):
    x = torch.linspace(0.3, 1.9, 4, dtype=torch.float64).requires_grad_()
    weights = torch.arange(1.0, 17.0, dtype=x.dtype).cos().reshape(4, 4)
    expected = by_rows(LAYERS[layer])(x)
    (second,) = torch.autograd.grad((expected * weights[: len(expected)]).sum(), x)
    with tfc.use_fallback("silent"):
        found = TAKEN[way](LAYERS[layer])(x)
        (derivative,) = torch.autograd.grad((found * weights[: len(found)]).sum(), x)
    assert_close(found.detach(), expected.detach())
    assert_close(derivative, second)


@pytest.mark.parametrize("layer", ("layer_norm", "batch_norm"))
def test_third_derivatives_by_plain_autograd(backend, layer, without_checks):
    def by_hand(x):
        return ((x - x.mean()) ** 2) / (x.var(unbiased=False) + 1e-5)

    x = torch.linspace(0.3, 1.9, 4, dtype=torch.float64).requires_grad_()
    weights = torch.arange(1.0, 65.0, dtype=x.dtype).cos().reshape(4, 4, 4)
    with tfc.use_fallback("silent"):
        found, expected = (tfc.jacrev(tfc.jacrev(f))(x) for f in (LAYERS[layer], by_hand))
    assert_close(found.detach(), expected.detach())
    (third,) = torch.autograd.grad((expected * weights).sum(), x)
    assert_close(torch.autograd.grad((found * weights).sum(), x)[0], third)


MIX = torch.arange(72.0, dtype=X.dtype).cos().reshape(12, 6)
AFFINE = {  # by the input z of four rows or of four numbers for each channel, and by the weight w
    "layer_norm": lambda z, w: F.layer_norm(z.reshape(4, 3), (3,), w),
    "batch_norm": lambda z, w: F.batch_norm(z.reshape(4, 3), None, None, w, training=True),
    "instance_norm": lambda z, w: F.instance_norm(z.reshape(1, 3, 4), weight=w),
}
BY_HAND = {
    "layer_norm": lambda z, w: standardized(z.reshape(4, 3), 1) * w,
    "batch_norm": lambda z, w: standardized(z.reshape(4, 3), 0) * w,
    "instance_norm": lambda z, w: standardized(z.reshape(1, 3, 4), 2) * w[:, None],
}
AT = torch.cat([X, X[:3].exp()])
EYE = torch.eye(12, dtype=X.dtype)


def standardized(z, dim):
    return (z - z.mean(dim, keepdim=True)) / (z.var(dim, unbiased=False, keepdim=True) + 1e-5).sqrt()


def through(norm, p):
    return norm(MIX @ p[:6], p[6:]).reshape(-1)


def by_backward(rows):
    p = AT.clone().requires_grad_()
    (found,) = torch.autograd.grad(weighted(rows)(p), p)
    return found


def weighted(rows):
    weights = torch.arange(108.0, dtype=X.dtype).sin().reshape(12, 9)
    return lambda p: (rows(p) * weights).sum()


DERIVATIVES_OF_ROWS = {
    "backward through jacrev": lambda f: by_backward(tfc.jacrev(f)),
    "backward through a mapped vjp": lambda f: by_backward(lambda p: tfc.vmap(tfc.vjp(f, p)[1])(EYE)[0]),
    "backward through jacrev in chunks": lambda f: by_backward(tfc.jacrev(f, chunk_size=5)),
    "backward through functional.jacobian": lambda f: by_backward(
        lambda p: tfc.functional.jacobian(f, p, create_graph=True, vectorize=True)
    ),
    "grad of jacrev": lambda f: tfc.grad(weighted(tfc.jacrev(f)))(AT),
    "jvp of jacrev": lambda f: tfc.jvp(weighted(tfc.jacrev(f)), (AT,), (AT.cos(),))[1],
    "jacrev of jacrev": lambda f: tfc.jacrev(tfc.jacrev(f))(AT),
    "hessian": lambda f: tfc.hessian(f)(AT),
    "vmap of grad of jacrev": lambda f: tfc.vmap(tfc.grad(weighted(tfc.jacrev(f))))(torch.stack([AT, AT.exp()])),
}


@pytest.mark.parametrize("layer", AFFINE)
@pytest.mark.parametrize("way", DERIVATIVES_OF_ROWS)
def test_derivatives_of_rows_of_normalisations(backend, way, layer):
    """By the input and the weight: torch's batches of rows take the mean and the deviation for constants."""
    derivative = DERIVATIVES_OF_ROWS[way]
    with tfc.use_fallback("silent"):
        found = derivative(functools.partial(through, AFFINE[layer]))
        assert_close(found, derivative(functools.partial(through, BY_HAND[layer])))


@pytest.mark.skipif(not facts.has("torch_func"), reason="torch batches no normalisation")
def test_rows_of_a_normalisation_with_parameters_take_one_pass(monkeypatch):
    """They may be differentiated by the parameters, and are batched in elementary operations."""
    layer = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.LayerNorm(6)).double()
    passes = []
    take = engine.grad
    monkeypatch.setattr(engine, "grad", lambda *args: passes.append(args) or take(*args))
    jacobian = tfc.jacrev(layer)
    jacobian(X)
    passes.clear()
    found = jacobian(X)
    assert len(passes) == 1
    loss = lambda jacobian: torch.autograd.grad(jacobian.pow(2).sum(), layer[0].weight)[0]
    assert_close(loss(found), loss(by_rows(layer)(X.clone().requires_grad_())))


def test_a_normalisation_that_writes_counts_its_batch_once():
    layer = torch.nn.BatchNorm1d(3).double()
    tfc.jacrev(layer)(X.reshape(2, 3))
    assert layer.num_batches_tracked == 1
    assert_close(layer.running_mean, 0.1 * X.reshape(2, 3).mean(0))


def test_what_was_before_does_not_matter():
    before = torch.nn.functional.layer_norm(torch.arange(4.0).requires_grad_(), (4,))
    with tfc.use_fallback("error"):
        assert_close(tfc.jvp(torch.sin, (before,), (torch.ones(4),))[1], before.cos())


def test_forward_mode_of_a_collective(monkeypatch):
    """Among processes, those of torch.distributed are looked for, whose kernels drop tangents."""
    if "torch.func" not in tfc.available_backends():
        pytest.skip("no torch.func")
    pytest.importorskip("torch.distributed._functional_collectives")
    fragile = sys.modules["torch_func_compat._guards.by_operation"]
    x = torch.arange(3.0)
    assert not any("c10d" in name for name in fragile.without_tangents())
    monkeypatch.setattr(fragile, "_has_processes", lambda: True)
    if not any("wait_tensor" in name for name in fragile.without_tangents()):
        pytest.skip("torch has them in C++")
    with tfc.use_fallback("silent"):
        found = tfc.jvp(lambda x: torch.ops._c10d_functional.wait_tensor(x).sin(), (x,), (torch.ones(3),))[1]
    assert_close(found, x.cos())


# --- torch alone ----------------------------------------------------------------------------------------------------


POSITIVE = torch.tensor([[1.2, 0.0], [0.3, 0.9]], dtype=X.dtype)
ALONE = {  # what torch 2.0 and newer give, and what is right
    "rows of layer_norm": lambda: [
        torch.func.hessian(functools.partial(through, norm))(AT)
        for norm in (AFFINE["layer_norm"], BY_HAND["layer_norm"])
    ],
    "rows of cdist": lambda: (torch.func.jacrev(distances)(X), rows(distances, X)),
    "jvp rules": lambda: (torch.func.jacfwd(torch.func.jacfwd(Cube.apply))(X[0]), 6 * X[0]),
    "negative argnums": lambda: (torch.func.jacfwd(lambda x, y: x * y, argnums=-1)(X[0], X[1]), X[0]),
    "no_grad": lambda: (torch.func.jacfwd(lambda x: x * torch.no_grad()(torch.sin)(x))(X[0]), X[0].sin()),
    "cholesky_inverse": lambda: [
        jac(torch.cholesky_inverse)(POSITIVE) for jac in (torch.func.jacfwd, torch.func.jacrev)
    ],
}


@pytest.mark.skipif(not hasattr(torch, "func"), reason="torch < 2.0 has no torch.func")
@pytest.mark.parametrize("name", ALONE)
def test_torch_alone_is_wrong_where_the_table_says_so(name):
    """Where this fails, torch has mended it: the row ends there, and the guard is not needed any longer."""
    found, right = ALONE[name]()
    assert not torch.allclose(found, right)


@pytest.mark.parametrize("row", WRONG_ANSWERS, ids=lambda row: row.what[:40])
def test_each_known_mistake_has_a_test(row):
    if row.is_open:
        assert not row.remedy and not row.test
        return
    file, _, name = row.test.partition("::")
    source = (Path(__file__).resolve().parent.parent / file).read_text(encoding="utf-8")
    assert f"def {name or 'test_'}" in source


OF_MODULES = {
    "vmap": lambda m: tfc.vmap(m)(X[None]),
    "jvp": lambda m: tfc.jvp(m, (X,), (X,))[1],
    "jacfwd": lambda m: tfc.jacfwd(lambda x: m(x).sin())(X),
    "vmap(jvp)": lambda m: tfc.vmap(lambda x: tfc.jvp(m, (x,), (X,))[1])(X[None]),
    "vmap(jacfwd)": lambda m: tfc.vmap(tfc.jacfwd(m))(X[None]),
    "hessian": lambda m: tfc.hessian(m)(X),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", OF_MODULES)
def test_parameters_of_scripts(backend, name):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
    script = torch.jit.script(module)

    def gradients(of):
        with tfc.use_fallback("silent"):
            result = OF_MODULES[name](of)
        parameters = list(module.parameters())
        found = torch.autograd.grad(result.pow(2).sum(), parameters, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(parameters, found)]

    for _ in range(4):  # its optimizer works from the second call on
        assert_close(gradients(script), gradients(module))
