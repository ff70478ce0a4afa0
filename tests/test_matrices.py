"""Functions of matrices where torch's formulas fail, or where a derivative is a matter of convention."""

from __future__ import annotations

import pytest
import torch
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat._guards.compositions.table import compositions

pytestmark = pytest.mark.filterwarnings("ignore::torch_func_compat.FallbackWarning")

DOUBLE = torch.float64
ONE = torch.eye(3, dtype=DOUBLE)
ANY = torch.tensor([[0.3, -1.2, 0.5], [0.8, 0.1, -0.4], [-0.7, 0.9, 1.1]], dtype=DOUBLE)
MATRICES = {
    "regular": ANY,
    "the identity": ONE,  # the singular values coincide
    "rank two": torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [1.0, 0.0, 1.0]], dtype=DOUBLE),
    "rank one": torch.tensor([1.0, 2.0, -1.0], dtype=DOUBLE)[:, None] * torch.tensor([0.5, 1.0, 2.0], dtype=DOUBLE),
    "a projection": torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=DOUBLE)),
}
TANGENT = ANY.cos()


def by_cofactors(a):
    """Of any size; along the first row."""
    if len(a) == 1:
        return a[0, 0]
    columns = range(len(a))
    minors = [by_cofactors(a[1:][:, [k for k in columns if k != j]]) for j in columns]
    return torch.stack([(-1) ** j * a[0, j] * minors[j] for j in columns]).sum()


def scalar_product(func):
    return lambda a: (func(a) * TANGENT).sum()


DERIVATIVES = {
    "jacrev": lambda f: tfc.jacrev(f),
    "jacfwd": lambda f: tfc.jacfwd(f),
    "hessian": lambda f: tfc.hessian(f),
    "jacrev(jacfwd)": lambda f: tfc.jacrev(tfc.jacfwd(f)),
    "jacfwd(jacfwd)": lambda f: tfc.jacfwd(tfc.jacfwd(f)),
    "jvp(jvp)": lambda f: lambda a: tfc.jvp(lambda a: tfc.jvp(f, (a,), (TANGENT,))[1], (a,), (TANGENT.sin(),))[1],
}


@pytest.mark.parametrize("where", ["alone", "mapped"])
@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("det", [torch.det, torch.linalg.det], ids=["det", "linalg.det"])
def test_derivatives_of_determinants(backend, det, name, derivative, where):
    taken = DERIVATIVES[derivative]
    expected = taken(by_cofactors)(MATRICES[name])
    if where == "alone":
        assert_close(taken(lambda a: det(a))(MATRICES[name]), expected, atol=1e-10)
    else:
        batch = torch.stack([ANY, MATRICES[name]])
        assert_close(tfc.vmap(taken(lambda a: det(a)))(batch)[1], expected, atol=1e-10)


@pytest.mark.parametrize("name", ["the identity", "rank two", "rank one"])
@pytest.mark.parametrize(
    "det", [torch.det, torch.linalg.det, torch.Tensor.det], ids=["det", "linalg.det", "Tensor.det"]
)
def test_derivatives_of_determinants_of_more_rows(backend, det, name):
    """These are composed at singular matrices only, on torch < 1.13."""
    point = torch.block_diag(MATRICES[name], torch.tensor([[2.0]], dtype=DOUBLE))
    func = lambda a: det(a)
    for derivative in (tfc.jacfwd, lambda f: tfc.jacfwd(tfc.jacfwd(f)), tfc.hessian):
        expected = derivative(by_cofactors)(point)
        assert_close(derivative(func)(point), expected, atol=1e-10)
        assert_close(tfc.vmap(derivative(func))(torch.stack([point + point.sin(), point]))[1], expected, atol=1e-10)


def _along(kind, func, direction):
    """One derivative more, along a direction: by reverse mode or by forward mode."""
    if kind == "r":
        return lambda a: (tfc.grad(func)(a) * direction).sum()
    return lambda a: tfc.jvp(func, (a,), (direction,))[1]


def _nested(kinds, func, size):
    for k, kind in enumerate(reversed(kinds)):
        func = _along(kind, func, (torch.arange(float(size * size), dtype=DOUBLE) + k).sin().reshape(size, size))
    return func


SINGULAR = {
    "rank two": MATRICES["rank two"],
    "rank one": MATRICES["rank one"],
    "almost singular": MATRICES["rank two"] + 1e-7 * ANY,
    "four rows": torch.cat([ANY, ANY[:1]]) @ torch.cat([ANY, ANY.cos()[:, :1]], 1),
    "four rows, a projection": torch.diag(torch.tensor([1.0, 2.0, 0.0, 0.0], dtype=DOUBLE)),
}


@pytest.mark.parametrize("kinds", ["rrr", "frr", "rfr", "ffr", "fff", "rrrr"])
@pytest.mark.parametrize("name", SINGULAR)
def test_third_derivatives_of_determinants(backend, name, kinds):
    point = SINGULAR[name]
    expected = _nested("r" * len(kinds), by_cofactors, len(point))(point)
    func = _nested(kinds, lambda a: torch.det(a), len(point))
    assert_close(func(point), expected, atol=1e-9)
    # by a regular one first, which could not be told from a formula that solves with the matrix
    regular = point + torch.eye(len(point), dtype=DOUBLE)
    assert_close(tfc.vmap(func)(torch.stack([regular, point]))[1], expected, atol=1e-9)


