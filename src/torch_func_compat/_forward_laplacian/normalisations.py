"""Rules of functions that consist of others: softmax and its logarithms, normalisations, distances."""

from __future__ import annotations

from typing import Any

import torch

from .carried import Carried, Refused, Run
from .parts import plain
from .registry import rule


def _converted(x: Any, dtype: Any) -> Any:
    return x if dtype is None else x.to(dtype)


def _exponentials(x: Any, dim: int) -> Any:
    """Exponentials of the differences from the largest element, and that element, which is a constant."""
    largest = plain(x).detach().max(dim, keepdim=True)[0]
    largest = largest.masked_fill((largest - largest) != 0, 0.0)  # infinities
    return torch.exp(x - largest), largest


@rule("softmax special.softmax")
def softmax(run: Run, func: Any, input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    if isinstance(_stacklevel, torch.dtype):  # of torch.softmax
        dtype = _stacklevel
    if dim is None:
        raise Refused("softmax without dim=")
    parts, _ = _exponentials(_converted(input, dtype), dim)
    return parts / parts.sum(dim, keepdim=True)


@rule("log_softmax special.log_softmax")
def log_softmax(run: Run, func: Any, input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    if isinstance(_stacklevel, torch.dtype):
        dtype = _stacklevel
    if dim is None:
        raise Refused("log_softmax without dim=")
    x = _converted(input, dtype)
    return x - torch.logsumexp(x, dim, keepdim=True)


@rule("softmin")
def softmin(run: Run, func: Any, input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    return torch.softmax(-_converted(input, dtype), dim)


@rule("logsumexp special.logsumexp")
def logsumexp(run: Run, func: Any, input: Any, dim: Any, keepdim: bool = False) -> Any:
    if isinstance(dim, (tuple, list)):
        if len(dim) != 1:
            raise Refused("logsumexp over several dimensions")
        dim = dim[0]
    parts, largest = _exponentials(input, dim)
    found = torch.log(parts.sum(dim, keepdim=True)) + largest
    return found if keepdim else found.squeeze(dim)


@rule("layer_norm")
def layer_norm(
    run: Run,
    func: Any,
    input: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *rest: Any,
) -> Any:
    return _affine(_normalised(input, list(range(-len(normalized_shape), 0)), eps), weight, bias)


@rule("rms_norm")
def rms_norm(run: Run, func: Any, input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None) -> Any:
    dims = list(range(-len(normalized_shape), 0))
    small = torch.finfo(input.dtype).eps if eps is None else eps
    return _affine(input * torch.rsqrt((input * input).mean(dims, keepdim=True) + small), weight, None)


@rule("group_norm")
def group_norm(
    run: Run,
    func: Any,
    input: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *rest: Any,
) -> Any:
    shape = input.shape
    groups = input.reshape(shape[0], num_groups, -1)
    return _by_channel(_normalised(groups, [-1], eps).reshape(shape), weight, bias)


@rule("batch_norm")
def batch_norm(
    run: Run,
    func: Any,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: Any = 0.1,
    eps: float = 1e-5,
    *rest: Any,
) -> Any:
    if training or running_mean is None or running_var is None:
        raise Refused("batch normalisation in train mode")
    shape = [1, -1] + [1] * (input.dim() - 2)
    scale = torch.rsqrt(plain(running_var) + eps)
    centred = input - plain(running_mean).reshape(shape)
    return _by_channel(centred * scale.reshape(shape), weight, bias)


def _normalised(x: Any, dims: list[int], eps: float) -> Any:
    centred = x - x.mean(dims, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)


def _affine(x: Any, weight: Any, bias: Any) -> Any:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _by_channel(x: Any, weight: Any, bias: Any) -> Any:
    shape = [1, -1] + [1] * (x.dim() - 2)
    return _affine(x, *[None if part is None else part.reshape(shape) for part in (weight, bias)])


@rule("normalize")
def normalize(run: Run, func: Any, input: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Any:
    return input / torch.norm(input, p, dim, True).clamp_min(eps)


@rule("cosine_similarity")
def cosine_similarity(run: Run, func: Any, x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    lengths = [torch.norm(x, 2, dim, True).clamp_min(eps) for x in (x1, x2)]
    return ((x1 / lengths[0]) * (x2 / lengths[1])).sum(dim)


@rule("addcmul")
def addcmul(run: Run, func: Any, input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Any:
    return input + value * (tensor1 * tensor2)


@rule("addcdiv")
def addcdiv(run: Run, func: Any, input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Any:
    return input + value * (tensor1 / tensor2)


@rule("lerp")
def lerp(run: Run, func: Any, input: Any, end: Any, weight: Any) -> Any:
    return input + weight * (end - input)


@rule("glu")
def glu(run: Run, func: Any, input: Any, dim: int = -1) -> Any:
    one, two = input.chunk(2, dim)
    return one * torch.sigmoid(two)


@rule("dropout alpha_dropout feature_dropout F.dropout1d F.dropout2d F.dropout3d feature_alpha_dropout")
def dropout(run: Run, func: Any, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if (training and p > 0) or inplace:
        raise Refused(f"{func.__name__} draws random numbers")
    return input


@rule("torch.complex")
def complex_(run: Run, func: Any, real: Any, imag: Any) -> Any:
    shapes = [part.shape for part in (real, imag)]
    if shapes[0] != shapes[1]:
        raise Refused("complex of tensors of different shapes")
    stacked = torch.stack([real, imag], -1)
    assert isinstance(stacked, Carried)
    return torch.view_as_complex(stacked)
