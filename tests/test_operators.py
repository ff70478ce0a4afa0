"""Operators against dense matrices, on every backend; what they cost; estimators against exact moments."""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict, namedtuple

import pytest
import torch
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat.operators import ggn_operator, hessian_operator, jacobian_operator

D = torch.float64
EXACT = dict(rtol=1e-12, atol=1e-12)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


WEIGHT, X = draw(7, 5) / 3, draw(5, seed=1)
V, W = draw(5, seed=2), draw(7, seed=3)
MANY, MANY_OUT = draw(5, 4, seed=4), draw(7, 4, seed=5)
TARGET = draw(7, seed=6)


def model(x):
    return torch.tanh(WEIGHT @ x) + (WEIGHT @ x) ** 2


def energy(x):
    return (x[1:] * x[:-1]).sum() ** 2 + (x**4).sum() + model(x).cos().sum()


def loss(y):
    return ((y - TARGET) ** 4).sum() + y.sum() ** 2


def dense_jacobian():
    return tfc.jacrev(model)(X)


def dense_hessian():
    return tfc.hessian(energy)(X)


def dense_ggn():
    return dense_jacobian().t() @ tfc.hessian(loss)(model(X)) @ dense_jacobian()


CASES = {
    "jacobian": (lambda **options: jacobian_operator(model, X, **options), dense_jacobian),
    "jacobian.T": (lambda **options: jacobian_operator(model, X, **options).T, lambda: dense_jacobian().t()),
    "hessian": (lambda **options: hessian_operator(energy, X, **options), dense_hessian),
    "ggn": (lambda **options: ggn_operator(model, loss, X, **options), dense_ggn),
}
every_case = pytest.mark.parametrize("name", CASES)


@every_case
def test_products(backend, name):
    make, dense = CASES[name]
    operator, matrix = make(), dense()
    assert operator.shape == matrix.shape
    assert operator.dtype == D
    assert operator.device == X.device
    for other, matrix_of in ((operator, matrix), (operator.T, matrix.t())):
        vectors = MANY if other.shape[1] == 5 else MANY_OUT
        assert_close(other @ vectors[:, 0], matrix_of @ vectors[:, 0], **EXACT)
        assert_close(other @ vectors, matrix_of @ vectors, **EXACT)
        assert (other @ vectors[:, :0]).shape == (other.shape[0], 0)
        assert_close(other.to_dense(), matrix_of, **EXACT)
        assert_close(other.diagonal(), matrix_of.diagonal(), **EXACT)
    vectors = MANY if operator.shape[1] == 5 else MANY_OUT
    assert_close(operator.T.T @ vectors, matrix @ vectors, **EXACT)
    assert repr(operator.T.T) == repr(operator)


@every_case
@pytest.mark.parametrize("chunk_size", (1, 3, "auto"))
def test_chunks(backend, name, chunk_size):
    make, dense = CASES[name]
    operator, matrix = make(chunk_size=chunk_size), dense()
    vectors = MANY if operator.shape[1] == 5 else MANY_OUT
    assert_close(operator @ vectors, matrix @ vectors, **EXACT)
    assert_close(operator.to_dense(), matrix, **EXACT)
    assert_close(operator.diagonal(), matrix.diagonal(), **EXACT)


def test_symmetric_operators_are_their_own_transposes(backend):
    for name in ("hessian", "ggn"):
        operator = CASES[name][0]()
        assert operator.T is operator
        assert_close(operator.trace(), CASES[name][1]().trace(), **EXACT)


def test_one_evaluation(backend):
    calls = []

    def counted(func):
        return lambda x: (calls.append(1), func(x))[1]

    makes = (
        lambda: jacobian_operator(counted(model), X),
        lambda: hessian_operator(counted(energy), X),
        lambda: ggn_operator(counted(model), loss, X),
        lambda: ggn_operator(model, counted(loss), X),
    )
    for make in makes:
        calls.clear()
        operator = make()
        assert len(calls) == 1
        operator @ V, operator @ MANY, operator.to_dense(), operator.diagonal()
        operator.T @ (V if operator.shape[0] == 5 else W)
        assert len(calls) == 1


