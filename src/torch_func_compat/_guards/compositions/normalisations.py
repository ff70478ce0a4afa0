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
    return _native_layer_norm(input, normalized_shape, weight, bias, eps)[0]


def _native_layer_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dims = tuple(range(-len(normalized_shape), 0))
    mean = input.mean(dims, keepdim=True)
    centred = input - mean
    inverse = ((centred * centred).mean(dims, keepdim=True) + eps).rsqrt()
    output = centred * inverse
    output = output if weight is None else output * weight
    return output if bias is None else output + bias, mean, inverse


def _native_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (1, -1, *[1] * (input.dim() - 2))
    if not training and running_mean is not None and running_var is not None:
        mean, variance = running_mean.reshape(shape), running_var.reshape(shape)
        inverse = (variance + eps).rsqrt()
        beside = input.new_empty(0), input.new_empty(0)
    else:
        dims = (0, *range(2, input.dim()))
        mean = input.mean(dims, keepdim=True)
        variance = (input - mean).pow(2).mean(dims, keepdim=True)
        if running_mean is not None and running_var is not None:
            count = input.numel() // max(input.size(1), 1)
            with torch.no_grad():
                running_mean.mul_(1 - momentum).add_(momentum * mean.flatten())
                running_var.mul_(1 - momentum).add_(momentum * count / max(count - 1, 1) * variance.flatten())
        inverse = (variance + eps).rsqrt()
        beside = mean.flatten(), inverse.flatten()
    output = (input - mean) * inverse
    output = output if weight is None else output * weight.reshape(shape)
    output = output if bias is None else output + bias.reshape(shape)
    return (output, *beside)


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
    return _native_batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps)[0]


def _batch_norm_of_operator(*args: Any, cudnn_enabled: bool = True, **kwargs: Any) -> Tensor:
    return _native_batch_norm(*args[:8], **kwargs)[0]


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    count, channels = input.shape[:2]
    each = [None if x is None else x.repeat(count) for x in (running_mean, running_var, weight, bias)]
    reshaped = input.reshape(1, count * channels, *input.shape[2:])
    output = _batch_norm(reshaped, each[0], each[1], each[2], each[3], use_input_stats, momentum, eps)
    for statistic, updated in zip((running_mean, running_var), each):
        if statistic is not None and updated is not None and use_input_stats:
            with torch.no_grad():
                statistic.copy_(updated.reshape(count, channels).mean(0))
    return output.reshape(input.shape)


def _instance_norm_of_operator(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    return _instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


_LAYER_NORM = "https://github.com/pytorch/pytorch/issues/175754: third derivatives lack terms"
_BATCH_NORM = "https://github.com/pytorch/pytorch/issues/186256: third derivatives lack terms"
# Those of every operation below: the first row has them.
BATCH_NODES = ("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "BatchNormWithUpdate")

ROWS: tuple[Composition, ...] = (
    Composition(
        ("_weight_norm", "ops.aten._weight_norm"),
        ("WeightNormInterface",),
        2,
        _weight_norm,
        "its backward takes the saved norms for constants (fact 'weight_norm_twice')",
    ),
    Composition(
        ("nn.functional.layer_norm", "layer_norm", "ops.aten.layer_norm"),
        ("NativeLayerNorm",),
        3,
        _layer_norm,
        _LAYER_NORM,
    ),
    Composition(
        ("native_layer_norm", "ops.aten.native_layer_norm"),
        (),
        1,
        _native_layer_norm,
        "torch treats the mean and the deviation that it returns as constants; also " + _LAYER_NORM,
    ),
    Composition(("nn.functional.batch_norm",), BATCH_NODES, 3, _batch_norm, _BATCH_NORM),
    Composition(("batch_norm", "ops.aten.batch_norm"), (), 3, _batch_norm_of_operator, _BATCH_NORM),
    Composition(
        ("native_batch_norm", "ops.aten.native_batch_norm"),
        (),
        1,
        _native_batch_norm,
        "the same for batches; also " + _BATCH_NORM,
    ),
    Composition(("nn.functional.instance_norm",), (), 3, _instance_norm, _BATCH_NORM),
    Composition(("instance_norm", "ops.aten.instance_norm"), (), 3, _instance_norm_of_operator, _BATCH_NORM),
)
