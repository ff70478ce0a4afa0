"""Small molecules for the acceptance tests, in atomic units and float64."""

from __future__ import annotations

import torch

WATER = torch.tensor([8, 1, 1])
METHANE = torch.tensor([6, 1, 1, 1, 1])
AMMONIA = torch.tensor([7, 1, 1, 1])

POSITIONS = {
    "water": [[0.0, 0.0, -0.74], [1.43, 0.0, 0.37], [-1.43, 0.1, 0.37]],
    "methane": [[0.0, 0.0, 0.0], [1.19, 1.19, 1.19], [-1.19, -1.19, 1.2], [-1.19, 1.2, -1.19], [1.21, -1.19, -1.19]],
    "ammonia": [[0.0, 0.0, 0.2], [1.77, 0.0, -0.5], [-0.88, 1.53, -0.5], [-0.89, -1.53, -0.51]],
}
NUMBERS = {"water": WATER, "methane": METHANE, "ammonia": AMMONIA}


def molecule(name):
    """Numbers and positions."""
    return NUMBERS[name], torch.tensor(POSITIONS[name], dtype=torch.float64)


def geometries(name, count=3):
    """Numbers of a molecule, and a batch of distorted positions."""
    numbers, positions = molecule(name)
    noise = torch.sin(torch.arange(count * positions.numel(), dtype=torch.float64)).view(count, *positions.shape)
    return numbers, positions + 0.05 * noise


def padded(*names):
    """Several molecules as one batch, with zeros for atoms that are not there."""
    found = [molecule(name) for name in names]
    size = max(len(numbers) for numbers, _ in found)
    numbers = torch.zeros(len(found), size, dtype=torch.long)
    positions = torch.zeros(len(found), size, 3, dtype=torch.float64)
    for i, (z, x) in enumerate(found):
        numbers[i, : len(z)] = z
        positions[i, : len(z)] = x
    return numbers, positions


def finite_differences(function, x, step=1e-5):
    """Central differences of a function that returns one tensor: ``output.shape + x.shape``."""
    columns = []
    for i in range(x.numel()):
        ends = []
        for sign in (1, -1):
            moved = x.detach().clone().reshape(-1)
            moved[i] += sign * step
            ends.append(function(moved.reshape(x.shape)).detach())
        columns.append((ends[0] - ends[1]) / (2 * step))
    return torch.stack(columns, -1).reshape(columns[0].shape + x.shape)
