"""Reverse mode on plain autograd: what it costs, what cannot refuse it, and what it must not import."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.utils._pytree
import torch.utils.checkpoint
from support.processes import run_python
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat._torch import engine, facts

X = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
B = torch.stack([X, 2 * X])

# What is called, how often it evaluates the function, and how many backward passes it takes (a batched one is one).
COSTS = {
    "grad": (lambda f: tfc.grad(f)(X), 1, 1),
    "grad_and_value": (lambda f: tfc.grad_and_value(f)(X), 1, 1),
    "vjp": (lambda f: tfc.vjp(f, X)[1](torch.ones((), dtype=X.dtype)), 1, 1),
    "jacrev": (lambda f: tfc.jacrev(lambda x: x * f(x))(X), 1, 1),
    "jacrev in chunks": (lambda f: tfc.jacrev(lambda x: x * f(x), chunk_size=1)(X), 1, 3),
    "hessian": (lambda f: tfc.hessian(f)(X), 1, 2),
    "hessian in chunks": (lambda f: tfc.hessian(f, chunk_size=1)(X), 1, 4),
    "value_grad_and_hessian": (lambda f: tfc.value_grad_and_hessian(f)(X), 1, 2),
    "value_and_jacobian": (lambda f: tfc.value_and_jacobian(f)(X), 1, 1),
    "hvp": (lambda f: tfc.hvp(f, (X,), (X,)), 1, 2),
    "vhp": (lambda f: tfc.vhp(f, (X,), (X,)), 1, 2),
    "hessian_diagonal": (lambda f: tfc.hessian_diagonal(f)(X), 1, 2),
    "laplacian": (lambda f: tfc.laplacian(f, mode="rows")(X), 1, 2),
    "batch_jacobian": (lambda f: tfc.batch_jacobian(lambda b: b.sin() * (1 + 0 * f(X)), check=False)(B), 1, 1),
    "batch_hessian": (lambda f: tfc.batch_hessian(lambda b: b.sin().sum(1) * (1 + 0 * f(X)), check=False)(B), 1, 2),
    "functional.hessian": (lambda f: tfc.functional.hessian(f, X, vectorize=True), 1, 2),
}


@pytest.mark.parametrize("name", COSTS)
def test_evaluations_and_passes(backend, name, monkeypatch):
    call, evaluations, passes = COSTS[name]
    seen = {"evaluations": 0, "passes": 0}
    pull = engine.grad

    def func(x):
        seen["evaluations"] += 1
        return (x.sin() * x * x).sum()

    def counted(*args):
        seen["passes"] += 1
        return pull(*args)

    monkeypatch.setattr(engine, "grad", counted)
    call(func)
    assert seen == {"evaluations": evaluations, "passes": passes}


@pytest.mark.slow
def test_nothing_of_the_compiler_is_imported():
    script = (
        "import sys, torch, torch_func_compat as tfc\n"
        "x, f = torch.ones(3), lambda x: (x ** 3).sum()\n"
        "before = 'torch._dynamo' in sys.modules\n"
        "tfc.grad(f)(x), tfc.jacrev(torch.sin)(x), tfc.hessian(f)(x), tfc.hvp(f, (x,), (x,))\n"
        "tfc.batch_hessian(lambda x: (x ** 3).sum(1))(torch.ones(2, 3)), tfc.functional.hessian(f, x)\n"
        "print(before, 'torch._dynamo' in sys.modules)"
    )
    process = run_python("-c", script)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["False", "False"]


class Old(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


UNREFUSED = {
    "a legacy Function": lambda x: Old.apply(x).sum(),
    "item": lambda x: x.sin().sum() * x.detach().sum().item() / X.sum().item(),
    "a checkpoint": lambda x: torch.utils.checkpoint.checkpoint(torch.sin, x).sum(),
    "a hook": lambda x: _hooked(x.sin()).sum(),
    "a branch": lambda x: x.sin().sum() if x.sum() > 0 else x.sum(),
    "numpy beside": lambda x: x.sin().sum() * torch.as_tensor(np.cos(0.0)),
}


def _hooked(y):
    if y.requires_grad:
        y.register_hook(lambda grad: grad * 1)
    return y


@pytest.mark.parametrize("name", UNREFUSED)
def test_nothing_is_refused(backend, name):
    func = UNREFUSED[name]
    if name == "a checkpoint" and facts.TORCH >= (1, 11):
        func = lambda x: torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=False).sum()
    elif name == "a checkpoint":
        pytest.skip("a reentrant checkpoint cannot be differentiated by torch.autograd.grad")
    with warnings.catch_warnings(), tfc.use_fallback("error"):
        warnings.simplefilter("error", tfc.FallbackWarning)
        assert_close(tfc.grad(func)(X), X.cos())
        assert_close(tfc.hessian(func)(X), torch.diag(-X.sin()))


# --- an output that depends on nothing ------------------------------------------------------------------------------


def by_numpy(x):
    return torch.as_tensor(np.sin(x.detach().numpy())).sum()


DERIVATIVES = {
    "grad": lambda f: tfc.grad(f)(X),
    "jacrev": lambda f: tfc.jacrev(f)(X),
    "hessian": lambda f: tfc.hessian(f)(X),
    "vmap(grad)": lambda f: tfc.vmap(tfc.grad(f))(B),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_numbers_that_left_torch(backend, name):
    derivative = DERIVATIVES[name]
    with tfc.use_fallback("silent"):
        if facts.has("torch_func"):
            with pytest.raises(RuntimeError, match="Cannot access data pointer"):
                derivative(by_numpy)
        else:
            with pytest.warns(UserWarning, match="no derivative passes"):
                assert not derivative(by_numpy).any()


def test_complex_numbers_that_left_torch(backend):
    def by_numpy(x):
        return torch.as_tensor(np.exp(1j * x.detach().numpy()))

    said = pytest.raises(RuntimeError) if facts.has("torch_func") else pytest.warns(UserWarning)
    with tfc.use_fallback("silent"), said as info:
        tfc.vjp(by_numpy, X)
    assert "no derivative passes" in str(info.value if facts.has("torch_func") else info[-1].message)


def test_a_function_that_is_flat_in_one_place_is_looked_at_in_others():
    def by_numpy(x):
        return torch.as_tensor(np.maximum(x.detach().numpy(), 0.0)).sum()

    flat = torch.full_like(X, -1.0)
    assert not tfc.grad(by_numpy)(flat).any()  # zero is right there
    said = pytest.raises(RuntimeError) if facts.has("torch_func") else pytest.warns(UserWarning)
    with said:
        tfc.grad(by_numpy)(-flat)


@pytest.mark.parametrize("name", DERIVATIVES)
def test_zeros_that_are_meant(backend, name):
    def constant(x):
        with torch.no_grad():
            return (x * x).sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for func in (lambda x: (x.detach() ** 2).sum(), constant, lambda x: torch.ones((), dtype=X.dtype)):
            assert not DERIVATIVES[name](func).any()
        assert not tfc.hessian(lambda x: (2 * x).sum())(X).any()


def test_an_operation_without_a_derivative():
    airy = getattr(getattr(torch, "special", None), "airy_ai", None)
    if airy is None:
        pytest.skip("torch has no such operation here")
    with pytest.raises(RuntimeError, match="no derivative of"):
        tfc.grad(lambda x: airy(x).sum())(X)


# --- a pullback in other hands ---------------------------------------------------------------------------------------


def test_a_pullback_within_the_librarys_own_transforms():
    if not facts.has("torch_func"):
        pytest.skip("no torch.func")
    _, pull = tfc.vjp(lambda x: x.sin() * x.sum(), X)
    jacobian = torch.diag(X.cos() * X.sum()) + X.sin()[:, None]
    apply = lambda v: pull(v)[0]
    for found in (torch.func.jacfwd(apply)(X), torch.func.jacrev(apply)(X)):
        assert_close(found, jacobian.t())
    squares = lambda v: (apply(v) ** 2).sum()
    assert_close(torch.func.grad(squares)(X), 2 * jacobian @ (X @ jacobian))


def test_a_pullback_recorded_again_draws_the_same_numbers():
    if not facts.has("torch_func"):
        pytest.skip("no torch.func")
    output, pull = tfc.vjp(lambda x: torch.nn.functional.dropout(x, 0.5) * x, torch.ones(50))
    after = torch.get_rng_state()
    ones = torch.ones(50)
    found = torch.func.jvp(lambda v: pull(v)[0], (ones,), (ones,))[1]
    assert_close(found, 2 * output)
    assert torch.equal(torch.get_rng_state(), after)


def test_vmap_of_linearize_is_batched(backend, monkeypatch):
    _, push = tfc.linearize(lambda x: x.sin() * x.sum(), X)
    jacobian = torch.diag(X.cos() * X.sum()) + X.sin()[:, None]
    assert_close(tfc.vmap(push)(torch.eye(3, dtype=X.dtype)), jacobian.t())


# --- fused operations --------------------------------------------------------------------------------------------


@pytest.mark.skipif(not facts.has("torch_function_modes"), reason="operations cannot be intercepted")
@pytest.mark.parametrize("mode", ["reverse-reverse", "forward-reverse", "reverse-forward", "forward-forward"])
def test_second_derivatives_of_attention(backend, mode):
    module = torch.nn.MultiheadAttention(4, 2, batch_first=True).double().requires_grad_(False)
    x = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).reshape(1, 3, 4)
    fused = lambda x: module(x, x, x, need_weights=False)[0].pow(2).sum()
    plain = lambda x: module(x, x, x)[0].pow(2).sum()
    with tfc.use_fallback("silent"):
        assert_close(tfc.hessian(fused, mode=mode)(x), tfc.hessian(plain)(x))


@pytest.mark.skipif(not facts.has("torch_function_modes"), reason="operations cannot be intercepted")
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"mask": True}, {"scale": 0.3}])
def test_composed_attention_is_that_of_torch(options):
    if facts.TORCH < (2, 1) and "scale" in options:
        pytest.skip("torch 2.0 has no scale")
    query, key, value = torch.randn(3, 2, 5, 4, dtype=torch.float64).unbind(0)
    options = dict(options)
    if options.pop("mask", False):
        options["attn_mask"] = torch.ones(5, 5, dtype=torch.bool).tril()
    attention = torch.nn.functional.scaled_dot_product_attention
    outside = query.clone().requires_grad_()
    loss = lambda q: attention(q, key, value, **options).sin().sum()
    # attached, so that it is composed
    assert_close(tfc.grad(lambda q: loss(q + 0 * outside))(query).detach(), tfc.grad(loss)(query))


def test_third_derivatives_of_normalisations(backend):
    scale = torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64)
    by_hand = lambda x: ((x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * scale).sin().sum()
    fused = lambda x: torch.nn.functional.layer_norm(x, (3,), scale).sin().sum()
    third = lambda f: tfc.jacrev(tfc.hessian(f))(X)
    assert_close(third(fused), third(by_hand))


# --- results that nothing outside differentiates ------------------------------------------------------------------


WITHOUT_GRAPH = {
    "grad": lambda f, **o: tfc.grad(f, **o)(X),
    "grad_and_value": lambda f, **o: tfc.grad_and_value(f, **o)(X),
    "jacrev": lambda f, **o: tfc.jacrev(f, **o)(X),
    "jacfwd": lambda f, **o: tfc.jacfwd(f, **o)(X),
    "jacobian": lambda f, **o: tfc.jacobian(f, **o)(X),
    "hessian": lambda f, **o: tfc.hessian(f, chunk_size=1, **o)(X),
    "value_and_jacobian": lambda f, **o: tfc.value_and_jacobian(f, **o)(X),
    "value_grad_and_hessian": lambda f, **o: tfc.value_grad_and_hessian(f, **o)(X),
    "hessian_diagonal": lambda f, **o: tfc.hessian_diagonal(f, **o)(X),
    "hvp": lambda f, **o: tfc.hvp(f, (X,), (X,), **o),
    "vhp": lambda f, **o: tfc.vhp(f, (X,), (X,), **o),
    "batch_jacobian": lambda f, **o: tfc.batch_jacobian(lambda b: b.sin() * f(X), **o)(B),
    "batch_hessian": lambda f, **o: tfc.batch_hessian(lambda b: b.sin().sum(1) * f(X), **o)(B),
    "batch_hvp": lambda f, **o: tfc.batch_hvp(lambda b: b.sin().sum(1) * f(X), (B,), (B,), **o),
    "batch_hessian_diagonal": lambda f, **o: tfc.batch_hessian_diagonal(lambda b: b.sin().sum(1) * f(X), **o)(B),
}


@pytest.mark.parametrize("name", WITHOUT_GRAPH)
def test_results_without_a_graph(backend, name):
    weight = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    func = lambda x: (weight * x.sin() * x).sum()
    with_graph = torch.utils._pytree.tree_flatten(WITHOUT_GRAPH[name](func))[0]
    without = torch.utils._pytree.tree_flatten(WITHOUT_GRAPH[name](func, create_graph=False))[0]
    assert all(leaf.requires_grad for leaf in with_graph)
    for leaf, like in zip(without, with_graph):
        assert not leaf.requires_grad
        assert_close(leaf, like.detach())


def test_second_derivatives_of_distances(backend):
    """Also of a point to itself, whose derivatives are zero in torch's kernel."""
    a, b = B, torch.stack([X.cos(), X.exp(), X])
    by_hand = lambda a: ((a[:, None] - b + 0 * a.sum()).norm(dim=-1) ** 3).sum()
    for mode in ("reverse-reverse", "forward-forward"):
        with tfc.use_fallback("silent"):
            found = tfc.hessian(lambda a: (torch.cdist(a, b + 1) ** 3).sum(), mode=mode)(a)
        assert_close(found, tfc.hessian(lambda a: by_hand(a - 1))(a))
    assert_close(tfc.hessian(lambda a: torch.cdist(a, a).sum())(a)[0, :, 0].sum(), -_distance_curvature(*a))


def _distance_curvature(a, b):
    """The sum over the mixed second derivatives of twice the distance by the elements of one point and another."""
    apart = a - b
    length = apart.norm()
    return -2 * ((torch.eye(3, dtype=a.dtype) - torch.outer(apart, apart) / length**2) / length).sum()


def test_a_zero_derivative_has_memory(backend):
    assert tfc.hessian(lambda x: x.abs().sum())(X).tolist() == [[0.0] * 3] * 3
    assert tfc.jacrev(torch.sign)(X).tolist() == [[0.0] * 3] * 3
