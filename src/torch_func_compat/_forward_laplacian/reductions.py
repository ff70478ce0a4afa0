"""Rules of sums over dimensions, and of norms."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from .carried import Refused, Run, make
from .parts import columns, constant, is_carried, negative, trailing
from .registry import rule


def dimensions(dim: Any, ndim: int) -> list[int]:
    """The dimensions that are meant, counted from the end."""
    if dim is None or (isinstance(dim, (tuple, list)) and not dim):
        return list(range(-ndim, 0))
    return [negative(d, ndim) for d in ([dim] if isinstance(dim, int) else dim)]


def _reduced(x: Any, func: Callable[..., Tensor], dim: Any, keepdim: bool, dtype: Any) -> Any:
    if dtype is not None:
        x = x.to(dtype)
    where = dimensions(dim, x.value.dim())
    return trailing(x, lambda part: func(part, where, keepdim=keepdim)) if where else x


@rule("sum")
def sum_(run: Run, func: Any, input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return _reduced(input, torch.sum, dim, keepdim, dtype)


@rule("mean")
def mean(run: Run, func: Any, input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return _reduced(input, torch.mean, dim, keepdim, dtype)


@rule("cumsum")
def cumsum(run: Run, func: Any, input: Any, dim: int, *, dtype: Any = None) -> Any:
    x = input if dtype is None else input.to(dtype)
    where = negative(dim, x.value.dim())
    return trailing(x, lambda part: part.cumsum(where))


@rule("trace")
def trace(run: Run, func: Any, input: Any) -> Any:
    return input.diagonal(0, -2, -1).sum(-1)


@rule("prod")
def prod(run: Run, func: Any, input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    x = input if dtype is None else input.to(dtype)
    if dim is None:
        x, dim = x.reshape(-1), 0
    found = None
    for factor in x.unbind(dim):
        found = factor if found is None else found * factor
    if found is None:
        raise Refused("prod of no factors")
    return found.unsqueeze(dim) if keepdim else found


def _deviation(dim: Any, unbiased: Any, keepdim: bool, correction: Any) -> tuple[Any, bool, float]:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if unbiased is not None and correction is not None:
        raise Refused("both unbiased and correction")
    return dim, keepdim, (1 if unbiased in (None, True) else 0) if correction is None else correction


@rule("var")
def var(
    run: Run,
    func: Any,
    input: Any,
    dim: Any = None,
    unbiased: Any = None,
    keepdim: bool = False,
    *,
    correction: Any = None,
) -> Any:
    dim, keepdim, lost = _deviation(dim, unbiased, keepdim, correction)
    where = dimensions(dim, input.value.dim())
    count = 1
    for d in where:
        count *= input.value.shape[d]
    centred = input - input.mean(where, keepdim=True)
    return (centred * centred).sum(where, keepdim=keepdim) / (count - lost)


@rule("std")
def std(run: Run, func: Any, *args: Any, **kwargs: Any) -> Any:
    return var(run, func, *args, **kwargs).sqrt()


@rule("torch.norm Tensor.norm")
def norm(
    run: Run, func: Any, input: Any, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Any:
    if p not in ("fro", 2, None) or dtype is not None:
        raise Refused(f"there is no rule for norms with p={p!r} or dtype=")
    return euclidean(run, input, dim, keepdim)


@rule("linalg.norm linalg.vector_norm")
def vector_norm(
    run: Run, func: Any, x: Any, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    vectors = func is getattr(torch.linalg, "vector_norm", None) or isinstance(dim, int) or x.dim() == 1
    if dtype is not None or not (ord is None or (ord == "fro" and not vectors) or (ord == 2 and vectors)):
        raise Refused(f"there is no rule for norms with ord={ord!r} or dtype=")
    return euclidean(run, x, dim, keepdim)


def euclidean(run: Run, x: Any, dim: Any, keepdim: bool) -> Any:
    """The Euclidean norm; its derivatives at zero are zero, as torch has them."""
    where = dimensions(dim, x.value.dim())
    if x.value.is_complex():
        raise Refused("norm of complex numbers")
    if not where:
        return x.abs()
    # of the value by its largest element, whose square may leave the range of its dtype
    scale = x.value.detach().abs().amax(where, keepdim=True)
    zero = scale == 0
    scale = scale.masked_fill(zero | (scale - scale != 0), 1.0)  # infinities
    scaled = x.value / scale
    value = scale * (scaled * scaled).sum(where, keepdim=True).masked_fill(zero, 1.0).sqrt()
    direction = (x.value / value).masked_fill(zero, 0.0)
    norm = value.masked_fill(zero, 0.0)
    if is_carried(x):
        jac = (direction * columns(x)).sum(where, keepdim=True)
        each = (1 / value).expand_as(x.value)
        lap = run.pairs(columns(x), columns(x), each).sum(where, keepdim=True) - run.pairs(jac, jac, 1 / value)
        if x.lap is not None:
            lap = lap + (direction * x.lap).sum(where, keepdim=True)
        found = make(run, norm, jac, lap.masked_fill(zero, 0.0))
    else:
        found = constant(run, norm)
    if keepdim:
        return found
    shape = [size for d, size in zip(range(-x.value.dim(), 0), norm.shape) if d not in where]
    return found.reshape(shape)


@rule("cdist")
def cdist(run: Run, func: Any, x1: Any, x2: Any, p: float = 2.0, compute_mode: Any = None) -> Any:
    if p != 2:
        raise Refused(f"cdist with p={p}")
    return (x1.unsqueeze(-2) - x2.unsqueeze(-3)).norm(dim=-1)
