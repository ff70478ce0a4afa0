"""Evaluate a function in compositions, by a mode that sees its operations or by a subclass of Tensor."""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Callable, ClassVar, ContextManager, Sequence

import torch
from torch import Tensor

from ..._torch import facts, pytree
from ..._torch.tensors import is_inference
from .table import composed, compositions


def composing(order: int, inference: bool = False) -> ContextManager[Any]:
    """Evaluate the fused operations within in elementary ones; only `given` arguments are seen before torch 2.0.

    With `inference`, tensors that were made in inference mode are constants for the operations outside of it.
    """
    if not facts.has("torch_function_modes"):
        return contextlib.nullcontext()
    from torch.overrides import TorchFunctionMode

    functions = composed(order)

    class Composing(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if inference:
                args, kwargs = _normal(func, args, kwargs or {})
            return functions.get(func, func)(*args, **(kwargs or {}))

    return Composing()  # type: ignore[no-any-return,unused-ignore]


def _normal(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Arguments of an operation, with copies in the place of inference tensors, which autograd does not save.

    An argument that the operation writes to is not copied: torch refuses to write to it, as it does elsewhere.
    """
    if torch.is_inference_mode_enabled():
        return args, kwargs
    name = getattr(func, "__name__", "")
    written = 1 if name == "__setitem__" or name.startswith("__i") or name.rstrip("_") + "_" == name else 0
    out = {key: value for key, value in kwargs.items() if key == "out"}
    return (*args[:written], *pytree.map(_copied, tuple(args[written:]))), {**pytree.map(_copied, kwargs), **out}


def _copied(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    with torch._C.DisableTorchFunction():  # type: ignore[attr-defined,unused-ignore]
        if not is_inference(value):
            return value
        copy = value.as_subclass(Tensor).clone()
        return copy.as_subclass(type(value)) if isinstance(value, _Composed) else copy


class _Composed(Tensor):
    """A tensor whose fused operations are evaluated in elementary ones, where there are no modes to see them."""

    functions: ClassVar[dict[Any, Callable[..., Any]]] = {}
    order: ClassVar[int] = 0
    inference: ClassVar[bool] = False

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if cls.inference:
            args, kwargs = _normal(func, args, kwargs or {})
        compose = cls.functions.get(func)
        result = NotImplemented if compose is None else compose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


@functools.lru_cache(None)
def _composed_to(order: int, inference: bool) -> type[_Composed]:
    return type("Composed", (_Composed,), {"functions": compositions(order), "order": order, "inference": inference})


def given(arguments: Sequence[Tensor], order: int, inference: bool = False) -> list[Tensor]:
    """Arguments by which `composing` reaches a function; `plain` are its results."""
    if facts.has("torch_function_modes"):
        return list(arguments)
    cls = _composed_to(order, inference)

    def is_free(x: Tensor) -> bool:
        """Not a subclass of the user's own, nor one of a level around it that composes as much."""
        return x.order < order if isinstance(x, _Composed) else type(x) in (Tensor, torch.nn.Parameter)

    return [x.as_subclass(cls) if is_free(x) else x for x in arguments]


def plain(results: Sequence[Any]) -> list[Any]:
    """Results of a function of `given` arguments, as plain tensors."""
    return [x.as_subclass(Tensor) if isinstance(x, _Composed) else x for x in results]
