"""Rules of selections: the same elements of the value, of each column, and of the Laplacian."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import torch
from torch import Tensor

from .carried import Carried, Refused, Run, make
from .parts import columns, constant, is_carried, lift, lifted, negative, plain, trailing, zero_or
from .registry import rule


@rule("Tensor.__getitem__")
def getitem(run: Run, func: Any, x: Any, index: Any) -> Any:
    chosen = plain(index)
    if not isinstance(x, Carried):
        return constant(run, x[chosen])
    value = x.value[chosen]
    if not is_carried(x):
        return constant(run, value)
    parts: tuple[Any, ...] = chosen if isinstance(chosen, tuple) else (chosen,)
    jac = columns(x)
    if _scattered(parts):
        # torch moves what such an index selects to the front, where the columns are
        jac = torch.stack([column[chosen] for column in jac])
    else:
        jac = jac[(slice(None), *parts)]
    return make(run, value, jac, None if x.lap is None else x.lap[chosen])


def _scattered(parts: tuple[Any, ...]) -> bool:
    """Whether there are several advanced indices, and others than integers between them."""
    where = [k for k, part in enumerate(parts) if _is_advanced(part)]
    between = parts[where[0] : where[-1]] if where else ()
    return any(not _is_advanced(part) and type(part) is not int for part in between)


def _is_advanced(part: Any) -> bool:
    return not (part is None or part is Ellipsis or isinstance(part, slice) or type(part) is int)


@rule("select")
def select(run: Run, func: Any, input: Any, dim: int, index: int) -> Any:
    where = negative(dim, input.value.dim())
    return trailing(input, lambda x: x.select(where, index))


@rule("narrow")
def narrow(run: Run, func: Any, input: Any, dim: int, start: int, length: int) -> Any:
    where = negative(dim, input.value.dim())
    return trailing(input, lambda x: x.narrow(where, start, length))


@rule("index_select")
def index_select(run: Run, func: Any, input: Any, dim: int, index: Any) -> Any:
    chosen = plain(index)
    if not isinstance(input, Carried):
        return constant(run, input.index_select(dim, chosen))
    where = negative(dim, input.value.dim())
    return trailing(input, lambda x: x.index_select(where, chosen))


@rule("gather")
def gather(run: Run, func: Any, input: Any, dim: int, index: Any) -> Any:
    chosen = plain(index)
    if not isinstance(input, Carried):
        return constant(run, input.gather(dim, chosen))
    where = negative(dim, input.value.dim())
    return gathered(input, where, chosen)


def gathered(x: Any, dim: int, index: Tensor) -> Any:
    """The elements of `x` with an index for each element of the result."""

    def chosen(part: Tensor) -> Tensor:
        front = part.shape[: part.dim() - index.dim()]
        return part.gather(dim, index.expand(*front, *index.shape))

    return trailing(x, chosen)


@rule("index_add")
def index_add(run: Run, func: Any, input: Any, dim: int, index: Any, source: Any, *, alpha: Any = 1) -> Any:
    chosen = plain(index)
    at = negative(dim, plain(input).dim())

    def add(one: Tensor, two: Tensor) -> Tensor:
        return one.index_add(at, chosen, two if alpha == 1 else alpha * two)

    return _added(run, input, source, add)


@rule("scatter_add")
def scatter_add(run: Run, func: Any, input: Any, dim: int, index: Any, src: Any) -> Any:
    chosen = plain(index)
    at = negative(dim, plain(input).dim())

    def add(one: Tensor, two: Tensor) -> Tensor:
        return one.scatter_add(at, chosen.expand(*one.shape[: one.dim() - chosen.dim()], *chosen.shape), two)

    return _added(run, input, src, add)


def _added(run: Run, one: Any, two: Any, add: Any) -> Any:
    """A sum of elements at other places, which is linear in both."""
    left, right = plain(one), plain(two)
    value = add(left, right)
    if not (is_carried(one) or is_carried(two)):
        return constant(run, value)
    jacs = [columns(x) if is_carried(x) else v.new_zeros(run.size, *v.shape) for x, v in ((one, left), (two, right))]
    laps = [zero_or(x.lap if is_carried(x) else None, v) for x, v in ((one, left), (two, right))]
    return make(run, value, add(*jacs), add(*laps))


@rule("where")
def where(run: Run, func: Any, condition: Any, *branches: Any) -> Any:
    if len(branches) != 2:
        raise Refused("where without branches")
    if func is torch.Tensor.where:  # x.where(condition, y)
        branches, condition = (condition, branches[1]), branches[0]
    if is_carried(condition):
        raise Refused("where with a condition that is no comparison")
    return chosen_by(run, plain(condition), *branches)


@rule("masked_fill")
def masked_fill(run: Run, func: Any, input: Any, mask: Any, value: Any) -> Any:
    return chosen_by(run, plain(mask), value, input)


def chosen_by(run: Run, condition: Tensor, one: Any, two: Any) -> Any:
    """Elements of `one` where the condition holds, else of `two`."""
    first, second = _tensor(one, two), _tensor(two, one)
    value = torch.where(condition, first, second)
    if not (is_carried(one) or is_carried(two)):
        return constant(run, value)
    mask = lift(condition, value.dim())
    jacs = [lifted(x.jac, value.dim()).to(value.dtype) if is_carried(x) else value.new_zeros(()) for x in (one, two)]
    jac = torch.where(mask, jacs[0], jacs[1])
    laps = [x.lap if is_carried(x) else None for x in (one, two)]
    lap = None
    if any(part is not None for part in laps):
        one, two = (zero_or(part, like).to(value.dtype) for part, like in zip(laps, (first, second)))
        lap = torch.where(condition, one, two)
    return make(run, value, jac, lap)


def _tensor(x: Any, other: Any) -> Tensor:
    """A branch as a tensor; numbers have the dtype of the other one."""
    x, other = plain(x), plain(other)
    if isinstance(x, Tensor):
        if isinstance(other, Tensor) and x.dtype != other.dtype:
            return x.to(torch.promote_types(x.dtype, other.dtype))
        return x
    if not isinstance(other, Tensor):
        raise Refused("where between two numbers")
    return torch.tensor(x, dtype=other.dtype, device=other.device)


_Extremes = namedtuple("_Extremes", ["values", "indices"])


@rule("max min")
def extremum(run: Run, func: Any, input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    if isinstance(dim, Tensor):  # of two tensors
        from .elementwise import elementwise

        return elementwise(run, func, input, dim)
    if not isinstance(dim, int):
        raise Refused(f"there is no rule for {func.__name__} over all elements")
    return _by_index(run, func(input.value, dim, keepdim=True), input, dim, keepdim)


@rule("sort")
def sort(run: Run, func: Any, input: Any, dim: int = -1, descending: bool = False) -> Any:
    return _by_index(run, torch.sort(input.value, dim, descending), input, dim, True)


@rule("topk")
def topk(run: Run, func: Any, input: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    found = torch.topk(input.value, k, dim, largest, sorted)
    return _by_index(run, found, input, dim, True)


def _by_index(run: Run, found: Any, x: Any, dim: int, keepdim: bool) -> Any:
    where = negative(dim, x.value.dim())
    values = gathered(x, where, found[1])
    indices = constant(run, found[1])
    if not keepdim:
        values, indices = values.squeeze(where), indices.squeeze(where)
    return _Extremes(values, indices)
