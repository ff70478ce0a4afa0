"""The backend of torch >= 2.0: torch.func itself."""

from __future__ import annotations

import importlib
import types
from typing import Any, Callable, Sequence

import torch
import torch.func
from torch import Tensor

from .. import _facts
from .._capabilities import MistakenRule
from . import _levels
from ._fragile import watched
from ._native import FORWARD_MODE, NativeBackend, Pull, checked, look

Transform = Callable[..., Callable[..., Any]]

# As it was found when this package was imported: a test suite may put this library into the place of torch.func.
_library = types.ModuleType(torch.func.__name__)
vars(_library).update(_facts.FUNC)

_LEVELS = _levels.are_known()
_peek = torch._C._functorch.peek_interpreter_stack


def is_active() -> bool:
    """Whether a torch.func transform is running in this thread."""
    return _peek() is not None


def _guarded(transform: Transform, *, rows: bool = False) -> Transform:
    """`transform`, in reverse mode, whose result says what to call instead of it where torch may go wrong silently.

    ``within`` is called within a running transform, which batches what the function does or differentiates it
    again. ``first`` is called the first time: Jacobian rows are batched, for some operations wrongly, and plain
    autograd differentiates some wrongly once more. To look for those takes microseconds, as many as all else that this
    library adds; what a function consists of hardly ever changes between calls of one transform. What requires
    grad outside does: what has something ``delicate`` is always called as if for the first time.
    """

    def native(func: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        delicate: list[Any] = []

        def within(*args: Any, **kwargs: Any) -> Any:
            inner = watched(checked(func, torch._C._functorch, delicate, rows=True, mapped=rows), forward=False)
            return transform(inner, **options)(*args, **kwargs)

        def first(*args: Any, **kwargs: Any) -> Any:
            return transform(checked(func, torch._C._functorch, delicate, rows), **options)(*args, **kwargs)

        plain: Any = transform(func, **options)
        plain.delicate = delicate
        plain.within = within
        plain.first = first
        return plain  # type: ignore[no-any-return]

    return native


def _jacfwd(func: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    def native(*args: Any, **kwargs: Any) -> Any:
        with FORWARD_MODE:
            return _library.jacfwd(watched(func, forward=True), **options)(*args, **kwargs)

    return native


def _vjp(func: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """torch.func.vjp, whose vjp_fn raises where somebody maps over it and the rows would be wrong."""
    flaw: list[MistakenRule] = []

    def noted(*args: Any) -> Any:
        output = func(*args)
        found = look(output)
        found.refuse(output, args, torch._C._functorch)
        flaw.extend(found.rows)
        return output

    result = _library.vjp(watched(noted, forward=False), *primals, has_aux=has_aux)
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
        return _library.jvp(watched(func, forward=True), *args, **options)


class TracedBackend(NativeBackend):
    """`torch.func` as it is: what torch.compile knows to trace."""

    name = "torch.func"
    transforms = ("vmap", "vjp", "jvp", "grad", "grad_and_value", "jacrev", "jacfwd")

    def __init__(self) -> None:
        super().__init__(_library, torch._C._functorch, is_active)
        self.natives = {name: getattr(_library, name) for name in self.transforms}


class TorchFuncBackend(TracedBackend):
    """`torch.func`, with a guard around each transform that would go wrong without an error."""

    def __init__(self) -> None:
        super().__init__()
        if _facts.has("nested_tensors_draw_at_import"):
            importlib.import_module("torch.nested._internal.nested_tensor")
        natives = {
            "vmap": _library.vmap,
            "vjp": _vjp,
            "jvp": _jvp,
            "grad": _guarded(_library.grad),
            "grad_and_value": _guarded(_library.grad_and_value),
            "jacrev": _guarded(_library.jacrev, rows=True),
            "jacfwd": _jacfwd,
        }

        if _facts.has("complex_outputs_have_gradients"):
            del natives["grad"], natives["grad_and_value"]
        self.natives = natives

    def guard(self, func: Callable[..., Any], *, forward: bool) -> Callable[..., Any]:
        return watched(func, forward=forward)

    def record(self, func: Callable[..., Any], primals: Sequence[Tensor]) -> tuple[list[Tensor], Pull, list[Tensor]]:
        if not _LEVELS or torch.is_inference_mode_enabled():
            return super().record(func, primals)
        return _levels.record(func, primals)

    def at_once(
        self, apply: Callable[..., Sequence[Tensor]], vectors: Sequence[Tensor], randomness: str
    ) -> list[Tensor]:
        return (_levels.at_once if _LEVELS else super().at_once)(apply, vectors, randomness)
