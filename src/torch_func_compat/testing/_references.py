"""Reference derivatives: from finite differences, or from loops over plain ``torch.autograd``."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from . import _trees
from ._point import Point, flat

# Relative to max(1, |x|). The errors of the difference and of rounding are about equal there: eps^(1/5) for the first
# and eps^(1/6) for the second derivative, by central differences of fourth order.
FIRST_STEP = 7e-4
SECOND_STEP = 2.5e-3


class FiniteDifferences:
    """Derivatives from values alone, in float64. They are independent of autograd, so its errors show.

    First derivatives are ``(8 (f(x+h) - f(x-h)) - (f(x+2h) - f(x-2h))) / 12h``, with 4 evaluations for each element;
    second ones along a line ``(16 (f(x+h) + f(x-h)) - (f(x+2h) + f(x-2h)) - 30 f(x)) / 12h²``, along x, y and x + y
    for the mixed derivative by x and y: 4 evaluations for each element and each pair of elements.
    """

    def __init__(self, point: Point) -> None:
        inputs = [_trees.mapped(_double, argument) for argument in point.inputs]
        try:
            self._point = Point(point.function, inputs, point.argnums)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"finite differences evaluate the function in float64, where it raised: {error}"
            ) from error
        for leaf in self._point.outputs:
            if leaf.dtype is not torch.float64:
                raise ValueError(
                    f"finite differences need a function that computes in float64: for such inputs it returned "
                    f"{leaf.dtype}. Convert its constants and parameters, or pass against='loop'"
                )
        self._x = flat(self._point.leaves)
        self.value = flat(self._point.outputs)
        self._scale = self._x.abs().clamp(min=1.0)
        self._found: dict[str, Tensor] = {}

    def jacobian(self) -> Tensor:
        """M x N."""
        if "jacobian" not in self._found:
            columns = []
            for i in range(self._x.numel()):
                step = self._unit(i) * (FIRST_STEP * self._scale[i])
                near, far = self._at(step) - self._at(-step), self._at(2 * step) - self._at(-2 * step)
                columns.append((8 * near - far) / (12 * FIRST_STEP * self._scale[i]))
            self._found["jacobian"] = self._joined(columns, ())
        return self._found["jacobian"]

    def diagonal(self) -> Tensor:
        """M x N second derivatives by the same element twice."""
        if "diagonal" not in self._found:
            steps = SECOND_STEP * self._scale
            lines = [self._second(self._unit(i) * steps[i]) / steps[i] ** 2 for i in range(self._x.numel())]
            self._found["diagonal"] = self._joined(lines, ())
        return self._found["diagonal"]

    def hessian(self) -> Tensor:
        """M x N x N."""
        if "hessian" not in self._found:
            n, steps, diagonal = self._x.numel(), SECOND_STEP * self._scale, self.diagonal()
            result = diagonal.new_zeros((*diagonal.shape, n))
            for i in range(n):
                result[:, i, i] = diagonal[:, i]
                for j in range(i):
                    both = self._second(self._unit(i) * steps[i] + self._unit(j) * steps[j])
                    alone = diagonal[:, i] * steps[i] ** 2 + diagonal[:, j] * steps[j] ** 2
                    result[:, i, j] = result[:, j, i] = (both - alone) / (2 * steps[i] * steps[j])
            self._found["hessian"] = result
        return self._found["hessian"]

    def _unit(self, i: int) -> Tensor:
        unit = torch.zeros_like(self._x)
        unit[i] = 1
        return unit

    def _at(self, step: Tensor) -> Tensor:
        moved = list(self._point.inputs)
        for i, argument in zip(self._point.positions, self._point.primals_of(self._x + step)):
            moved[i] = argument
        # A copy for each call: the function may change what it is given.
        output = self._point.function(*(_trees.mapped(lambda leaf: leaf.clone(), argument) for argument in moved))
        return flat([leaf.detach() for leaf in _trees.flatten(output)[0]])

    def _second(self, step: Tensor) -> Tensor:
        near, far = self._at(step) + self._at(-step), self._at(2 * step) + self._at(-2 * step)
        return (16 * near - far - 30 * self.value) / 12

    def _joined(self, columns: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
        return torch.stack(list(columns), 1) if columns else self.value.new_zeros((self.value.numel(), 0, *shape))


class Loop:
    """Derivatives by ``torch.autograd.grad``, one row after the other, as one would write them by hand.

    With `graph`, they can be differentiated by the tensors `variables`.
    """

    def __init__(self, point: Point, graph: bool = False) -> None:
        inputs = point.fresh(requires_grad=True)
        self.variables: list[Tensor] = _trees.flatten(point.chosen(inputs))[0]
        self._graph = graph
        with torch.enable_grad():
            self._outputs = flat(_trees.flatten(point.function(*inputs))[0])
        self._rows: Tensor | None = None
        self._cube: Tensor | None = None

    @property
    def value(self) -> Tensor:
        return self._given(self._outputs)

    def jacobian(self) -> Tensor:
        """M x N."""
        if self._rows is None:
            self._rows = self._differentiated(self._outputs)
        return self._given(self._rows)

    def hessian(self) -> Tensor:
        """M x N x N."""
        if self._cube is None:
            self.jacobian()
            rows: Any = self._rows
            self._cube = self._differentiated(rows.reshape(-1)).reshape(*rows.shape, rows.shape[1])
        return self._given(self._cube)

    def diagonal(self) -> Tensor:
        """M x N second derivatives by the same element twice."""
        return self.hessian().diagonal(0, 1, 2)

    def _given(self, found: Tensor) -> Tensor:
        return found if self._graph else found.detach()

    def _differentiated(self, vector: Tensor) -> Tensor:
        rows = [torch.cat([part.reshape(-1).double() for part in gradients(y, self.variables)]) for y in vector]
        size = sum(leaf.numel() for leaf in self.variables)
        return torch.stack(rows) if rows else vector.new_zeros(0, size)


def gradients(number: Tensor, variables: Sequence[Tensor]) -> list[Tensor]:
    """``torch.autograd.grad``, with zeros for inputs that the outputs do not depend on."""
    if not number.requires_grad:
        return [torch.zeros_like(leaf) for leaf in variables]
    found = torch.autograd.grad(number, list(variables), create_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if part is None else part for part, leaf in zip(found, variables)]


def _double(leaf: Tensor) -> Tensor:
    return leaf.double() if leaf.dtype.is_floating_point else leaf
