"""
Ridge regression whose penalty is tuned by the gradient of its validation loss.

The weights solve ``(X^T X + exp(p) 1) w = X^T y``, by conjugate gradients and so without that matrix; their derivative
by the penalty p is another such solve, and so is the gradient of the loss for data that the weights have not seen. The
secant method finds where that is zero::

    python examples/ridge.py

finds the penalty and checks it against the closed form and a search on a grid.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from torch_func_compat import grad, hessian, use_fallback, vmap
from torch_func_compat.autograd.gradcheck import finite_difference_jacobian
from torch_func_compat.implicit import cg, linear_solve

F64 = torch.float64
SAMPLES, FEATURES = 40, 25


def wave(rows: int, columns: int, shift: float) -> Tensor:
    """Data that are the same on every torch."""
    i = torch.arange(rows, dtype=F64).unsqueeze(1)
    j = torch.arange(columns, dtype=F64).unsqueeze(0)
    return torch.sin((i + shift) * (1.37 + 0.61 * j) + 0.3 * j * j)


WEIGHTS = wave(1, FEATURES, 0.5)[0] / (1 + torch.arange(FEATURES, dtype=F64))
TRAINING, VALIDATION = wave(SAMPLES, FEATURES, 0.1), wave(SAMPLES, FEATURES, 77.7)
OBSERVED = TRAINING @ WEIGHTS + 0.5 * wave(SAMPLES, 1, 11.3)[:, 0]
EXPECTED = VALIDATION @ WEIGHTS


def normal(weights: Tensor, penalty: Tensor) -> Tensor:
    """The matrix of the normal equations, by its product."""
    return TRAINING.t() @ (TRAINING @ weights) + penalty.exp() * weights


def fit(penalty: Tensor) -> Tensor:
    return linear_solve(normal, TRAINING.t() @ OBSERVED, penalty, solve=cg(), symmetric=True)


def validation_loss(penalty: Tensor) -> Tensor:
    return ((VALIDATION @ fit(penalty) - EXPECTED) ** 2).mean()


def closed_form(penalty: Tensor) -> Tensor:
    matrix = TRAINING.t() @ TRAINING + penalty.exp() * torch.eye(FEATURES, dtype=F64)
    return ((VALIDATION @ (torch.inverse(matrix) @ (TRAINING.t() @ OBSERVED)) - EXPECTED) ** 2).mean()


def tune(penalty: Tensor) -> Tensor:
    """Where the slope of the loss is zero, by the secant method."""
    slope_of = grad(validation_loss)
    before, penalty = penalty, penalty - 0.5
    slope_before, slope = slope_of(before), slope_of(penalty)
    for _ in range(30):
        change = -slope * (penalty - before) / (slope - slope_before)
        before, slope_before, penalty = penalty, slope, penalty + change.clamp(-1, 1)
        slope = slope_of(penalty)
        if slope.abs() < 1e-12:
            break
    return penalty


def main() -> int:
    start = torch.tensor(1.0, dtype=F64)
    best = tune(start)
    print("penalty      ", f"{best.exp().item():.9f}")
    print("loss         ", f"{validation_loss(start).item():.9f} -> {validation_loss(best).item():.9f}")
    grid = torch.linspace(-4, 6, 41, dtype=F64)
    losses = vmap(validation_loss)(grid)
    nearest = grid[int(losses.argmin())]
    checks = {
        "gradient by the closed form": torch.allclose(grad(validation_loss)(start), grad(closed_form)(start)),
        "second by the closed form": torch.allclose(hessian(validation_loss)(start), hessian(closed_form)(start)),
        "gradient by differences": torch.allclose(
            grad(validation_loss)(start), finite_difference_jacobian(validation_loss, start), atol=1e-7
        ),
        "losses of a grid": torch.allclose(losses, torch.stack([closed_form(p) for p in grid])),
        "nothing is lower on the grid": bool(validation_loss(best) <= losses.min() + 1e-12),
        "the penalty is next to the lowest": bool((best - nearest).abs() <= 0.25),
        "the slope is gone": bool(grad(validation_loss)(best).abs() < 1e-9),
    }
    for name, passed in checks.items():
        print("ok     " if passed else "FAILED ", name)
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    with use_fallback("silent"):
        sys.exit(main())
