"""Attention."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor

from .composition import Composition


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        groups = query.size(-3) // key.size(-3)
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    # There are fewer queries to scale than scores.
    scores = query * (1 / math.sqrt(query.size(-1)) if scale is None else scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is None:
        weights = scores.softmax(-1)
    elif attn_mask.dtype == torch.bool:
        # A row without a key that may be attended to is zero, as in torch's kernels.
        weights = scores.masked_fill(~attn_mask, -math.inf).softmax(-1)
        weights = weights.masked_fill(~attn_mask.any(-1, keepdim=True), 0.0)
    else:
        weights = (scores + attn_mask).softmax(-1)
    return torch.dropout(weights, dropout_p, True) @ value if dropout_p else weights @ value


def _multi_head_attention(*args: Any, **kwargs: Any) -> Any:
    if not hasattr(torch.nn.functional, "scaled_dot_product_attention"):
        return NotImplemented  # it consists of elementary operations before torch 2.0
    function = torch.nn.functional.multi_head_attention_forward
    call = inspect.signature(function).bind(*args, **kwargs)
    call.apply_defaults()
    needed = call.arguments["need_weights"]
    call.arguments["need_weights"] = True  # with weights, torch does not call a fused kernel
    output, weights = function(*call.args, **call.kwargs)
    return output, weights if needed else None


ROWS: tuple[Composition, ...] = (
    Composition(
        ("nn.functional.scaled_dot_product_attention", "ops.aten.scaled_dot_product_attention"),
        ("ScaledDotProduct",),
        2,
        _attention,
        "the backward of the fused kernels has no derivative (torch 2.0 to 2.15)",
    ),
    Composition(
        ("nn.functional.multi_head_attention_forward",),
        ("ScaledDotProduct",),
        2,
        _multi_head_attention,
        "it calls scaled_dot_product_attention where no mode sees that",
    ),
)
