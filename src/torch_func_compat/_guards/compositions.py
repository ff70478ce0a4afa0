"""Fused operations that are evaluated in elementary ones, where torch lacks a derivative of them or has it wrong.

One table, for every torch: a TorchFunctionMode intercepts operations on torch >= 2.0, and a Tensor subclass in place of
the variables on older ones. An operation is composed only where the derivative in question may be taken: the fused one
is faster, and its other derivatives are right.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from typing import Any, Callable, ClassVar, ContextManager, NamedTuple, Sequence

import torch
from torch import Tensor

from .._torch import facts


class Composition(NamedTuple):
    """A fused operation.

    Attributes
    ----------
    functions : tuple of str
        Its names in torch.
    node : str
        What the name of its backward node starts with.
    order : int
        The first derivative that torch lacks or gets wrong.
    compose : callable
        Evaluates it in elementary operations; the parameters are those of the functions.
    reason : str
        What is wrong, with a link or the releases on which it was measured.
    """

    functions: tuple[str, ...]
    node: str
    order: int
    compose: Callable[..., Any]
    reason: str


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


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
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.size(-1)) if scale is None else scale)
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


def _multi_head_attention(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    function = torch.nn.functional.multi_head_attention_forward
    call = inspect.signature(function).bind(*args, **kwargs)
    call.apply_defaults()
    needed = call.arguments["need_weights"]
    call.arguments["need_weights"] = True  # with weights, torch does not call a fused kernel
    output, weights = function(*call.args, **call.kwargs)
    return output, weights if needed else None


def _distances(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor:
    apart = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    # As in torch's kernel, the derivatives of the distance of a point to itself are zero.
    together = (apart == 0).all(-1)
    distances: Tensor = torch.where(together.unsqueeze(-1), torch.ones_like(apart), apart).norm(p, -1)
    return torch.where(together, torch.zeros_like(distances), distances)


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


# The first row that a name is found in counts.
COMPOSITIONS: tuple[Composition, ...] = (
    Composition(
        ("_weight_norm",),
        "WeightNormInterface",
        2,
        _weight_norm,
        "its backward takes the saved norms for constants (fact 'weight_norm_twice')",
    ),
    Composition(
        ("nn.functional.scaled_dot_product_attention",),
        "ScaledDotProduct",
        2,
        _attention,
        "the backward of the fused kernels has no derivative (torch 2.0 to 2.15)",
    ),
    Composition(
        ("nn.functional.multi_head_attention_forward",),
        "ScaledDotProduct",
        2,
        _multi_head_attention,
        "it calls scaled_dot_product_attention where no mode sees that",
    ),
    Composition(
        ("cdist",),
        "Cdist",
        2,
        _distances,
        "no second derivative (to torch 2.13); torch.func batches its backward wrongly (fact 'cdist_rows_are_wrong')",
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


def _found(order: int) -> dict[Any, Callable[..., Any]]:
    """The functions to compose where derivatives up to that order may be taken."""
    found: dict[Any, Callable[..., Any]] = {}
    for row in COMPOSITIONS:
        for name in row.functions:
            value: Any = torch
            for part in name.split("."):
                value = getattr(value, part, None)
            if value is not None and row.order <= order:
                found[value] = row.compose
    return found


_by_order: dict[int, dict[Any, Callable[..., Any]]] = {}


def composed(order: int) -> dict[Any, Callable[..., Any]]:
    """Functions of torch and their compositions, where derivatives up to that order may be taken."""
    order = min(order, max(row.order for row in COMPOSITIONS))
    if order not in _by_order:
        _by_order[order] = _found(order)
    return _by_order[order]


def order_of(node: str) -> int:
    """The first derivative of a node that torch lacks or gets wrong, by the node's name; 0 for none."""
    return next((row.order for row in COMPOSITIONS if node.startswith(row.node)), 0)


def composing(order: int) -> ContextManager[Any]:
    """Evaluate the fused operations within in elementary ones; only `given` arguments are seen before torch 2.0."""
    if not facts.has("torch_function_modes"):
        return contextlib.nullcontext()
    from torch.overrides import TorchFunctionMode

    functions = composed(order)

    class Composing(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return functions.get(func, func)(*args, **(kwargs or {}))

    return Composing()  # type: ignore[no-any-return,unused-ignore]


class _Composed(Tensor):
    """A tensor whose fused operations are evaluated in elementary ones, where there are no modes to see them."""

    functions: ClassVar[dict[Any, Callable[..., Any]]] = {}

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        compose = cls.functions.get(func)
        if compose is not None:
            return compose(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


@functools.lru_cache(None)
def _composed_to(order: int) -> type[_Composed]:
    return type("Composed", (_Composed,), {"functions": composed(order)})


def given(arguments: Sequence[Tensor], order: int) -> list[Tensor]:
    """Arguments by which `composing` reaches a function; `plain` are its results."""
    if facts.has("torch_function_modes"):
        return list(arguments)
    cls = _composed_to(order)
    # A subclass of the user's own stays what it is.
    return [x.as_subclass(cls) if type(x) in (Tensor, torch.nn.Parameter) else x for x in arguments]


def plain(results: Sequence[Any]) -> list[Any]:
    """Results of a function of `given` arguments, as plain tensors."""
    return [x.as_subclass(Tensor) if isinstance(x, _Composed) else x for x in results]
