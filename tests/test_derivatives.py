"""jacobian, hessian and their like against closed forms, in every mode, on every backend."""

import pytest
import torch
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat._torch import facts

A = torch.tensor([[1.0, -0.5, 0.2], [0.3, 0.8, -0.1], [0.6, 0.1, -0.9]], dtype=torch.float64)
X = torch.tensor([0.4, -0.7, 1.2], dtype=torch.float64)
T = torch.tensor([0.5, 1.5, -0.3], dtype=torch.float64)
MODES = ("auto", "reverse-reverse", "forward-reverse", "reverse-forward", "forward-forward")


def scalar(x):
    return (x @ A @ x).sin() + (x**4).sum()


def scalar_gradient(x):
    s = A + A.t()
    return (x @ A @ x).cos() * (s @ x) + 4 * x**3


def scalar_hessian(x):
    s, q = A + A.t(), x @ A @ x
    return q.cos() * s - q.sin() * torch.ger(s @ x, s @ x) + torch.diag(12 * x**2)


def vector(x):
    return torch.stack([x.prod(), (x**3).sum(), (A[0] @ x).exp(), x[0] * x[1] ** 2, x[2]])


def vector_jacobian(x):
    a, b, c = x
    e = (A[0] @ x).exp()
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    return torch.stack(
        [
            torch.stack([b * c, a * c, a * b]),
            3 * x**2,
            A[0] * e,
            torch.stack([b**2, 2 * a * b, zero]),
            torch.stack([zero, zero, one]),
        ]
    )


def vector_hessian(x):
    a, b, c = x
    h = x.new_zeros(5, 3, 3)
    h[0] = torch.stack([torch.stack([0 * a, c, b]), torch.stack([c, 0 * a, a]), torch.stack([b, a, 0 * a])])
    h[1] = torch.diag(6 * x)
    h[2] = torch.ger(A[0], A[0]) * (A[0] @ x).exp()
    h[3, 0, 1] = h[3, 1, 0] = 2 * b
    h[3, 1, 1] = 2 * a
    return h


@pytest.fixture(autouse=True)
def quiet():
    # functorch nests forward mode only with help
    with tfc.use_fallback("silent"):
        yield


@pytest.mark.parametrize("chunk_size", (None, 1, 2, "auto"))
@pytest.mark.parametrize("mode", ("auto", "forward", "reverse"))
def test_jacobian(backend, mode, chunk_size):
    jacobian = tfc.jacobian(vector, mode=mode, chunk_size=chunk_size)
    for _ in range(2):  # what the first call found is used by the second
        assert_close(jacobian(X), vector_jacobian(X))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk_size", (None, 2, "auto"))
def test_hessian(backend, mode, chunk_size):
    assert_close(tfc.hessian(scalar, mode=mode, chunk_size=chunk_size)(X), scalar_hessian(X))
    hessian = tfc.hessian(vector, mode=mode, chunk_size=chunk_size)
    for _ in range(2):
        assert_close(hessian(X), vector_hessian(X))


def test_auto_takes_the_mode_that_its_rule_names(backend):
    cases = (
        (tfc.jacobian(vector), "forward mode" if backend != "autograd" else "reverse mode"),
        (tfc.jacobian(scalar), "reverse mode"),
        (tfc.jacobian(lambda x: x.repeat(100)), "forward mode, since 300 outputs"),
        (
            tfc.jacobian(lambda x: x.repeat(5)),
            "forward mode" if backend != "autograd" else "reverse mode, since 15 rows",
        ),
        (tfc.hessian(scalar), "reverse over reverse"),
        (tfc.hessian(vector), "forward over reverse" if backend != "autograd" else "reverse over reverse"),
    )
    for transformed, expected in cases:
        assert tfc.explain(transformed) == "It was not called yet."
        transformed(X)
        assert f"It took {expected}" in tfc.explain(transformed)


def test_auto_decides_for_each_shape(backend):
    factors = torch.arange(1.0, 301.0, dtype=X.dtype)
    jacobian = tfc.jacobian(lambda x: x.sum() * factors)
    many = torch.linspace(0, 1, 200, dtype=X.dtype)
    assert_close(jacobian(many), factors[:, None].expand(300, 200))
    assert "reverse mode, since 300 outputs" in tfc.explain(jacobian)
    assert_close(jacobian(X), factors[:, None].expand(300, 3))
    assert "forward mode, since 300 outputs" in tfc.explain(jacobian)
    jacobian(many)
    assert "reverse mode" in tfc.explain(jacobian)


