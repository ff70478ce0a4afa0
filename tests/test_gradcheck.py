"""The checks for test suites: right derivatives pass, and each wrong one is found by the check made for it."""

from __future__ import annotations

import pytest
import torch
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat._torch import facts
from torch_func_compat.autograd import gradcheck as g

# torch 1.8 has no GradcheckError, which is a RuntimeError
WRONG = RuntimeError


def point(*shape):
    return torch.linspace(0.2, 0.9, 3, dtype=torch.float64, requires_grad=True)


class WrongProduct(torch.autograd.Function):
    """``a b``, by ``a`` differentiated to ``3 b``."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, gradient):
        a, b = ctx.saved_tensors
        return 3 * gradient * b, gradient * a


class Power(torch.autograd.Function):
    """``x**n``, whose derivative of the order `wrong` is wrong."""

    @staticmethod
    def forward(ctx, x, n, wrong):
        ctx.save_for_backward(x)
        ctx.n, ctx.wrong = n, wrong
        return x**n

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        if ctx.wrong == 1:
            return WrongProduct.apply(gradient, 2 * ctx.n * x ** (ctx.n - 1)), None, None
        return gradient * ctx.n * Power.apply(x, ctx.n - 1, ctx.wrong - 1), None, None


CHECKS = {1: g.dgradcheck, 2: g.dgradgradcheck, 3: g.dgradgradgradcheck}


@pytest.mark.parametrize("order", CHECKS)
@pytest.mark.parametrize("wrong", [1, 2, 3, 99])
def test_finds_the_wrong_order(order, wrong):
    def power(x):
        return Power.apply(x, 4, wrong)

    if order == wrong:
        with pytest.raises(WRONG):
            CHECKS[order](power, point())
    elif order < wrong:
        assert CHECKS[order](power, point()) is True


@pytest.mark.parametrize("check", CHECKS.values())
def test_leaves_nothing_that_requires_grad(check):
    a, b, c = point(), point(), torch.ones(3, dtype=torch.float64)
    assert check(lambda a, b, c: a.sin() * b.cos() * c, (a, b, c))
    assert not (a.requires_grad or b.requires_grad or c.requires_grad)
    a.requires_grad_()
    with pytest.raises(WRONG):
        check(lambda a: Power.apply(a, 4, CHECKS_ORDER[check]), a)
    assert not a.requires_grad


CHECKS_ORDER = {check: order for order, check in CHECKS.items()}


def test_returns_what_torch_returns():
    assert g.dgradcheck(lambda x: Power.apply(x, 3, 1), point(), raise_exception=False) is False


@pytest.mark.skipif(facts.TORCH < (1, 9), reason="no fast mode")
def test_fast_mode_is_the_default():
    calls = []

    def counted(x):
        calls.append(x)
        return x.sin()

    g.dgradcheck(counted, torch.ones(20, dtype=torch.float64, requires_grad=True))
    fast = len(calls)
    g.dgradcheck(counted, torch.ones(20, dtype=torch.float64, requires_grad=True), fast_mode=False)
    assert len(calls) - fast > 2 * fast


def test_modes_agree(backend):
    x = point().detach()
    assert g.jacfwd_matches_jacrev(torch.sin, x)
    assert g.jacfwd_matches_jacrev(lambda d: {"y": d["x"].sin()}, {"x": x})


@pytest.mark.skipif(not facts.has("torch_func"), reason="no setup_context")
def test_modes_disagree():
    class WrongForward(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x * x

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(inputs[0])
            ctx.save_for_forward(inputs[0])

        @staticmethod
        def backward(ctx, gradient):
            return 2 * ctx.saved_tensors[0] * gradient

        @staticmethod
        def jvp(ctx, tangent):
            return 3 * ctx.saved_tensors[0] * tangent

    assert g.jacfwd_matches_jacrev(WrongForward.apply, point().detach()) is False


@pytest.mark.parametrize("shape", [(), (3,), (2, 2), (0,)])
def test_finite_differences(backend, shape):
    x = torch.linspace(0.3, 0.8, 4, dtype=torch.float64)[: max(1, torch.Size(shape).numel())]
    x = x[: torch.Size(shape).numel()].reshape(shape)
    matrix = torch.arange(2.0 * x.numel(), dtype=torch.float64).view(2, -1)

    def func(x):
        return {"linear": matrix @ x.reshape(-1), "sin": x.sin()}

    found = g.finite_difference_jacobian(func, x, 1e-5)
    diagonal = torch.diag(x.cos().reshape(-1)).reshape(shape + shape)
    assert_close(found, {"linear": matrix.reshape(2, *shape), "sin": diagonal}, atol=1e-9)
    assert g.jacrev_matches_finite_diff(func, x)
    assert not x.requires_grad


def test_finite_differences_find_a_wrong_gradient(backend):
    assert not g.jacrev_matches_finite_diff(lambda x: x + (x.sin() - x).detach(), point().detach())


def test_a_function_that_changes_its_argument():
    x = point().detach()
    before = x.clone()
    assert_close(g.finite_difference_jacobian(lambda x: x.mul_(2), x), 2 * torch.eye(3, dtype=x.dtype), atol=1e-9)
    assert torch.equal(x, before)


def test_vmap_and_loop(backend):
    batch = torch.arange(6.0, dtype=torch.float64).view(2, 3)
    assert g.vmap_matches_loop(torch.sin, batch)
    assert g.vmap_matches_loop(lambda d: (d["x"].sum(), d["x"]), {"x": batch})
    calls = []

    def differs(x):  # between the calls
        calls.append(x)
        return x + len(calls)

    assert not g.vmap_matches_loop(differs, batch)


# an operation without a batching rule; 1.11 and 1.12 have none for histc, either
def histogram(x):
    return torch.histc(x, bins=4)


def test_no_vmap_fallback():
    x = torch.rand(4, 5, dtype=torch.float64)
    expected = torch.stack([histogram(row) for row in x])
    with g.no_vmap_fallback():
        assert_close(tfc.vmap(torch.sin)(x), x.sin())
        assert tfc.get_fallback() == "error"
        if len(tfc.available_backends()) > 1:
            with pytest.raises(RuntimeError, match="fallback"):
                tfc.vmap(histogram)(x)
        with tfc.use_backend("autograd"):
            assert_close(tfc.vmap(histogram)(x), expected)
    assert tfc.get_fallback() == "warn"
    assert_close(tfc.vmap(histogram)(x), expected)


def test_no_vmap_fallback_restores_what_was_there():
    library = g.checks.native() if len(tfc.available_backends()) > 1 else None
    with pytest.raises(KeyError):
        with g.no_vmap_fallback():
            with g.no_vmap_fallback():
                pass
            assert library is None or not library._is_vmap_fallback_enabled()
            raise KeyError
    assert library is None or library._is_vmap_fallback_enabled()
