"""Operators for scipy: its eigensolvers and linear solvers."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor


def to_scipy(operator: Any) -> Any:
    """See `LinearOperator.to_scipy`."""
    import numpy
    from scipy.sparse.linalg import LinearOperator  # type: ignore[import-untyped,unused-ignore]

    def product(matrix: Any) -> Callable[[Any], Any]:
        def multiply(array: Any) -> Any:
            operand = torch.as_tensor(numpy.ascontiguousarray(array), dtype=matrix.dtype, device=matrix.device)
            with torch.no_grad():
                return (matrix @ operand).detach().cpu().numpy()

        return multiply

    # scipy gives vectors as columns of a matrix, too
    forward, backward = product(operator), product(operator.T)
    dtype = torch.zeros(0, dtype=operator.dtype, device="cpu").numpy().dtype
    return LinearOperator(
        tuple(operator.shape), matvec=forward, rmatvec=backward, matmat=forward, rmatmat=backward, dtype=dtype
    )


def lobpcg(
    A: Any,
    k: int | None = None,
    B: Any = None,
    X: Tensor | None = None,
    n: int | None = None,
    iK: Any = None,
    niter: int | None = None,
    tol: float | None = None,
    largest: bool | None = None,
    **other: Any,
) -> tuple[Tensor, Tensor]:
    """``torch.lobpcg`` of an operator: by scipy, since torch's own takes tensors only."""
    from scipy.sparse.linalg import lobpcg as solve

    asked = [name for name, value in other.items() if value is not None]
    if asked:
        raise TypeError(
            f"lobpcg: {', '.join(asked)} of torch.lobpcg is for tensors; an operator goes to scipy's lobpcg"
        )

    def as_array(matrix: Any) -> Any:
        return matrix.detach().cpu().numpy() if isinstance(matrix, Tensor) else matrix and to_scipy(matrix)

    if X is None:
        X = torch.randn(A.shape[0], n or k or 1, dtype=A.dtype, device=A.device)
    values, vectors = solve(
        to_scipy(A),
        as_array(X),
        B=as_array(B),
        M=as_array(iK),
        tol=tol,
        maxiter=niter if niter is not None and niter > 0 else 1000,
        largest=largest is not False,
    )
    count = k or X.shape[1]
    values, vectors = (torch.as_tensor(x.copy(), device=A.device) for x in (values[:count], vectors[:, :count]))
    return values, vectors
