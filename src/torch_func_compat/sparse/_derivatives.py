"""Sparse Jacobians and Hessians."""

from __future__ import annotations

import functools
from typing import Any, Callable

import torch
from torch import Tensor

from ..autograd import get_backend, grad, jacrev
from ..autograd.internals import P
from ._checking import outside, verify
from ._coloring import MODES, Coloring, coloring
from ._layouts import assemble, check_layout
from ._patterns import Pattern, as_pattern
from ._plan import Plan
from ._products import Options, by_columns, by_rows

__all__ = ["sparse_hessian", "sparse_jacobian"]


def sparse_jacobian(
    func: Callable[P, Any],
    pattern: Any,
    argnums: int = 0,
    *,
    mode: str = "auto",
    layout: str = "coo",
    has_aux: bool = False,
    check: bool | str = True,
    chunk_size: int | str | None = None,
    memory: int | str | None = None,
    progress: bool = False,
) -> Callable[P, Any]:
    """Jacobian with mostly zero entries, by one product for all columns (or rows) that do not overlap.

    Parameters
    ----------
    func : callable
        Returns a real tensor of any shape, or ``(output, aux)`` with `has_aux`.
    pattern : Pattern, Coloring, Tensor or pair of Tensors
        Where the Jacobian has entries, as a matrix of all elements of the output by all elements of the argument. See
        `coloring`, whose result is taken as well and saves its time.
    argnums : int
        The positional argument to differentiate, a tensor of any shape.
    mode : {'auto', 'forward', 'reverse'}
        'forward' multiplies groups of columns by forward mode, 'reverse' groups of rows by reverse mode; 'auto' is the
        one with fewer products, where a product in forward mode counts 1.5 times (3 times on the autograd backend).
    layout : {'coo', 'csr', 'dense', 'values'}
        The form of the result; 'values' are the values of the entries in the order of the pattern, for
        `Pattern.to_scipy`, for solvers, and for `vmap`.
    has_aux : bool
        Whether `func` returns tensors beside its output that are not differentiated.
    check : bool or 'always'
        In the first call for arguments of new shapes, take one more product, with a random vector, and raise where the
        result disagrees: an entry outside of the pattern would be added to others. 'always' does so in every call, for
        couplings that change with the argument, such as those within a cut-off.
    chunk_size, memory, progress
        Products at a time; see `jacrev`.

    Returns
    -------
    callable
        Returns a matrix of shape ``(output.numel(), argument.numel())``, in one of the layouts (COO tensors are
        coalesced outside of transforms); and aux. Differentiable, except for CSR tensors in transforms, and on
        versions of torch without a derivative of them, such as 2.0 and older: these raise.

    Raises
    ------
    TypeError
        No pattern, no tensor to differentiate, or no tensor as output.
    ValueError
        The pattern has another shape than the Jacobian; there is no such mode or layout; or `chunk_size` is not
        positive.
    RuntimeError
        There are entries outside the pattern, which the message names; CSR where torch has none, or none with a
        derivative.

    See Also
    --------
    coloring, detect_pattern, sparse_hessian

    Notes
    -----
    Cost: one forward pass, and one backward pass or one in forward mode for each color, batched `chunk_size` at a
    time. For a banded matrix that is the number of its bands. The first call also pays for the coloring.

    Source: A. R. Curtis, M. J. D. Powell, J. K. Reid, IMA J. Appl. Math. 13, 117 (1974).

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.sparse import sparse_jacobian
    >>> bidiagonal = torch.ones(4, 5).triu().tril(1) > 0
    >>> jacobian = sparse_jacobian(lambda x: x[1:] * x[:-1], bidiagonal)
    >>> jacobian(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).to_dense()
    tensor([[2., 1., 0., 0., 0.],
            [0., 3., 2., 0., 0.],
            [0., 0., 4., 3., 0.],
            [0., 0., 0., 5., 4.]])
    """
    if mode not in MODES[:3]:
        raise ValueError(f"sparse_jacobian: unknown mode {mode!r}, expected one of 'auto', 'forward', 'reverse'")
    options = Options(argnums, has_aux, dict(chunk_size=chunk_size, memory=memory, progress=progress))
    return _sparse("sparse_jacobian", func, func, pattern, mode, layout, check, options)


