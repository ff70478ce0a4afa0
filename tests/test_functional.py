"""torch_func_compat.functional: closed forms, torch's flags and errors, and within every transform."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.autograd.functional as upstream
from support.tolerances import assert_close
from torch import Tensor

import torch_func_compat as tfc
from torch_func_compat import functional

A = torch.tensor([0.5, 0.2, -0.4], dtype=torch.float64)
X = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
Y = torch.tensor([1.5, 0.4], dtype=torch.float64)
V = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
BATCH = torch.stack([X, A, X - A, 2 * X])
WAYS = [
    dict(),
    dict(vectorize=True),
    dict(vectorize=True, strategy="forward-mode"),
]


def energy(x):
    return torch.exp((A * x).sum())


def of_hessian(way):
    return {"outer_jacobian_strategy" if key == "strategy" else key: value for key, value in way.items()}


def field(x, y):
    return torch.stack([energy(x) * y.sum(), (x * x).sum()]), y.sin()


def field_jacobian(x, y):
    e = energy(x)
    first = (torch.stack([A * e * y.sum(), 2 * x]), torch.stack([e * torch.ones_like(y), torch.zeros_like(y)]))
    return first, (torch.zeros(2, 3, dtype=x.dtype), torch.diag(y.cos()))


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_jacobian(backend, way):
    assert_close(functional.jacobian(field, (X, Y), **way), field_jacobian(X, Y))
    # a bare tensor for a bare input or output
    assert_close(functional.jacobian(lambda x: field(x, Y), X, **way), tuple(row[0] for row in field_jacobian(X, Y)))
    assert_close(functional.jacobian(lambda x, y: field(x, y)[0], (X, Y), **way), field_jacobian(X, Y)[0])
    assert_close(functional.jacobian(torch.sin, X, **way), torch.diag(X.cos()))
    assert_close(functional.jacobian(lambda x: (x.sum(),), (X,), **way), ((torch.ones_like(X),),))
    assert_close(functional.jacobian(lambda x: Y * 1, X, **way), torch.zeros(2, 3, dtype=X.dtype))


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_hessian(backend, way):
    way = of_hessian(way)
    second = torch.ger(A, A) * energy(X)
    assert_close(functional.hessian(energy, X, **way), second)
    assert_close(functional.hessian(lambda x: energy(x).reshape(1, 1), X, **way), second)

    def product(x, y):
        return energy(x) * (y * y).sum()

    mixed = torch.ger(A, 2 * Y) * energy(X)
    blocks = ((second * (Y * Y).sum(), mixed), (mixed.t(), 2 * torch.eye(2, dtype=X.dtype) * energy(X)))
    assert_close(functional.hessian(product, (X, Y), **way), blocks)
    assert_close(functional.hessian(lambda x: x.sum(), X, **way), torch.zeros(3, 3, dtype=X.dtype))
    assert_close(functional.hessian(lambda x, y: energy(x), (X, Y), **way)[1][1], torch.zeros(2, 2, dtype=X.dtype))


def test_products(backend):
    (first, second), ((a, b), (c, d)) = field(X, Y), field_jacobian(X, Y)
    u = (torch.tensor([2.0, -1.0], dtype=X.dtype), torch.tensor([0.3, 0.1], dtype=X.dtype))
    value, product = functional.vjp(field, (X, Y), u)
    assert_close(value, (first, second))
    assert_close(product, (u[0] @ a + u[1] @ c, u[0] @ b + u[1] @ d))
    value, product = functional.jvp(field, (X, Y), (V, Y))
    assert_close(value, (first, second))
    assert_close(product, (a @ V + b @ Y, c @ V + d @ Y))
    for function in (functional.vhp, functional.hvp):
        assert_close(function(energy, X, V), (energy(X), torch.ger(A, A) @ V * energy(X)))
        assert_close(function(energy, (X,), (V,)), (energy(X), (torch.ger(A, A) @ V * energy(X),)))
        assert_close(function(torch.sum, X, V), (X.sum(), torch.zeros_like(X)))
    assert_close(functional.vjp(energy, X), (energy(X), A * energy(X)))
    s = X[0]
    assert_close(functional.jvp(torch.sin, s), (s.sin(), s.cos()))
    assert_close(functional.vhp(torch.sin, s), (s.sin(), -s.sin()))
    assert_close(functional.hvp(torch.sin, s), (s.sin(), -s.sin()))


CALLS = {
    "vjp": lambda x, **flags: functional.vjp(energy, x, **flags),
    "jvp": lambda x, **flags: functional.jvp(torch.sin, x, V, **flags),
    "vhp": lambda x, **flags: functional.vhp(energy, x, V, **flags),
    "hvp": lambda x, **flags: functional.hvp(energy, x, V, **flags),
    "jacobian": lambda x, **flags: (functional.jacobian(torch.sin, x, **flags),),
    "jacobian-vectorize": lambda x, **flags: (functional.jacobian(torch.sin, x, vectorize=True, **flags),),
    "hessian": lambda x, **flags: (functional.hessian(energy, x, **flags),),
    "hessian-vectorize": lambda x, **flags: (functional.hessian(energy, x, vectorize=True, **flags),),
}
# of the sum of the last result, by x
E2 = A * A.sum() ** 2  # the Hessian's sum has a derivative more
DERIVATIVES = {
    "vjp": lambda x: A * A.sum() * energy(x),
    "jvp": lambda x: -x.sin() * V,
    "vhp": lambda x: A * A.sum() * (A @ V) * energy(x),
    "hvp": lambda x: A * A.sum() * (A @ V) * energy(x),
    "jacobian": lambda x: -x.sin(),
    "hessian": lambda x: E2 * energy(x),
}


@pytest.mark.parametrize("name", CALLS)
def test_results_are_detached_unless_asked_for(backend, name):
    x = X.clone().requires_grad_()
    for around in (torch.enable_grad, torch.no_grad):
        with around():
            for result in CALLS[name](x):
                assert not result.requires_grad
            results = CALLS[name](x, create_graph=True)
        assert all(result.requires_grad and result.grad_fn is not None for result in results)
        (gradient,) = torch.autograd.grad(results[-1].sum(), x)
        assert_close(gradient, DERIVATIVES[name.split("-")[0]](X))
    # as torch has it, also where nothing outside requires grad
    assert all(result.requires_grad for result in CALLS[name](X, create_graph=True))
    assert x.grad is None and not X.requires_grad


@pytest.mark.parametrize("name", CALLS)
def test_within_vmap(backend, name):
    expected = [torch.stack(parts) for parts in zip(*(CALLS[name](x) for x in BATCH))]
    for flags in (dict(), dict(create_graph=True), dict(strict=True)):
        if "vectorize" in name and "strict" in flags:
            continue
        results = tfc.vmap(lambda x: CALLS[name](x, **flags))(BATCH)  # noqa: B023
        for result, expect in zip(results, expected):
            assert_close(result, expect)


@pytest.mark.parametrize("name", CALLS)
def test_differentiated_by_transforms(backend, name):
    expected = DERIVATIVES[name.split("-")[0]]

    def total(x):
        return CALLS[name](x, create_graph=True)[-1].sum()

    gradient = tfc.grad(total)(X)
    assert_close(gradient, expected(X))
    assert not gradient.requires_grad
    assert_close(tfc.vmap(tfc.grad(total))(BATCH), torch.stack([expected(x) for x in BATCH]))
    assert_close(tfc.jvp(total, (X,), (V,))[1], expected(X) @ V)
    # detached: as in torch, the derivative is zero
    assert_close(tfc.grad(lambda x: CALLS[name](x)[-1].sum() + x.sum())(X), torch.ones_like(X))


def test_transforms_within(backend):
    value = functional.hessian(lambda x: tfc.vmap(torch.sin)(x).sum(), X, vectorize=True)
    assert_close(value, torch.diag(-X.sin()))
    assert_close(functional.jacobian(tfc.grad(energy), X), torch.ger(A, A) * energy(X))
    assert_close(functional.jacobian(tfc.vmap(tfc.grad(torch.sin)), X), torch.diag(-X.sin()))
    assert_close(
        tfc.vmap(lambda x: functional.jacobian(tfc.grad(energy), x))(BATCH),
        torch.stack([torch.ger(A, A) * energy(x) for x in BATCH]),
    )


def test_nested(backend):
    def gradient(x):
        return functional.jacobian(energy, x, create_graph=True)

    def second(x):
        return functional.jacobian(gradient, x, create_graph=True)

    third = A[:, None, None] * torch.ger(A, A) * energy(X)
    assert_close(functional.jacobian(second, X), third)
    assert_close(tfc.vmap(lambda x: functional.jacobian(second, x))(X[None])[0], third)
    # perturbations are not confused
    s = X[0]
    inner = lambda x: x * functional.jacobian(lambda y: x + y, s, create_graph=True)
    assert_close(functional.jacobian(inner, s), torch.ones_like(s))


def test_vector_is_differentiable(backend):
    v = V.clone().requires_grad_()
    for function, f in ((functional.vjp, torch.sin), (functional.jvp, torch.sin)):
        assert_close(torch.autograd.grad(function(f, X, v, create_graph=True)[1].sum(), v)[0], X.cos())
    for function in (functional.vhp, functional.hvp):
        (gradient,) = torch.autograd.grad(function(energy, X, v, create_graph=True)[1].sum(), v)
        assert_close(gradient, A * A.sum() * energy(X))


NAMES = ("vjp", "jvp", "vhp", "hvp", "jacobian", "hessian")


def strict(name, func, inputs, create_graph=False):
    arguments = (
        (inputs,) if name in ("jacobian", "hessian") else (inputs, torch.ones_like(X) if name != "vjp" else None)
    )
    return getattr(functional, name)(func, *arguments, strict=True, create_graph=create_graph)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_strict(backend, name, mapped):
    def raises(message, func, inputs=X, **flags):
        function = lambda x: strict(name, func, x, **flags)
        with pytest.raises(RuntimeError, match=message):
            if mapped:
                tfc.vmap(function)(inputs[None].clone())
            else:
                function(inputs)

    raises("Output 0 of the user-provided function does not require gradients", lambda x: x.detach().sum())
    around = torch.ones((), dtype=X.dtype, requires_grad=True)
    # within torch.func and functorch, what requires grad outside does not within
    independent = "utput.* of the user-provided function (is independent of input 0|does not require gradients)"
    if name != "hessian":
        raises(independent, lambda x: around * 2)
    if name in ("vhp", "hvp", "hessian"):
        raises("found that the jacobian of the user-provided function with respect to input 0 is indep", torch.sum)
        square = lambda x: (x * x).sum()
        strict(name, square, X)
        create = "The (hessian|jacobian) of the user-provided function is independent of input 0.*create_graph=True"
        raises(create, square, create_graph=True)
    else:
        strict(name, torch.sum, X)
        raises(
            "The jacobian of the user-provided function is independent of input 0.*create_graph=True",
            torch.sum,
            create_graph=True,
        )
    cubic = lambda x: (x**3).sum()
    expected = functional.hessian(cubic, X) if name == "hessian" else None
    result = strict(name, cubic, X.clone().requires_grad_(), create_graph=True)
    if expected is not None:
        assert_close(result, expected)


def test_errors(backend):
    for name in NAMES:
        function = getattr(functional, name)
        with pytest.raises(TypeError, match=f"inputs given to {name} must be either a Tensor or a tuple of Tensors"):
            function(torch.sin, [X])
        with pytest.raises(TypeError, match="but the value at index 1 has type <class 'int'>"):
            function(torch.sin, (X, 2))
        v = () if name in ("jacobian", "hessian") else (V,)
        with pytest.raises(TypeError, match=f"outputs of the user-provided function given to {name} must be either"):
            function(lambda x: [x.sum()], X, *v)
    for name in ("vhp", "hvp", "hessian"):
        v = () if name == "hessian" else (V,)
        with pytest.raises(RuntimeError, match=f"The function given to {name} should return a single Tensor"):
            getattr(functional, name)(lambda x: (x.sum(), x.sum()), X, *v)
        with pytest.raises(RuntimeError, match=f"given to {name} should contain a single element"):
            getattr(functional, name)(lambda x: x, X, *v)
    for name in ("vjp", "jvp", "vhp", "hvp"):
        function = getattr(functional, name)
        f = torch.sin if name in ("vjp", "jvp") else torch.sum
        with pytest.raises(RuntimeError, match="The vector v can only be None if"):
            function(f, X)
        with pytest.raises(RuntimeError, match=r"v has invalid size: should be torch.Size.*3.* but got torch.Size.*2"):
            function(f, X, Y)
        with pytest.raises(RuntimeError, match="The given v should contain a single Tensor"):
            function(f, X, (V, V))
        with pytest.raises(TypeError, match=f"The v given to {name} must be either a Tensor or a tuple of Tensors"):
            function(f, X, 1.0)
    with pytest.raises(RuntimeError, match="v is a tuple of invalid length: should be 2 but got 1"):
        functional.jvp(torch.add, (X, X), V)
    with pytest.raises(RuntimeError, match="Entry 1 in v has invalid size"):
        functional.jvp(torch.add, (X, X), (V, Y))


@pytest.mark.parametrize("name, strategy", [("jacobian", "strategy"), ("hessian", "outer_jacobian_strategy")])
def test_errors_of_strategies(backend, name, strategy):
    function = getattr(functional, name)
    forward = {strategy: "forward-mode"}
    with pytest.raises(AssertionError, match='Expected strategy to be either "forward-mode" or "reverse-mode"'):
        function(energy, X, **{strategy: "forward"})
    with pytest.raises(NotImplementedError, match="only implemented for `vectorize=True`"):
        function(energy, X, **forward)
    with pytest.raises(NotImplementedError, match=r"`create_graph=True`.*not supported together"):
        function(energy, X, vectorize=True, create_graph=True, **forward)
    with pytest.raises(RuntimeError, match=r"`strict=True`.*not supported together"):
        function(energy, X, vectorize=True, strict=True, **forward)
    with pytest.raises(RuntimeError, match="`strict=True` and `vectorized=True` are not supported together"):
        function(energy, X, vectorize=True, strict=True)


def test_functions_of_any_kind(backend):
    """What torch.func refuses and torch.autograd computes is computed, without a warning."""

    class Legacy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0].cos()

    def branches(x):
        return Legacy.apply(x).sum() if float(x.detach()[0]) > 0 else x.sum()

    expected = torch.diag(-X.sin())
    for flags in (dict(), dict(vectorize=True), dict(strict=True)):
        assert_close(functional.hessian(branches, X, **flags), expected)
    assert_close(functional.hvp(branches, X, V)[1], expected @ V)
    with tfc.use_fallback("silent"):
        mapped = tfc.vmap(lambda x: functional.hessian(branches, x))(torch.stack([X, -X]))
    assert_close(mapped, torch.stack([expected, torch.zeros_like(expected)]))


def test_backward_that_is_not_differentiable(backend):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.exp()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0].exp()

    def total(x):
        return Once.apply(x).sum()

    assert_close(functional.jacobian(Once.apply, X, vectorize=True), torch.diag(X.exp()))
    assert_close(functional.jvp(Once.apply, X, V)[1], X.exp() * V)
    for call in (
        lambda: functional.hessian(total, X),
        lambda: functional.hessian(total, X, vectorize=True),
        lambda: functional.vhp(total, X, V),
        lambda: functional.hvp(total, X, V),
    ):
        with pytest.raises(RuntimeError, match=r"not differentiable|once_differentiable|does not require grad"):
            call()
    x = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=r"not differentiable|once_differentiable"):
        torch.autograd.grad(functional.jacobian(total, x, create_graph=True).sum(), x)


def test_third_derivatives_are_right_or_raise(backend):
    def total(x):
        return (torch.nn.functional.layer_norm(x, (3,)) ** 3).sum()

    x = X.clone().requires_grad_()
    entry = functional.hessian(total, x, create_graph=True)[0, 0]
    steps = 1e-5 * torch.eye(3, dtype=X.dtype)
    differences = [functional.hessian(total, X + h) - functional.hessian(total, X - h) for h in steps]
    try:
        (gradient,) = torch.autograd.grad(entry, x)
    except RuntimeError as error:
        assert "layer_norm" in str(error)
    else:  # torch 1.8 has it right
        assert_close(gradient, torch.stack([d[0, 0] / 2e-5 for d in differences]), rtol=1e-6)


def test_randomness_is_drawn_once(backend):
    for way in WAYS:
        torch.manual_seed(1)
        jacobian = functional.jacobian(lambda x: torch.rand_like(x) * x, X, **way)
        torch.manual_seed(1)
        assert_close(jacobian, torch.diag(torch.rand_like(X)))


def test_dtypes(backend):
    single = X.float()
    both = functional.jacobian(lambda x, y: x.double() * y, (single, X))
    assert [block.dtype for block in both] == [torch.float32, torch.float64]
    forward = functional.jacobian(lambda x: x.double(), single, vectorize=True, strategy="forward-mode")
    assert forward.dtype == torch.float64
    assert_close(functional.jacobian(lambda x: x.long(), X), torch.zeros(3, 3, dtype=X.dtype))
    with pytest.raises(RuntimeError, match="floating point"):
        functional.jacobian(lambda x: x.sum(), torch.ones(3, dtype=torch.long))


def test_parameters_are_the_newest():
    for name in NAMES:
        ours, theirs = inspect.signature(getattr(functional, name)), inspect.signature(getattr(upstream, name))
        known = list(theirs.parameters)
        assert list(ours.parameters)[: len(known)] == known
        for parameter in known:
            assert ours.parameters[parameter].default == theirs.parameters[parameter].default


@pytest.mark.filterwarnings("ignore")
def test_the_same_as_torch(backend):
    """What this torch's own gives, flags and structures included, where it can be trusted."""
    w = torch.ones(3, dtype=X.dtype, requires_grad=True)

    def functions():
        yield "jacobian", lambda x, y: (x * y.sum() * w, y.exp()), (X, Y.clone().requires_grad_())
        yield "jacobian", lambda x: (x**2).sum(), (X,)
        yield "hessian", lambda x, y: (x**2 * y.sum()).sum() * w.sum(), (X, Y)
        yield "vhp", lambda x: (x**3).sum(), X[:1]
        yield "hvp", lambda x: (x**3).sum(), X[:1].clone().requires_grad_()
        yield "vjp", lambda x: (x**3).sum() * w.sum(), X
        yield "jvp", lambda x: x**3 * w, X[:1]

    for name, func, inputs in functions():
        for flags in (dict(), dict(create_graph=True), dict(create_graph=True, strict=True)):
            expected = torch_or_error(getattr(upstream, name), func, inputs, flags)
            actual = torch_or_error(getattr(functional, name), func, inputs, flags)
            if isinstance(expected, str):
                assert actual == expected
                continue
            assert_close(actual, expected)
            for a, e in zip(flat(actual), flat(expected)):
                # blocks that are zero may require grad beside others that do
                assert a.requires_grad == e.requires_grad or (a.requires_grad and not a.detach().any()), name


def torch_or_error(function, func, inputs, flags):
    try:
        return function(func, inputs, **flags)
    except RuntimeError as error:
        return str(error)


def flat(tree):
    return [tree] if isinstance(tree, Tensor) else [leaf for part in tree for leaf in flat(part)]


@pytest.mark.skipif(not hasattr(torch, "compiler"), reason="torch.compile does not say that it is compiling")
def test_compiled_around():
    """Calls of these break the graph, and are not traced."""
    for call in (lambda x: functional.hessian(energy, x, vectorize=True), lambda x: functional.jvp(torch.sin, x, V)[1]):
        try:
            compiled = torch.compile(lambda x: call(2 * x) + 1, backend="eager")  # noqa: B023
        except RuntimeError as error:
            pytest.skip(str(error))  # not on this system or Python
        assert_close(compiled(X), call(2 * X) + 1)
