"""Reductions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .composition import Composition


def _aminmax(input: Tensor, *, dim: int | None = None, keepdim: bool = False, out: Any = None) -> Any:
    if out is not None:
        return NotImplemented
    dims = tuple(range(input.dim())) if dim is None else (dim,)
    pair = type(torch.aminmax(torch.zeros(1, device="cpu")))  # torch 1.10 has no torch.return_types
    return pair((input.amin(dims, keepdim), input.amax(dims, keepdim)))  # type: ignore[call-arg,unused-ignore]


def _segment_reduce(
    data: Tensor,
    reduce: str,
    *,
    lengths: Tensor | None = None,
    indices: Tensor | None = None,
    offsets: Tensor | None = None,
    axis: int = 0,
    unsafe: bool = False,
    initial: Any = None,
    out: Any = None,
) -> Any:
    if offsets is not None:
        lengths = offsets.narrow(-1, 1, offsets.size(-1) - 1) - offsets.narrow(-1, 0, offsets.size(-1) - 1)
    known = reduce in ("sum", "mean") and axis == 0 and indices is None and initial is None and out is None
    if not known or lengths is None or lengths.dim() != 1:
        return NotImplemented
    segments = torch.arange(lengths.size(0), device=data.device).repeat_interleave(lengths)
    output = data.new_zeros((lengths.size(0), *data.shape[1:])).index_add(0, segments, data)
    # the mean of nothing is not a number, as in torch's kernel
    return output if reduce == "sum" else output / lengths.to(data.dtype).reshape(-1, *[1] * (data.dim() - 1))


def _logcumsumexp(input: Tensor, dim: Any, *, out: Any = None) -> Any:
    """By sums over twice as many elements in each step (Hillis and Steele, https://doi.org/10.1145/7902.7903)."""
    if out is not None or not isinstance(dim, int) or not input.is_floating_point():
        return NotImplemented
    if input.dim() == 0:
        return input.clone()
    sums, reach = input.clone(), 1
    size = input.size(dim)
    while reach < size:
        both = torch.stack([sums.narrow(dim, reach, size - reach), sums.narrow(dim, 0, size - reach)])
        sums = torch.cat([sums.narrow(dim, 0, reach), both.logsumexp(0)], dim)
        reach *= 2
    return sums


ROWS: tuple[Composition, ...] = (
    Composition(
        ("aminmax", "Tensor.aminmax", "ops.aten.aminmax"),
        ("NotImplemented",),
        1,
        _aminmax,
        "it has no derivative (measured on torch 1.11 to 2.6)",
        (2, 13),
    ),
    Composition(
        ("segment_reduce", "ops.aten.segment_reduce"),
        ("SegmentReduce",),
        2,
        _segment_reduce,
        "its backward has no derivative (measured on torch 1.11 to 2.15)",
    ),
    Composition(
        ("logcumsumexp", "Tensor.logcumsumexp", "ops.aten.logcumsumexp"),
        ("Logcumsumexp",),
        3,
        _logcumsumexp,
        "its third derivative is not a number (measured on torch 1.8 to 2.15)",
    ),
)
