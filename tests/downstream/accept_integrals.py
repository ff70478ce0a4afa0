"""Overlap integrals of tad-libcint 0.4: C code under torch.func's transforms."""

from __future__ import annotations

import pytest
import torch
import transforms
from energies import close, near
from molecules import finite_differences, geometries, molecule
from tad_libcint import Basis, Shell, int1e, overlap
from tad_mctc.io.structure import Structure

F64 = torch.float64


def shell(angmom, alphas, coeffs):
    return Shell(angmom=angmom, alphas=torch.tensor(alphas, dtype=F64), coeffs=torch.tensor(coeffs, dtype=F64))


STO3G = {
    1: [shell(0, [3.42525, 0.623914, 0.168855], [0.981707, 0.949464, 0.295906])],
    8: [
        shell(0, [130.709, 23.8089, 6.44361], [15.0727, 14.5777, 4.54323]),
        shell(0, [5.03315, 1.1696, 0.380389], [-0.848697, 1.1352, 0.856753]),
        shell(1, [5.03315, 1.1696, 0.380389], [3.42907, 2.15629, 0.341592]),
    ],
}
NUMBERS, POSITIONS = molecule("water")


def basis():
    return Basis(shells=STO3G)


def matrix(name):
    return lambda x: int1e(name, basis(), Structure(numbers=NUMBERS, positions=x))


def energy(x):
    found = matrix("ovlp")(x)
    return (found * torch.cos(torch.arange(found.numel(), dtype=F64)).reshape(found.shape)).square().sum()


@pytest.mark.parametrize("name", ["ovlp", "r0", "j"])
def test_jacobians(name, record):
    found = transforms.jacrev(matrix(name))(POSITIONS)
    assert near(found, finite_differences(matrix(name), POSITIONS))
    assert close(transforms.jacfwd(matrix(name))(POSITIONS), found, 1e-8, 1e-10)
    record("jacobian", found)


def test_hessian(record):
    found = transforms.hessian(energy)(POSITIONS)
    assert near(found, finite_differences(transforms.grad(energy), POSITIONS))
    assert close(found, transforms.jacrev(transforms.jacrev(energy))(POSITIONS), 1e-8, 1e-10)
    record("hessian", found)


def test_conformers(record):
    _, positions = geometries("water")
    found = transforms.vmap(matrix("ovlp"))(positions)
    assert close(found, torch.stack([matrix("ovlp")(x) for x in positions]))
    gradients = transforms.vmap(transforms.grad(energy))(positions)
    assert close(gradients, torch.stack([transforms.grad(energy)(x) for x in positions]))
    record("overlaps", found)


def test_batched_hessians(record):
    _, positions = geometries("water", 2)
    found = transforms.vmap(transforms.jacrev(transforms.jacrev(energy)))(positions)
    assert close(found, torch.stack([transforms.jacrev(transforms.jacrev(energy))(x) for x in positions]))
    record("hessians", found)


def test_derivative_by_exponents(record):
    system = Structure(numbers=NUMBERS, positions=POSITIONS)
    function = lambda alphas: overlap(basis(), system, alphas=alphas)
    alphas = basis().alphas.detach().clone()
    found = transforms.jacrev(function)(alphas)
    assert near(found, finite_differences(function, alphas))
    record("jacobian", found)
