"""Electronegativity equilibration of tad-multicharge."""

from __future__ import annotations

import torch
import transforms
from energies import Energies, close, near
from molecules import finite_differences, molecule
from tad_multicharge import eeq


class TestEnergy(Energies):
    def parameters(self):
        return {"charge": 0.0}

    def energy(self, numbers, positions, parameters):
        return eeq.get_energy(numbers, positions, parameters["charge"]).sum(-1)


def test_jacobian_of_charges(record):
    numbers, positions = molecule("ammonia")
    charge = torch.ones((), dtype=torch.float64)
    charges = lambda x: eeq.get_charges(numbers, x, charge)
    jacobian = transforms.jacrev(charges)(positions)
    assert close(charges(positions).sum(), charge)
    assert near(jacobian, finite_differences(charges, positions))
    assert float(jacobian.sum(0).abs().max()) < 1e-10  # the total charge is what it is
    record("jacobian", jacobian)
