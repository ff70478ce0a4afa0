"""Sums, means and maxima of bags of embeddings."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..._torch import facts
from .composition import Composition


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    if max_norm is not None or scale_grad_by_freq or sparse or getattr(input, "is_nested", False):
        return NotImplemented
    if not weight.dtype.is_floating_point and input.is_floating_point():  # the deprecated order of the arguments
        input, weight = weight, input
    if input.dim() == 2:
        indices, scales = input, per_sample_weights
        is_member = torch.ones_like(indices, dtype=torch.bool)
    else:
        assert offsets is not None
        places, is_member = _places(offsets, input.numel(), include_last_offset)
        indices = input.take(places)
        scales = None if per_sample_weights is None else per_sample_weights.take(places)
    if padding_idx is not None:
        is_member = is_member & (indices != padding_idx % weight.size(0))
    rows = weight.index_select(0, indices.reshape(-1)).reshape(*indices.shape, weight.size(1))
    if mode == "max":
        return _largest(rows, is_member)
    rows = rows.masked_fill(~is_member.unsqueeze(2), 0.0)
    total = (rows if scales is None else rows * scales.unsqueeze(2)).sum(1)
    return total if mode == "sum" else total / is_member.sum(1).clamp(min=1).unsqueeze(1)


def _embedding_bag_of_operator(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    if not facts.has("torch_function_modes"):  # the operation would be composed again
        return NotImplemented
    output = _embedding_bag(
        indices,
        weight,
        offsets,
        scale_grad_by_freq=scale_grad_by_freq,
        mode=("sum", "mean", "max")[mode],
        sparse=sparse,
        per_sample_weights=per_sample_weights,
        include_last_offset=include_last_offset,
        padding_idx=padding_idx,
    )
    if output is NotImplemented:
        return NotImplemented
    scales = None if per_sample_weights is None else per_sample_weights.detach()
    options = (scale_grad_by_freq, mode, sparse, scales, include_last_offset, padding_idx)
    return (output, *torch.embedding_bag(weight.detach(), indices, offsets, *options)[1:])


def _places(offsets: Tensor, count: int, include_last: bool) -> tuple[Tensor, Tensor]:
    """Where the members of each bag are, a row for a bag, and which of these are members."""
    ends = offsets if include_last else torch.cat([offsets, offsets.new_full((1,), count)])
    starts, ends = ends[:-1].unsqueeze(1), ends[1:].unsqueeze(1)
    longest = int((ends - starts).max()) if starts.numel() else 0
    places = starts + torch.arange(longest, device=offsets.device)
    return places.clamp(max=max(count - 1, 0)), places < ends


def _largest(rows: Tensor, is_member: Tensor) -> Tensor:
    """The largest of each bag, the first of equals; zero of an empty bag."""
    if not rows.size(1):
        return rows.sum(1)
    chosen = rows.detach().masked_fill(~is_member.unsqueeze(2), -math.inf).argmax(1, keepdim=True)
    return rows.gather(1, chosen).squeeze(1).masked_fill(~is_member.any(1, keepdim=True), 0.0)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    if padding_idx is None or max_norm is not None:
        return NotImplemented
    is_padding = torch.arange(weight.size(0), device=weight.device) == padding_idx % weight.size(0)
    weight = torch.where(is_padding.unsqueeze(1), weight.detach(), weight)
    return torch.nn.functional.embedding(input, weight, None, None, norm_type, scale_grad_by_freq, sparse)


_NO_DERIVATIVE = "its backward has no derivative (measured on torch 1.8 to 2.15)"

ROWS: tuple[Composition, ...] = (
    Composition(
        ("nn.functional.embedding",),
        (),
        2,
        _embedding,
        "forward mode differentiates by the row of padding_idx, which reverse mode takes for constant",
    ),
    Composition(("nn.functional.embedding_bag",), ("EmbeddingBag",), 2, _embedding_bag, _NO_DERIVATIVE),
    Composition(
        ("embedding_bag", "ops.aten.embedding_bag"), ("EmbeddingBag",), 2, _embedding_bag_of_operator, _NO_DERIVATIVE
    ),
)
