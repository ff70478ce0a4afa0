"""Evaluate a function in compositions, by a mode that sees its operations or by a subclass of Tensor."""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Callable, ClassVar, ContextManager, Sequence

import torch
from torch import Tensor

from ..._torch import facts
from .table import composed, compositions


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
        result = NotImplemented if compose is None else compose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


@functools.lru_cache(None)
def _composed_to(order: int) -> type[_Composed]:
    return type("Composed", (_Composed,), {"functions": compositions(order)})


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
