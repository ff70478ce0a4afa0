"""Rules of determinants and inverses.

With X_k = A^-1 J_k, log|det A| has the derivatives tr X_k and the Laplacian tr A^-1 L - sum_k tr X_k X_k (Jacobi's
formula and its derivative).
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import torch
from torch import Tensor

from .carried import Refused, RefusedNow, Run, make
from .parts import columns, constant, is_carried
from .registry import rule

_slogdet = namedtuple("_slogdet", ["sign", "logabsdet"])


def _inverse(x: Tensor) -> Tensor:
    return _solved(x, torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand_as(x))


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """The inverse of the matrix times the right side, by a solver, which is more exact than the inverse itself."""
    try:
        found: Tensor = torch.linalg.solve(matrix, right)
    except RuntimeError as error:  # singular
        raise Refused(f"the inverse of a matrix ({error})") from error
    return found


def _products(matrix: Tensor, jac: Tensor) -> Tensor:
    """The inverse of the matrix times each column of a Jacobian, from one decomposition."""
    size, n = jac.shape[0], matrix.shape[-1]
    side_by_side = jac.movedim(0, -2).reshape(*matrix.shape[:-1], size * n)
    return _solved(matrix, side_by_side).reshape(*matrix.shape[:-1], size, n).movedim(-2, 0)


def _trace(x: Tensor) -> Tensor:
    return x.diagonal(0, -2, -1).sum(-1)


def _logarithm(run: Run, x: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The first derivatives of log|det x|, its Laplacian, and the sum of the squares of the former."""
    products = _products(x.value, columns(x))
    jac = _trace(products)
    weighted = run.weighted(products)
    lap = -torch.einsum("k...ij,k...ji->...", weighted, products)
    if x.lap is not None:
        lap = lap + _trace(_solved(x.value, x.lap))
    return jac, lap, run.pairs(jac, jac)


@rule("slogdet linalg.slogdet")
def slogdet(run: Run, func: Any, input: Any) -> Any:
    sign, value = torch.slogdet(input.value)
    if input.value.is_complex():
        raise Refused("slogdet of complex matrices")
    if not is_carried(input):
        return _slogdet(constant(run, sign), constant(run, value))
    jac, lap, _ = _logarithm(run, input)
    return _slogdet(constant(run, sign), make(run, value, jac, lap))


@rule("logdet")
def logdet(run: Run, func: Any, input: Any) -> Any:
    value = torch.logdet(input.value)
    if not is_carried(input):
        return constant(run, value)
    jac, lap, _ = _logarithm(run, input)
    return make(run, value, jac, lap)


@rule("det linalg.det")
def det(run: Run, func: Any, input: Any) -> Any:
    value = torch.det(input.value)
    if not is_carried(input):
        return constant(run, value)
    largest = input.value.norm(dim=-1).prod(-1)  # by Hadamard
    if bool((value.abs() <= torch.finfo(value.dtype).eps ** 0.5 * largest).any()):
        raise RefusedNow("det of a matrix that is nearly singular")
    jac, lap, squares = _logarithm(run, input)
    return make(run, value, value * jac, value * (lap + squares))


@rule("inverse linalg.inv")
def inverse(run: Run, func: Any, input: Any) -> Any:
    value = _inverse(input.value)
    if not is_carried(input):
        return constant(run, value)
    products = value @ columns(input)
    jac = -(products @ value)
    lap = -2 * torch.einsum("k...ij,k...jl->...il", run.weighted(products), jac)
    if input.lap is not None:
        lap = lap - value @ input.lap @ value
    return make(run, value, jac, lap)


@rule("linalg.solve")
def solve(run: Run, func: Any, A: Any, B: Any) -> Any:
    if A.dim() != B.dim() or A.dim() < 2:
        raise Refused("solve with a vector, or with another number of dimensions")
    matrix = A if is_carried(A) else None
    if matrix is None:
        return torch.inverse(A) @ B
    return inverse(run, torch.inverse, A) @ B
