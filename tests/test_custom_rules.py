"""custom_vjp and custom_jvp under every transform, on every backend."""

from __future__ import annotations

import functools

import pytest
import torch
from support.compiling import compiled
from support.function_transforms import TRANSFORMS, Case, U, X
from support.functions import Kind
from support.tolerances import assert_close

import torch_func_compat as tfc

pytestmark = pytest.mark.filterwarnings("ignore::torch_func_compat.FallbackWarning")


@pytest.fixture(autouse=True)
def _silently():
    with tfc.use_fallback("silent"):
        yield


@tfc.custom_vjp
def sine(x):
    return x.sin()


# the residual is no input and no output
sine.defvjp(lambda x: (x.sin(), x.cos()), lambda cos, grad: (grad * cos,))


@functools.partial(tfc.custom_vjp, nondiff_argnums=(0, -1))
def pair(func, state, shift):
    return {"a": func(state["x"]) ** 2 * state["y"][0], "n": torch.argsort(state["x"]), "b": [state["x"] * shift]}


def _pair_fwd(func, state, shift):
    return pair(func, state, shift), (state["x"], state["y"], func(state["x"]))


def _pair_bwd(func, shift, residuals, grads):
    x, (y, z), value = residuals
    assert z is None and func is torch.sin
    dx = grads["a"] * 2 * value * torch.cos(x) * y + grads["b"][0] * shift
    return ({"x": dx, "y": [grads["a"] * value**2, None]},)


pair.defvjp(_pair_fwd, _pair_bwd)


@tfc.custom_jvp
def forward_sine(x):
    return x.sin()


@forward_sine.defjvp
def _(primals, tangents):
    (x,), (t,) = primals, tangents
    return x.sin(), x.cos() * t


@functools.partial(tfc.custom_jvp, nondiff_argnums=1)
def forward_pair(x, power, y):
    return x**power * y["y"], {"order": torch.argsort(x)}


@forward_pair.defjvp
def _(power, primals, tangents):
    x, y = primals
    t, ty = tangents
    output = forward_pair(x, power, y)
    assert ty["n"] is None
    return output, (power * x ** (power - 1) * y["y"] * t + x**power * ty["y"], {"order": None})


