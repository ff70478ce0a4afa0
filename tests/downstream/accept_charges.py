"""Electronegativity equilibration of tad-multicharge 0.7, whose model and structures are pytrees."""

from __future__ import annotations

import torch
import transforms
from energies import Energies, close, near
from molecules import finite_differences, molecule
from tad_mctc.io.structure import Structure
from tad_multicharge import eeq


def system(numbers, positions, charge=None):
    return Structure(numbers=numbers, positions=positions, charge=charge)


class TestEnergy(Energies):
    def parameters(self):
        return {"charge": 0.0}

    def energy(self, numbers, positions, parameters):
        return eeq.get_energy(system(numbers, positions, parameters["charge"])).sum(-1)


def test_jacobian_of_charges(record):
    numbers, positions = molecule("ammonia")
    charge = torch.ones((), dtype=torch.float64)
    charges = lambda x: eeq.get_charges(system(numbers, x, charge))
    jacobian = transforms.jacrev(charges)(positions)
    assert close(charges(positions).sum(), charge)
    assert near(jacobian, finite_differences(charges, positions))
    assert float(jacobian.sum(0).abs().max()) < 1e-10  # the total charge is what it is
    record("jacobian", jacobian)


def test_derivative_by_the_model(record):
    """All parameters at once: the model itself is the argument."""
    numbers, positions = molecule("water")
    model = eeq.EEQModel.param2019(dtype=torch.float64)
    chi = model.chi.detach().clone()

    def energy(chi):
        _, found = model.replace(chi=chi)(system(numbers, positions), return_energy=True)
        return found.sum(-1)

    found = transforms.grad(energy)(chi)
    used = sorted(set(numbers.tolist()))
    for z in used:
        unit = torch.zeros_like(chi)
        unit[z] = 1
        slope = finite_differences(lambda h: energy(chi + h * unit), torch.zeros((), dtype=torch.float64))  # noqa: B023
        assert near(found[z], slope)
    assert float(found.abs().sum() - found[used].abs().sum()) == 0.0
    record("gradient", found)


def test_charges_of_several_molecules(record):
    names = ["water", "methane", "ammonia"]
    sizes = [len(molecule(name)[0]) for name in names]
    numbers = torch.zeros(3, max(sizes), dtype=torch.long)
    positions = torch.zeros(3, max(sizes), 3, dtype=torch.float64)
    for i, name in enumerate(names):
        numbers[i, : sizes[i]], positions[i, : sizes[i]] = molecule(name)
    found = transforms.vmap(lambda z, x: eeq.get_charges(system(z, x)))(numbers, positions)
    for i, name in enumerate(names):
        assert close(found[i, : sizes[i]], eeq.get_charges(system(*molecule(name))), 1e-7)
    record("charges", found)