def test_a_begun_mode_leaves_no_draw_behind(backend):
    def noisy(x):
        return (x.sum() * torch.rand(6, dtype=x.dtype)).sum(0, keepdim=True).expand(300)

    torch.manual_seed(0)
    state = torch.get_rng_state()
    expected = torch.rand(6, dtype=X.dtype).sum()
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    found = tfc.jacobian(noisy, mode="reverse")(X[:1])
    assert_close(found, expected.expand(300, 1))
    assert torch.equal(torch.get_rng_state(), after)


def test_values_come_along(backend):
    calls = []

    def counted(x):
        calls.append(1)
        return scalar(x)

    value, gradient, hessian = tfc.value_grad_and_hessian(counted)(X)
    assert len(calls) == 1
    assert_close((value, gradient, hessian), (scalar(X), scalar_gradient(X), scalar_hessian(X)))
    value, jacobian = tfc.value_and_jacobian(counted)(X)
    assert len(calls) == 2
    assert_close((value, jacobian), (scalar(X), scalar_gradient(X)))
    for mode in MODES:
        value, jacobian, hessian = tfc.value_grad_and_hessian(vector, mode=mode)(X)
        assert_close((value, jacobian, hessian), (vector(X), vector_jacobian(X), vector_hessian(X)))
    (value, aux), jacobian = tfc.value_and_jacobian(lambda x: (vector(x), {"twice": 2 * x}), has_aux=True)(X)
    assert_close((value, aux["twice"], jacobian), (vector(X), 2 * X, vector_jacobian(X)))


def test_values_are_differentiable(backend):
    def newton(x):
        value, gradient, hessian = tfc.value_grad_and_hessian(scalar)(x)
        return value + gradient.sum() + hessian.sum()

    x = X.clone().requires_grad_()
    (found,) = torch.autograd.grad(newton(x), x)
    direct = tfc.grad(lambda x: scalar(x) + scalar_gradient(x).sum() + scalar_hessian(x).sum())(X)
    assert_close(found, direct)


@pytest.mark.parametrize("product", (tfc.hvp, tfc.vhp))
def test_products(backend, product):
    value, (found,) = product(scalar, (X,), (T,))
    assert_close((value, found), (scalar(X), scalar_hessian(X) @ T))
    value, (found,), aux = product(lambda x: (scalar(x), x.exp()), (X,), (T,), has_aux=True)
    assert_close((value, found, aux), (scalar(X), scalar_hessian(X) @ T, X.exp()))
    value, found = product(lambda p: (p["a"] * p["b"] ** 2).sum(), ({"a": X, "b": T},), ({"a": T, "b": X},))
    assert_close(found[0]["a"], 2 * T * X)
    assert_close(found[0]["b"], 2 * T * T + 2 * X * X)
    with pytest.raises(RuntimeError, match="to be a tuple"):
        product(scalar, X, T)
    with pytest.raises(RuntimeError, match="same shape"):
        product(scalar, (X,), (T[:2],))
    with pytest.raises(RuntimeError, match="scalar"):
        product(vector, (X,), (T,))


@pytest.mark.parametrize("chunk_size", (None, 1, 2, "auto"))
def test_diagonal_and_trace(backend, chunk_size):
    diagonal = scalar_hessian(X).diagonal()
    assert_close(tfc.hessian_diagonal(scalar, chunk_size=chunk_size)(X), diagonal)
    assert_close(tfc.laplacian(scalar, chunk_size=chunk_size)(X), diagonal.sum())
    diagonal = vector_hessian(X).diagonal(0, 1, 2)
    assert_close(tfc.hessian_diagonal(vector, chunk_size=chunk_size)(X), diagonal)
    assert_close(tfc.laplacian(vector, chunk_size=chunk_size)(X), diagonal.sum(-1))


