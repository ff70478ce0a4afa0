"""The example of an implicit solver, against an explicit one with tiny steps that knows nothing of torch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.processes import run_python

pytestmark = pytest.mark.any_torch

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "brusselator.py"
NO_SCIPY = "import sys; sys.modules['scipy'] = None; sys.path.insert(0, {folder!r}); import brusselator\n"


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
    process = run_python("-W", "ignore", str(SCRIPT))
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.count("\nok ") == 4
    found = [float(re.search(rf"^{name} (\S+)", process.stdout, re.MULTILINE).group(1)) for name in "uv"]
    for value, expected in zip(found, by_small_steps()):
        assert abs(value - expected) < 1e-3


@pytest.mark.slow
def test_without_scipy():
    """A smaller one, by torch's dense solver."""
    program = NO_SCIPY.format(folder=str(SCRIPT.parent)) + (
        "import torch\n"
        "start = torch.cat([1 + 0 * brusselator.GRID, 0 * brusselator.GRID + 3])\n"
        "pattern = brusselator.detect_pattern(lambda x: brusselator.residual(x, start, 0.1), start)\n"
        "colored = brusselator.coloring(pattern)\n"
        "state = brusselator.integrate(colored, start, 0.1, 1)\n"
        "print(float(brusselator.residual(state, start, 0.1).abs().max()))\n"
    )
    process = run_python("-W", "ignore", "-c", program)
    assert process.returncode == 0, process.stderr
    assert float(process.stdout) < 1e-9