def test_third_derivatives_by_plain_autograd_of_mapped_second_ones_of_determinants(backend):
    point = SINGULAR["rank two"].clone().requires_grad_()
    tfc.vmap(_nested("rr", lambda a: torch.det(a), 3))(torch.stack([point, point.sin()]))[0].backward()
    assert_close(point.grad, tfc.grad(_nested("rr", by_cofactors, 3))(SINGULAR["rank two"]), atol=1e-9)


@pytest.mark.parametrize("size", [4, 5, 8])
def test_minors(size):
    matrix = (torch.arange(2.0 * size * size, dtype=DOUBLE) ** 2).sin().reshape(2, size, size)
    found = compositions(3)[torch.det]
    assert_close(found(matrix), torch.det(matrix))
    assert found(torch.ones(9, 9)) is NotImplemented


@pytest.mark.parametrize("name", ["regular", "the identity"])
def test_derivatives_by_plain_autograd_of_mapped_gradients_of_determinants(backend, name):
    batch = torch.stack([ANY, MATRICES[name]]).requires_grad_()
    (tfc.vmap(tfc.grad(lambda a: torch.det(a)))(batch) * TANGENT).sum().backward()
    expected = tfc.grad(scalar_product(tfc.grad(by_cofactors)))(MATRICES[name])
    assert_close(batch.grad[1], expected, atol=1e-10)


SYMMETRIC = {
    "eigenvectors": lambda a: torch.linalg.eigh(a)[1] ** 2,
    "eigenvalues": lambda a: torch.linalg.eigh(a)[0],
    "eigenvalues alone": lambda a: torch.linalg.eigvalsh(a),
    "cholesky": torch.linalg.cholesky if hasattr(torch.linalg, "cholesky") else torch.cholesky,
}
POSITIVE = ANY @ ANY.t() + torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=DOUBLE))


@pytest.mark.parametrize("name", SYMMETRIC)
def test_tangents_of_functions_of_symmetric_matrices(backend, name):
    """A change of one triangle alone is taken for a change of both by half, in every mode."""
    func = SYMMETRIC[name]
    step = 1e-5
    found = tfc.jvp(func, (POSITIVE,), (TANGENT,))[1]
    half = (TANGENT + TANGENT.t()) / 2
    assert_close(found, (func(POSITIVE + step * half) - func(POSITIVE - step * half)) / (2 * step), atol=1e-8)
    jacobian = tfc.jacrev(func)(POSITIVE)
    assert_close(tfc.jacfwd(func)(POSITIVE), jacobian)
    assert_close(tfc.vmap(tfc.jacfwd(func))(POSITIVE[None])[0], jacobian)
    assert_close(jacobian, jacobian.transpose(-2, -1))


def test_the_row_of_padding_is_constant_in_every_mode(backend):
    indices = torch.tensor([[0, 2], [2, 1]])

    def func(weight):
        return torch.nn.functional.embedding(indices, weight**2, padding_idx=-2).sin().sum(1)

    jacobian = tfc.jacrev(func)(ANY)
    assert not jacobian[:, :, 1].any()
    assert jacobian[:, :, 0].any()
    assert_close(tfc.jacfwd(func)(ANY), jacobian)
    assert_close(tfc.vmap(tfc.jacfwd(func))(ANY[None])[0], jacobian)


def test_samples_of_a_matrix_exponential_are_independent(backend):
    """Its backward scales by the cotangent, so that the derivatives of a sample differ by rounding."""
    state = torch.tensor([1.0 + 0.5j, -0.3 + 2.0j], dtype=torch.complex128)

    def probabilities(x):
        real = x[:, :2].unsqueeze(1) * x[:, 2:].unsqueeze(2)
        matrices = torch.complex(torch.zeros_like(real), real + real.transpose(1, 2))
        evolved = (torch.matrix_exp(matrices) * state).sum(-1)
        return evolved.real**2 + evolved.imag**2

    points = torch.linspace(-1.0, 2.0, 20, dtype=DOUBLE).reshape(5, 4)
    found = tfc.batch_jacobian(probabilities)(points)
    for k in range(len(points)):
        assert_close(found[k], tfc.jacrev(lambda x: probabilities(x[None])[0])(points[k]))
    tfc.batch_hessian(probabilities)(points)


@pytest.mark.parametrize("name", MATRICES)
def test_laplacians_of_determinants(backend, name):
    assert_close(tfc.laplacian(lambda a: torch.det(a))(MATRICES[name]), torch.zeros((), dtype=DOUBLE), atol=1e-10)
    square = lambda a: torch.det(a) ** 2
    expected = 2 * tfc.grad(by_cofactors)(MATRICES[name]).pow(2).sum()
    assert_close(tfc.laplacian(square)(MATRICES[name]), expected, atol=1e-10)
