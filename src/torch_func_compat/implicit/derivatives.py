"""Derivatives within a rule: products of vectors with the Jacobian of a function of tensors.

A rule gets tensors whose graph belongs to a pass that is running or over. So the function is evaluated on its own
tensors, and the graph is that of a Function whose derivative is such a product again.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

from torch import Tensor

from ..autograd.function import Function
from ..autograd.internals import jvp, vjp
from .vectors import is_differentiable

Leaves = Sequence[Tensor]
Map = Callable[[Leaves], Leaves]


def pull_back(func: Map, tensors: Leaves, wanted: Sequence[int], cotangent: Leaves) -> list[Tensor | None]:
    """The gradients of the wanted tensors, None for the others. `func` must not depend on differentiated tensors other
    than its argument.
    """
    found: list[Tensor | None] = [None] * len(tensors)
    if wanted:
        pulled = _Pulled(func, wanted, len(cotangent))
        for i, gradient in zip(wanted, _Alone.apply(pulled, *cotangent, *tensors)):
            found[i] = gradient
    return found


def push_forward(func: Map, tensors: Leaves, tangents: Sequence[Tensor | None]) -> Leaves:
    """The tangent of the result, from the tensors that have a tangent."""
    moving = [i for i, t in enumerate(tangents) if t is not None]
    chosen = _restricted(func, tensors, moving)
    pushed: Leaves = jvp(chosen, tuple(tensors[i] for i in moving), tuple(tangents[i] for i in moving))[1]
    return pushed


def _restricted(func: Map, tensors: Leaves, chosen: Sequence[int]) -> Callable[..., tuple[Tensor, ...]]:
    """`func` as a function of some of its tensors."""

    def restricted(*values: Tensor) -> tuple[Tensor, ...]:
        full = list(tensors)
        for i, value in zip(chosen, values):
            full[i] = value
        return tuple(func(full))

    return restricted


class _Pulled:
    """The pullback of a function, as a function of cotangents and tensors."""

    def __init__(self, func: Map, wanted: Sequence[int], count: int) -> None:
        self._func, self._wanted, self._count = func, wanted, count

    def __call__(self, operands: Leaves) -> Leaves:
        cotangent, tensors = operands[: self._count], operands[self._count :]
        chosen = _restricted(self._func, tensors, self._wanted)
        return vjp(chosen, *(tensors[i] for i in self._wanted))[1](tuple(cotangent))  # type: ignore[no-any-return]


class _Alone(Function):
    """``func(tensors)``, evaluated on its own tensors."""

    generate_vmap_rule = True

    @staticmethod
    def forward(func: Map, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.clone() for x in func([x.detach() for x in tensors]))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.func = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        wanted = [i for i, need in enumerate(ctx.needs_input_grad[1:]) if need and is_differentiable(tensors[i])]
        return (None, *pull_back(ctx.func, tensors, wanted, grads))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        moving = [t if is_differentiable(x) else None for x, t in zip(tensors, tangents)]
        return tuple(push_forward(ctx.func, tensors, moving))
