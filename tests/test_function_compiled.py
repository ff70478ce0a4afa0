"""Functions under torch.compile: in its graph on plain autograd, left eager within transforms."""

from __future__ import annotations

import pytest
import torch
from support.compiling import compiled
from support.function_transforms import X
from support.functions import KINDS, Exponential, Sine
from support.tolerances import assert_close

import torch_func_compat as tfc

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch_func_compat.FallbackWarning"),
    pytest.mark.skipif(not hasattr(torch, "compiler"), reason="torch.compile traces autograd.Functions from 2.1 on"),
]


class Twice(tfc.Function):
    """One tensor in two places, which count differently."""

    @staticmethod
    def forward(x):
        y = x * 1
        return y, y

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, first, second):
        return first + 3 * second


class Doubled(Sine):
    """Not the derivative of its forward, so that one sees it being passed by."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0].cos())

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0]


def discarded(x):
    """Modified in place, by a call whose result nobody takes (https://github.com/pytorch/pytorch/issues/184113)."""
    y = x * 2
    Exponential.apply(y)
    return y


FUNCTIONS = {
    **{name: KINDS[name].func for name in ("several", "saved intermediate", "attributes", "arguments", "dirty")},
    "twice": lambda x: Twice.apply(x)[0] * Twice.apply(x)[1].exp(),
    "modified": discarded,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_backward(name):
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    result, expected = compiled(FUNCTIONS[name], backend="aot_eager")(x), FUNCTIONS[name](y)
    assert_close(result, expected)
    weights = torch.arange(1.0, 5.0, dtype=X.dtype)
    assert_close(torch.autograd.grad((result * weights).sum(), x), torch.autograd.grad((expected * weights).sum(), y))


TRANSFORMS = {
    "grad": (lambda: tfc.grad(lambda x: Doubled.apply(x).sum()), 2 * X.cos()),
    "grad of grad": (
        lambda: tfc.grad(lambda y: tfc.grad(lambda x: Doubled.apply(x).sum())(y).sum()),
        -2 * X.sin(),
    ),
    "hessian": (lambda: tfc.hessian(lambda x: Doubled.apply(x).sum()), torch.diag(-2 * X.sin())),
    "vmap(grad)": (lambda: tfc.vmap(tfc.grad(Doubled.apply)), 2 * X.cos()),
}


@pytest.mark.slow
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_compiled_transform(transform):
    """torch takes the forward's derivative here (https://github.com/pytorch/pytorch/issues/193279)."""
    make, expected = TRANSFORMS[transform]
    assert_close(compiled(make(), backend="aot_eager")(X), expected)
    with pytest.raises(Exception, match=r"(?i)skip|disable|graph break"):  # and says so where it may not be left eager
        compiled(make(), backend="aot_eager", fullgraph=True)(X)
