"""The backend of torch >= 2.0: torch.func itself."""

from __future__ import annotations

from typing import Any, Callable

import torch
import torch.func

from .._capabilities import MistakenRule
from ._native import NativeBackend, checked, mistaken

_peek = torch._C._functorch.peek_interpreter_stack


def is_active() -> bool:
    """Whether a torch.func transform is running in this thread."""
    return _peek() is not None


class TorchFuncBackend(NativeBackend):
    """`torch.func`, whose transforms are used as they are wherever they have the parameters asked for."""

    name = "torch.func"

    def __init__(self) -> None:
        super().__init__(torch.func, torch._C._functorch, is_active)
        self.natives = {
            "vmap": torch.func.vmap,
            "vjp": _vjp,
            "jvp": torch.func.jvp,
            "grad": _within_vmap(torch.func.grad),
            "grad_and_value": _within_vmap(torch.func.grad_and_value),
            "jacrev": lambda func, **options: torch.func.jacrev(checked(func), **options),
            "jacfwd": torch.func.jacfwd,
            "hessian": lambda func, **options: torch.func.hessian(checked(func), **options),
        }


def _within_vmap(transform: Callable[..., Any]) -> Callable[..., Any]:
    """A gradient is one row: only if somebody maps over it, rows are batched."""

    def native(func: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        plain = transform(func, **options)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not is_active():
                return plain(*args, **kwargs)
            return transform(checked(func), **options)(*args, **kwargs)

        return wrapper

    return native


def _vjp(func: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """torch.func.vjp, whose vjp_fn raises where somebody maps over it and the rows would be wrong."""
    flaw: list[MistakenRule] = []

    def noted(*args: Any) -> Any:
        output = func(*args)
        flaw.extend(mistaken(output))
        return output

    result = torch.func.vjp(noted, *primals, has_aux=has_aux)
    if not flaw:
        return result
    vjp_fn = result[1]

    def checked(*args: Any, **kwargs: Any) -> Any:
        if is_active():
            raise flaw[0]
        return vjp_fn(*args, **kwargs)

    return (result[0], checked, *result[2:])
