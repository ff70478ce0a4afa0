"""Questions to the class that defines a Function: which rules it has, and how they are marked."""

from __future__ import annotations

import functools
import sys
from typing import Any, Callable, TypeVar

import torch
from torch.autograd.function import once_differentiable

_F = TypeVar("_F", bound=Callable[..., Any])
_BASE: Any = torch.autograd.Function

# every function that the decorator returns has the same code
_ONCE = once_differentiable(lambda ctx: None).__code__


def untraced(func: _F) -> _F:
    """Keep torch.compile out of a function and of what it calls; its eager parts are compiled frame by frame."""
    disable = getattr(torch, "_disable_dynamo", None)
    if disable is None:
        return func
    disabled = disable(func)

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        # `disabled` imports torch._dynamo, which takes seconds. If that was not imported, nothing is being compiled.
        return disabled(*args, **kwargs) if "torch._dynamo" in sys.modules else func(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


def has(definition: Any, rule: str) -> bool:
    """Whether the definition overrides one of torch's optional rules."""
    found = getattr(definition, rule, None)
    return found is not None and found is not getattr(_BASE, rule, None)


def backward_of(definition: Any) -> Callable[..., Any]:
    """The reverse rule, under the name of backward or of vjp."""
    if not has(definition, "vjp"):
        backward: Callable[..., Any] = definition.backward
    elif has(definition, "backward"):
        raise RuntimeError(
            f"{definition.__name__} implements both backward() and vjp(), which are two names of one rule: keep one"
        )
    else:
        backward = definition.vjp
    if getattr(definition, "boxed_grads_call", False):
        return lambda ctx, *grads: backward(ctx, list(grads))
    return backward


def is_once_differentiable(backward: Any) -> bool:
    """Whether the rule is marked by torch's decorator."""
    return getattr(backward, "__code__", None) is _ONCE
