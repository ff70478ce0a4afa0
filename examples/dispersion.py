"""
Dispersion with a custom autograd function, from one source on every torch.

The energy is that of dispersion corrections: ``-C6/r^6`` between all pairs of atoms, with a C6 coefficient that depends
on how crowded the atoms are. The counting function has a backward of its own, written once as a
``torch_func_compat.Function``, where packages so far kept one class for torch 1.x and another for 2.x. Forces, Hessian,
batched Hessian and the second derivative by a damping parameter follow by transforms, on torch 1.8 as on the newest::

    python examples/dispersion.py

prints them, and checks each against finite differences or a loop; the exit status is 0 only if every check holds.
Everything is in atomic units and float64. The parameters are made up: what matters is the form.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor

from torch_func_compat import Function, grad, hessian, jacrev, vmap
from torch_func_compat.autograd.gradcheck import finite_difference_jacobian

RADII = torch.tensor([0.60, 1.30, 1.20], dtype=torch.float64)  # of H, C, O, by the index in ``kinds``
C6 = torch.tensor([6.5, 46.6, 15.6], dtype=torch.float64)
STEEPNESS = 7.5

# formaldehyde: C, O, H, H
KINDS = torch.tensor([1, 2, 0, 0])
POSITIONS = torch.tensor(
    [[0.0, 0.0, -1.0], [0.0, 0.0, 1.28], [0.0, 1.77, -2.1], [0.0, -1.77, -2.1]], dtype=torch.float64
)


class ErfCount(Function):
    """
    Counting function ``(1 + erf(-k (r/r0 - 1))) / 2``: one for a bonded pair, zero for a distant one.
    """

    @staticmethod
    def forward(r: Tensor, r0: Tensor) -> Tensor:
        return 0.5 * (1 + torch.erf(-STEEPNESS * (r / r0 - 1)))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        r, r0 = ctx.saved_tensors
        slope = -STEEPNESS / (math.sqrt(math.pi) * r0) * torch.exp(-((STEEPNESS * (r / r0 - 1)) ** 2))
        return gradient * slope, None


def energy(kinds: Tensor, positions: Tensor, damping: Tensor) -> Tensor:
    """
    Dispersion energy of one molecule.

    Parameters
    ----------
    kinds : Tensor
        Index of each atom's element, ``(N,)``.
    positions : Tensor
        ``(N, 3)`` in Bohr.
    damping : Tensor
        Damping length in Bohr, 0-dim.

    Returns
    -------
    Tensor
        0-dim, in Hartree.
    """
    i, j = torch.triu_indices(positions.shape[0], positions.shape[0], offset=1)
    r = (positions[i] - positions[j]).pow(2).sum(-1).sqrt()
    bonded = ErfCount.apply(r, RADII[kinds[i]] + RADII[kinds[j]])
    count = torch.zeros_like(positions[:, 0]).index_add(0, i, bonded).index_add(0, j, bonded)
    c6 = C6[kinds] * (1 + torch.exp(-count))
    pairs = (c6[i] * c6[j]).sqrt() / (r.pow(6) + damping.pow(6))
    return -pairs.sum()


def analyse() -> dict[str, Any]:
    """
    Everything that is derived from the energy, and how far each is from its check.
    """
    damping = torch.tensor(4.8, dtype=torch.float64)
    of_positions = lambda x: energy(KINDS, x, damping)
    gradient = grad(of_positions)
    second = hessian(of_positions)
    geometries = torch.stack([POSITIONS, 1.1 * POSITIONS, POSITIONS + 0.05 * torch.sin(POSITIONS)])
    batched = vmap(jacrev(jacrev(of_positions)))(geometries)
    by_damping = jacrev(jacrev(energy, 2), 2)
    mixed = jacrev(grad(energy, 1), 2)(KINDS, POSITIONS, damping)

    def error(actual: Tensor, expected: Tensor) -> float:
        return float((actual - expected).abs().max() / expected.abs().max())

    slope = lambda d: grad(energy, 2)(KINDS, POSITIONS, d)
    checks = {
        "forces against differences": error(gradient(POSITIONS), differences(of_positions, POSITIONS)),
        "Hessian against differences": error(second(POSITIONS), differences(gradient, POSITIONS)),
        "batched Hessians against a loop": error(batched, torch.stack([second(x) for x in geometries])),
        "by the damping, twice": error(by_damping(KINDS, POSITIONS, damping), differences(slope, damping)),
        "forces by the damping": error(mixed, differences(lambda d: grad(energy, 1)(KINDS, POSITIONS, d), damping)),
    }
    return {
        "energy": float(of_positions(POSITIONS)),
        "forces": (-gradient(POSITIONS)).tolist(),
        "hessian": second(POSITIONS).tolist(),
        "batched_hessian": batched.tolist(),
        "checks": checks,
    }


def differences(function: Any, x: Tensor) -> Tensor:
    """
    Central differences.
    """
    found: Tensor = finite_difference_jacobian(function, x, 1e-5)
    return found


def main() -> int:
    """
    Print and check; returns the exit status.
    """
    found = analyse()
    print(f"torch {torch.__version__}\nenergy {found['energy']:.12f} Hartree\nforces, Hartree/Bohr:")
    for row in found["forces"]:
        print("  " + " ".join(f"{value:15.12f}" for value in row))
    for name, value in found["checks"].items():
        print(f"{'ok' if value < 1e-6 else 'FAILED':8}{name}: {value:.1e}")
    return 0 if all(value < 1e-6 for value in found["checks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
