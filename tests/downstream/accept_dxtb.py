"""Tight binding of dxtb: energies at self-consistency, their derivatives in each way that it knows."""

from __future__ import annotations

import dxtb
import pytest
import torch
import transforms
from energies import close, near
from molecules import finite_differences, geometries, molecule


def calculator(numbers):
    # converged so far that derivatives can be compared
    options = {"verbosity": 0, "f_atol": 1e-12, "x_atol": 1e-12}
    return dxtb.Calculator(numbers, dxtb.GFN1_XTB, dtype=torch.float64, opts=options)


def energy(numbers, positions):
    return calculator(numbers).energy(positions)


def salt():
    """Lithium hydride: small enough for second derivatives."""
    return torch.tensor([3, 1]), torch.tensor([[0.0, 0.1, 0.0], [0.0, 0.0, 2.9]], dtype=torch.float64)


def tracked(positions):
    return positions.clone().requires_grad_()


def test_energy(record):
    numbers, positions = molecule("water")
    found = energy(numbers, positions)
    assert found.shape == () and -6 < float(found) < -5
    record("energy", found)


@pytest.mark.parametrize("mode", ["autograd", "functorch", "row"])
def test_forces(mode, record):
    numbers, positions = molecule("water")
    found = calculator(numbers).forces(tracked(positions), grad_mode=mode)
    assert near(-found, finite_differences(lambda x: energy(numbers, x), positions))
    record("forces", found)


@pytest.mark.parametrize("quantity", ["forces", "energy"])
@pytest.mark.parametrize("by_transforms", [True, False])
def test_hessian(by_transforms, quantity, record):
    numbers, positions = salt()
    options = dict(use_functorch=by_transforms, derived_quantity=quantity)
    found = calculator(numbers).hessian(tracked(positions), **options)
    gradient = lambda x: -calculator(numbers).forces(tracked(x))
    assert near(found, finite_differences(gradient, positions))
    record("hessian", found)


@pytest.mark.parametrize("by_transforms", [True, False])
def test_vibrations(by_transforms, record):
    numbers, positions = salt()
    frequencies = calculator(numbers).vibration(tracked(positions), use_functorch=by_transforms).freqs
    assert bool((frequencies[-1:] > 1e-3).all())
    record("frequencies", frequencies[-1:])


def test_gradient_of_the_energy(record):
    numbers, positions = salt()
    found = transforms.jacrev(lambda x: energy(numbers, x))(positions)
    assert close(found, -calculator(numbers).forces(tracked(positions)), 1e-8, 1e-10)
    record("gradient", found)


def test_geometries_at_once(record):
    numbers, positions = geometries("water")
    found = transforms.vmap(lambda x: energy(numbers, x))(positions)
    assert close(found, torch.stack([energy(numbers, x) for x in positions]))
    record("energies", found)
