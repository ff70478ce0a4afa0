"""linear_solve: a matrix-free linear solve, whose derivative is another linear solve."""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from ..autograd.function import Function
from ..autograd.internals import P
from . import trees
from .closures import evaluated_alone
from .dense import dense
from .derivatives import Leaves, pull_back, push_forward
from .errors import WRONG, Status, check_mode, coded, settle
from .krylov import cg, gmres
from .outside import Outside, name_of, returned
from .systems import Options, ProductSystem, System, Tensors
from .vector_problems import DENSE, LinearProblem, LinearSolver, state
from .vectors import Layout, anywhere, dot, is_differentiable, norm, signs

__all__ = ["linear_solve", "solve_system"]


def linear_solve(
    matvec: Callable[P, Any],
    b: Any,
    *params: Any,
    solve: Any = None,
    transpose_solve: Callable[..., Any] | None = None,
    symmetric: bool = False,
    preconditioner: Callable[..., Any] | None = None,
    tol: float | None = None,
    on_failure: str = "raise",
) -> Any:
    """The solution x of ``matvec(x, *params) = b``.

    It can be differentiated by `b` and by `params`, to any order and in both modes: each derivative is another solve
    with the same matrix or its transpose, and no iteration is recorded.

    Parameters
    ----------
    matvec : callable
        ``matvec(x, *params)``, linear in `x` and of the structure, shapes and dtypes of `b`; made of torch operations.
        Tensors that are differentiated have to be among `params`; others may be closed over.
    b : pytree of tensors
        Real or complex.
    *params : pytrees
        The parameters of `matvec`.
    solve : solver, optional
        ``dense()``, ``cg()``, ``gmres()``, or a callable ``solve(matvec, b)``, which may leave torch: it is called with
        ``matvec(x)`` and tensors that require no grad, one sample at a time. By default `dense` for up to 512 unknowns
        and `gmres` beyond.
    transpose_solve : callable, optional
        ``transpose_solve(vecmat, b)``: the same for the transposed matrix (the conjugate one, for complex numbers). By
        default `solve` again, with the product of the transposed matrix.
    symmetric : bool
        The matrix is its own (conjugate) transpose.
    preconditioner : callable, optional
        ``preconditioner(r, *params)``: about the inverse times `r`, linear, for `cg` and `gmres`.
    tol : float, optional
        The largest norm of the residual, relative to that of `b`, of a solution that your own callable returns. By
        default the square root of the machine precision.
    on_failure : {'raise', 'warn', 'nan'}
        If a system is not solved, also in derivatives: raise an error, warn and continue with the last iterate, or
        fill the solution (of the sample) with nan.

    Returns
    -------
    pytree of tensors
        Like `b`.

    Raises
    ------
    ConvergenceError, SingularError, IndefiniteError, NotASolutionError
        With ``on_failure='raise'``. All are `ImplicitError`, a RuntimeError.
    RuntimeError
        A tensor that is differentiated is closed over by `matvec`.
    TypeError, ValueError
        The result of `matvec` is not like `b`, `matvec` is not symmetric although `symmetric` says so, or options do
        not fit.

    Notes
    -----
    Cost: one solve; a callable's solution is checked by one product with the matrix, or two if `symmetric`. Each
    cotangent and each tangent costs one more solve and a derivative of one product. Memory: that of the solver; only
    `params` and the solution are kept.

    ``A dx = db - dA x``, and by the transpose ``A^T w = g``, ``db = w``, ``dA = -w x^T``: M. B. Giles, in Advances in
    Automatic Differentiation (2008), p. 35. It follows JAX's ``custom_linear_solve``, with parameters as
    arguments.

    Examples
    --------
    >>> import torch
    >>> import torch_func_compat as tfc
    >>> from torch_func_compat.implicit import linear_solve
    >>> b = torch.ones(2)
    >>> total = lambda a: linear_solve(lambda x, a: a * x, b, a).sum()
    >>> with tfc.use_fallback("silent"):
    ...     tfc.grad(total)(torch.tensor([1.0, 2.0]))
    tensor([-1.0000, -0.2500])
    """
    check_mode(on_failure)
    if not callable(matvec):
        raise TypeError(
            f"linear_solve: expected matvec to be a function, got {type(matvec)}: for a matrix, pass "
            f"lambda x, A: A @ x, and A behind b"
        )
    layout = Layout(b, "b")
    arguments = trees.Arguments(params)

    def product(vector: Leaves, tensors: Tensors) -> Leaves:
        return layout.flatten(matvec(layout.unflatten(vector), *arguments.filled(tensors)), name_of(matvec))  # type: ignore[call-arg]

    def approximate(vector: Leaves, tensors: Tensors) -> Leaves:
        assert preconditioner is not None
        return layout.flatten(
            preconditioner(layout.unflatten(vector), *arguments.filled(tensors)), "the preconditioner"
        )

    options = Options(
        "linear_solve",
        ready(solve),
        ready(transpose_solve),
        symmetric=symmetric,
        preconditioner=None if preconditioner is None else approximate,
        tol=tol,
        on_failure=on_failure,
    )
    check_preconditioner(options)
    layout.flatten(evaluated_alone(matvec, b, *params), name_of(matvec))
    system = ProductSystem(product, layout, options)
    return layout.unflatten(solve_system(system, trees.flatten(b)[0], arguments.tensors(params)))


