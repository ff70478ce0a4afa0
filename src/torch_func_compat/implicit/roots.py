"""root, fixed_point and argmin: solutions whose derivative follows from their equations."""

from __future__ import annotations

import functools
from typing import Any, Callable

from torch import Tensor

from ..autograd.internals import P, grad
from . import trees
from .anderson import anderson
from .closures import evaluated_alone
from .equations import Equations, Solution
from .errors import check_mode
from .iterations import Iteration
from .linear_solve import check_preconditioner, ready
from .newton import newton
from .outside import name_of
from .systems import Options
from .vectors import Layout

__all__ = ["argmin", "fixed_point", "root"]


def root(
    residual: Callable[P, Any],
    solve: Any = None,
    *,
    has_aux: bool = False,
    linear: Any = None,
    symmetric: bool = False,
    preconditioner: Callable[..., Any] | None = None,
    tol: float | None = None,
    on_failure: str = "raise",
) -> Callable[..., Any]:
    """A root of equations, by any solver, with derivatives that follow from the equations.

    Parameters
    ----------
    residual : callable
        ``residual(z, *params)``, zero at the solution: of the structure, shapes and dtypes of `z`, and made of torch
        operations. Tensors that are differentiated have to be among `params`; others may be closed over.
    solve : solver, optional
        `newton`, which is the default, or a callable ``solve(residual, z0, *params)`` that returns z. It may leave
        torch (numpy, scipy, C++), is called under `torch.no_grad` with tensors of one sample, and never differentiated.
    has_aux : bool
        Whether `solve` returns ``(z, aux)``, where aux is a pytree of tensors and numbers, which become tensors. For
        `newton` it is a named tuple of ``iterations`` and ``residual_norm``.
    linear : solver, optional
        The solver of the linear systems: `dense`, `cg`, `gmres` or a callable, as `solve` of `linear_solve`, which also
        has to solve transposed systems. By default `dense` for up to 512 unknowns and `gmres` beyond.
    symmetric : bool
        The Jacobian of the residual by z is its own (conjugate) transpose.
    preconditioner : callable, optional
        ``preconditioner(r, z, *params)``: about the inverse of that Jacobian times `r`, for `cg` and `gmres`.
    tol : float, optional
        The largest norm of the residual of a solution that your own callable returns, relative to the change of the
        residual if the unknown and the parameters changed by their own sizes. By default the square root of the machine
        precision.
    on_failure : {'raise', 'warn', 'nan'}
        If a solution is not found, also in the linear systems of derivatives: raise an error, warn and continue with
        the last iterate, or fill the solution (of the sample) with nan.

    Returns
    -------
    callable
        ``solution(z0, *params)`` returns z in the structure of the first guess `z0`, or ``(z, aux)``. `params` are
        pytrees.

    Raises
    ------
    ConvergenceError, NotASolutionError, SingularError, IndefiniteError
        With ``on_failure='raise'``, by `solution` and by its derivatives. All are `ImplicitError`, a RuntimeError.
    RuntimeError
        A tensor that is differentiated is closed over by `residual`.
    TypeError, ValueError
        The residual is not like `z0`: before the first iteration.

    Notes
    -----
    ``dz = -(dF/dz)^-1 (dF/dp) dp``, the implicit function theorem. Cost: the solver and, to check it, a derivative of
    the residual; each cotangent and each tangent costs one linear solve and a derivative of the residual. Memory: that
    of the solver; only `params` and the solution are kept. The derivative by `z0` is zero. Derivatives of higher
    order are such linear solves again, with the same matrix.

    Examples
    --------
    >>> import torch
    >>> import torch_func_compat as tfc
    >>> from torch_func_compat.implicit import root
    >>> cube_root = root(lambda z, a: z**3 - a)
    >>> with tfc.use_fallback("silent"):
    ...     tfc.grad(cube_root, argnums=1)(torch.tensor(1.0), torch.tensor(8.0))
    tensor(0.0833)
    """
    options = _options("root", linear, symmetric, False, preconditioner, on_failure)
    chosen = _solver("root", newton() if solve is None else solve)
    return _solution(residual, residual, residual, chosen, options, has_aux, tol)


