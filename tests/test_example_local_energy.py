"""The example of variational Monte Carlo: against the literature, and where the local energy is known exactly."""

from __future__ import annotations

import math

import pytest
import torch
from support.scripts import load_example, run_example

pytestmark = pytest.mark.any_torch


@pytest.fixture(scope="module")
def example():
    return load_example("local_energy")


def test_as_a_script():
    status, printed = run_example("local_energy", "--system", "helium", "--walkers", "300", "--steps", "60")
    assert status == 0, printed
    assert "ok  within four standard errors" in printed and "FAILED" not in printed


@pytest.mark.parametrize("name", ["helium", "hydrogen"])
def test_energies_of_the_literature(example, name):
    system = example.SYSTEMS[name]
    with torch.no_grad():
        energy, error, _ = example.sample(system, walkers=1000, steps=120, seed=1)
    assert error < 1.5e-3
    assert abs(energy - system.energy) < 4 * error + system.digits
    assert system.energy > system.exact  # of a trial wave function


def test_electrons_that_do_not_repel_each_other(example):
    """Of exp(-2 r1 - 2 r2), the ground state, the local energy is -4 everywhere."""
    torch.manual_seed(0)
    x = torch.randn(50, 6, dtype=torch.float64)
    energy = example.local_energy(
        lambda x: -2 * example.distances(x, 0.0)[0].sum(1), lambda x: -2 * (1 / example.distances(x, 0.0)[0]).sum(1)
    )
    assert (energy(x) + 4).abs().max() < 1e-12


def test_the_molecule_is_symmetric(example):
    torch.manual_seed(0)
    x = torch.randn(20, 6, dtype=torch.float64)
    energy = example.local_energy(example.log_hydrogen, example.hydrogen_potential)
    exchanged = x.reshape(20, 2, 3).flip(1).reshape(20, 6)
    mirrored = x * torch.tensor([1.0, 1.0, -1.0] * 2, dtype=torch.float64)
    assert (energy(x) - energy(exchanged)).abs().max() < 1e-9
    assert (energy(x) - energy(mirrored)).abs().max() < 1e-9


def test_failures_are_told(example, capsys, monkeypatch):
    monkeypatch.setattr(example, "sample", lambda *args: (-2.8, 1e-3, 0.2))
    assert example.main(["--system", "helium"]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert math.isclose(example.SYSTEMS["hydrogen"].energy, -1.16643, abs_tol=1e-5)
