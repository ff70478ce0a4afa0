"""DFT-D3 dispersion energies of tad-dftd3."""

from __future__ import annotations

import tad_dftd3
from energies import Energies


class TestRational(Energies):
    def parameters(self):
        return {"a1": 0.4145, "a2": 4.8593, "s8": 1.2177, "s9": 1.0}

    def energy(self, numbers, positions, parameters):
        return tad_dftd3.dftd3(numbers, positions, parameters).sum(-1)


class TestCoordinationNumber(Energies):
    """The sum of the squares of coordination numbers."""

    def energy(self, numbers, positions, parameters):
        from tad_mctc.ncoord import cn_d3

        return cn_d3(numbers, positions).square().sum(-1)