Pair = namedtuple("Pair", "u v")


def of_trees(p, q):
    return {"s": p["a"] @ p["b"], "t": Pair(q[0] ** 2, p["a"].sum() * q[0])}


P = {"a": draw(2, 3, seed=7), "b": draw(3, seed=8)}
Q = [draw(2, 2, seed=9)]
DP = {"a": draw(2, 3, seed=10), "b": draw(3, seed=11)}
DQ = [draw(2, 2, seed=12)]


def flat(tree):
    leaves = tree if isinstance(tree, (tuple, list)) else list(tree.values()) if isinstance(tree, dict) else None
    return tree.reshape(-1) if leaves is None else torch.cat([flat(leaf) for leaf in leaves])


def test_pytrees(backend):
    operator = jacobian_operator(of_trees, P, Q)
    assert operator.shape == (10, 13)
    output, tangents = tfc.jvp(of_trees, (P, Q), (DP, DQ))
    found = operator @ (DP, DQ)
    assert_close(found, tangents, **EXACT)
    assert isinstance(found["t"], Pair)
    assert_close(operator @ flat((DP, DQ)), flat(tangents), **EXACT)
    _, pull = tfc.vjp(of_trees, P, Q)
    assert_close(operator.T @ (output,), pull(output), **EXACT)
    assert_close(operator.T @ flat(output), flat(pull(output)), **EXACT)

    def number(p, q):
        out = of_trees(p, q)
        return out["s"].sum() ** 2 + out["t"].u.prod() + out["t"].v.pow(3).sum()

    operator = hessian_operator(number, P, Q)
    assert_close(operator @ (DP, DQ), tfc.hvp(number, (P, Q), (DP, DQ))[1], **EXACT)
    assert_close(operator.to_dense(), operator.to_dense().t(), **EXACT)
    operator = ggn_operator(of_trees, lambda out: out["s"].pow(2).sum() / 2 + out["t"].u.sum(), P, Q)
    only_s = tfc.jvp(of_trees, (P, Q), (DP, DQ))[1]["s"]
    _, pull = tfc.vjp(lambda p, q: of_trees(p, q)["s"], P, Q)
    assert_close(operator @ (DP, DQ), pull(only_s), **EXACT)


def test_dicts_are_matched_by_key_order_or_refused():
    operator = jacobian_operator(lambda p: p["a"] * p["b"], {"a": V, "b": X})
    expected = operator @ ({"a": X, "b": V},)
    assert_close(expected, X * X + V * V, **EXACT)
    with pytest.raises(ValueError, match="expected the structure"):
        operator @ ({"b": V, "a": X},)
    with pytest.raises(ValueError, match="expected the structure"):
        operator @ (OrderedDict(a=X, b=V),)


def test_matrices_of_several_shapes(backend):
    """An argument of two dimensions, which a matrix of vectors is not taken for."""
    x = draw(2, 3, seed=13)
    operator = jacobian_operator(lambda x: x.t() ** 2, x)
    dense = tfc.jacrev(lambda x: x.t() ** 2)(x).reshape(6, 6)
    assert_close(operator.to_dense(), dense, **EXACT)
    assert_close(operator @ (x,), (2 * x * x).t(), **EXACT)
    assert_close(operator.T @ (x.t(),), (2 * x * x,), **EXACT)
    with pytest.raises(ValueError, match=r"expected a vector of shape \(6,\), a matrix of shape \(6, k\) or a tuple"):
        operator @ x


