"""Functions in the old style, adapted; and operators of torch.library with a backward of their own."""

from __future__ import annotations

import pytest
import torch
from support.function_transforms import TRANSFORMS, Case, X
from support.functions import Kind
from support.tolerances import assert_close
from torch.autograd.function import once_differentiable

import torch_func_compat as tfc

NATIVE = tfc.available_backends()[0] == "torch.func"
pytestmark = pytest.mark.filterwarnings("ignore::torch_func_compat.FallbackWarning")


@pytest.fixture(autouse=True)
def _silently():
    with tfc.use_fallback("silent"):
        yield


@tfc.Function.from_legacy
class OldSine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x.cos()


@tfc.Function.from_legacy(generate_vmap_rule=True)
class OldProduct(torch.autograd.Function):
    """Attributes, intermediates, arguments that are no tensors, several outputs."""

    @staticmethod
    def forward(ctx, x, y, power):
        ctx.power = power
        ctx.slope = power * x ** (power - 1)
        value = x**power * y
        order = torch.argsort(x)
        ctx.mark_non_differentiable(order)
        ctx.saved = {"inputs": [x, y], "value": value}
        return value, x + y, order

    @staticmethod
    def backward(ctx, first, second, _):
        x, y = ctx.saved["inputs"]
        dx = first * ctx.slope * y + second + 0 * ctx.saved["value"]
        return dx, first * x**ctx.power + second, None


class _OldSigmoid(torch.autograd.Function):
    """Saves what it made of its output; computes what is needed."""

    @staticmethod
    def forward(ctx, x, weight):
        value = x.sigmoid()
        ctx.save_for_backward(value * (1 - value))
        return value * weight, value

    @staticmethod
    def backward(ctx, grad, grad_value):
        assert ctx.needs_input_grad == (True, False)
        (slope,) = ctx.saved_tensors
        return (grad * WEIGHT + grad_value) * _OldSigmoid.once(slope), None

    @staticmethod
    def once(value):
        return value


OldSigmoid = tfc.Function.from_legacy(_OldSigmoid)
WEIGHT = torch.tensor([0.3, -1.0, 0.5, 2.0], dtype=torch.float64)


@tfc.Function.from_legacy
class OldExponential(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x.exp_()
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        (value,) = ctx.saved_tensors
        return grad * value


@tfc.Function.from_legacy
class OldNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().cpu().numpy().copy()).sin()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x.cos()


@tfc.Function.from_legacy
class OldJvp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        if hasattr(ctx, "save_for_forward"):
            ctx.save_for_forward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x.cos()

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return tangent * x.cos()


KINDS = {
    "sine": Kind(lambda x: OldSine.apply(x), torch.sin),
    "product": Kind(
        lambda x: (lambda a, b, order: a * b * (1 + order))(*OldProduct.apply(x, x.cos(), 3)),
        lambda x: x**3 * x.cos() * (x + x.cos()) * (1 + torch.argsort(x)),
    ),
    "sigmoid": Kind(lambda x: sum(OldSigmoid.apply(x, WEIGHT)), lambda x: x.sigmoid() * (WEIGHT + 1)),
    "in place": Kind(lambda x: OldExponential.apply(x * 2) + x, lambda x: (2 * x).exp() + x),
    "numpy": Kind(lambda x: OldNumpy.apply(x), torch.sin),
    "jvp": Kind(lambda x: OldJvp.apply(x), torch.sin),
}


if hasattr(torch.autograd.Function, "setup_context"):

    @tfc.Function.from_legacy
    class NewJvp(torch.autograd.Function):
        """Not old at all, but its jvp rule does not nest in torch."""

        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x.sin()

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0].cos()

        @staticmethod
        def jvp(ctx, tangent):
            return tangent * ctx.saved_tensors[0].cos()

    KINDS["new"] = Kind(lambda x: NewJvp.apply(x), torch.sin)