def ready(solve: Any) -> Any:
    """A solver; a class is instantiated."""
    return solve() if isinstance(solve, type) and issubclass(solve, LinearSolver) else solve


def check_preconditioner(options: Options) -> None:
    for solve in (options.solve, options.transpose_solve):
        if options.preconditioner is not None and solve is not None and not isinstance(solve, (cg, gmres)):
            raise TypeError(f"expected no preconditioner with {solve!r}: it is for cg and gmres")


def solve_system(system: System, b: Leaves, tensors: Tensors) -> Leaves:
    """The solution, differentiable by `b` and `tensors`."""
    if system.layout.size == 0:
        return [torch.zeros_like(x) for x in b]
    return _LinearSolve.apply(system, *b, *tensors)  # type: ignore[no-any-return]


class _LinearSolve(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(system: System, *operands: Tensor) -> tuple[Tensor, ...]:
        n = system.layout.count
        operands = tuple(x.detach() for x in operands)
        b, tensors = operands[:n], operands[n:]
        vector, status = solve_numbers(system, system.layout.ravel(b), tensors)
        options = system.options
        name = f"the transposed solve of {options.name}" if system.is_transposed else options.name
        return tuple(x.clone() for x in system.layout.unravel(settle(status, vector, name, options.on_failure)))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.system = inputs[0]
        n = ctx.system.layout.count
        ctx.differentiable = [is_differentiable(x) for x in inputs]
        ctx.save_for_backward(*output, *inputs[1 + n :])
        ctx.save_for_forward(*output, *inputs[1 + n :])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        system = ctx.system
        n = system.layout.count
        x, tensors = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        adjoint = solve_system(system.transposed, _filled(grads, x), tensors)
        needed = [a and b for a, b in zip(ctx.needs_input_grad, ctx.differentiable)][1 + n :]
        wanted = [i for i, need in enumerate(needed) if need]
        found = pull_back(
            lambda t: system.product(t[n:], t[:n]), (*x, *tensors), [n + i for i in wanted], [-w for w in adjoint]
        )
        return (None, *adjoint, *found[n:])

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> tuple[Any, ...]:
        system = ctx.system
        n = system.layout.count
        x, tensors = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        right = _filled(tangents[:n], x)
        if any(t is not None for t in tangents[n:]):
            moved = push_forward(lambda t: system.product(t, x), tensors, tangents[n:])
            right = [a - b for a, b in zip(right, moved)]
        return tuple(solve_system(system, right, tensors))


def _filled(vectors: Sequence[Any], like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(x) if v is None else v for v, x in zip(vectors, like)]


def solve_numbers(system: System, b: Tensor, tensors: Tensors) -> tuple[Tensor, Status]:
    """The solution as a real vector, and its status, without a graph."""
    options, layout = system.options, system.layout
    solve = options.solve
    if system.is_transposed and options.transpose_solve is not None:
        solve = options.transpose_solve
    if solve is None:
        large = gmres() if not options.definite else cg()
        solve = dense() if layout.size <= DENSE and options.preconditioner is None else large
    problem = LinearProblem(system, tensors, b)
    if isinstance(solve, LinearSolver):
        x, status = solve.run(problem)
    else:
        x, status = _by_callable(solve, problem, tensors)
    if options.symmetric and not options.definite:  # the definite matrix is the Hessian of an objective
        _check_symmetric(problem, x, options.name)
    return x, status


def _by_callable(solve: Callable[..., Any], problem: LinearProblem, tensors: Tensors) -> tuple[Tensor, Status]:
    layout, system = problem.layout, problem.system
    n, name = layout.count, name_of(solve)

    def run(operands: Tensors) -> tuple[Tensor, ...]:
        operator = system.operator(operands[n:])

        def matvec(x: Any) -> Any:
            return layout.unflatten([y.detach() for y in operator(layout.flatten(x, f"{name}, for a product,"))])

        right = layout.unflatten([x.clone() for x in operands[:n]])  # which a solver may overwrite
        return returned(solve(matvec, right), layout, name)

    x = layout.ravel(Outside.apply(run, *layout.unravel(problem.b), *tensors))
    residual = norm(problem.matvec(x) - problem.b)
    bound = (problem.eps**0.5 if system.options.tol is None else system.options.tol) * norm(problem.b)
    return x, state(coded(~(residual <= bound), WRONG), -1, residual, bound)


def _check_symmetric(problem: LinearProblem, x: Tensor, name: str) -> None:
    """Raise unless <u, A x> = <A u, x> for a vector u: else derivatives would be those of another matrix."""
    u = signs(x)
    au, ax = problem.matvec(u), problem.matvec(x)
    difference = (dot(u, ax) - dot(au, x)).abs()
    if anywhere(difference > problem.eps**0.5 * (norm(u) * norm(ax) + norm(au) * norm(x))):
        raise ValueError(
            f"expected the matrix of {name} to be symmetric (Hermitian, if complex), since symmetric=True, and "
            f"it is not: leave that out"
        )