@every_case
def test_derivatives(backend, name):
    """By the point and by what is closed over, by transforms and by plain autograd."""
    builders = {
        "jacobian": lambda x, s: jacobian_operator(lambda x: s * model(x), x),
        "jacobian.T": lambda x, s: jacobian_operator(lambda x: s * model(x), x).T,
        "hessian": lambda x, s: hessian_operator(lambda x: s * energy(x), x),
        "ggn": lambda x, s: ggn_operator(lambda x: s * model(x), loss, x),
    }
    denses = {
        "jacobian": lambda x, s: s * tfc.jacrev(model)(x),
        "jacobian.T": lambda x, s: s * tfc.jacrev(model)(x).t(),
        "hessian": lambda x, s: s * tfc.hessian(energy)(x),
        "ggn": lambda x, s: s**2 * tfc.jacrev(model)(x).t() @ tfc.hessian(loss)(s * model(x)) @ tfc.jacrev(model)(x),
    }
    vectors = MANY_OUT if name == "jacobian.T" else MANY
    scale = torch.tensor(1.3, dtype=D)

    def value(build, x, s, many):
        operator = build(x, s)
        return ((operator @ vectors) ** 2).sum() if many else ((operator @ vectors[:, 0]) ** 2).sum()

    for many in (False, True):
        with tfc.use_fallback("silent"):  # functorch does not nest so many reverse modes of every operation
            expected = tfc.grad(lambda x, s, many=many: value(denses[name], x, s, many), (0, 1))(X, scale)
            found = tfc.grad(lambda x, s, many=many: value(builders[name], x, s, many), (0, 1))(X, scale)
        assert_close(found, expected)
        x, s = X.clone().requires_grad_(), scale.clone().requires_grad_()
        assert_close(torch.autograd.grad(value(builders[name], x, s, many), (x, s)), expected)


@every_case
def test_vmap(backend, name):
    builders = {
        "jacobian": lambda x: jacobian_operator(model, x),
        "jacobian.T": lambda x: jacobian_operator(model, x).T,
        "hessian": lambda x: hessian_operator(energy, x),
        "ggn": lambda x: ggn_operator(model, loss, x),
    }
    xs = torch.stack([X, V, X - V])
    vectors = MANY_OUT if name == "jacobian.T" else MANY
    with tfc.use_fallback("error"):
        found = tfc.vmap(lambda x: (builders[name](x) @ vectors[:, 0], builders[name](x) @ vectors))(xs)
    for x, one, many in zip(xs, *found):
        matrix = builders[name](x).to_dense()
        assert_close(one, matrix @ vectors[:, 0])
        assert_close(many, matrix @ vectors)


