"""The equations behind a solution, and the Function that carries its derivative."""

from __future__ import annotations

import copy
from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from ..autograd.function import Function
from . import trees
from .derivatives import Leaves, pull_back, push_forward
from .errors import WRONG, Status, coded, settle
from .iterations import Info, Iteration, Nonlinear
from .linear_solve import solve_system
from .outside import Outside, name_of, returned
from .systems import JacobianSystem, Options, Tensors
from .vector_problems import state
from .vectors import Layout, is_differentiable, norm

__all__ = ["Equations", "Solution"]


class Equations:
    """``residual(z, *params) = 0`` for the unknown z, as a function from leaves to leaves."""

    def __init__(self, residual: Callable[..., Any], layout: Layout, params: tuple[Any, ...], name: str) -> None:
        self._residual, self._name = residual, name
        self.layout: Layout = layout
        self.arguments: trees.Arguments = trees.Arguments(params)

    def __call__(self, z: Leaves, tensors: Tensors) -> Leaves:
        return self.layout.flatten(
            self._residual(self.layout.unflatten(z), *self.arguments.filled(tensors)), self._name
        )


class Solution:
    """A root of equations, for one call.

    Parameters
    ----------
    equations : Equations
    solve : Iteration or callable
    given : callable
        The first argument of a callable solver: the residual, the step or the objective.
    options : Options
        For the linear systems of derivatives, and for failures.
    has_aux : bool
    tol : float, optional
        The tolerance for the result of a callable.
    """

    def __init__(
        self,
        equations: Equations,
        solve: Any,
        given: Callable[..., Any],
        options: Options,
        has_aux: bool,
        tol: float | None,
    ) -> None:
        self.equations: Equations = equations
        self._solve, self._given = solve, given
        self._has_aux, self._tol = has_aux, tol
        self.options: Options = _of_leaves(options, equations)
        self._aux_spec: Any = None
        self.system: JacobianSystem = JacobianSystem(equations, equations.layout, self.options)

    def __call__(self, z0: Leaves, tensors: Tensors) -> Any:
        outputs = _Solve.apply(self, *z0, *tensors)
        n = self.equations.layout.count
        z = self.equations.layout.unflatten(outputs[:n])
        return (z, self._aux_spec.unflatten(outputs[n:])) if self._has_aux else z

    def find(self, z0: Leaves, tensors: Tensors) -> tuple[Tensor, Status, Sequence[Tensor]]:
        """The solution as a vector, how it was found, and the leaves of aux, without a graph."""
        problem = Nonlinear(self.system, self.equations, z0, tensors)
        if isinstance(self._solve, Iteration):
            v, status = self._solve.run(problem)
            aux = self._taken(Info(status.iterations, status.norm)) if self._has_aux else ()
            return v, status, aux
        n = self.equations.layout.count
        outputs = Outside.apply(self._run, *z0, *tensors)
        v = self.equations.layout.ravel(outputs[:n])
        residual, scale = problem.measured(v)
        bound = (self.equations.layout.eps**0.5 if self._tol is None else self._tol) * scale
        return v, state(coded(~(norm(residual) <= bound), WRONG), -1, norm(residual), bound), outputs[n:]

    @property
    def name(self) -> str:
        """The name of the solver, for messages."""
        return repr(self._solve).split("(")[0] if isinstance(self._solve, Iteration) else name_of(self._solve)

    def _run(self, operands: Tensors) -> tuple[Tensor, ...]:
        layout, n = self.equations.layout, self.equations.layout.count
        z0 = layout.unflatten([x.clone() for x in operands[:n]])  # an iteration may write to it
        found = self._solve(self._given, z0, *self.equations.arguments.filled(operands[n:]))
        aux: Sequence[Tensor] = ()
        if self._has_aux:
            if not isinstance(found, tuple) or len(found) != 2:
                raise TypeError(f"expected {self.name} to return (z, aux), since has_aux=True, got {found!r}")
            found, more = found
            aux = self._taken(more)
        return (*returned(found, layout, self.name), *aux)

    def _taken(self, aux: Any) -> Sequence[Tensor]:
        leaves, self._aux_spec = trees.flatten(aux)
        for leaf in leaves:
            if not isinstance(leaf, (Tensor, int, float, complex)):
                raise TypeError(f"expected aux of {self.name} to be a pytree of tensors and numbers, got {leaf!r}")
        device = self.equations.layout.device
        return [x.detach().clone() if isinstance(x, Tensor) else torch.as_tensor(x, device=device) for x in leaves]


def _of_leaves(options: Options, equations: Equations) -> Options:
    """The options, with a preconditioner that takes leaves instead of pytrees."""
    func, layout = options.preconditioner, equations.layout
    if func is None:
        return options
    preconditioner = func

    def approximate(vector: Leaves, z: Leaves, tensors: Tensors) -> Leaves:
        found = preconditioner(layout.unflatten(vector), layout.unflatten(z), *equations.arguments.filled(tensors))
        return layout.flatten(found, "the preconditioner")

    changed = copy.copy(options)
    changed.preconditioner = approximate
    return changed


class _Solve(Function):
    """z of ``F(z, p) = 0``: ``F_z dz = -F_p dp``, and by the transpose ``F_z^T w = g``, ``dp = -F_p^T w``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(solution: Solution, *operands: Tensor) -> tuple[Tensor, ...]:
        layout = solution.equations.layout
        operands = tuple(x.detach() for x in operands)
        v, status, aux = solution.find(operands[: layout.count], operands[layout.count :])
        v = settle(status, v, solution.name, solution.options.on_failure)
        return (*[x.clone() for x in layout.unravel(v)], *aux)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.solution = inputs[0]
        n = ctx.solution.equations.layout.count
        ctx.differentiable = [is_differentiable(x) for x in inputs]
        ctx.save_for_backward(*output[:n], *inputs[1 + n :])
        ctx.save_for_forward(*output[:n], *inputs[1 + n :])
        ctx.mark_non_differentiable(*output[n:])
        ctx.count = len(output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        solution, tensors = ctx.solution, ctx.saved_tensors
        n = solution.equations.layout.count
        # the solution does not depend on the first guess
        start = [torch.zeros_like(x) if need else None for x, need in zip(tensors, ctx.needs_input_grad[1:])][:n]
        wanted = [i for i in range(n, len(tensors)) if ctx.needs_input_grad[1 + i] and ctx.differentiable[1 + i]]
        found: list[Any] = [None] * len(tensors)
        if wanted:
            cotangent = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, tensors[:n])]
            adjoint = solve_system(solution.system.transposed, cotangent, tensors)
            found = pull_back(lambda t: solution.equations(t[:n], t[n:]), tensors, wanted, [-w for w in adjoint])
        return (None, *start, *found[n:])

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> tuple[Any, ...]:
        solution, tensors = ctx.solution, ctx.saved_tensors
        n = solution.equations.layout.count
        moving = [None] * n + [t if ok else None for t, ok in zip(tangents[n:], ctx.differentiable[1 + n :])]
        if all(t is None for t in moving):
            return (*[torch.zeros_like(x) for x in tensors[:n]], *[None] * (ctx.count - n))
        moved = push_forward(lambda t: solution.equations(t[:n], t[n:]), tensors, moving)
        found = solve_system(solution.system, [-x for x in moved], tensors)
        return (*found, *[None] * (ctx.count - n))
