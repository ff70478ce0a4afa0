"""Coordination numbers and the eigenvalues with a custom backward of tad-mctc."""

from __future__ import annotations

import pytest
import torch
import transforms
from energies import Energies, close, near
from molecules import finite_differences, molecule
from tad_mctc.autograd import (
    bjacrev,
    dgradcheck,
    dgradgradcheck,
    hess_fn_rev,
    hessian,
    is_batched,
    is_functorch_tensor,
    is_gradtracking,
    jac,
    jacrev,
    vmap,
)
from tad_mctc.ncoord import cn_d4, cn_eeq, cn_gfn2
from tad_mctc.storch import eighb


class OfCoordination(Energies):
    count = None

    def energy(self, numbers, positions, parameters):
        return self.count(numbers, positions).square().sum(-1)


class TestD4(OfCoordination):
    count = staticmethod(cn_d4)


class TestEeq(OfCoordination):
    count = staticmethod(cn_eeq)


class TestGfn2(OfCoordination):
    count = staticmethod(cn_gfn2)


def hamiltonian(x):
    """A symmetric matrix, smooth in `x`."""
    grid = torch.arange(4, dtype=x.dtype)
    return torch.diag(1.3 * grid) + torch.exp(-(grid[:, None] - grid[None]).square()) * x.sum() + torch.diag(x.sin())


def orbitals(x):
    """Two eigenvalues, and a number that depends on the vectors."""
    values, vectors = eighb(hamiltonian(x))
    return torch.stack([values[0], values[1], (vectors[:, 0] ** 2 * x).sum()])


def reference(x):
    values, vectors = torch.linalg.eigh(hamiltonian(x))
    return torch.stack([values[0], values[1], (vectors[:, 0] ** 2 * x).sum()])


X = torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64)
BATCH = torch.stack([X, 2 * X, X.flip(0)])


def test_eigenvalues(record):
    assert close(orbitals(X), reference(X))
    record("orbitals", orbitals(X))


def test_jacobian_of_eigenvalues(record):
    found = jacrev(orbitals)(X)
    assert near(found, finite_differences(reference, X))
    assert close(found, transforms.jacrev(orbitals)(X))
    record("jacobian", found)


def test_hessian_of_eigenvalues(record):
    energy = lambda x: orbitals(x)[0]
    found = hess_fn_rev(energy)(X)
    assert near(found, finite_differences(jacrev(lambda x: reference(x)[0]), X))
    assert close(found, hessian(energy, (X,), argnums=0))
    record("hessian", found)


def test_hessian_of_eigenvalues_in_forward_mode(record):
    found = transforms.hessian(lambda x: orbitals(x)[0])(X)
    assert close(found, hessian(lambda x: reference(x)[0], (X,), argnums=0), 1e-8)
    record("hessian", found)


def test_batched_eigenvalues(record):
    found = vmap(orbitals)(BATCH)
    assert close(found, torch.stack([reference(x) for x in BATCH]))
    record("values", found)


def test_batched_jacobian_of_eigenvalues(record):
    found = bjacrev(orbitals)(BATCH)
    assert near(found, torch.stack([finite_differences(reference, x) for x in BATCH]))
    record("jacobians", found)


def test_batched_hessian_of_eigenvalues(record):
    energy = lambda x: orbitals(x)[1]
    found = hessian(energy, (BATCH,), argnums=0, is_batched=True)
    assert close(found, torch.stack([hessian(energy, (x,), argnums=0) for x in BATCH]))
    record("hessians", found)


def test_vmap_along_another_dimension(record):
    found = vmap(orbitals, in_dims=1, out_dims=1)(BATCH.t())
    assert close(found, torch.stack([reference(x) for x in BATCH], 1))
    record("values", found)


def test_tuple_of_arguments(record):
    energy = lambda a, b: (a.square() * b).sum()
    (aa, ab), (ba, bb) = hessian(energy, (X, X.exp()), argnums=(0, 1))
    assert close(aa, torch.diag(2 * X.exp())) and close(ab, torch.diag(2 * X)) and not bool(bb.any())
    record("mixed", ba)


def test_options_hold_on_the_second_call():
    from tad_mctc.autograd import compat

    x = X.clone().requires_grad_()
    jacobian = compat.jacrev_compat(orbitals, create_graph=False)
    assert [jacobian(x).requires_grad for _ in range(2)] == [False, False]


def test_checks_of_gradients():
    assert dgradcheck(orbitals, X.clone().requires_grad_())
    assert dgradgradcheck(lambda x: x.sin(), X.clone().requires_grad_())


def test_jacobian_of_a_tensor(record):
    numbers, positions = molecule("ammonia")
    positions.requires_grad_()
    cn = cn_d4(numbers, positions)
    found = jac(cn, positions).reshape(4, 4, 3)
    assert near(found, finite_differences(lambda x: cn_d4(numbers, x), positions))
    record("jacobian", found)


@pytest.mark.parametrize("nested", [False, True])
def test_introspection(nested):
    seen = []

    def look(x):
        seen.append((is_batched(x), is_gradtracking(x), is_functorch_tensor(x)))
        return x.sin().sum()

    transform = transforms.vmap(transforms.jacrev(look)) if nested else transforms.vmap(look)
    transform(BATCH)
    assert seen == [(True, nested, True)]
