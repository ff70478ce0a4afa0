"""tad-mctc 0.11 on torch.func: functions of a `Structure`, and the helpers that are left in ``tad_mctc.autograd``."""

from __future__ import annotations

import pytest
import torch
import transforms
from energies import Energies, close, near
from molecules import finite_differences, geometries, molecule
from tad_mctc.autograd import (
    attach_gradient,
    dgradcheck,
    dgradgradcheck,
    dgradgradgradcheck,
    is_functorch_tensor,
    is_gradtracking,
    is_vmapped,
    jac,
    jacfwd_matches_jacrev,
    jacrev_matches_finite_diff,
    nested_jvp,
    no_vmap_fallback,
    numgrad,
    positions_gradchecker,
    unwrap_gradtracking,
    vmap_matches_loop,
)
from tad_mctc.io.structure import Structure
from tad_mctc.ncoord import cn_d4, cn_eeq, cn_gfn2
from tad_mctc.storch import eighb


class OfCoordination(Energies):
    count = None

    def energy(self, numbers, positions, parameters):
        return self.count(Structure(numbers=numbers, positions=positions)).square().sum(-1)


class TestD4(OfCoordination):
    count = staticmethod(cn_d4)


class TestEeq(OfCoordination):
    count = staticmethod(cn_eeq)


class TestGfn2(OfCoordination):
    count = staticmethod(cn_gfn2)


def structure(name="water"):
    numbers, positions = molecule(name)
    return Structure(numbers=numbers, positions=positions)


X = torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64)


def hamiltonian(x):
    """A symmetric matrix, smooth in `x`."""
    grid = torch.arange(4, dtype=x.dtype)
    return torch.diag(1.3 * grid) + torch.exp(-(grid[:, None] - grid[None]).square()) * x.sum() + torch.diag(x.sin())


def lowest(x):
    return eighb(hamiltonian(x))[0][0]


@pytest.mark.parametrize("name", ["water", "ammonia"])
def test_jacobian_of_a_structure(name, record):
    system = structure(name)
    found = transforms.jacrev(lambda x: cn_d4(system.replace(positions=x)))(system.positions)
    assert near(found, numgrad(cn_d4, system))
    record("jacobian", found)


def test_checks_of_gradients():
    function, positions = positions_gradchecker(cn_d4, structure())
    for check in (dgradcheck, dgradgradcheck, dgradgradgradcheck):
        assert check(function, positions) and not positions.requires_grad
        positions.requires_grad_()


def test_checks_of_jacobians():
    system = structure()
    function = lambda x: cn_eeq(system.replace(positions=x))
    assert jacrev_matches_finite_diff(function, system.positions)
    assert jacfwd_matches_jacrev(function, system.positions)
    assert not jacrev_matches_finite_diff(lambda x: x + (x.sin() - x).detach(), X)


def test_vmap_over_structures(record):
    numbers, positions = geometries("water")
    system = Structure(numbers=numbers, positions=positions[0])
    function = lambda x: cn_d4(system.replace(positions=x))
    with no_vmap_fallback():
        assert vmap_matches_loop(function, positions)
    batch = Structure(numbers=numbers.expand(3, -1), positions=positions)
    found = transforms.vmap(cn_d4)(batch)
    assert close(found, cn_d4(batch))
    record("cn", found)


def test_jacobian_row_by_row(record):
    system = structure("ammonia")
    positions = system.positions.clone().requires_grad_()
    cn = cn_d4(system.replace(positions=positions))
    found = jac(cn, positions).reshape(4, 4, 3)
    assert near(found, numgrad(cn_d4, system))
    record("jacobian", found)


def test_eigenvalues(record):
    found = transforms.jacrev(transforms.jacrev(lowest))(X)
    assert near(found, finite_differences(transforms.jacrev(lambda x: torch.linalg.eigvalsh(hamiltonian(x))[0]), X))
    record("hessian", found)


def test_known_gradients(record):
    total = lambda x: torch.logsumexp(x, -1)
    function = lambda x: attach_gradient(total, x, torch.softmax(x, -1))
    expected = torch.diag(X.softmax(0)) - X.softmax(0)[:, None] * X.softmax(0)
    for hessian in (transforms.hessian(function), transforms.jacrev(transforms.jacrev(function))):
        assert close(hessian(X), expected)
    third = transforms.jacrev(transforms.jacfwd(transforms.jacrev(function)))(X)
    assert near(third, finite_differences(transforms.hessian(total), X))
    batch = torch.stack([X, 2 * X])
    assert close(transforms.vmap(transforms.grad(function))(batch), batch.softmax(1))
    record("third", third)


def test_forward_mode_rules_that_nest(record):
    class Cube(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x**3

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(inputs[0])
            ctx.save_for_forward(inputs[0])

        @staticmethod
        def backward(ctx, gradient):
            return 3 * ctx.saved_tensors[0] ** 2 * gradient

        @staticmethod
        @nested_jvp
        def jvp(ctx, tangent):
            return 3 * ctx.saved_tensors[0] ** 2 * tangent

    function = lambda x: Cube.apply(x).sum()
    for outer in (transforms.jacfwd, transforms.jacrev):
        for inner in (transforms.jacfwd, transforms.jacrev):
            assert close(outer(inner(function))(X), torch.diag(6 * X))
    record("second", transforms.jacfwd(transforms.jacfwd(function))(X))


def test_what_is_wrapped():
    seen = []

    def look(x):
        seen.append((is_vmapped(x), is_functorch_tensor(x)))
        return (x * unwrap_gradtracking(x.new_ones(()))).sum()

    transforms.vmap(look)(torch.stack([X, X]))
    assert seen == [(True, True)]
    assert not is_vmapped(X) and not is_functorch_tensor(X) and not is_gradtracking(X)
