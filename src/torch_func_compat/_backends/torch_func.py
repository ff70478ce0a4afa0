"""The backend of torch >= 2.0: torch.func itself."""

from __future__ import annotations

import functools
from typing import Any, Callable

import torch
import torch.func
from torch import Tensor

from .. import _tree
from .._capabilities import MISTAKEN_ROWS, MistakenRule
from ._native import NativeBackend

_peek = torch._C._functorch.peek_interpreter_stack


def is_active() -> bool:
    """Whether a torch.func transform is running in this thread."""
    return _peek() is not None


class TorchFuncBackend(NativeBackend):
    """`torch.func`, whose transforms are used as they are wherever they have the parameters asked for."""

    name = "torch.func"

    def __init__(self) -> None:
        super().__init__(torch.func, torch._C._functorch)
        self.natives = {
            "vmap": torch.func.vmap,
            "vjp": _vjp,
            "jvp": torch.func.jvp,
            "grad": _within_vmap(torch.func.grad),
            "grad_and_value": _within_vmap(torch.func.grad_and_value),
            "jacrev": lambda func, **options: torch.func.jacrev(_checked(func), **options),
            "jacfwd": torch.func.jacfwd,
            "hessian": lambda func, **options: torch.func.hessian(_checked(func), **options),
        }


# torch.func batches the backward of these wrongly where the cotangents are mapped and the inputs are not,
# and says nothing: rows of jacrev(cdist) are garbage on torch 2.0-2.15. See the fact "cdist_rows_are_wrong".
_MISTAKEN = ("CdistBackward",)


def _check(output: Any) -> None:
    """Raise, where torch would not, if rows through the graph of `output` would be wrong."""
    roots = [output.grad_fn] if isinstance(output, Tensor) else [x.grad_fn for x in _tensors(output)]
    seen = set()
    while roots:
        node = roots.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = type(node).__name__
        if name.startswith(_MISTAKEN):
            raise MistakenRule(MISTAKEN_ROWS.format(name.partition("Backward")[0]))
        for child, _ in node.next_functions:
            if child is not None:
                roots.append(child)


def _tensors(output: Any) -> list[Tensor]:
    return [x for x in _tree.flatten(output)[0] if isinstance(x, Tensor)]


def _checked(func: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(func)
    def checked(*args: Any, **kwargs: Any) -> Any:
        output = func(*args, **kwargs)
        _check(output)
        return output

    return checked


def _within_vmap(transform: Callable[..., Any]) -> Callable[..., Any]:
    """A gradient is one row: only if somebody maps over it, rows are batched."""

    def native(func: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        plain = transform(func, **options)
        checked: list[Callable[..., Any]] = []

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if _peek() is None:
                return plain(*args, **kwargs)
            if not checked:
                checked.append(transform(_checked(func), **options))
            return checked[0](*args, **kwargs)

        return wrapper

    return native


def _vjp(func: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """torch.func.vjp, whose vjp_fn raises where somebody maps over it and the rows would be wrong."""
    flaw: list[MistakenRule] = []

    def noted(*args: Any) -> Any:
        output = func(*args)
        try:
            _check(output)
        except MistakenRule as error:
            flaw.append(error)
        return output

    result = torch.func.vjp(noted, *primals, has_aux=has_aux)
    if not flaw:
        return result
    vjp_fn = result[1]

    def checked(*args: Any, **kwargs: Any) -> Any:
        if _peek() is not None:
            raise flaw[0]
        return vjp_fn(*args, **kwargs)

    return (result[0], checked, *result[2:])