if hasattr(getattr(torch, "library", None), "custom_op"):

    @torch.library.custom_op("torch_func_compat_tests::legacy_sine", mutates_args=(), schema="(Tensor x) -> Tensor")
    def library_sine(x):
        return torch.from_numpy(x.detach().cpu().numpy().copy()).sin()

    @torch.library.custom_op("torch_func_compat_tests::legacy_cosine", mutates_args=(), schema="(Tensor x) -> Tensor")
    def library_cosine(x):
        return torch.from_numpy(x.detach().cpu().numpy().copy()).cos()

    def _save(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    library_sine.register_autograd(lambda ctx, grad: grad * library_cosine(*ctx.saved_tensors), setup_context=_save)
    library_cosine.register_autograd(lambda ctx, grad: -grad * library_sine(*ctx.saved_tensors), setup_context=_save)
    KINDS["custom_op"] = Kind(lambda x: library_sine(x), torch.sin)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_kind(backend, kind, transform):
    case = Case(f"legacy {kind}", KINDS[kind])
    result, expected = (side(case) for side in TRANSFORMS[transform])
    assert_close(result, expected, rtol=1e-8)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("numpy", "in place", "custom_op")])
@pytest.mark.parametrize(
    "transform", [t for t in TRANSFORMS if t not in ("value", "backward", "double backward") and "backward" not in t]
)
@pytest.mark.skipif("not NATIVE", reason="functorch on torch < 2.0 takes no autograd.Function, adapted or not")
def test_adapted_ones_are_evaluated_natively(kind, transform):
    with tfc.use_fallback("error"):
        TRANSFORMS[transform][0](Case(f"legacy {kind}", KINDS[kind]))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "custom_op"])
def test_gradgradcheck(kind):
    x = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(KINDS[kind].func, (x,))
    assert torch.autograd.gradgradcheck(KINDS[kind].func, (x,))


def test_what_it_is():
    assert issubclass(OldSigmoid, tfc.Function) and issubclass(OldSigmoid, _OldSigmoid)
    assert OldSigmoid.__name__ == "_OldSigmoid" and OldSigmoid.once(3) == 3
    assert OldProduct.__doc__.startswith("Attributes")
    for wrong in (torch.sin, int, tfc.Function, OldSine):
        with pytest.raises(TypeError):
            tfc.Function.from_legacy(wrong)


def test_once_differentiable_is_respected(backend):
    @tfc.Function.from_legacy
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        @once_differentiable
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0].cos()

    assert_close(tfc.grad(lambda x: Once.apply(x).sum())(X), X.cos())
    assert_close(tfc.jacfwd(Once.apply)(X), torch.diag(X.cos()))
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        tfc.grad(lambda x: tfc.grad(lambda x: (x * Once.apply(x)).sum())(x).sum())(X)


def test_an_intermediate_out_of_sight_raises_at_second_order(backend):
    """What numpy made of the input is no constant; what is one does not stand in the way."""

    def made(slope):
        class Sine(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.slope = torch.from_numpy(x.detach().cpu().numpy().copy()).cos() if slope else torch.ones_like(x)
                ctx.save_for_backward(x)
                return x.sin()

            @staticmethod
            def backward(ctx, grad):
                return grad * ctx.slope * (1 if slope else ctx.saved_tensors[0].cos())

        return tfc.Function.from_legacy(Sine)

    func = made(True).apply
    assert_close(tfc.grad(lambda x: func(x).sum())(X), X.cos())
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        tfc.grad(lambda x: tfc.grad(lambda x: (x * func(x)).sum())(x).sum())(X)
    func = made(False).apply
    assert_close(tfc.hessian(lambda x: func(x).sum())(X), torch.diag(-X.sin()))


def test_an_argument_that_it_modifies_is_not_modified_twice(backend):
    x = torch.stack([X, 2 * X])
    try:
        tfc.vmap(tfc.grad(lambda x, y: (OldExponential.apply(y) * x).sum()), in_dims=(0, 0))(x, x.clone())
        tfc.jvp(lambda y: OldExponential.apply(y), (x,), (x,))
    except RuntimeError:
        pass
    else:
        assert_close(x, torch.stack([X, 2 * X]).exp())
