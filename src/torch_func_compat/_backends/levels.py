"""torch.func's levels, entered without its trees: its vjp, jvp and vmap for tensors that are in flat lists already.

For a small function, torch.func spends two thirds of a Jacobian's time on pytrees, argument checks and wrappers. This
library has done all of that already, so it enters the levels directly. What is computed, and on which level, is the
same.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Callable, Sequence

import torch
import torch._functorch.eager_transforms
import torch._functorch.vmap
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

_private: Any = torch._C._functorch
_transforms: Any = torch._functorch.eager_transforms
_vmap: Any = torch._functorch.vmap
# None of them is public. They are those of torch 2.0 to 2.15; on a torch without one, torch.func does it all.
_NEEDED = (
    (_private, "_grad_increment_nesting"),
    (_private, "_grad_decrement_nesting"),
    (_private, "_wrap_for_grad"),
    (_private, "_unwrap_for_grad"),
    (_private, "get_inplace_requires_grad_allowed"),
    (_private, "set_inplace_requires_grad_allowed"),
    (_private, "_jvp_increment_nesting"),
    (_private, "_jvp_decrement_nesting"),
    (_private, "_vmap_increment_nesting"),
    (_private, "_vmap_decrement_nesting"),
    (_private, "_add_batch_dim"),
    (_private, "_remove_batch_dim"),
    (_transforms, "_autograd_grad"),
    (_transforms, "safe_unpack_dual"),
    (_transforms, "JVP_NESTING"),
    (forward_ad, "_set_fwd_grad_enabled"),
    (_vmap, "lazy_load_decompositions"),
)
_HOOKS = "torch.func's transforms don't yet support saved tensor hooks"

Pull = Callable[[Sequence[Tensor], bool, bool], Sequence[Tensor]]
Recorded = Callable[..., "tuple[Sequence[Tensor], Sequence[Tensor]]"]


def are_known() -> bool:
    """Whether this torch has all that is used here."""
    return all(hasattr(module, name) for module, name in _NEEDED)


def record(func: Recorded, primals: Sequence[Tensor]) -> tuple[list[Tensor], Pull, list[Tensor]]:
    """Outputs of `func`, which returns flat outputs and aux; their pullback; and aux."""
    with torch.autograd.graph.disable_saved_tensors_hooks(_HOOKS):
        level = _private._grad_increment_nesting()  # which notes the grad mode around it
        try:
            with torch.enable_grad():
                variables = [_variable(primal, level) for primal in primals]
                outputs, aux = func(*variables)
                results = [_private._unwrap_for_grad(output, level) for output in outputs]
                beside = [_private._unwrap_for_grad(value, level) for value in aux]
        finally:
            _private._grad_decrement_nesting()

    return results, functools.partial(_pull, outputs, variables), beside


def _pull(
    outputs: Sequence[Tensor],
    variables: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    retain_graph: bool,
    create_graph: bool,
) -> Sequence[Tensor]:
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return _pull(outputs, variables, cotangents, retain_graph, create_graph)
    found: Sequence[Tensor] = _transforms._autograd_grad(outputs, variables, cotangents, retain_graph, create_graph)
    return found


def _variable(primal: Tensor, level: int) -> Tensor:
    variable: Tensor = _private._wrap_for_grad(primal, level)
    allowed = _private.get_inplace_requires_grad_allowed()
    _private.set_inplace_requires_grad_allowed(True)
    try:
        return variable.requires_grad_()
    finally:
        _private.set_inplace_requires_grad_allowed(allowed)


def push(
    func: Recorded, primals: Sequence[Tensor], tangents: Sequence[Tensor], strict: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Outputs of `func`, their tangents, and aux."""
    level = _private._jvp_increment_nesting()
    _transforms.JVP_NESTING += 1  # there is one dual level, that of the outermost jvp
    try:
        around = forward_ad.dual_level() if _transforms.JVP_NESTING == 1 else contextlib.nullcontext()
        with forward_ad._set_fwd_grad_enabled(True), around:
            duals = [forward_ad.make_dual(primal, tangent) for primal, tangent in zip(primals, tangents)]
            outputs, aux = func(*duals)
            beside = [_private._unwrap_for_grad(value, level) for value in aux]
            pairs = [_transforms.safe_unpack_dual(output, strict) for output in outputs]
            values, found = ([_private._unwrap_for_grad(x, level) for x in part] for part in zip(*pairs))
            return values, found, beside
    finally:
        _transforms.JVP_NESTING -= 1
        _private._jvp_decrement_nesting()


def at_once(apply: Callable[..., Sequence[Tensor]], vectors: Sequence[Tensor], randomness: str) -> list[Tensor]:
    """`apply` mapped over dimension 0 of the vectors."""
    _vmap.lazy_load_decompositions()
    size = len(vectors[0])
    level = _private._vmap_increment_nesting(size, randomness)
    try:
        results = apply(*[_private._add_batch_dim(vector, 0, level) for vector in vectors])
        return [_private._remove_batch_dim(result, level, size, 0) for result in results]
    finally:
        _private._vmap_decrement_nesting()