def sparse_hessian(
    func: Callable[P, Any],
    pattern: Any,
    argnums: int = 0,
    *,
    layout: str = "coo",
    has_aux: bool = False,
    check: bool | str = True,
    chunk_size: int | str | None = None,
    memory: int | str | None = None,
    progress: bool = False,
) -> Callable[P, Any]:
    """Hessian with mostly zero entries, by one product for each color of a star coloring.

    Parameters
    ----------
    func : callable
        Returns a tensor of no dimensions, or ``(that, aux)`` with `has_aux`.
    pattern : Pattern, Coloring, Tensor or pair of Tensors
        Where the Hessian has entries, symmetric; see `neighbor_pattern` for that of atoms. A coloring is one of
        ``coloring(pattern, 'symmetric')``.
    argnums, layout, has_aux, check, chunk_size, memory, progress
        See `sparse_jacobian`.

    Returns
    -------
    callable
        Returns a matrix of shape ``(argument.numel(), argument.numel())``, symmetric to the last digit; and aux.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As for `sparse_jacobian`; and for a pattern that is not symmetric.

    Notes
    -----
    Cost: one evaluation of the gradient, and one backward pass through it for each color. A chain of atoms takes 15
    colors, however long it is.

    Source: T. F. Coleman, J. J. Moré, Math. Program. 28, 243 (1984); see `coloring`.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.sparse import neighbor_pattern, sparse_hessian
    >>> pattern = neighbor_pattern(torch.tensor([0, 1]), torch.tensor([1, 2]), 3, block_size=1)
    >>> springs = lambda x: (x[1:] - x[:-1]).pow(2).sum()
    >>> sparse_hessian(springs, pattern)(torch.zeros(3)).to_dense()
    tensor([[ 2., -2.,  0.],
            [-2.,  4., -2.],
            [ 0., -2.,  2.]])
    """
    options = Options(argnums, has_aux, dict(chunk_size=chunk_size, memory=memory, progress=progress))
    gradient = grad(func, argnums, has_aux)
    return _sparse("sparse_hessian", func, gradient, pattern, "symmetric", layout, check, options)


def _sparse(
    api: str,
    func: Callable[..., Any],
    differentiated: Callable[..., Any],
    pattern: Any,
    mode: str,
    layout: str,
    check: bool | str,
    options: Options,
) -> Callable[..., Any]:
    check_layout(api, layout)
    if not (isinstance(check, bool) or check == "always"):
        raise ValueError(f"{api}: expected check= to be True, False or 'always', got {check!r}")
    jacrev(func, **options.chunks)  # for its errors, which are due now
    plans = _Plans(api, pattern, mode)
    checked: set[Any] = set()

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        x = options.chosen(api, args)
        colored = plans.coloring()
        forward = colored.mode == "forward"
        key = (x.shape, x.dtype, x.device)
        asked = check == "always" or (bool(check) and key not in checked)

        size, precision = [-1, -1], [0.0]

        def seeds(rows: int, columns: int, like: Tensor) -> Tensor:
            size[:] = rows, columns
            precision[:] = [torch.finfo(like.dtype).eps]
            return plans.plan(colored, rows, columns).seeds(like, asked)

        products, aux = (by_columns if forward else by_rows)(api, differentiated, options, args, kwargs, seeds)
        plan = plans.plan(colored, products.shape[1] if forward else size[0], size[1])
        values = plan.values(products)
        if asked:
            other = functools.partial(by_rows if forward else by_columns, api, differentiated, options, args, kwargs)
            least = max(*precision, torch.finfo(values.dtype).eps)
            verify(api, plan, values, products[-1], least, functools.partial(outside, plan, other))
            checked.add(key)
        result = assemble(plan.pattern, values, layout, api)
        return (result, aux) if options.has_aux else result

    return wrapped


class _Plans:
    """The coloring of a pattern, made when it is first needed, and a plan for each size of the matrix."""

    def __init__(self, api: str, pattern: Any, mode: str) -> None:
        self.api, self.mode = api, mode
        self._made: dict[str, Coloring] = {}
        self._plans: dict[Any, Plan] = {}
        self._given = pattern if isinstance(pattern, Coloring) else None
        if self._given is not None:
            allowed = ("symmetric",) if mode == "symmetric" else ("forward", "reverse") if mode == "auto" else (mode,)
            if self._given.mode not in allowed:
                raise ValueError(
                    f"{api}: the coloring was made with mode {self._given.mode!r}, expected {' or '.join(allowed)}"
                )
        self._pattern: Pattern = self._given.pattern if self._given is not None else as_pattern(pattern)
        if mode == "symmetric" and not self._given:
            lonely = self._pattern.missing_transposes()
            if lonely:
                coloring(self._pattern, "symmetric")  # raises

    def coloring(self) -> Coloring:
        """The coloring for the backend in use."""
        if self._given is not None:
            return self._given
        backend = get_backend() if self.mode == "auto" else ""
        if backend not in self._made:
            self._made[backend] = coloring(self._pattern, self.mode)
        return self._made[backend]

    def plan(self, colored: Coloring, rows: int, columns: int) -> Plan:
        """How to multiply, for a matrix of this size; -1 is as many rows as the pattern has."""
        rows = colored.pattern.shape[0] if rows < 0 else rows
        key = (colored.mode, rows, columns)
        if key not in self._plans:
            self._plans[key] = Plan(colored, colored.pattern.sized(rows, columns))
        return self._plans[key]
