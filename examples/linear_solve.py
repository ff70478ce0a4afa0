"""
A linear solve with derivatives of its own, for a solver that torch cannot see into.

The solution of ``A x = b`` moves by ``A dx = db - dA x``, and its gradient solves the transposed system: both rules are
solves again, so that derivatives of any order need no more than the solver. Here it is scipy's for sparse matrices, or
numpy's where scipy is missing; any other takes its place by changing `forward` alone::

    python examples/linear_solve.py

prints how the potential at a node of a resistor network answers to its conductances, and checks it.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_func_compat import Function, grad, hessian, vmap
from torch_func_compat.autograd.gradcheck import finite_difference_jacobian


def solve_outside(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The solver: numbers in, numbers out."""
    try:
        from scipy.sparse import csc_matrix
        from scipy.sparse.linalg import spsolve
    except ImportError:
        return np.linalg.solve(matrix, right)
    return spsolve(csc_matrix(matrix), right)


class Solve(Function):
    """The solution of ``matrix @ x = right`` for a square matrix and a vector."""

    @staticmethod
    def forward(matrix: Tensor, right: Tensor) -> Tensor:
        solution = solve_outside(matrix.detach().numpy(), right.detach().numpy())
        return torch.as_tensor(solution, dtype=right.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        matrix, solution = ctx.saved_tensors
        adjoint = Solve.apply(matrix.transpose(0, 1), gradient)
        return -torch.outer(adjoint, solution), adjoint

    @staticmethod
    def jvp(ctx: Any, d_matrix: Tensor, d_right: Tensor) -> Tensor:
        matrix, solution = ctx.saved_tensors
        return Solve.apply(matrix, d_right - d_matrix @ solution)


# a square with one diagonal: five resistors between four nodes, of which the last is grounded
ENDS = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0], [0, 2]])
INCIDENCE = torch.zeros(5, 4, dtype=torch.float64)
INCIDENCE[torch.arange(5), ENDS[:, 0]] = 1.0
INCIDENCE[torch.arange(5), ENDS[:, 1]] = -1.0
CURRENT = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)


def potential(conductances: Tensor) -> Tensor:
    """Of node 1, into which a current of one flows."""
    edges = INCIDENCE[:, :3]
    return Solve.apply(edges.t() @ (conductances[:, None] * edges), CURRENT)[1]


def main() -> int:
    conductances = torch.tensor([1.0, 2.0, 0.5, 1.5, 0.8], dtype=torch.float64)
    gradient, second = grad(potential)(conductances), hessian(potential)(conductances)
    print("potential    ", f"{potential(conductances).item():.12f}")
    print("gradient     ", " ".join(f"{x:.12f}" for x in gradient.tolist()))
    networks = torch.stack([conductances, 2 * conductances])
    checks = {
        "gradient by differences": (gradient, finite_difference_jacobian(potential, conductances)),
        "Hessian by differences": (second, finite_difference_jacobian(grad(potential), conductances)),
        # twice the conductances, half the potential
        "scaling": (vmap(grad(potential))(networks)[1], gradient / 4),
    }
    for name, (found, expected) in checks.items():
        print("ok     " if torch.allclose(found, expected, atol=1e-7) else "FAILED ", name)
    return 0 if all(torch.allclose(*pair, atol=1e-7) for pair in checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
