"""Second derivatives of custom Functions: what their backward keeps is right, a constant on purpose, or lost."""

from __future__ import annotations

import pytest
import torch
from support.tolerances import assert_close

import torch_func_compat as tfc

SPLIT = hasattr(torch.autograd.Function, "setup_context")
X = torch.tensor([0.4, -1.2, 2.0], dtype=torch.float64)


def by_hand(func, x):
    """The Hessian of plain autograd."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(func(x), x, create_graph=True)
    return torch.stack([torch.autograd.grad(g, x, retain_graph=True)[0] for g in gradient])


# --- gradients that are another function's on purpose -----------------------------------------------------------------


class Reversed(torch.autograd.Function):
    """Gradient reversal, which saves the weight that it was given."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -ctx.saved_tensors[0] * grad, None


class ReversedByANumber(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.weight = weight
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -ctx.weight * grad, None


class Rounded(torch.autograd.Function):
    """A straight-through estimator whose mask is made in its forward."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward((x.abs() < 3).to(x.dtype), torch.ones_like(x))
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        mask, one = ctx.saved_tensors
        return grad * mask * one


class Sign(torch.autograd.Function):
    """A sign with the derivative of a hard tanh, which returns its own output's."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = [scale, 0.5]
        output = x.sign() * scale
        ctx.save_for_backward(x, output)
        return output

    @staticmethod
    def backward(ctx, grad):
        x, output = ctx.saved_tensors
        return grad * ctx.scale[1] * (1 + output**2) * x.cos(), None


class Batched(torch.autograd.Function):
    """Gradient reversal in the style of torch 2, which torch.func batches."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, grad):
        return -ctx.saved_tensors[0] * grad, None


reverse = Reversed.apply  # stored, so that nothing that is put in the place of `apply` sees it
PSEUDO = {
    "saved": lambda x: reverse(x.sin(), torch.tensor(0.5, dtype=x.dtype)).pow(2).sum(),
    "saved, of the input": lambda x: reverse(x.sin(), x.detach()).pow(2).sum(),
    "number": lambda x: ReversedByANumber.apply(x.sin(), 0.5).pow(2).sum(),
    "tensor in an attribute": lambda x: ReversedByANumber.apply(x.sin(), x.new_tensor(0.5)).pow(2).sum(),
    "mask": lambda x: (Rounded.apply(x * x) * x.exp()).sum(),
    "output": lambda x: (Sign.apply(x * x, 0.7) * x.exp()).sum(),
    "adapted": lambda x: ADAPTED(x.sin(), x.new_tensor(0.5)).pow(2).sum(),
    "twice": lambda x: (Rounded.apply(reverse(x.exp(), x.new_tensor(2.0))) * x).sum(),
}
ADAPTED = tfc.Function.from_legacy(Reversed).apply
if SPLIT:
    PSEUDO["batched"] = lambda x: Batched.apply(x.sin(), x.new_tensor(0.5)).pow(2).sum()


@pytest.mark.parametrize("name", PSEUDO)
def test_second_derivatives_of_pseudo_gradients_are_those_of_plain_autograd(backend, name):
    func = PSEUDO[name]
    expected = by_hand(func, X)
    with tfc.use_fallback("silent"):
        for x in (X, X):  # tested in the first call
            assert_close(tfc.hessian(func)(x), expected)
        assert_close(tfc.jacrev(tfc.jacrev(func))(X), expected)
        assert_close(tfc.jacfwd(tfc.grad(func))(X), expected)
        assert_close(tfc.hvp(func, (X,), (X,))[1], (expected @ X,))
        batch = torch.stack([X, 0.5 * X])
        assert_close(tfc.vmap(tfc.hessian(func))(batch), torch.stack([by_hand(func, x) for x in batch]))


def test_a_pseudo_gradient_in_a_network(backend):
    """Domain adaptation: the parameters are differentiated by others around the derivative."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    strength = torch.tensor(0.3, dtype=torch.float64)
    penalty = tfc.grad(lambda x: reverse(network(x), strength).sum())(X).pow(2).sum()
    found = torch.autograd.grad(penalty, tuple(network.parameters()), allow_unused=True)
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reverse(network(x), strength).sum(), x, create_graph=True)
    expected = torch.autograd.grad(gradient.pow(2).sum(), tuple(network.parameters()), allow_unused=True)
    for one, other in zip(found[:3], expected[:3]):
        assert_close(one, other)


# --- numbers that are lost --------------------------------------------------------------------------------------------


