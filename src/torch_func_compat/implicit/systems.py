"""Families of linear systems: a square matrix that depends on tensors, given by its products."""

from __future__ import annotations

from typing import Any, Callable, ClassVar, Sequence

import torch
from torch import Tensor

from ..autograd.internals import jacrev, jvp, linearize, use_fallback, vjp, vmap
from .derivatives import Leaves
from .vectors import Layout

Tensors = Sequence[Tensor]
Operator = Callable[[Leaves], Leaves]


class Options:
    """The solvers of a matrix and of its transpose, and properties of the matrix."""

    def __init__(
        self,
        name: str,
        solve: Any = None,
        transpose_solve: Any = None,
        symmetric: bool = False,
        definite: bool = False,
        preconditioner: Callable[..., Any] | None = None,
        tol: float | None = None,
        on_failure: str = "raise",
    ) -> None:
        self.name = name
        self.solve = solve
        self.transpose_solve = transpose_solve
        self.symmetric = symmetric
        self.definite = definite
        self.preconditioner = preconditioner
        self.tol = tol
        self.on_failure = on_failure


class System:
    """A matrix as a function of tensors. Vectors are leaves in a layout."""

    def __init__(self, layout: Layout, options: Options) -> None:
        self.layout = layout
        self.options = options

    is_transposed: ClassVar[bool] = False

    def product(self, tensors: Tensors, vector: Leaves) -> Leaves:
        """The matrix times a vector, differentiable by both."""
        raise NotImplementedError

    def pullback(self, tensors: Tensors) -> Operator:
        """The transposed matrix (conjugated, for complex numbers), for many vectors at the same tensors."""
        raise NotImplementedError

    def operator(self, tensors: Tensors) -> Operator:
        """The matrix, for many vectors at the same tensors."""
        raise NotImplementedError

    def matrix(self, tensors: Tensors) -> Tensor:
        """The matrix between real vectors, assembled."""
        raise NotImplementedError

    def precondition(self, tensors: Tensors) -> Operator | None:
        """Multiply with an approximate inverse."""
        raise NotImplementedError

    @property
    def transposed(self) -> System:
        return self if self.options.symmetric else Transposed(self)


class Transposed(System):
    """The transpose of a system."""

    is_transposed: ClassVar[bool] = True

    def __init__(self, of: System) -> None:
        super().__init__(of.layout, of.options)
        self._of = of

    def product(self, tensors: Tensors, vector: Leaves) -> Leaves:
        return self._of.pullback(tensors)(vector)

    def pullback(self, tensors: Tensors) -> Operator:
        return self._of.operator(tensors)

    def operator(self, tensors: Tensors) -> Operator:
        return self._of.pullback(tensors)

    def matrix(self, tensors: Tensors) -> Tensor:
        return self._of.matrix(tensors).transpose(0, 1)

    def precondition(self, tensors: Tensors) -> Operator | None:
        forward = self._of.precondition(tensors)
        return None if forward is None else _transpose(forward, self.layout)

    @property
    def transposed(self) -> System:
        return self._of


class JacobianSystem(System):
    """The Jacobian of equations by their unknown; the tensors are the unknown's leaves, then the parameters."""

    def __init__(self, equations: Callable[[Leaves, Tensors], Leaves], layout: Layout, options: Options) -> None:
        super().__init__(layout, options)
        self._equations = equations

    def _split(self, tensors: Tensors) -> tuple[Callable[..., tuple[Tensor, ...]], tuple[Tensor, ...]]:
        """The equations as a function of the unknown alone, and the unknown."""
        n = self.layout.count
        return lambda *z: tuple(self._equations(z, tensors[n:])), tuple(tensors[:n])

    def product(self, tensors: Tensors, vector: Leaves) -> Leaves:
        func, z = self._split(tensors)
        if self.options.symmetric:
            return self.pullback(tensors)(vector)
        tangents: Leaves = jvp(func, z, tuple(vector))[1]
        return tangents

    def pullback(self, tensors: Tensors) -> Operator:
        func, z = self._split(tensors)
        pull = vjp(func, *z)[1]
        return lambda vector: pull(tuple(vector))

    def operator(self, tensors: Tensors) -> Operator:
        if self.options.symmetric:
            return self.pullback(tensors)
        func, z = self._split(tensors)
        push = linearize(func, *z)[1]
        return lambda vector: push(*vector)

    def matrix(self, tensors: Tensors) -> Tensor:
        n = self.layout.count

        def equations(vector: Tensor) -> Tensor:
            return self.layout.ravel(self._equations(self.layout.unravel(vector), tensors[n:]))

        found: Tensor = jacrev(equations)(self.layout.ravel(tensors[:n]))
        return found

    def precondition(self, tensors: Tensors) -> Operator | None:
        func, n = self.options.preconditioner, self.layout.count
        if func is None:
            return None
        approximate = func
        return lambda vector: approximate(vector, tensors[:n], tensors[n:])


class ProductSystem(System):
    """A matrix that is given by its product with a vector."""

    def __init__(self, product: Callable[[Leaves, Tensors], Leaves], layout: Layout, options: Options) -> None:
        super().__init__(layout, options)
        self._product = product

    def product(self, tensors: Tensors, vector: Leaves) -> Leaves:
        return self._product(vector, tensors)

    def pullback(self, tensors: Tensors) -> Operator:
        # linear, so that it is the same at any point
        pull = vjp(lambda *x: tuple(self._product(x, tensors)), *self.layout.zeros())[1]
        return lambda vector: pull(tuple(vector))

    def operator(self, tensors: Tensors) -> Operator:
        return lambda vector: self._product(vector, tensors)

    def matrix(self, tensors: Tensors) -> Tensor:
        layout = self.layout
        units = torch.eye(layout.size, dtype=layout.dtype, device=layout.device)
        with use_fallback("silent"):  # a product may leave torch
            return vmap(lambda v: layout.ravel(self._product(layout.unravel(v), tensors)), out_dims=1)(units)  # type: ignore[no-any-return]

    def precondition(self, tensors: Tensors) -> Operator | None:
        approximate = self.options.preconditioner
        if approximate is None:
            return None
        return lambda vector: approximate(vector, tensors)


def _transpose(linear: Operator, layout: Layout) -> Operator:
    pull = vjp(lambda *x: tuple(linear(x)), *layout.zeros())[1]
    return lambda vector: pull(tuple(vector))
