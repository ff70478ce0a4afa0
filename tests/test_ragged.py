"""Samples of different sizes in one tensor, and outputs with their samples elsewhere, against loops over samples."""

import pytest
import torch
from support.tolerances import assert_close

import torch_func_compat as tfc

DTYPE = torch.float64
SIZES = (3, 1, 4, 2)
INDEX = torch.tensor([0, 0, 2, 1, 2, 0, 3, 2, 2, 3])  # mixed
torch.manual_seed(0)
X = torch.randn(10, 3, dtype=DTYPE)
CHARGES = torch.randn(10, dtype=DTYPE)


@pytest.fixture(autouse=True)
def quiet():
    with tfc.use_fallback("silent"):
        yield


def one(x, charges):
    """The energy of one molecule, all pairs."""
    distances = ((x[:, None] - x[None]) ** 2).sum(-1) + 1
    return (charges[:, None] * charges[None] / distances).sum() + (x**3).sum()


def energies(x, charges, index=INDEX, count=4):
    """(N, 3) -> (B,), as a graph network sums over its nodes and pairs."""
    same = (index[:, None] == index[None]).to(x.dtype)
    distances = ((x[:, None] - x[None]) ** 2).sum(-1) + 1
    nodes = (same * charges[:, None] * charges[None] / distances).sum(1) + (x**3).sum(1)
    return torch.zeros(count, dtype=x.dtype).index_add(0, index, nodes)


def samples():
    return [(X[INDEX == b], CHARGES[INDEX == b]) for b in range(4)]


@pytest.mark.parametrize("mode", ("auto", "reverse", "forward"))
def test_jacobians(backend, mode):
    found = tfc.batch_jacobian(energies, batch_index=INDEX, mode=mode, check=True)(X, CHARGES)
    assert_close(found, [tfc.grad(one)(*sample) for sample in samples()])
    assert [block.shape for block in found] == [(n, 3) for n in SIZES]


def test_hessians(backend):
    found = tfc.batch_hessian(energies, batch_index=INDEX)(X, CHARGES)
    assert_close(found, [tfc.hessian(one)(*sample) for sample in samples()])


def test_several_arguments_and_outputs(backend):
    def func(x, charges):
        return {"e": energies(x, charges), "both": torch.stack([energies(x, charges), energies(2 * x, charges)], 1)}

    found = tfc.batch_hessian(func, argnums=(0, 1), batch_index=INDEX)(X, CHARGES)
    expected = [tfc.hessian(one, argnums=(0, 1))(*sample) for sample in samples()]
    for i in range(2):
        for j in range(2):
            assert_close(found["e"][i][j], [hessian[i][j] for hessian in expected])
    assert found["both"][0][1][2].shape == (2, 4, 3, 4)
    jacobian, aux = tfc.batch_jacobian(
        lambda x, q: (func(x, q)["both"], x.sum()), argnums=1, batch_index=INDEX, has_aux=True
    )(X, CHARGES)
    assert_close([block[0] for block in jacobian], [tfc.grad(one, argnums=1)(*sample) for sample in samples()])
    assert_close(aux, X.sum())


@pytest.mark.parametrize("mode", ("auto", "rows", "forward"))
def test_laplacians(backend, mode):
    found = tfc.batch_laplacian(lambda x: energies(x, CHARGES), batch_index=INDEX, mode=mode)(X)
    assert_close(found, torch.stack([tfc.laplacian(one)(*sample) for sample in samples()]))


def test_they_are_differentiable(backend):
    x = X.clone().requires_grad_()
    found = tfc.batch_jacobian(lambda x: energies(x, CHARGES), batch_index=INDEX)(x)
    (gradient,) = torch.autograd.grad(sum((block**2).sum() for block in found), x)
    expected = tfc.grad(lambda x: (tfc.grad(lambda x: energies(x, CHARGES).sum())(x) ** 2).sum())(X)
    assert_close(gradient, expected)


def test_errors(backend):
    for index in (INDEX.double(), INDEX[None], INDEX[:0], "0"):
        with pytest.raises(ValueError, match="vector of integers"):
            tfc.batch_jacobian(energies, batch_index=index)
    with pytest.raises(ValueError, match="from 0 on"):
        tfc.batch_hessian(energies, batch_index=INDEX - 1)
    with pytest.raises(ValueError, match="the 10 rows of batch_index"):
        tfc.batch_hessian(energies, batch_index=INDEX)(X[:9], CHARGES)
    with pytest.raises(ValueError, match="samples of one size"):
        tfc.batch_laplacian(energies, batch_index=INDEX, weight=torch.ones(3))
    with pytest.raises(RuntimeError, match="not independent"):
        mixed = tfc.batch_jacobian(lambda x: energies(x, CHARGES) * x.sum(), batch_index=INDEX, check=True)
        mixed(X)


@pytest.mark.parametrize("mode", ("auto", "reverse", "forward"))
def test_outputs_with_samples_elsewhere(backend, mode):
    w = torch.tensor([[0.4, -0.7, 0.2], [0.9, 0.1, -0.5]], dtype=DTYPE)
    expected = tfc.batch_jacobian(lambda x: torch.tanh(x @ w.t()))(X)
    for out_dims in (1, -1):
        found = tfc.batch_jacobian(lambda x: torch.tanh(w @ x.t()), out_dims=out_dims, mode=mode)(X)
        assert_close(found, expected)
    both = tfc.batch_jacobian(lambda x: (torch.tanh(w @ x.t()), x**2), out_dims=(1, 0), mode=mode)(X)
    assert_close(both[0], expected)
    assert_close(both[1], torch.diag_embed(2 * X))
    found, aux = tfc.batch_jacobian(lambda x: (torch.tanh(w @ x.t()), x), out_dims=1, has_aux=True, mode=mode)(X)
    assert_close((found, aux), (expected, X))
    for out_dims in ((0, 1), 2, "1"):
        with pytest.raises(ValueError, match="out_dims"):
            tfc.batch_jacobian(lambda x: w @ x.t(), out_dims=out_dims, mode=mode)(X)