@every_case
def test_what_was_first_used_within_something_serves_elsewhere(backend, name):
    """Within no_grad, vmap or grad, with an operator from outside; and one that was made within no_grad."""
    make, dense = CASES[name]
    matrix = dense()
    vectors = MANY if matrix.shape[1] == 5 else MANY_OUT
    operator = make()
    found = tfc.vmap(lambda v: operator @ v, in_dims=1, out_dims=1)(vectors)
    assert_close(found, matrix @ vectors, **EXACT)
    assert_close(operator @ vectors, matrix @ vectors, **EXACT)
    operator = make()
    by_vector = tfc.grad(lambda v: (operator @ v).sum())(vectors[:, 0])
    assert_close(by_vector, matrix.sum(0), **EXACT)
    assert_close(operator.T @ matrix, matrix.t() @ matrix, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        operator = make()
        assert_close(operator @ vectors, matrix @ vectors, **EXACT)
    assert_close(operator @ vectors[:, 0], matrix @ vectors[:, 0], **EXACT)
    leaf = X.clone().requires_grad_()
    for func, build in (
        (model, lambda x: jacobian_operator(model, x)),
        (energy, lambda x: hessian_operator(energy, x)),
        (model, lambda x: ggn_operator(model, lambda y: y.pow(2).sum() / 2, x)),
    ):
        used, fresh = build(leaf), build(leaf)
        with torch.no_grad():
            used @ V, used.T @ (used @ V), used @ MANY
        found, expected = (torch.autograd.grad((op @ V).pow(2).sum(), leaf)[0] for op in (used, fresh))
        assert_close(found, expected)
        assert expected.abs().max() > 0, func


@every_case
def test_freed(backend, name):
    """With its graph, when the last reference is gone, and not only when the garbage collector comes by."""

    def use():
        weight = WEIGHT.clone()
        point = X.clone()
        builders = {
            "jacobian": lambda: jacobian_operator(lambda x: torch.tanh(weight @ x), point),
            "jacobian.T": lambda: jacobian_operator(lambda x: torch.tanh(weight @ x), point).T,
            "hessian": lambda: hessian_operator(lambda x: torch.tanh(weight @ x).sum(), point),
            "ggn": lambda: ggn_operator(lambda x: torch.tanh(weight @ x), loss, point),
        }
        operator = builders[name]()
        operator @ (MANY if operator.shape[1] == 5 else MANY_OUT), operator.T @ operator.to_dense(), operator.diagonal()
        return weakref.ref(weight), weakref.ref(point)

    use()
    gc.collect()
    gc.disable()
    try:
        assert [reference() is None for reference in use()] == [True, True]
    finally:
        gc.enable()


def test_functions_that_torch_refuses(backend):
    """A branch on a value, and a Function without a batching rule."""

    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return grad * x.cos()

    def branching(x):
        return Sine.apply(x) if float(x.sum()) > -100 else x

    with tfc.use_fallback("silent"):
        operator = jacobian_operator(branching, X)
        assert_close(operator @ MANY, X.cos()[:, None] * MANY, **EXACT)
        assert_close(operator.T @ V, X.cos() * V, **EXACT)
        operator = hessian_operator(lambda x: branching(x).sum(), X)
        assert_close(operator @ V, -X.sin() * V, **EXACT)
        assert_close(operator @ MANY, -X.sin()[:, None] * MANY, **EXACT)


def test_torch_functions(backend):
    operator, matrix = hessian_operator(energy, X), dense_hessian()
    assert_close(torch.matmul(operator, MANY), matrix @ MANY, **EXACT)
    assert_close(torch.mm(operator, MANY), matrix @ MANY, **EXACT)
    assert_close(torch.mv(operator, V), matrix @ V, **EXACT)
    with pytest.raises(TypeError):
        torch.add(operator, MANY)


def test_scipy(backend):
    linalg = pytest.importorskip("scipy.sparse.linalg")
    numpy = pytest.importorskip("numpy")
    for name, (make, dense) in CASES.items():
        operator, matrix = make().to_scipy(), dense().numpy()
        assert isinstance(operator, linalg.LinearOperator)
        assert operator.shape == matrix.shape
        assert operator.dtype == matrix.dtype
        vectors = (MANY if matrix.shape[1] == 5 else MANY_OUT).numpy()
        back = (MANY if matrix.shape[0] == 5 else MANY_OUT).numpy()
        for found, expected in (
            (operator.matvec(vectors[:, 0]), matrix @ vectors[:, 0]),
            (operator.matvec(vectors[:, :1]), matrix @ vectors[:, :1]),
            (operator.rmatvec(back[:, 0]), matrix.T @ back[:, 0]),
            (operator @ vectors[:, ::-1], matrix @ vectors[:, ::-1]),
            (operator.T @ back, matrix.T @ back),
        ):
            assert found.shape == expected.shape, name
            assert numpy.abs(found - expected).max() < 1e-12, name
    eigenvalues = numpy.linalg.eigvalsh(dense_hessian().numpy())
    found = linalg.eigsh(hessian_operator(energy, X).to_scipy(), k=2, which="LA", return_eigenvectors=False)
    assert numpy.abs(numpy.sort(found) - eigenvalues[-2:]).max() < 1e-9
    leaf = X.clone().requires_grad_()
    assert hessian_operator(energy, leaf).to_scipy().matvec(V.numpy()).shape == (5,)


def test_lobpcg():
    pytest.importorskip("scipy")
    size = 40
    stiffness = torch.linspace(1, 9, size, dtype=D)

    def chain(x):
        return ((x[1:] - x[:-1]) ** 2).sum() + (stiffness * x**2).sum()

    operator = hessian_operator(chain, torch.zeros(size, dtype=D))
    expected = torch.as_tensor(sorted(torch.linalg.eigvalsh(operator.to_dense()).tolist()), dtype=D)
    for largest in (True, False):
        values, vectors = torch.lobpcg(operator, k=3, largest=largest, tol=1e-9)
        assert_close(values.sort()[0], expected[-3:] if largest else expected[:3], rtol=1e-8)
        assert_close(operator @ vectors, vectors * values, atol=1e-6)
    with pytest.raises(TypeError, match=r"tracker of torch\.lobpcg is for tensors"):
        torch.lobpcg(operator, k=3, tracker=print)


def test_estimators_are_right_on_average(backend):
    """Against the formulas of their variances: over many draws, the mean is exact and the errors tell the spread."""
    operator, matrix = hessian_operator(energy, X), dense_hessian()
    off = matrix - torch.diag(matrix.diagonal())
    generator = torch.Generator().manual_seed(0)
    samples = 4000
    trace, error = operator.trace("hutchinson", samples=samples, generator=generator)
    expected = (2 * off.pow(2).sum() / samples).sqrt()
    assert_close(error, expected, rtol=0.1)
    assert (trace - matrix.trace()).abs() < 4 * expected
    diagonal, errors = operator.diagonal("hutchinson", samples=samples, generator=generator)
    expected = (off.pow(2).sum(1) / samples).sqrt()
    assert_close(errors, expected, rtol=0.1)
    assert ((diagonal - matrix.diagonal()).abs() < 4 * expected).all()
    # more samples than three times the rows
    trace, error = operator.trace("hutch++", samples=15, generator=generator)
    assert_close(trace, matrix.trace())
    assert error == 0


def test_hutch_plus_plus_is_better_where_few_eigenvalues_are_large():
    basis, _ = torch.linalg.qr(draw(60, 60))
    spectrum = torch.tensor([100.0, 50.0, 20.0, *([0.1] * 57)], dtype=D)
    matrix = basis @ torch.diag(spectrum) @ basis.t()
    operator = hessian_operator(lambda x: x @ matrix @ x / 2, torch.zeros(60, dtype=D))
    squares = {"hutchinson": 0.0, "hutch++": 0.0}
    for seed in range(20):
        for estimator in squares:
            trace, error = operator.trace(estimator, samples=30, generator=torch.Generator().manual_seed(seed))
            squares[estimator] += float(trace - spectrum.sum()) ** 2 / 20
            if estimator == "hutch++":
                assert (trace - spectrum.sum()).abs() < 6 * error + 1e-9
    assert squares["hutch++"] < squares["hutchinson"] / 100


def test_estimates_are_drawn_by_the_generator():
    operator = hessian_operator(energy, X)
    state = torch.get_rng_state()
    first, second = (operator.trace("hutchinson", generator=torch.Generator().manual_seed(3))[0] for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    assert operator.trace("hutchinson")[0] != operator.trace("hutchinson")[0]


def test_estimates_are_differentiable(backend):
    def traced(x):
        operator = hessian_operator(lambda x: (x**4).sum(), x)
        estimates = [
            operator.trace(estimator, samples=samples, generator=torch.Generator().manual_seed(0))[0]
            for estimator, samples in (("hutchinson", 2), ("hutch++", 15))
        ]
        return sum(estimates) + operator.trace()

    # of a diagonal matrix each sample is exact, and of any matrix the latter one: three times the sum of 12 x^2
    x = X.clone().requires_grad_()
    assert_close(torch.autograd.grad(traced(x), x)[0], 72 * X)
    with tfc.use_fallback("silent"):
        assert_close(tfc.grad(traced)(X), 72 * X)


def test_errors(backend):
    jacobian, hessian = jacobian_operator(model, X), hessian_operator(energy, X)
    with pytest.raises(ValueError, match=r"expected a vector of shape \(5,\), .* got a tensor of shape \(7,\)"):
        jacobian @ W
    with pytest.raises(ValueError, match=r"jacobian_operator.T: expected a vector of shape \(7,\)"):
        jacobian.T @ V
    with pytest.raises(ValueError, match=r"expected torch.float64 on cpu, got torch.float32 on cpu"):
        jacobian @ V.float()
    with pytest.raises(ValueError, match=r"primals: expected tensors of shapes \[\(5,\)\], got \[\(7,\)\]"):
        jacobian @ (W,)
    with pytest.raises(ValueError, match=r"expected the structure tuple\(\[\*\]\), got tuple\(\[\*, \*\]\)"):
        jacobian @ (V, V)
    with pytest.raises(TypeError):
        jacobian @ 3.0
    with pytest.raises(TypeError, match=r"got <class 'numpy.ndarray'>: convert it with torch.as_tensor\(\)"):
        jacobian @ V.numpy()
    with pytest.raises(ValueError, match=r"trace: expected a square matrix, got one of shape \(7, 5\)"):
        jacobian.trace()
    with pytest.raises(ValueError, match="diagonal: expected a square matrix"):
        jacobian.diagonal("hutchinson")
    with pytest.raises(
        ValueError, match=r"unknown estimator 'xtrace', expected one of 'exact', 'hutchinson', 'hutch\+\+'"
    ):
        hessian.trace("xtrace")
    with pytest.raises(ValueError, match="samples= to be an int of at least 2, got 1"):
        hessian.trace("hutchinson", samples=1)
    with pytest.raises(ValueError, match="at least 6, got 5"):
        hessian.trace("hutch++", samples=5)
    with pytest.raises(ValueError, match=r"one dtype .* torch.float32 on cpu, torch.float64 on cpu"):
        jacobian_operator(lambda x, y: x, X, X.float())
    with pytest.raises(ValueError, match=r"real tensors of floating-point numbers, got torch\.int64"):
        jacobian_operator(lambda x: x, torch.ones(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"real tensors of floating-point numbers, got torch\.complex128"):
        jacobian_operator(lambda x: x * 1j, X)
    with pytest.raises(ValueError, match=r"expected torch\.float64 on cpu, got torch\.float32 on cpu"):
        jacobian @ (V.float(),)
    with pytest.raises(TypeError, match="primals: expected a pytree of tensors, got float in it"):
        jacobian_operator(lambda x: x, 1.0)
    with pytest.raises(TypeError, match="output: expected a pytree of tensors, got str in it"):
        jacobian_operator(lambda x: "x", X)
    with pytest.raises(ValueError, match="there is no tensor, expected at least one"):
        jacobian_operator(lambda: X)
    with pytest.raises(RuntimeError, match="scalar"):
        hessian_operator(model, X)
    for make, _ in CASES.values():
        with pytest.raises(ValueError, match="chunk_size should be None or greater than 0"):
            make(chunk_size=0)


@pytest.mark.skipif(not hasattr(torch, "inference_mode"), reason="torch 1.8 multiplies few tensors of bfloat16")
def test_matrices_of_half_precision(backend):
    x = X.bfloat16()
    with tfc.use_fallback("silent"):
        found = [
            jacobian_operator(lambda x: x * x, x),
            hessian_operator(lambda x: (x * x * x).sum(), x),
            ggn_operator(lambda x: x * x, lambda y: (y * y).sum(), x),
        ]
        expected = [2 * X, 6 * X, 8 * X**2]
        for operator, diagonal in zip(found, expected):
            assert_close(operator.to_dense().double(), torch.diag(diagonal), rtol=0.05, atol=0.05)
