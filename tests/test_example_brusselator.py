"""The example of an implicit solver, against an explicit one with tiny steps that knows nothing of torch."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from support.scripts import load_example, run_example

pytestmark = pytest.mark.any_torch


def by_small_steps(points=500, steps=8000):
    """u and v in the middle, by the classical Runge-Kutta method."""
    numpy = pytest.importorskip("numpy")
    spacing = 1 / (points + 1)

    def rates(state):
        u, v = state
        padded = numpy.pad(state, ((0, 0), (1, 1)))
        padded[:, 0] = padded[:, -1] = 1, 3
        diffusion = (padded[:, 2:] - 2 * state + padded[:, :-2]) / (50 * spacing**2)
        return numpy.stack([1 + u * u * v - 4 * u, 3 * u - u * u * v]) + diffusion

    grid = numpy.linspace(spacing, 1 - spacing, points)
    state, step = numpy.stack([1 + numpy.sin(2 * numpy.pi * grid), 0 * grid + 3]), 1 / steps
    for _ in range(steps):
        a = rates(state)
        b = rates(state + step / 2 * a)
        c = rates(state + step / 2 * b)
        d = rates(state + step * c)
        state = state + step / 6 * (a + 2 * b + 2 * c + d)
    return state[:, points // 2]


@pytest.mark.slow
def test_brusselator():
    status, printed = run_example("brusselator")
    assert status == 0, printed
    assert printed.count("\nok ") == 4
    found = [float(re.search(rf"^{name} (\S+)", printed, re.MULTILINE).group(1)) for name in "uv"]
    for value, expected in zip(found, by_small_steps()):
        assert abs(value - expected) < 1e-3


def test_without_scipy(monkeypatch):
    """A smaller one, by torch's dense solver."""
    for name in ["scipy", *(name for name in sys.modules if name.startswith("scipy."))]:
        monkeypatch.setitem(sys.modules, name, None)
    example = load_example("brusselator")
    start = torch.cat([1 + 0 * example.GRID, 0 * example.GRID + 3])
    pattern = example.detect_pattern(lambda x: example.residual(x, start, 0.1), start)
    state = example.integrate(example.coloring(pattern), start, 0.1, 1)
    assert float(example.residual(state, start, 0.1).abs().max()) < 1e-9
