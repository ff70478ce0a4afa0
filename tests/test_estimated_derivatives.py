"""Estimates of Laplacians and diagonals of Hessians against the exact ones and the variances of their formulas."""

from __future__ import annotations

import pytest
import torch
from support.tolerances import assert_close

import torch_func_compat as tfc

D = torch.float64
X = torch.tensor([0.4, -0.7, 1.2], dtype=D)
XS = torch.stack([X, 2 * X, X - 1, X.flip(0)])
SAMPLES = 3000


def number(x):
    return x[0] * x[1] ** 2 * x[2] + (x**4).sum()


def several(x):
    return torch.stack([number(x), x.sum() ** 2])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def options(samples=SAMPLES, seed=0):
    return dict(estimator="hutchinson", samples=samples, generator=generator(seed))


@pytest.fixture(autouse=True)
def quiet():
    with tfc.use_fallback("silent"):  # functorch nests forward mode only with help
        yield


@pytest.mark.parametrize("func", (number, several))
def test_on_average(backend, func):
    samples = SAMPLES if func is number or backend == "torch.func" else 150
    hessian = tfc.hessian(func)(X)
    exact = hessian.diagonal(0, -2, -1)
    off = hessian - torch.diag_embed(exact)
    diagonal, error = tfc.hessian_diagonal(func, **options(samples))(X)
    assert diagonal.shape == exact.shape
    assert_close(error, (off.pow(2).sum(-1) / (samples - 1)).sqrt(), rtol=0.3)
    assert ((diagonal - exact).abs() <= 4 * error + 1e-12).all()
    trace, error = tfc.laplacian(func, **options(samples))(X)
    assert trace.shape == exact.shape[:-1]
    assert_close(error, (2 * off.pow(2).sum((-1, -2)) / (samples - 1)).sqrt(), rtol=0.3)
    assert ((trace - exact.sum(-1)).abs() <= 4 * error + 1e-12).all()


def test_one_batched_call_for_one_output(backend):
    calls = []

    def counted(x):
        calls.append(1)
        return number(x)

    tfc.laplacian(counted, **options(50))(X)
    assert len(calls) == 2  # its shape, and all products
    calls.clear()
    tfc.hessian_diagonal(counted, chunk_size=7, **options(50))(X)
    assert len(calls) == 2


def test_diagonal_hessians_are_exact(backend):
    """Also in pytrees, of several arguments, with aux."""

    def func(p, factor, q):
        return {"u": ((p["a"] ** 3).sum() * factor).reshape(1), "v": factor * q**3}, q.sum()

    p, q = {"a": torch.ones(2, 2, dtype=D) / 2}, X
    exact, aux = tfc.hessian_diagonal(func, argnums=(0, 2), has_aux=True)(p, 2.0, q)
    found, (error, its) = tfc.hessian_diagonal(func, argnums=(0, 2), has_aux=True, **options(2))(p, 2.0, q)
    assert_close(found, exact)
    assert_close(its, aux)
    assert_close(error["v"][1], torch.zeros(3, 3, dtype=D), atol=1e-12)
    exact, _ = tfc.laplacian(func, argnums=(0, 2), has_aux=True)(p, 2.0, q)
    found, (error, its) = tfc.laplacian(func, argnums=(0, 2), has_aux=True, **options(2))(p, 2.0, q)
    assert_close(found, exact)
    assert_close(its, aux)


def test_batches(backend):
    def rows(x):
        return x[:, 0] * x[:, 1] ** 2 * x[:, 2] + (x**4).sum(1)

    samples = 600
    exact = tfc.batch_laplacian(rows)(XS)
    found, error = tfc.batch_laplacian(rows, **options(samples))(XS)
    hessians = tfc.batch_hessian(rows)(XS)
    off = hessians - torch.diag_embed(hessians.diagonal(0, 1, 2))
    assert found.shape == exact.shape
    assert_close(error, (2 * off.pow(2).sum((1, 2)) / (samples - 1)).sqrt(), rtol=0.3)
    assert ((found - exact).abs() <= 4 * error).all()
    # exact ones: several outputs, another batch dimension, an argument that is shared, aux
    func = lambda w, x: (torch.stack([(w * x**3).sum(0), (x**2).sum(0)], 1), w)
    w = torch.tensor(2.0, dtype=D)
    settings = dict(argnums=1, in_dims=(None, 1), has_aux=True)
    exact, _ = tfc.batch_laplacian(func, **settings)(w, XS.t())
    found, (error, aux) = tfc.batch_laplacian(func, **settings, **options(2))(w, XS.t())
    assert_close(found, exact)
    assert_close(error, torch.zeros_like(exact), atol=1e-12)
    assert_close(aux, w)
    with pytest.raises(RuntimeError, match="depend"):
        tfc.batch_laplacian(lambda x: (x - x.mean(0)).pow(2).sum(1), check=True, **options(2))(XS)


def test_differentiable(backend):
    for transform in (tfc.laplacian, tfc.hessian_diagonal):
        x = X.clone().requires_grad_()
        estimate, _ = transform(lambda x: (x**4).sum(), **options(2))(x)
        assert_close(torch.autograd.grad(estimate.sum(), x)[0], 24 * X)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    tfc.batch_laplacian(network, **options(2))(XS)[0].sum().backward()
    assert network[0].weight.grad.abs().sum() > 0


def test_draws():
    state = torch.get_rng_state()
    first, second = (tfc.laplacian(number, **options(3))(X) for _ in range(2))
    assert_close(first, second, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("transform", (tfc.hessian_diagonal, tfc.laplacian, tfc.batch_laplacian))
def test_errors(transform):
    with pytest.raises(ValueError, match="unknown estimator 'xtrace', expected one of 'exact', 'hutchinson'"):
        transform(number, estimator="xtrace")
    with pytest.raises(ValueError, match="at least 2, got 1"):
        transform(number, estimator="hutchinson", samples=1)
