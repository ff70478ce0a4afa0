"""The example of a custom function, as a script: the same numbers on every torch."""

from __future__ import annotations

import re

import pytest
from support.scripts import run_example

pytestmark = pytest.mark.any_torch

# Hartree, by hand from the formula in the docstring: see `expected`
ATOMS = {"C": (1.30, 46.6), "O": (1.20, 15.6), "H": (0.60, 6.5)}
MOLECULE = [
    ("C", (0.0, 0.0, -1.0)),
    ("O", (0.0, 0.0, 1.28)),
    ("H", (0.0, 1.77, -2.1)),
    ("H", (0.0, -1.77, -2.1)),
]


def expected():
    """The energy without torch."""
    from math import dist, erf, exp, sqrt

    count = [
        sum(0.5 * (1 + erf(-7.5 * (dist(x, y) / (ATOMS[a][0] + ATOMS[b][0]) - 1))) for b, y in MOLECULE if y != x)
        for a, x in MOLECULE
    ]
    c6 = [ATOMS[a][1] * (1 + exp(-n)) for (a, _), n in zip(MOLECULE, count)]
    pairs = [(i, j) for i in range(4) for j in range(i)]
    return -sum(sqrt(c6[i] * c6[j]) / (dist(MOLECULE[i][1], MOLECULE[j][1]) ** 6 + 4.8**6) for i, j in pairs)


def test_dispersion():
    status, printed = run_example("dispersion")
    assert status == 0, printed
    energy = float(re.search(r"energy (\S+)", printed).group(1))
    assert abs(energy - expected()) < 1e-11
    assert printed.count("\nok ") == 5
    for name in ("forces", "Hessian", "batched Hessians", "by the damping"):
        assert f"ok      {name}" in printed
    forces = [[float(x) for x in re.findall(r"-?\d+\.\d{12}", line)] for line in printed.splitlines()[3:7]]
    assert all(abs(sum(column)) < 1e-11 for column in zip(*forces))  # no net force