def cube(kept):
    """The cube of x times that of y. Its backward uses what `kept` makes of the latter."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            ctx.save_for_backward(x, y)
            ctx.kept = kept(y.detach() ** 3)
            return x**3 * y**3

        @staticmethod
        def backward(ctx, grad):
            x, y = ctx.saved_tensors
            kept = ctx.kept["cubes"] if isinstance(ctx.kept, dict) else ctx.kept
            return grad * 3 * x**2 * torch.as_tensor(kept, dtype=x.dtype), grad * x**3 * 3 * y**2

    return Cube.apply


@pytest.mark.parametrize(
    "kept",
    [lambda y: y, lambda y: y.tolist(), lambda y: y.numpy(), lambda y: {"cubes": y}],
    ids=["tensor", "numbers", "numpy", "container"],
)
@pytest.mark.parametrize("around", [True, False], ids=["around", "within"])
def test_lost_terms_raise(backend, kept, around):
    """Also where what is kept depends on a tensor around the inner derivative only."""
    apply = cube(kept)
    if around:
        derivative = tfc.jacrev(lambda y: tfc.grad(lambda x: apply(x, y).sum())(X))
    else:
        derivative = tfc.hessian(lambda x: apply(x, x).sum())
    with tfc.use_fallback("silent"), pytest.raises(RuntimeError, match="finite differences"):
        derivative(X)


def test_what_is_kept_may_be_constant_at_first(backend):
    """A clamp is constant below its bound: nothing can be remembered from there."""

    class Clamped(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.slope = 2 * x.clamp(min=0)
            return x.clamp(min=0) ** 2

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.slope

    second = tfc.hessian(lambda x: Clamped.apply(x).sum())
    assert not second(-X.abs()).any()
    with pytest.raises(RuntimeError, match="finite differences"):
        second(X.abs())


def test_what_is_kept_and_not_used_is_no_flaw(backend):
    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x, x.cos())
            return x.sin()

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0].cos()

    assert_close(tfc.hessian(lambda x: Sine.apply(x).sum())(X), torch.diag(-X.sin()))


def test_a_function_that_modifies_its_input_is_tested_too(backend):
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.slope = 2 * x
            ctx.mark_dirty(x)
            return x.mul_(x)

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.slope

    with pytest.raises(RuntimeError, match="finite differences"):
        tfc.hessian(lambda x: Square.apply(x.sin()).sum())(X)


def test_a_forward_that_draws_keeps_no_lost_numbers(backend):
    class Dropout(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            mask = torch.rand_like(x)
            ctx.save_for_backward(mask)
            return x * mask

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0]

    torch.manual_seed(0)
    mask = torch.rand_like(X)
    torch.manual_seed(0)
    found = tfc.hessian(lambda x: (Dropout.apply(x) ** 3).sum())(X)
    assert_close(found, torch.diag(6 * X * mask**3))


@pytest.mark.skipif(not SPLIT, reason="no setup_context()")
@pytest.mark.parametrize("saved", [True, False], ids=["saved", "attribute"])
def test_lost_terms_in_a_batch_raise(backend, saved):
    """On levels of torch.func nothing shows them; a sample alone does."""

    class Cube(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x**3

        @staticmethod
        def setup_context(ctx, inputs, output):
            slope = 3 * inputs[0] ** 2
            if saved:
                ctx.save_for_backward(slope)
            else:
                ctx.slope = slope

        @staticmethod
        def backward(ctx, grad):
            return grad * (ctx.saved_tensors[0] if saved else ctx.slope)

    batch, weight = torch.stack([X, 2 * X]), torch.tensor(2.0).double().requires_grad_()
    func = lambda x: Cube.apply(x).sum()
    with tfc.use_fallback("silent"):
        for derivative in (tfc.hessian(func), tfc.jacrev(tfc.grad(func)), tfc.jacfwd(tfc.grad(func))):
            with pytest.raises(RuntimeError, match="finite differences"):
                tfc.vmap(derivative)(batch)
        gradients = tfc.vmap(tfc.grad(lambda x: func(weight * x)))(batch)
        assert_close(gradients.detach(), 24 * batch**2)
        with pytest.raises(RuntimeError, match="finite differences"):
            gradients.sum().backward()


class NearlyRight(torch.autograd.Function):
    """A cube with a ripple, whose derivative by the ripple is an intermediate result of the forward."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x, 0.05 * x.sin())
        return x**3 - 0.05 * x.cos()

    @staticmethod
    def backward(ctx, grad):
        x, ripple = ctx.saved_tensors
        return grad * (3 * x**2 + ripple)


def test_a_lost_term_that_is_small_beside_the_others_raises(backend):
    assert_close(tfc.grad(lambda x: NearlyRight.apply(x).sum())(X), 3 * X**2 + 0.05 * X.sin())
    with pytest.raises(RuntimeError, match="finite differences"):
        tfc.hessian(lambda x: NearlyRight.apply(x).sum())(X)
