"""
Rates of a stiff reaction, learned from its course through steps of the implicit Euler method.

Two molecules join and fall apart, 2 A <-> B, while A decays slowly. The fast rates allow explicit methods tiny steps
only. An implicit step solves ``y - y0 = h f(y)``, by Newton's method; its derivative is one linear solve, and the
memory that the training takes does not grow with Newton's iterations::

    python examples/implicit_euler.py

learns the rates and checks them, and the gradient.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from torch_func_compat import grad, use_fallback
from torch_func_compat.autograd.gradcheck import finite_difference_jacobian
from torch_func_compat.implicit import root

F64 = torch.float64
RATES = torch.tensor([200.0, 100.0, 0.8], dtype=F64)  # joining, falling apart, decay
START = torch.tensor([1.0, 0.0], dtype=F64)
STEP, STEPS = 0.25, 6


def velocity(y: Tensor, log_rates: Tensor) -> Tensor:
    joining, apart, decay = log_rates.exp().unbind()
    forward, backward = joining * y[0] ** 2, apart * y[1]
    return torch.stack([2 * (backward - forward) - decay * y[0], forward - backward])


def residual(y: Tensor, before: Tensor, log_rates: Tensor) -> Tensor:
    return y - before - STEP * velocity(y, log_rates)


implicit_step = root(residual)


def course(log_rates: Tensor) -> Tensor:
    """Concentrations at each time."""
    y, found = START, []
    for _ in range(STEPS):
        y = implicit_step(y, y, log_rates)
        found.append(y)
    return torch.stack(found)


def by_unrolling(log_rates: Tensor) -> Tensor:
    """The same, with Newton's iterations in the graph."""
    y, found = START, []
    for _ in range(STEPS):
        before = y
        for _ in range(12):
            joining, apart, decay = log_rates.exp().unbind()
            slope = torch.stack([-4 * joining * y[0] - decay, 2 * apart, 2 * joining * y[0], -apart]).reshape(2, 2)
            matrix = torch.eye(2, dtype=F64) - STEP * slope
            y = y - torch.inverse(matrix) @ residual(y, before, log_rates)
        found.append(y)
    return torch.stack(found)


def main() -> int:
    measured = course(RATES.log())
    # all that can be learned is how the fast rates compare, and the slow one
    guess = torch.tensor([150.0, 150.0, 0.3], dtype=F64).log().requires_grad_()
    optimizer = torch.optim.LBFGS([guess], max_iter=8, line_search_fn="strong_wolfe")
    losses = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = ((course(guess) - measured) ** 2).sum()
        loss.backward()
        losses.append(loss.item())
        return loss

    for _ in range(4):
        optimizer.step(closure)
    joining, apart, decay = guess.detach().exp().tolist()
    print("loss         ", f"{losses[0]:.3e} -> {losses[-1]:.3e}")
    print("ratio, decay ", f"{joining / apart:.3f} {decay:.3f}")

    def loss_of(log_rates: Tensor) -> Tensor:
        return ((course(log_rates) - measured) ** 2).sum()

    point = torch.tensor([5.0, 5.0, -1.0], dtype=F64)
    gradient = grad(loss_of)(point)
    unrolled = grad(lambda r: ((by_unrolling(r) - measured) ** 2).sum())(point)
    checks = {
        "gradient by unrolling": torch.allclose(gradient, unrolled, rtol=1e-9, atol=1e-12),
        "gradient by differences": torch.allclose(gradient, finite_difference_jacobian(loss_of, point), atol=1e-7),
        "the loss has gone": losses[-1] < 1e-3 * losses[0],
        "ratio of the fast rates": abs(joining / apart - 2) < 0.1,
        "slow rate": abs(decay - 0.8) < 0.02,
    }
    for name, passed in checks.items():
        print("ok     " if passed else "FAILED ", name)
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    with use_fallback("silent"):
        sys.exit(main())
