"""vmap of a Function's ``apply`` by the vmap rule that the Function has."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionMeta

from ..._arguments.mapped import BatchedCall
from ..._functions.vmap_rule import VmapInfo, by_rule, has_vmap_rule, matched
from ..._torch import pytree
from ..._torch.tensors import movedim
from .level import is_dual


def by_own_rule(call: BatchedCall, tensors: Sequence[Tensor], randomness: str) -> tuple[list[Tensor], list[Any]] | None:
    """The results of the loop by one call of the rule; None where there is no rule to call.

    The rule is called for ``apply`` itself only, whose arguments are those of the rule, and only if nothing is
    differentiated: a rule that leaves torch would lose the derivative that ``backward`` gives.
    """
    definition = getattr(call.func, "__self__", None)
    if not isinstance(definition, FunctionMeta) or call.func.__name__ != "apply" or call.kwargs:
        return None
    leaves: list[Any] = list(call.leaves)
    dims: list[int | None] = [None] * len(leaves)
    for position, tensor, dim in zip(call.where, tensors, call.dims):
        leaves[position], dims[position] = tensor, dim
    differentiated = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in leaves)
    if differentiated or is_dual() or None in pytree.flatten(call.out_dims)[0] or not has_vmap_rule(definition):
        return None
    size = tensors[0].size(call.dims[0])
    in_dims, args = pytree.unflatten(dims, call.spec), pytree.unflatten(leaves, call.spec)
    flat, flat_dims, spec = matched(definition, *by_rule(definition, VmapInfo(size, randomness), in_dims, args))
    stacked = [
        (x.unsqueeze(0).expand(size, *x.shape) if dim is None else movedim(x, dim, 0)) if isinstance(x, Tensor) else x
        for x, dim in zip(flat, flat_dims)
    ]
    return call.split(pytree.unflatten(stacked, spec))
