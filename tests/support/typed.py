"""Calls as users write them, for `mypy --strict`: what has to be accepted, and mistakes that have to be found.

A mistake that is not found makes its comment an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import torch_func_compat as tfc
from torch_func_compat import grad, implicit, operators, sparse, vmap

x = torch.rand(3)
xs = torch.rand(5, 3)


def energy(x: Tensor, scale: float = 1.0, *, power: int = 2) -> Tensor:
    return scale * (x**power).sum()


class Square(tfc.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return 2 * ctx.saved_tensors[0] * cotangent


forces: Tensor = grad(energy)(x, 2.0, power=3)
both: tuple[Tensor, Tensor] = grad(lambda a, b: (a * b).sum(), argnums=(0, 1))(x, x)
many: Tensor = vmap(tfc.hessian(energy))(xs, torch.rand(5))
by_name: dict[str, Tensor] = vmap(grad(lambda p, x: (p["a"] * x).sum()), in_dims=(None, 0))({"a": x}, xs)
value, product = tfc.jvp(grad(lambda p: (p**2).sum()), (x,), (x,))
outputs, pullback = tfc.vjp(grad(lambda p: (p**2).sum()), x)
laplacian: Tensor = tfc.laplacian(energy)(x, scale=2.0)
root: Tensor = implicit.root(grad(lambda p: (p**2).sum()))(x)
matrix: Tensor = sparse.sparse_jacobian(grad(energy), torch.eye(3))(x, power=4)
row: Tensor = operators.hessian_operator(energy, x) @ x
square: Tensor = Square.apply(x)

grad(x)  # type: ignore[arg-type]
grad(energy, x)  # type: ignore[arg-type]
grad(energy)(x, "two")  # type: ignore[arg-type]
tfc.hessian(energy)(x, sclae=2.0)  # type: ignore[call-arg]
tfc.jacobian(energy)()  # type: ignore[call-arg]
tfc.laplacian(energy)(x.numpy())  # type: ignore[arg-type]
vmap(energy, in_dim=0)  # type: ignore[call-arg]
