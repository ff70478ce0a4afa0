"""
A special function of scipy with its analytic derivative: the Bessel functions J_n.

    python examples/bessel.py

The forward leaves torch. The derivative, ``2 J_n' = J_{n-1} - J_{n+1}``, is made of the same Function, and so exists to
every order. It checks Bessel's equation, ``x^2 J'' + x J' + (x^2 - n^2) J = 0``, with derivatives by three transforms.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from scipy.special import jv
from torch import Tensor

from torch_func_compat import Function, grad, jacfwd, vmap


class Bessel(Function):
    """J_n(x), elementwise."""

    @staticmethod
    def forward(n: int, x: Tensor) -> Tensor:
        return torch.as_tensor(jv(n, x.detach().numpy()), dtype=x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.n, x = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def slope(n: int, x: Tensor) -> Tensor:
        return (Bessel.apply(n - 1, x) - Bessel.apply(n + 1, x)) / 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient * Bessel.slope(ctx.n, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor) -> Tensor:
        return Bessel.slope(ctx.n, *ctx.saved_tensors) * tangent

    @staticmethod
    def vmap(info: Any, in_dims: Any, n: int, x: Tensor) -> tuple[Tensor, int]:
        return Bessel.apply(n, x), in_dims[1]  # elementwise: the batch is one call, and not one for each sample


def main() -> int:
    x = torch.linspace(0.5, 12.0, 24, dtype=torch.float64)
    status = 0
    for n in range(4):

        def f(x: Tensor, n: int = n) -> Tensor:
            return Bessel.apply(n, x)

        first = vmap(grad(f))(x)
        second = {
            "vmap(grad(grad))": vmap(grad(grad(f)))(x),
            "vmap(jacfwd(jacfwd))": vmap(jacfwd(jacfwd(f)))(x),
            "jacfwd(vmap(grad))": jacfwd(vmap(grad(f)))(x).diagonal(),
        }
        for name, value in second.items():
            residual = (x**2 * value + x * first + (x**2 - n**2) * f(x)).abs().max().item()
            print("ok     " if residual < 1e-12 else "FAILED ", f"J_{n} by {name:21} residual {residual:.0e}")
            status |= residual >= 1e-12
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
