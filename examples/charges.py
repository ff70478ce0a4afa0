"""
Self-consistent charges of a molecule, with forces, a Hessian and the response of the dipole moment.

Each atom has an electronegativity and a hardness, which grows with its charge; its charge follows from the potential of
the others, and theirs from its own, until nothing changes any more. The charges are a fixed point of one such step, and
`fixed_point` gives their derivatives of any order, whatever finds them: here Anderson's acceleration, then scipy::

    python examples/charges.py

prints charges, forces and the trace of the Hessian of water in atomic units, and checks them.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from torch_func_compat import grad, hessian, jacrev, use_fallback, vmap
from torch_func_compat.autograd.gradcheck import finite_difference_jacobian
from torch_func_compat.implicit import anderson, fixed_point

F64 = torch.float64
POSITIONS = torch.tensor([[0.0, 0.0, 0.22], [0.0, 1.43, -0.88], [0.0, -1.43, -0.88]], dtype=F64)  # O, H, H in bohr
ELECTRONEGATIVITY = torch.tensor([0.42, 0.26, 0.26], dtype=F64)
HARDNESS = torch.tensor([0.70, 0.64, 0.64], dtype=F64)
GROWTH = torch.tensor([-0.15, -0.10, -0.10], dtype=F64)  # of the hardness with the charge


def interactions(positions: Tensor) -> Tensor:
    """Coulomb's law between distributed charges."""
    difference = positions.unsqueeze(0) - positions.unsqueeze(1)
    softened = (difference**2).sum(-1) + (1 / HARDNESS.unsqueeze(0) + 1 / HARDNESS.unsqueeze(1)) ** 2 / 4
    return (1 - torch.eye(3, dtype=F64)) / softened.sqrt()


def step(charges: Tensor, positions: Tensor) -> Tensor:
    """The charges that equal electronegativities would need in the potential of these charges; none in all."""
    potential = ELECTRONEGATIVITY + interactions(positions) @ charges + GROWTH * charges**2 / 2
    common = (potential / HARDNESS).sum() / (1 / HARDNESS).sum()
    return (common - potential) / HARDNESS


def by_scipy(step, charges: Tensor, positions: Tensor):
    """Numbers in, numbers out."""
    from scipy.optimize import root

    def residual(numbers):
        return step(torch.from_numpy(numbers), positions).numpy() - numbers

    return root(residual, charges.numpy(), tol=1e-12).x


def energy_of(charges: Tensor, positions: Tensor) -> Tensor:
    """Of given charges, and of bonds."""
    own = ELECTRONEGATIVITY * charges + HARDNESS * charges**2 / 2 + GROWTH * charges**3 / 6
    bonds = ((positions[0] - positions[1:]) ** 2).sum(-1).sqrt() - 1.81
    return own.sum() + charges @ interactions(positions) @ charges / 2 + (0.25 * bonds**2).sum()


START = torch.zeros(3, dtype=F64)
equilibrium = fixed_point(step, anderson(tol=1e-14))


def energy(positions: Tensor) -> Tensor:
    return energy_of(equilibrium(START, positions), positions)


def dipole(positions: Tensor) -> Tensor:
    return equilibrium(START, positions) @ positions


def main() -> int:
    charges = equilibrium(START, POSITIONS)
    forces = -grad(energy)(POSITIONS)
    second = hessian(energy)(POSITIONS).reshape(9, 9)
    print("charges      ", " ".join(f"{q:.9f}" for q in charges.tolist()))
    print("force on O   ", " ".join(f"{x:.9f}" for x in forces[0].tolist()))
    print("trace of H   ", f"{torch.diagonal(second).sum().item():.9f}")
    molecules = torch.stack([POSITIONS, 1.05 * POSITIONS])
    checks = {
        # the energy is stationary in the charges, so that those of fixed charges are the same forces
        "forces at fixed charges": (forces, -grad(lambda x: energy_of(charges, x))(POSITIONS)),
        "forces add up to nothing": (forces.sum(0), torch.zeros(3, dtype=F64)),
        "Hessian by differences": (second, finite_difference_jacobian(grad(energy), POSITIONS).reshape(9, 9)),
        "Hessian is symmetric": (second, second.t()),
        "molecules at once": (vmap(hessian(energy))(molecules)[0].reshape(9, 9), second),
        # which needs the response of the charges
        "dipole by differences": (jacrev(dipole)(POSITIONS), finite_difference_jacobian(dipole, POSITIONS)),
    }
    try:
        found = fixed_point(step, by_scipy)
        checks["charges by scipy"] = (found(START, POSITIONS), charges)
        checks["forces by scipy"] = (-grad(lambda x: energy_of(found(START, x), x))(POSITIONS), forces)
    except ImportError:
        print("scipy is not there")
    for name, (value, expected) in checks.items():
        print("ok     " if torch.allclose(value, expected, atol=1e-7) else "FAILED ", name)
    return 0 if all(torch.allclose(*pair, atol=1e-7) for pair in checks.values()) else 1


if __name__ == "__main__":
    with use_fallback("silent"):
        sys.exit(main())
