"""The backend of torch >= 2.0: torch.func itself."""

from __future__ import annotations

import importlib
from typing import Any, Callable

import torch
import torch.func

from .. import _facts
from .._capabilities import MistakenRule
from ._fragile import watched
from ._native import FORWARD_MODE, NativeBackend, checked, mistaken

Transform = Callable[..., Callable[..., Any]]

_peek = torch._C._functorch.peek_interpreter_stack


def is_active() -> bool:
    """Whether a torch.func transform is running in this thread."""
    return _peek() is not None


def _checked_rows(transform: Transform) -> Transform:
    """Jacobian rows are batched, and for some operations wrongly: look for those on the first call.

    Looking takes microseconds, as many as all else that this library adds; what a function consists of
    hardly ever changes between calls of one and the same transform of it.
    """

    def native(func: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        found_right = False
        plain: Callable[..., Any] | None = None

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal found_right, plain
            if not found_right:
                result = transform(checked(func), **options)(*args, **kwargs)
                found_right = True
                return result
            if plain is None:
                plain = transform(func, **options)
            return plain(*args, **kwargs)

        return wrapper

    return native


def _checked_within(transform: Transform, *, rows: bool = True, forward: bool = False) -> Transform:
    """Within other transforms, look at what the function does: they batch it, or differentiate it again."""

    def native(func: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        plain = transform(func, **options)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not is_active():
                return plain(*args, **kwargs)
            inner = watched(checked(func) if rows else func, forward=forward)
            return transform(inner, **options)(*args, **kwargs)

        return wrapper

    return native


def _one_thread_at_a_time(transform: Transform) -> Transform:
    def native(func: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        transformed = transform(func, **options)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with FORWARD_MODE:
                return transformed(*args, **kwargs)

        return wrapper

    return native


def _vjp(func: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """torch.func.vjp, whose vjp_fn raises where somebody maps over it and the rows would be wrong."""
    flaw: list[MistakenRule] = []

    def noted(*args: Any) -> Any:
        output = func(*args)
        flaw.extend(mistaken(output))
        return output

    result = torch.func.vjp(watched(noted, forward=False), *primals, has_aux=has_aux)
    if not flaw:
        return result
    vjp_fn = result[1]

    def checked(*args: Any, **kwargs: Any) -> Any:
        if is_active():
            raise flaw[0]
        return vjp_fn(*args, **kwargs)

    return (result[0], checked, *result[2:])


def _jvp(func: Callable[..., Any], *args: Any, **options: Any) -> Any:
    with FORWARD_MODE:
        return torch.func.jvp(watched(func, forward=True), *args, **options)


class TracedBackend(NativeBackend):
    """`torch.func` as it is: what torch.compile knows to trace."""

    name = "torch.func"
    transforms = ("vmap", "vjp", "jvp", "grad", "grad_and_value", "jacrev", "jacfwd", "hessian")

    def __init__(self) -> None:
        super().__init__(torch.func, torch._C._functorch, is_active)
        self.natives = {name: getattr(torch.func, name) for name in self.transforms}


class TorchFuncBackend(TracedBackend):
    """`torch.func`, with a guard around each transform that would go wrong without an error."""

    def __init__(self) -> None:
        super().__init__()
        if _facts.has("nested_tensors_draw_at_import"):
            importlib.import_module("torch.nested._internal.nested_tensor")
        self.natives = {
            "vmap": torch.func.vmap,
            "vjp": _vjp,
            "jvp": _jvp,
            "grad": _checked_within(torch.func.grad),
            "grad_and_value": _checked_within(torch.func.grad_and_value),
            "jacrev": _checked_within(_checked_rows(torch.func.jacrev)),
            "jacfwd": _one_thread_at_a_time(_checked_within(torch.func.jacfwd, rows=False, forward=True)),
            "hessian": _one_thread_at_a_time(_checked_within(_checked_rows(torch.func.hessian), forward=True)),
        }

    def guard(self, func: Callable[..., Any], *, forward: bool) -> Callable[..., Any]:
        return watched(func, forward=forward)