def test_diagonals_of_pytrees(backend):
    def pair(a, b):
        return {"u": a * b**2, "v": (a**3).sum()}

    found = tfc.hessian_diagonal(pair, argnums=(0, 1))(X, T)
    assert_close(found["u"][0], torch.zeros(3, 3, dtype=X.dtype))
    assert_close(found["u"][1], torch.diag(2 * X))
    assert_close(found["v"][0], 6 * X)
    assert_close(found["v"][1], torch.zeros_like(T))
    trace, aux = tfc.laplacian(lambda a, b: (pair(a, b), b), argnums=(0, 1), has_aux=True)(X, T)
    assert_close(trace["u"], 2 * X)
    assert_close(trace["v"], 6 * X.sum())
    assert_close(aux, T)


def test_linearize(backend):
    calls = []

    def counted(x):
        calls.append(1)
        return vector(x)

    output, jvp_fn = tfc.linearize(counted, X)
    for tangent in (T, X, torch.zeros_like(X)):
        assert_close(jvp_fn(tangent), vector_jacobian(X) @ tangent)
    assert_close(output, vector(X))
    assert len(calls) == 1
    many = torch.stack([T, X, T - X])
    assert_close(tfc.vmap(jvp_fn)(many), many @ vector_jacobian(X).t())
    assert_close(tfc.jacrev(lambda x: tfc.linearize(vector, x)[1](T))(X), vector_hessian(X) @ T)
    assert_close(tfc.vmap(lambda x: tfc.linearize(vector, x)[1](T))(many)[1], vector_jacobian(X) @ T)
    with pytest.raises(RuntimeError, match="same argspec"):
        jvp_fn(T, T)
    with pytest.raises(RuntimeError, match="doesn't match the shape"):
        jvp_fn(T[:2])
    with pytest.raises(RuntimeError, match="doesn't match the dtype"):
        jvp_fn(T.float())


def test_linearize_a_custom_function(backend):
    class Cube(tfc.Function):
        @staticmethod
        def forward(x):
            return torch.from_numpy(x.detach().numpy() ** 3)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return torch.from_numpy(3 * x.detach().numpy() ** 2 * grad.detach().numpy())

    output, jvp_fn = tfc.linearize(Cube.apply, X)
    assert_close(output, X**3)
    assert_close(jvp_fn(T), 3 * X**2 * T)
    assert_close(tfc.vmap(jvp_fn)(torch.stack([T, X])), torch.stack([3 * X**2 * T, 3 * X**3]))


def test_linearize_where_upstream_is_wrong(backend):
    def inplace(x):
        y = x.clone()
        y[0:2].mul_(x[1:3])
        return y

    _, jvp_fn = tfc.linearize(inplace, X)
    assert_close(jvp_fn(T), torch.stack([T[0] * X[1] + X[0] * T[1], T[1] * X[2] + X[1] * T[2], T[2]]))
    _, jvp_fn = tfc.linearize(lambda x: tfc.jacrev(lambda y: y**3)(x).sum(0), X)
    assert_close(jvp_fn(T), 6 * X * T)


@pytest.mark.parametrize("transform", (tfc.jacobian, tfc.hessian, tfc.laplacian, tfc.hessian_diagonal))
def test_under_vmap(backend, transform):
    xs = torch.stack([X, T, X - T])
    for func in (scalar, vector):
        assert_close(tfc.vmap(transform(func))(xs), torch.stack([transform(func)(x) for x in xs]))


def test_errors():
    for transform in (tfc.jacobian, tfc.hessian, tfc.value_and_jacobian, tfc.value_grad_and_hessian):
        with pytest.raises(ValueError, match="unknown mode 'sideways', expected one of 'auto'"):
            transform(scalar, mode="sideways")
    for transform in (tfc.vmap, tfc.jacrev, tfc.jacfwd, tfc.jacobian, tfc.hessian, tfc.laplacian, tfc.hessian_diagonal):
        for wrong in (0, -1, "all", 2.5, True):
            with pytest.raises(ValueError, match="chunk_size"):
                transform(scalar, chunk_size=wrong)
        with pytest.raises(ValueError, match="budget of chunk_size='auto'"):
            transform(scalar, memory="1GB")
        for wrong in ("much", 0, "1.5XB", True):
            with pytest.raises(ValueError, match="expected memory= to be bytes"):
                transform(scalar, chunk_size="auto", memory=wrong)


