"""DFT-D4 dispersion energies of tad-dftd4."""

from __future__ import annotations

import tad_dftd4
import torch
from energies import Energies


class TestDispersion(Energies):
    def parameters(self):
        return {"a1": 0.4429, "a2": 4.6023, "s6": 1.0, "s8": 1.8590, "s9": 1.0}

    def energy(self, numbers, positions, parameters):
        charge = torch.zeros((), dtype=positions.dtype)
        return tad_dftd4.dftd4(numbers, positions, charge, parameters).sum(-1)
