"""Rules of operations that move elements: shapes, orders, concatenations, conversions."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from .carried import Carried, Refused, Run, make
from .parts import columns, constant, is_carried, lifted, negative, plain, reshaped, several, trailing, zero_or
from .registry import rule


@rule(
    "reshape flatten ravel Tensor.view Tensor.view_as Tensor.reshape_as unflatten squeeze unsqueeze Tensor.contiguous "
    "clone"
)
def reshape(run: Run, func: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
    if any(isinstance(arg, torch.dtype) for arg in (*args, *kwargs.values())):
        raise Refused("view() as another dtype")
    return reshaped(input, func(input.value, *plain(args), **plain(kwargs)))


@rule("transpose swapaxes swapdims")
def transpose(run: Run, func: Any, input: Any, dim0: int, dim1: int) -> Any:
    one, two = negative(dim0, input.value.dim()), negative(dim1, input.value.dim())
    return trailing(input, lambda x: x.transpose(one, two), True)


@rule("t .T .mT .mH .H")
def transposed(run: Run, func: Any, input: Any, *owner: Any) -> Any:
    dims = input.value.dim()
    name = func.__self__.__name__ if getattr(func, "__name__", "") == "__get__" else "t"
    if (name in ("T", "t") and dims != 2) or (name in ("mH", "H") and input.value.is_complex()):
        raise Refused(f"{name} of a tensor of {dims} dimensions")
    return trailing(input, lambda x: x.transpose(-2, -1), True)


def _sizes(sizes: Sequence[Any]) -> tuple[int, ...]:
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else tuple(sizes)


def _permuted(x: Any, order: Sequence[int]) -> Any:
    dims = x.value.dim()
    order = [dim % dims for dim in order]
    if not is_carried(x):
        return constant(x.run, x.value.permute(*order))
    jac = x.jac.permute(0, *[dim + 1 for dim in order])
    return make(x.run, x.value.permute(*order), jac, None if x.lap is None else x.lap.permute(*order))


@rule("permute")
def permute(run: Run, func: Any, input: Any, *dims: Any) -> Any:
    return _permuted(input, _sizes(dims))


@rule("movedim moveaxis")
def movedim(run: Run, func: Any, input: Any, source: Any, destination: Any) -> Any:
    if not (isinstance(source, int) and isinstance(destination, int)):
        raise Refused("movedim of several dimensions")
    dims = input.value.dim()
    order = list(range(dims))
    order.insert(destination % dims, order.pop(source % dims))
    return _permuted(input, order)


@rule("Tensor.expand broadcast_to Tensor.expand_as")
def expand(run: Run, func: Any, input: Any, *sizes: Any, **kwargs: Any) -> Any:
    value = func(input.value, *plain(sizes), **kwargs)
    if not is_carried(input):
        return constant(run, value)
    # a Jacobian may be the same along dimensions
    return make(run, value, lifted(input.jac, value.dim()), None if input.lap is None else input.lap.expand_as(value))


@rule("Tensor.repeat")
def repeat(run: Run, func: Any, input: Any, *sizes: Any) -> Any:
    times = _sizes(sizes)
    value = input.value.repeat(*times)
    if not is_carried(input):
        return constant(run, value)
    jac = lifted(columns(input), len(times)).repeat(1, *times)
    return make(run, value, jac, None if input.lap is None else input.lap.repeat(*times))


@rule("repeat_interleave")
def repeat_interleave(run: Run, func: Any, input: Any, repeats: int, dim: Any = None) -> Any:
    if not isinstance(repeats, int) or dim is None:
        raise Refused("repeat_interleave without dim= or with repeats= of each element")
    where = negative(dim, input.value.dim())
    return trailing(input, lambda x: x.repeat_interleave(repeats, where))


@rule("flip Tensor.flip")
def flip(run: Run, func: Any, input: Any, *dims: Any, **kwargs: Any) -> Any:
    where = [negative(dim, input.value.dim()) for dim in _sizes(kwargs.pop("dims", dims))]
    if kwargs:
        raise Refused(f"unexpected {sorted(kwargs)}")
    return trailing(input, lambda x: x.flip(where))


@rule("roll")
def roll(run: Run, func: Any, input: Any, shifts: Any, dims: Any = None) -> Any:
    if dims is None:
        raise Refused("roll without dims=")
    if isinstance(dims, int):
        dims = (dims,)
    where = [negative(dim, input.value.dim()) for dim in dims]
    return trailing(input, lambda x: x.roll(shifts, where))


@rule("tril triu")
def triangle(run: Run, func: Any, input: Any, diagonal: int = 0) -> Any:
    return trailing(input, lambda x: func(x, diagonal))


@rule("diagonal")
def diagonal(run: Run, func: Any, input: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    one, two = negative(dim1, input.value.dim()), negative(dim2, input.value.dim())
    return trailing(input, lambda x: x.diagonal(offset, one, two))


@rule("diag_embed")
def diag_embed(run: Run, func: Any, input: Any, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Any:
    one, two = negative(dim1, input.value.dim() + 1), negative(dim2, input.value.dim() + 1)
    return trailing(input, lambda x: torch.diag_embed(x, offset, one, two))


@rule("F.pad")
def pad(run: Run, func: Any, input: Any, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    if mode != "constant" or isinstance(value, Tensor):
        raise Refused(f"pad with mode={mode!r}")
    outside = 0.0 if value is None else value
    if not is_carried(input):
        return constant(run, func(input.value, pad, mode, outside))
    lap = None if input.lap is None else func(input.lap, pad)
    return make(run, func(input.value, pad, mode, outside), func(columns(input), pad), lap)


@rule("cat concat concatenate")
def cat(run: Run, func: Any, tensors: Any, dim: int = 0) -> Any:
    values = plain(list(tensors))
    if len({value.dim() for value in values}) != 1:
        raise Refused("cat of tensors with different numbers of dimensions")
    value = torch.cat(values, dim)
    if not any(is_carried(x) for x in tensors):
        return constant(run, value)
    where = negative(dim, value.dim())
    jacs = [
        columns(x) if is_carried(x) else v.new_zeros((1, *v.shape)).expand(run.size, *v.shape)
        for x, v in zip(tensors, values)
    ]
    laps = [x.lap if is_carried(x) else None for x in tensors]
    lap = None
    if any(part is not None for part in laps):
        lap = torch.cat([zero_or(part, v) for part, v in zip(laps, values)], where)
    jac = torch.cat([jac.to(value.dtype) for jac in jacs], where)
    return make(run, value, jac, None if lap is None else lap.to(value.dtype))


@rule("hstack")
def hstack(run: Run, func: Any, tensors: Any) -> Any:
    return torch_cat(run, tensors, 0 if plain(tensors[0]).dim() == 1 else 1)


@rule("vstack")
def vstack(run: Run, func: Any, tensors: Any) -> Any:
    return torch_cat(run, [_unsqueezed(run, x, 0) if plain(x).dim() == 1 else x for x in tensors], 0)


@rule("diff")
def diff(run: Run, func: Any, input: Any, n: int = 1, dim: int = -1) -> Any:
    found = input
    for _ in range(n):
        size = found.shape[dim]
        found = found.narrow(dim, 1, size - 1) - found.narrow(dim, 0, size - 1)
    return found


@rule("stack")
def stack(run: Run, func: Any, tensors: Any, dim: int = 0) -> Any:
    where = negative(dim, plain(tensors[0]).dim() + 1)
    return torch_cat(run, [_unsqueezed(run, x, where) for x in tensors], where)


def _unsqueezed(run: Run, x: Any, dim: int) -> Any:
    return reshaped(x, x.value.unsqueeze(dim)) if isinstance(x, Carried) else x.unsqueeze(dim)


def torch_cat(run: Run, tensors: Any, dim: int) -> Any:
    """`cat` for other rules."""
    return cat(run, torch.cat, tensors, dim)


@rule("unbind")
def unbind(run: Run, func: Any, input: Any, dim: int = 0) -> Any:
    where = negative(dim, input.value.dim())
    return several(input, lambda x: x.unbind(where))


@rule("split Tensor.split_with_sizes torch.split_with_sizes")
def split(run: Run, func: Any, tensor: Any, split_size: Any, dim: int = 0) -> Any:
    where = negative(dim, tensor.value.dim())
    return several(tensor, lambda x: x.split(split_size, where))


@rule("Tensor.__iter__")
def iterate(run: Run, func: Any, input: Any) -> Any:
    return iter(unbind(run, func, input))


@rule("chunk")
def chunk(run: Run, func: Any, input: Any, chunks: int, dim: int = 0) -> Any:
    where = negative(dim, input.value.dim())
    return several(input, lambda x: x.chunk(chunks, where))


@rule(
    "Tensor.to Tensor.type Tensor.float Tensor.double Tensor.half Tensor.bfloat16 Tensor.type_as Tensor.cpu Tensor.cuda"
)
def convert(run: Run, func: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(input, Carried):
        return func(input, *plain(args), **plain(kwargs))  # to the dtype of a carried one
    value = func(input.value, *plain(args), **plain(kwargs))
    if not isinstance(value, Tensor):
        return value  # the name of its type
    if not is_carried(input) or not (value.is_floating_point() or value.is_complex()):
        return constant(run, value)
    if input.value.is_complex() and not value.is_complex():
        raise Refused("a complex tensor made real by a conversion")
    jac, lap = (None if x is None else x.to(device=value.device, dtype=value.dtype) for x in (input.jac, input.lap))
    return make(run, value, jac, lap)


@rule("torch.view_as_real torch.view_as_complex .real .imag torch.real torch.imag conj")
def parts_of_complex(run: Run, func: Any, input: Any, *owner: Any) -> Any:
    name = func.__self__.__name__ if getattr(func, "__name__", "") == "__get__" else func.__name__

    def part(x: Tensor) -> Tensor:
        if name in ("real", "imag"):
            return torch.view_as_real(x)[..., 0 if name == "real" else 1] if x.is_complex() else x
        if name == "conj":
            return x.conj()
        return func(x.contiguous())  # type: ignore[no-any-return]

    if name == "imag" and not input.value.is_complex():
        raise Refused("imag of a real tensor")
    return trailing(input, part)