@pytest.mark.skipif(not facts.has("inference_mode"), reason="no inference_mode")
def test_what_is_computed_in_inference_mode_is_constant(backend):
    """As under no_grad(), although plain autograd saves no inference tensors."""
    x = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)

    def func(x):
        with torch.inference_mode():
            factor = x.sin()
        return factor * x**2 + torch.stack([factor, x]).sum(0)

    expected = torch.diag(2 * x * x.sin() + 1)
    loss = lambda x: func(x).sum()
    with tfc.use_fallback("silent"):
        assert_close(tfc.jacrev(func)(x), expected)
        assert_close(tfc.jacfwd(func)(x), expected)
        assert_close(tfc.jvp(func, (x,), (x,))[1], expected @ x)
        assert_close(tfc.linearize(func, x)[1](x), expected @ x)
        assert_close(tfc.grad(loss)(x), expected.diagonal())
        assert_close(tfc.hessian(loss)(x), torch.diag(2 * x.sin()))
        assert_close(tfc.vmap(tfc.grad(loss))(torch.stack([x, x])), torch.stack([expected.diagonal()] * 2))
        assert_close(tfc.batch_jacobian(func)(torch.stack([x, x])), torch.stack([expected] * 2))

        def writes(x):
            with torch.inference_mode():
                factor = x.sin()
            return factor.mul_(2) * x

        with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
            tfc.jacrev(writes)(x)


@pytest.mark.skipif(not facts.has("inference_mode"), reason="no inference_mode")
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
def test_what_was_made_in_inference_mode_is_differentiated(backend, inside):
    """Arguments, vectors and constants, for which plain autograd has no place; torch.func takes them."""
    with torch.inference_mode():
        x, v, xs = (torch.tensor(numbers, dtype=torch.float64) for numbers in ([0.3, -0.7], [1.1, 0.4], [[0.3, -0.7]]))
    slope, curvature = (v * (v * x).cos()).clone(), (-v * v * (v * x).sin()).clone()
    number, vector = lambda x: (v * x).sin().sum(), lambda x: (v * x).sin()
    with torch.inference_mode(inside):
        assert_close(tfc.grad(number)(x), slope)
        assert_close(tfc.hessian(number)(x), torch.diag(curvature))
        assert_close(tfc.jacfwd(vector)(x), torch.diag(slope))
        assert_close(tfc.jvp(vector, (x,), (v,))[1], slope * v)
        assert_close(tfc.linearize(vector, x)[1](v), slope * v)
        assert_close(tfc.vjp(vector, x)[1](v)[0], slope * v)
        assert_close(tfc.vmap(tfc.grad(number))(xs)[0], slope)
        assert_close(tfc.batch_hvp(lambda x: (v * x).sin().sum(-1), (xs,), (xs,))[1][0][0], curvature * x)
        assert_close(tfc.laplacian(number, estimator="hutchinson", samples=2)(x)[0], curvature.sum())
        assert_close(tfc.hessian_diagonal(number, estimator="hutchinson", samples=2)(x)[0], curvature)
        if facts.TORCH >= (1, 10):  # 1.9 does not tell views of such tensors from others
            assert_close(tfc.grad(lambda x, c: (c * x).sin().sum())(x, v), slope)
            assert_close(tfc.grad(lambda x, *, c: (c * x).sin().sum())(x, c=v), slope)


@pytest.mark.parametrize(
    "push",
    [
        lambda f, x, v: tfc.jvp(f, (x,), (v,))[1],
        lambda f, x, v: tfc.jacfwd(f)(x) @ v,
        lambda f, x, v: tfc.linearize(f, x)[1](v),
    ],
    ids=["jvp", "jacfwd", "linearize"],
)
def test_pushes_through_in_place_operations_can_be_differentiated(backend, push):
    """Forward mode keeps copies of what these overwrite; the copies are no constants."""
    x = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
    v = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    written = lambda x: (x * scale).sin().mul_(x.exp())
    derivatives = []
    with tfc.use_fallback("silent"):
        for func in (written, lambda x: (x * scale).sin() * x.exp()):
            by_scale = torch.autograd.grad(push(func, x, v).pow(2).sum(), scale)[0]
            derivatives.append((by_scale, tfc.grad(lambda x, func=func: push(func, x, v).sum())(x).detach()))
    for found, wanted in zip(*derivatives):
        assert_close(found, wanted)