KINDS = {
    "custom_vjp": Kind(lambda x: sine(x), torch.sin),
    "custom_vjp of pytrees": Kind(
        lambda x: (lambda r: r["a"] * (1 + r["n"]) + r["b"][0])(pair(torch.sin, {"x": x, "y": [x.exp(), None]}, 3.0)),
        lambda x: x.sin() ** 2 * x.exp() * (1 + torch.argsort(x)) + 3 * x,
    ),
    "custom_jvp": Kind(lambda x: forward_sine(x), torch.sin),
    "custom_jvp of pytrees": Kind(
        lambda x: (lambda value, rest: value * (1 + rest["order"]))(*forward_pair(x, 3, {"y": x.cos(), "n": 7})),
        lambda x: x**3 * x.cos() * (1 + torch.argsort(x)),
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_kind(backend, kind, transform):
    case = Case(kind, KINDS[kind])
    result, expected = (side(case) for side in TRANSFORMS[transform])
    assert_close(result, expected, rtol=1e-8)


def test_the_rule_is_what_is_used(backend):
    @tfc.custom_vjp
    def reversed_gradient(x):
        return x * 1

    reversed_gradient.defvjp(lambda x: (x * 1, None), lambda _, grad: (-grad,))
    assert_close(tfc.grad(lambda x: reversed_gradient(x=x).sum())(X), -torch.ones(4, dtype=X.dtype))
    assert_close(tfc.jvp(reversed_gradient, (X,), (U,))[1], -U)

    @tfc.custom_jvp
    def doubled(x):
        return x * 1

    doubled.defjvp(lambda primals, tangents: (primals[0] * 1, 2 * tangents[0]))
    assert_close(tfc.grad(lambda x: doubled(x).sum())(X), 2 * torch.ones(4, dtype=X.dtype))
    assert_close(tfc.vmap(tfc.jacrev(doubled))(X), 2 * torch.ones(4, dtype=X.dtype))


def test_the_function_runs_where_nothing_is_differentiated(backend):
    seen = []

    @tfc.custom_vjp
    def func(x):
        seen.append("func")
        return x * 2

    func.defvjp(lambda x: (seen.append("fwd"), (x * 2, None))[1], lambda _, grad: (2 * grad,))
    func(X)
    assert seen == ["func"]
    x = X.clone().requires_grad_()
    func(x)
    assert seen == ["func", "fwd"]
    with torch.no_grad():
        assert not func(x).requires_grad


def test_errors():
    with pytest.raises(RuntimeError, match="defvjp"):
        tfc.custom_vjp(torch.sin)(X)
    with pytest.raises(RuntimeError, match="defjvp"):
        tfc.custom_jvp(torch.sin)(X)
    x = X.clone().requires_grad_()

    def made(fwd, bwd, func=lambda x: x * 2, **options):
        made = tfc.custom_vjp(func, **options)
        made.defvjp(fwd, bwd)
        return made

    with pytest.raises(TypeError, match="output, residuals"):
        made(lambda x: x * 2, lambda r, g: (g,))(x)
    with pytest.raises(TypeError, match="each of its 1 differentiated"):
        made(lambda x: (x * 2, None), lambda r, g: (g, g))(x).sum().backward()
    with pytest.raises(TypeError, match="gradient of its structure"):
        made(lambda x: (x * 2, None), lambda r, g: ([g],))(x).sum().backward()
    with pytest.raises(TypeError, match="pytree of tensors"):
        made(lambda x: ((x * 2, 3), None), lambda r, g: ([g],))(x)
    with pytest.raises(ValueError, match="nondiff_argnums"):
        made(lambda x: (x * 2, None), lambda r, g: (g,), nondiff_argnums=3)(x)
    with pytest.raises(TypeError, match="keyword-only"):
        made(lambda x: (x, None), lambda r, g: (g,), lambda x, *, power: x**power)(x, power=3)
    wrong = tfc.custom_jvp(lambda x: x * 2)
    wrong.defjvp(lambda primals, tangents: tangents[0])
    with pytest.raises(TypeError, match="output, tangent_out"):
        wrong(x).sum().backward()
    wrong.defjvp(lambda primals, tangents: (None, [tangents[0]]))
    with pytest.raises(TypeError, match="tangents of the structure"):
        wrong(x).sum().backward()


def _scaled_vjp(scale):
    made = tfc.custom_vjp(lambda x: x.sin() * scale)
    made.defvjp(lambda x: (x.sin() * scale, x), lambda x, grad: (grad * x.cos() * scale,))
    return made


def _scaled_jvp(scale):
    made = tfc.custom_jvp(lambda x: x.sin() * scale)
    made.defjvp(lambda primals, tangents: (primals[0].sin() * scale, tangents[0] * primals[0].cos() * scale))
    return made


@pytest.mark.parametrize("scaled", [_scaled_vjp, _scaled_jvp])
def test_a_batch_around_may_be_closed_over(backend, scaled):
    """Also where its size is that of another one, of which it could be taken for."""
    scales, expected = U, U[:, None] * X.sin()
    assert_close(tfc.vmap(lambda a: scaled(a)(X))(scales), expected)
    assert_close(tfc.vmap(lambda a: tfc.vmap(lambda x: scaled(a)(x))(X))(scales), expected)
    assert_close(tfc.vmap(lambda a: tfc.vmap(tfc.grad(lambda x: scaled(a)(x)))(X))(scales), U[:, None] * X.cos())
    for derivative in (tfc.jacrev, tfc.jacfwd):
        result = derivative(lambda x: tfc.vmap(lambda a: scaled(a)(x))(scales))(X)
        assert_close(result, U[:, None, None] * torch.diag(X.cos()))


@pytest.mark.parametrize("scaled", [_scaled_vjp, _scaled_jvp])
def test_what_is_differentiated_may_not_be_closed_over(backend, scaled):
    for derivative in (
        lambda f: tfc.grad(lambda a: f(a).sum()),
        tfc.jacfwd,
        tfc.jacrev,
        lambda f: lambda a: tfc.jvp(f, (a,), (U,)),
        lambda f: tfc.vmap(tfc.grad(f)),
        lambda f: lambda a: tfc.vmap(tfc.grad(lambda b: tfc.vmap(f)(b * a).sum()))(a),
    ):
        with pytest.raises(RuntimeError, match="among its arguments"):
            derivative(lambda a: scaled(a)(X[0]))(U)
    weight = U.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="among its arguments"):
        scaled(weight)(X)
    with torch.no_grad():
        assert_close(scaled(weight)(X), X.sin() * U)
    layer = torch.nn.Linear(4, 4).double()
    with pytest.raises(RuntimeError, match="among its arguments"):
        tfc.grad(lambda x: scaled(layer(U))(x).sum())(X)


@functools.partial(tfc.custom_vjp, nondiff_argnums=0)
def times(a, x):
    return a * x


times.defvjp(lambda a, x: (a * x, None), lambda a, _, grad: (grad * a,))


@functools.partial(tfc.custom_jvp, nondiff_argnums=0)
def forward_times(a, x):
    return a * x


forward_times.defjvp(lambda a, primals, tangents: (a * primals[0], a * tangents[0]))


@pytest.mark.parametrize("function", [times, forward_times])
def test_nondiff_argnums_are_not_differentiated(backend, function):
    assert_close(tfc.grad(lambda x: function(U, x).sum())(X), U)
    assert_close(tfc.jvp(lambda x: function(U, x), (X,), (X,))[1], U * X)
    assert_close(tfc.vmap(tfc.grad(lambda x, a: function(a, x)))(X, U), U)
    for derivative in (tfc.jacrev, tfc.jacfwd):
        with pytest.raises(RuntimeError, match="said to be fixed"):
            derivative(lambda a: function(a, X))(U)


def test_rules_that_are_not_linear_have_no_transpose(backend):
    for rule in (
        lambda primals, tangents: (primals[0] * 2, torch.full_like(tangents[0], 3.0)),
        lambda primals, tangents: (primals[0] * 2, tangents[0].detach() * 2),
        lambda primals, tangents: (primals[0] * 2, tangents[0] ** 2),
    ):
        made = tfc.custom_jvp(lambda x: x * 2)
        made.defjvp(rule)
        with pytest.raises(RuntimeError, match="not linear"):
            tfc.grad(lambda x, made=made: made(x).sum())(X)
    nothing = tfc.custom_jvp(lambda x: x.round())
    nothing.defjvp(lambda primals, tangents: (primals[0].round(), None))
    assert_close(tfc.grad(lambda x: nothing(x).sum())(X), 0 * X)
    assert_close(tfc.jvp(nothing, (X,), (U,)), (X.round(), 0 * X))


def test_a_method(backend):
    class Scale:
        def __init__(self, factor):
            self.factor = factor

        @functools.partial(tfc.custom_vjp, nondiff_argnums=0)
        def times(self, x):
            """Scaled."""
            return self.factor * x

        times.defvjp(lambda self, x: (self.factor * x, None), lambda self, _, grad: (self.factor * grad,))

    assert Scale.times.__doc__ == "Scaled."
    assert_close(tfc.vmap(tfc.grad(Scale(3.0).times))(X), torch.full_like(X, 3.0))


def test_outputs_that_are_inputs_or_each_other(backend):
    """The rule doubles a gradient, so that one sees it being passed by."""
    same = tfc.custom_vjp(lambda x: x)
    same.defvjp(lambda x: (x, None), lambda _, grad: (2 * grad,))
    assert_close(tfc.grad(lambda x: (same(x) ** 2).sum())(X), 4 * X)
    assert_close(tfc.jvp(same, (X,), (U,)), (X, 2 * U))

    def both(x):
        y = x * 1
        return y, y

    twice = tfc.custom_vjp(both)
    twice.defvjp(lambda x: (both(x), None), lambda _, grads: (grads[0] + 3 * grads[1],))
    for i, factor in enumerate((1.0, 3.0)):
        assert_close(tfc.grad(lambda x, i=i: twice(x)[i].sum())(X), torch.full_like(X, factor))


def test_integers_and_writing(backend):
    take = tfc.custom_vjp(lambda x, i: x[i])
    take.defvjp(lambda x, i: (x[i], (x, i)), lambda kept, g: (torch.zeros_like(kept[0]).index_add(0, kept[1], g), None))
    order = torch.tensor([2, 0])
    expected = torch.tensor([X[0], 0.0, X[2], 0.0], dtype=X.dtype)
    assert_close(tfc.grad(lambda x: (take(x, order) ** 2).sum() / 2)(X), expected)
    orders = torch.stack([order, order.flip(0)])
    assert_close(tfc.vmap(tfc.grad(lambda x, i: (take(x, i) ** 2).sum() / 2), (None, 0))(X, orders)[1], expected)
    writing = tfc.custom_vjp(lambda x: x.mul_(2))
    writing.defvjp(lambda x: (x.mul_(2), None), lambda _, g: (2 * g,))
    with pytest.raises(RuntimeError, match="in place"):
        tfc.grad(lambda x: writing(x * 1).sum())(X)


def test_the_rules_agree_on_structure():
    made = tfc.custom_vjp(lambda x: (x * 1,))
    made.defvjp(lambda x: (x * 1, None), lambda _, g: (g,))
    if tfc.available_backends()[0] == "torch.func":  # elsewhere only one of the two runs
        with pytest.raises(TypeError, match="output of its structure"):
            tfc.vmap(tfc.grad(lambda x: made(x)[0].sum()))(X[None])


@pytest.mark.skipif(not hasattr(torch, "func"), reason="forward mode is off in an autograd.Function of torch < 2.0")
@pytest.mark.parametrize("scaled", [_scaled_vjp, _scaled_jvp])
def test_forward_mode_of_torch_itself(scaled):
    from torch.autograd import forward_ad

    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, U)
        assert_close(forward_ad.unpack_dual(forward_sine(dual)).tangent, X.cos() * U)
        with pytest.raises(RuntimeError, match="among its arguments"):
            scaled(dual)(X)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch, "compiler"), reason="torch.compile traces autograd.Functions from 2.1 on")
@pytest.mark.parametrize("kind", ["custom_vjp", "custom_jvp"])
@pytest.mark.parametrize(
    "derivative", [lambda f: f, lambda f: tfc.vmap(tfc.grad(f)), lambda f: tfc.hessian(lambda x: f(x).sum())]
)
def test_compiled(kind, derivative):
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    result, expected = compiled(derivative(KINDS[kind].func), backend="aot_eager")(x), derivative(torch.sin)(y)
    assert_close(result, expected)
    assert_close(torch.autograd.grad(result.sum(), x), torch.autograd.grad(expected.sum(), y))