def fixed_point(
    step: Callable[P, Any],
    solve: Any = None,
    *,
    has_aux: bool = False,
    linear: Any = None,
    symmetric: bool = False,
    preconditioner: Callable[..., Any] | None = None,
    tol: float | None = None,
    on_failure: str = "raise",
) -> Callable[..., Any]:
    """A fixed point of a step, with derivatives that follow from that.

    Parameters
    ----------
    step : callable
        ``step(z, *params)`` returns the next z.
    solve : solver, optional
        `anderson`, which is the default, `newton`, or a callable ``solve(step, z0, *params)`` that returns z, as for
        `root`.
    has_aux, linear, symmetric, preconditioner, tol, on_failure
        As for `root`, of the residual ``step(z, *params) - z``.

    Returns
    -------
    callable
        ``solution(z0, *params)``

    Raises
    ------
    ImplicitError, RuntimeError, TypeError, ValueError
        As for `root`.

    Notes
    -----
    Cost, memory and derivatives are those of `root`. The step need not be a contraction.

    Examples
    --------
    >>> import torch
    >>> import torch_func_compat as tfc
    >>> from torch_func_compat.implicit import fixed_point
    >>> heron = fixed_point(lambda z, a: (z + a / z) / 2)
    >>> with tfc.use_fallback("silent"):
    ...     tfc.grad(heron, argnums=1)(torch.tensor(1.0), torch.tensor(4.0))
    tensor(0.2500)
    """

    @functools.wraps(step)
    def residual(z: Any, *params: Any) -> Any:
        leaves, spec = trees.flatten(step(z, *params))  # type: ignore[call-arg]
        before, shape = trees.flatten(z)
        alike = spec == shape and all(isinstance(x, Tensor) and x.shape == y.shape for x, y in zip(leaves, before))
        # errors about the structure name the step itself
        return spec.unflatten([x - y for x, y in zip(leaves, before)] if alike else leaves)

    options = _options("fixed_point", linear, symmetric, False, preconditioner, on_failure)
    chosen = _solver("fixed_point", anderson() if solve is None else solve)
    return _solution(step, residual, step, chosen, options, has_aux, tol)


def argmin(
    objective: Callable[P, Any],
    solve: Any = None,
    *,
    has_aux: bool = False,
    linear: Any = None,
    preconditioner: Callable[..., Any] | None = None,
    tol: float | None = None,
    on_failure: str = "raise",
) -> Callable[..., Any]:
    """The point of a minimum, with derivatives that follow from the gradient being zero there.

    Parameters
    ----------
    objective : callable
        ``objective(z, *params)`` returns a real tensor of no dimensions.
    solve : solver, optional
        `newton`, which is the default, or a callable ``solve(objective, z0, *params)`` that returns z, as for `root`.
    has_aux, preconditioner, tol, on_failure
        As for `root`, of the gradient of the objective by z.
    linear : solver, optional
        As for `root`. By default `dense` for up to 512 unknowns and `cg` beyond.

    Returns
    -------
    callable
        ``solution(z0, *params)``

    Raises
    ------
    IndefiniteError
        The Hessian is not positive definite, where `newton` makes a step or a derivative is asked for: `dense` and `cg`
        notice that. Give `newton` a start near the minimum, or use your own minimizer.
    ImplicitError, RuntimeError, TypeError, ValueError
        As for `root`.

    Notes
    -----
    Cost, memory and derivatives are those of `root` with the gradient as the residual.

    Examples
    --------
    >>> import torch
    >>> import torch_func_compat as tfc
    >>> from torch_func_compat.implicit import argmin
    >>> lowest = argmin(lambda z, a: (z.exp() - a * z).sum())
    >>> with tfc.use_fallback("silent"):
    ...     tfc.jacrev(lowest, argnums=1)(torch.zeros(2), torch.tensor([1.0, 2.0]))
    tensor([[1.0000, 0.0000],
            [0.0000, 0.5000]])
    """

    def value(z: Any, *params: Any) -> Any:
        found = objective(z, *params)  # type: ignore[call-arg]
        if not isinstance(found, Tensor) or found.dim() or found.is_complex():
            shape = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
            raise TypeError(f"expected {name_of(objective)} to return a real tensor of no dimensions, got {shape}")
        return found

    @functools.wraps(objective)
    def gradient(z: Any, *params: Any) -> Any:
        return grad(lambda z: value(z, *params))(z)

    options = _options("argmin", linear, True, True, preconditioner, on_failure)
    chosen = _solver("argmin", newton() if solve is None else solve)
    return _solution(functools.wraps(objective)(value), gradient, objective, chosen, options, has_aux, tol, scalar=True)


def _solver(name: str, solve: Any) -> Any:
    solve = solve() if isinstance(solve, type) and issubclass(solve, Iteration) else solve
    if isinstance(solve, anderson) and name != "fixed_point":
        raise TypeError(f"expected a solver of equations for {name}, got anderson, which iterates a step: fixed_point")
    if not callable(solve) and not isinstance(solve, Iteration):
        raise TypeError(
            f"expected a solver or a callable for {name}, got {type(solve)}. The result is called with the first "
            f"guess, as in {name}(f)(guess)"
        )
    return solve


def _options(name: str, linear: Any, symmetric: bool, definite: bool, preconditioner: Any, on_failure: str) -> Options:
    check_mode(on_failure)
    options = Options(
        f"the linear system of {name}",
        ready(linear),
        symmetric=symmetric,
        definite=definite,
        preconditioner=preconditioner,
        on_failure=on_failure,
    )
    check_preconditioner(options)
    return options


def _solution(
    func: Callable[..., Any],
    residual: Callable[..., Any],
    given: Callable[..., Any],
    solve: Any,
    options: Options,
    has_aux: bool,
    tol: float | None,
    scalar: bool = False,
) -> Callable[..., Any]:
    def solution(z0: Any, *params: Any) -> Any:
        layout = Layout(z0, "z0")
        equations = Equations(residual, layout, params, name_of(func))
        value = evaluated_alone(func, z0, *params)
        if not scalar:
            layout.flatten(value, name_of(func))
        found = Solution(equations, solve, given, options, has_aux, tol)
        return found(trees.flatten(z0)[0], equations.arguments.tensors(params))

    return solution
