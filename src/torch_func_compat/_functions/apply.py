"""Evaluate a definition where the call happens: on plain autograd or on a level of torch.func."""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from .._torch import facts
from . import plain_autograd as _plain

if facts.has("torch_func"):
    from .interpreters import evaluate, unwrap_if_dead

    is_level: Callable[[], bool] = torch._C._are_functorch_transforms_active
else:
    # functorch on torch < 2.0 cannot evaluate a Function: autograd's engine raises, and the transform falls back.
    def is_level() -> bool:
        return False

    def unwrap_if_dead(tensor: Tensor) -> Tensor:
        return tensor


if hasattr(Tensor, "_is_zerotensor"):

    def settled(value: Any) -> Any:
        """An argument that operations can take: without the layer of a transform that is over, and with memory.

        Forward mode uses tensors without memory for zeros, and numpy does not take them.
        """
        if not isinstance(value, Tensor):
            return value
        value = unwrap_if_dead(value)
        return torch.zeros_like(value) if value._is_zerotensor() and not value.requires_grad else value

else:

    def settled(value: Any) -> Any:
        return value


def _torch_func_compat_is_level_traced() -> bool:
    return is_level()


# The same as torch._dynamo.assume_constant_result, which takes seconds to import. The constant becomes a global of the
# caller under the name of the function, so the name must be one that no caller uses (seen on torch 2.4).
_torch_func_compat_is_level_traced._dynamo_marked_constant = True  # type: ignore[attr-defined]
# `is_level` for torch.compile, which asks while it traces and not each time
is_level_traced = _torch_func_compat_is_level_traced

_PLAIN = "_plain_apply"


def plain(definition: Any) -> Callable[..., Any]:
    """The definition on plain autograd."""
    found = definition.__dict__.get(_PLAIN)
    if found is None:
        found = _plain.make(definition, call)
        setattr(definition, _PLAIN, found)
    return found  # type: ignore[no-any-return]


def call(definition: Any, args: Sequence[Any]) -> Any:
    """Apply a definition to arguments."""
    if is_level():
        return evaluate(definition, args, call)
    return plain(definition)(*map(settled, args))
