"""
A stiff reaction and diffusion, stepped implicitly with a sparse Jacobian.

The Brusselator on a line: ``u_t = 1 + u^2 v - 4 u + u_xx / 50`` and ``v_t = 3 u - u^2 v + v_xx / 50`` with ``u = 1``
and ``v = 3`` at both ends (Hairer and Wanner, Solving Ordinary Differential Equations II, section IV.1). On a fine
grid, explicit methods need tiny steps; the trapezoidal rule takes large ones, and solves a system of nonlinear
equations for each. Newton's method does so with the Jacobian: of the million entries of its matrix here 3,996 are not
zero, and four products give all of them, found from nothing but the function. scipy's sparse LU solves with it, or
torch's dense solver where scipy is missing::

    python examples/brusselator.py

prints the state in the middle of the line, and checks it; the exit status is 0 only if every check holds.
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from torch_func_compat.sparse import Coloring, coloring, detect_pattern, sparse_jacobian

POINTS = 500
DIFFUSION = 1 / 50
SPACING = 1 / (POINTS + 1)
GRID = torch.linspace(SPACING, 1 - SPACING, POINTS, dtype=torch.float64)


def rates(state: Tensor) -> Tensor:
    """Derivatives of u and v, one after the other, by the time."""
    u, v = state[:POINTS], state[POINTS:]
    reaction = u**2 * v

    def diffusion(w: Tensor, end: float) -> Tensor:
        ends = torch.full_like(w[:1], end)
        padded = torch.cat([ends, w, ends])
        return DIFFUSION * (padded[2:] - 2 * w + padded[:-2]) / SPACING**2

    return torch.cat([1 + reaction - 4 * u + diffusion(u, 1.0), 3 * u - reaction + diffusion(v, 3.0)])


def residual(new: Tensor, old: Tensor, step: float) -> Tensor:
    """What is zero where `new` follows `old` by the trapezoidal rule."""
    return new - old - step / 2 * (rates(new) + rates(old))


def jacobian_by_hand(state: Tensor) -> Tensor:
    """Of `rates`, dense, by formulas."""
    u, v = state[:POINTS], state[POINTS:]
    eye = torch.eye(POINTS, dtype=state.dtype)
    bands = torch.ones(POINTS, POINTS, dtype=state.dtype).triu(-1).tril(1)
    laplace = DIFFUSION / SPACING**2 * (bands - 3 * eye)
    upper = [torch.diag(2 * u * v - 4) + laplace, torch.diag(u**2)]
    lower = [torch.diag(3 - 2 * u * v), torch.diag(-(u**2)) + laplace]
    return torch.cat([torch.cat(upper, 1), torch.cat(lower, 1)])


def solve(colored: Coloring, values: Tensor, right: Tensor) -> Tensor:
    """The solution of the linear system with these values of its matrix."""
    pattern = colored.pattern
    try:
        from scipy.sparse.linalg import splu
    except ImportError:
        dense = values.new_zeros(pattern.shape).index_put((pattern.rows, pattern.columns), values)
        return torch.linalg.solve(dense, right)
    return torch.as_tensor(splu(pattern.to_scipy(values).tocsc()).solve(right.numpy()))


def integrate(colored: Coloring, start: Tensor, step: float, steps: int) -> Tensor:
    """The state after so many steps."""
    jacobian = sparse_jacobian(residual, colored, layout="values")  # by the first argument
    state = start
    for _ in range(steps):
        new = state
        for _ in range(10):
            change = solve(colored, jacobian(new, state, step), -residual(new, state, step))
            new = new + change
            if change.abs().max() < 1e-10:
                break
        state = new
    return state


def main() -> int:
    start = torch.cat([1 + torch.sin(2 * math.pi * GRID), 0 * GRID + 3])
    colored = coloring(detect_pattern(lambda new: residual(new, start, 0.1), start))
    print(f"torch {torch.__version__}\n{colored.pattern}\n{colored}")

    exact = torch.eye(2 * POINTS, dtype=torch.float64) - 0.1 / 2 * jacobian_by_hand(start)
    found = sparse_jacobian(residual, colored)(start, start, 0.1).to_dense()

    coarse, middle, fine = (integrate(colored, start, 1 / steps, steps) for steps in (10, 20, 40))
    print(f"u {fine[POINTS // 2]:.6f}\nv {fine[POINTS + POINTS // 2]:.6f}")
    order = float((coarse - middle).norm() / (middle - fine).norm())
    checks = {
        "the Jacobian by formulas": bool((found - exact).abs().max() < 1e-9 * exact.abs().max()),
        "a handful of products": colored.lower_bound == 4 and colored.count <= 5,
        "half the step, a quarter of the error": 3.0 < order < 5.0,
        "held at the ends": bool((fine[0] - 1).abs() < 0.1 and (fine[-1] - 3).abs() < 0.1),
    }
    for name, holds in checks.items():
        print(f"{'ok' if holds else 'FAILED':8}{name}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
