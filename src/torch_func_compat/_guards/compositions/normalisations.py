"""Normalisations of weights and of activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .composition import Composition


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(dims, keepdim=True)
    output = centred * ((centred * centred).mean(dims, keepdim=True) + eps).rsqrt()
    output = output if weight is None else output * weight
    return output if bias is None else output + bias


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    shape = (1, -1, *[1] * (input.dim() - 2))
    if training or running_mean is None or running_var is None:
        dims = (0, *range(2, input.dim()))
        mean = input.mean(dims, keepdim=True)
        centred = input - mean
        variance = (centred * centred).mean(dims, keepdim=True)
        if running_mean is not None and running_var is not None:
            count = input.numel() // max(input.size(1), 1)
            with torch.no_grad():
                running_mean.mul_(1 - momentum).add_(momentum * mean.flatten())
                running_var.mul_(1 - momentum).add_(momentum * count / max(count - 1, 1) * variance.flatten())
    else:
        centred, variance = input - running_mean.reshape(shape), running_var.reshape(shape)
    output = centred * (variance + eps).rsqrt()
    output = output if weight is None else output * weight.reshape(shape)
    return output if bias is None else output + bias.reshape(shape)


ROWS: tuple[Composition, ...] = (
    Composition(
        ("_weight_norm",),
        "WeightNormInterface",
        2,
        _weight_norm,
        "its backward takes the saved norms for constants (fact 'weight_norm_twice')",
    ),
    Composition(
        ("nn.functional.layer_norm",),
        "NativeLayerNorm",
        3,
        _layer_norm,
        "https://github.com/pytorch/pytorch/issues/175754: third derivatives lack terms",
    ),
    Composition(
        ("nn.functional.batch_norm",),
        "NativeBatchNorm",
        3,
        _batch_norm,
        "https://github.com/pytorch/pytorch/issues/186256: third derivatives lack terms",
    ),
)
