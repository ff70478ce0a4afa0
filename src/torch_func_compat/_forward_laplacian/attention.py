"""Rules of attention, as the products and the softmax that it is."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from .carried import Refused, Run
from .parts import plain
from .registry import rule


def _masked(scores: Any, mask: Any, allowed: bool) -> Any:
    """Scores with a mask of booleans (True where attention is allowed, or where it is not) or of numbers to add."""
    if mask is None:
        return scores
    if plain(mask).dtype == torch.bool:
        return scores.masked_fill(~mask if allowed else mask, -math.inf)
    return scores + mask


@rule("F.scaled_dot_product_attention")
def scaled_dot_product_attention(
    run: Run,
    func: Any,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Any = None,
    enable_gqa: bool = False,
) -> Any:
    if dropout_p or enable_gqa:
        raise Refused("attention with dropout, or with groups of queries")
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        if attn_mask is not None:
            raise Refused("both attn_mask and is_causal")
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return torch.softmax(_masked(scores, attn_mask, True), -1) @ value


@rule("F.multi_head_attention_forward")
def multi_head_attention_forward(
    run: Run,
    func: Any,
    query: Any,
    key: Any,
    value: Any,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Any,
    in_proj_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Any,
    out_proj_bias: Any,
    training: bool = True,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    static_k: Any = None,
    static_v: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    odd = bias_k is not None or bias_v is not None or add_zero_attn or static_k is not None or static_v is not None
    if odd or (training and dropout_p > 0) or query.dim() != 3:
        raise Refused("attention with dropout, biases of keys and values, or without a batch")
    length, batch, size = query.shape
    source, head = key.shape[0], size // num_heads
    if use_separate_proj_weight:
        matrices = (q_proj_weight, k_proj_weight, v_proj_weight)
    else:
        matrices = in_proj_weight.chunk(3, 0)
    biases = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3, 0)
    q, k, v = (functional.linear(x, w, b) for x, w, b in zip((query, key, value), matrices, biases))
    q = q.reshape(length, batch * num_heads, head).transpose(0, 1)
    k, v = (x.reshape(source, batch * num_heads, head).transpose(0, 1) for x in (k, v))
    scores = (q / math.sqrt(head)) @ k.transpose(1, 2)  # (batch * heads, length, source)
    if attn_mask is not None and plain(attn_mask).dtype == torch.uint8:
        raise Refused("a mask of bytes")
    scores = _masked(scores, attn_mask, False)
    if key_padding_mask is not None:
        padding = key_padding_mask.reshape(batch, 1, 1, source)
        scores = _masked(scores.reshape(batch, num_heads, length, source), padding, False)
        scores = scores.reshape(batch * num_heads, length, source)
    weights = torch.softmax(scores, -1)
    output = (weights @ v).transpose(0, 1).reshape(length, batch, size)
    output = functional.linear(output, out_proj_weight, out_proj_bias)
    if not need_weights:
        return output, None
    weights = weights.reshape(batch, num_heads, length, source)
    return output, weights.mean(1) if average_attn_weights else weights
