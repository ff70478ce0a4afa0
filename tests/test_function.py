"""Functions of every kind under every transform, on every backend, against plain operations under plain autograd."""

from __future__ import annotations

import pytest
import torch
from support.function_transforms import TRANSFORMS, Case, X
from support.functions import FIRST, KINDS, Kind
from support.tolerances import assert_close
from support.xfails import TORCH

import torch_func_compat as tfc

pytestmark = pytest.mark.filterwarnings("ignore::torch_func_compat.FallbackWarning")


@pytest.fixture(autouse=True)
def _silently():
    with tfc.use_fallback("silent"):
        yield


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_kind(backend, kind, transform):
    case = Case(kind, KINDS[kind])
    result, expected = (side(case) for side in TRANSFORMS[transform])
    assert_close(result, expected, rtol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    case = Case(kind, KINDS[kind])
    x = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(case.f, (x,))
    assert torch.autograd.gradgradcheck(case.f, (x,))


OF_FIRST_ORDER = {
    *("value", "backward", "vjp", "jvp", "grad", "jacrev", "jacfwd", "vmap", "vmap of columns", "nested vmap"),
    *("vmap with shared", "vmap(grad)", "nested vmap(grad)", "vmap(vjp_fn)", "vmap(jvp)", "vmap(jacrev)"),
    *("vmap(jacfwd)", "grad(vmap)", "jvp(vmap)", "backward of vmap"),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kind", FIRST)
def test_a_backward_without_a_derivative(backend, kind, transform):
    """First derivatives are right; others are, or there are none."""
    case = Case(kind, Kind(FIRST[kind].apply, torch.sin))
    result, expected = TRANSFORMS[transform]
    if transform in OF_FIRST_ORDER:
        assert_close(result(case), expected(case), rtol=1e-8)
        return
    try:
        found = result(case)
    except RuntimeError as error:
        assert "cannot be differentiated again" in str(error)
    else:  # the cotangent that leaves torch is a constant
        assert kind == "numpy of the cotangent"
        assert_close(found, expected(case), rtol=1e-8)


class Detached(FIRST["numpy backward"]):
    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].detach().cos()


class Step(FIRST["numpy backward"]):
    @staticmethod
    def forward(x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.from_numpy((ctx.saved_tensors[0].detach().numpy() > 0) * 1.0)


def test_what_is_constant_in_a_backward_is_constant(backend):
    """detach() is on purpose, as in torch; and a step has no slope."""
    assert_close(tfc.hessian(lambda x: Detached.apply(x).sum())(X), torch.zeros(4, 4, dtype=X.dtype))
    expected = torch.diag(2.0 * (X > 0))
    assert_close(tfc.hessian(lambda x: (Step.apply(x) ** 2).sum())(X), expected.to(X.dtype))
    zero = torch.zeros_like(X)  # where a step is next to every point
    assert_close(tfc.hessian(lambda x: (Step.apply(x) ** 2).sum())(zero), torch.zeros(4, 4, dtype=X.dtype))


def _returning(make):
    class Made(FIRST["numpy backward"]):
        @staticmethod
        def forward(x):
            return make(x.sin())

        @staticmethod
        def backward(ctx, grad, *others):
            (x,) = ctx.saved_tensors
            return grad * x.cos()

    return Made.apply


@pytest.mark.parametrize("make", [lambda y: [y], lambda y: (y,), lambda y: (y, None, 3), lambda y: [y, "name"]])
def test_outputs(backend, make):
    apply = _returning(make)
    if TORCH < (1, 11) and len(make(X)) > 1:
        try:
            apply(X)
        except TypeError as error:  # of torch 1.8
            assert "expected Tensor or tuple of Tensor" in str(error)
            return
    assert_close(tfc.grad(lambda x: apply(x)[0].sum())(X), X.cos())
    assert_close(tfc.vmap(tfc.grad(lambda x: apply(x)[0]))(X), X.cos())
    assert_close(tfc.jvp(lambda x: apply(x)[0], (X,), (X,)), (X.sin(), X * X.cos()))
    assert isinstance(apply(X), tuple)


@pytest.mark.parametrize("make", [lambda y: {"y": y}, lambda y: (y, (y,)), lambda y: [y, {"y": y}]])
def test_outputs_that_autograd_does_not_see(backend, make):
    with pytest.raises(TypeError, match="tuple of tensors"):
        tfc.grad(lambda x: (_returning(make)(x), x.sum())[1])(X)
    with pytest.raises(TypeError, match="tuple of tensors"):
        tfc.vmap(_returning(make))(X)


class Ruled(tfc.Function):
    """``2 x + s`` with a vmap rule that tells what it was given."""

    seen = None
    returns = staticmethod(lambda output: (output, 0))

    @staticmethod
    def forward(x, pair):
        return 2 * x + pair[1]

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad, None

    @staticmethod
    def vmap(info, in_dims, x, pair):
        if Ruled.seen is not None:
            Ruled.seen.append((info.batch_size, info.randomness, in_dims))
        x = x.movedim(in_dims[0], 0)
        return Ruled.returns(2 * x + pair[1])


@pytest.fixture
def seen(monkeypatch):
    found = []
    monkeypatch.setattr(Ruled, "seen", found)
    return found


def test_vmap_of_apply_calls_the_rule_once(backend, seen):
    x = torch.rand(3, 5, dtype=torch.float64)
    mapped = tfc.vmap(Ruled.apply, in_dims=(1, None), out_dims=1, randomness="same")
    assert_close(mapped(x, [7, 1.0]), 2 * x + 1)
    assert seen == [(5, "same", (1, [None, None]))]


def test_vmap_of_apply_stays_differentiable(backend):
    x = torch.rand(5, dtype=torch.float64)
    mapped = tfc.vmap(Ruled.apply, in_dims=(0, None))
    assert_close(tfc.grad(lambda x: (mapped(x, [7, 1.0]) ** 2).sum())(x), 4 * (2 * x + 1))
    assert_close(tfc.jvp(lambda x: mapped(x, [7, 1.0]), (x,), (x,))[1], 2 * x)
    variable = x.clone().requires_grad_()
    mapped(variable, [7, 1.0]).sum().backward()
    assert_close(variable.grad, torch.full_like(x, 2))


@pytest.mark.parametrize(
    "returns, message",
    [
        (lambda output: output, "two returns"),
        (lambda output: (output, (0, 0)), "incompatible"),
        (lambda output: ((output, output), (0, 0, 0)), "incompatible"),
    ],
)
def test_a_rule_that_returns_something_else(backend, monkeypatch, returns, message):
    monkeypatch.setattr(Ruled, "returns", staticmethod(returns))
    with pytest.raises(RuntimeError, match=message):
        tfc.vmap(Ruled.apply, in_dims=(0, None))(X, [7, 1.0])


def test_a_rule_for_what_is_the_same_for_all(backend, monkeypatch):
    monkeypatch.setattr(Ruled, "returns", staticmethod(lambda output: ((output, output[0]), (0, None))))
    first, second = tfc.vmap(Ruled.apply, in_dims=(0, None))(X, [7, 1.0])
    assert_close(first, 2 * X + 1)
    assert_close(second, (2 * X[0] + 1).expand_as(X))


def test_two_rules(backend, monkeypatch):
    monkeypatch.setattr(Ruled, "generate_vmap_rule", True)
    with pytest.raises(RuntimeError, match="both generate_vmap_rule=True and a vmap"):
        tfc.vmap(Ruled.apply, in_dims=(0, None))(X, [7, 1.0])
