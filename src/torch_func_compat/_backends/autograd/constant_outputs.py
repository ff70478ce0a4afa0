"""An output that depends on no input, as far as autograd can see: is it constant, or did its numbers leave torch?"""

from __future__ import annotations

import sys
import weakref
from types import FrameType
from typing import Any, ClassVar, Sequence

import torch
from torch import Tensor

from ..._arguments.protocol import Differentiable
from ..._guards.exits import MEMORY, NUMBERS, UndifferentiatedError
from ..._guards.flags import Flags
from ..._torch import facts
from ..._torch.callers import warn_user
from ..._torch.grad_mode import no_grad
from ..._torch.surroundings import unchanged
from ..._torch.tensors import wave

_PACKAGE = __name__.rsplit(".", 3)[0] + "."
# By these the user says that no derivative is wanted.
_STOPS = {"detach", "detach_", "requires_grad_"}
_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
# Errors of the evaluation at another point, where the function need not be defined.
_ERRORS = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)


class UndifferentiatedWarning(UserWarning):
    """An output changes with an input, and no derivative passes from one to the other."""


class _Observed(Tensor):
    """A tensor that notes what stops derivatives."""

    left: ClassVar[set[str]]
    stopped: bool
    undifferentiable: ClassVar[set[str]]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        name = getattr(func, "__name__", "")
        if _is_ours(sys._getframe(1)):
            return result
        if name in MEMORY or name in NUMBERS:
            cls.left.add(name)
        elif name in _STOPS or func == _DATA or not torch.is_grad_enabled():
            cls.stopped = True
        elif isinstance(result, Tensor):
            with torch._C.DisableTorchFunction():  # type: ignore[attr-defined,unused-ignore]
                lost = not result.requires_grad and (result.is_floating_point() or result.is_complex())
                made_new = name.startswith("new_") or name.endswith("_like")
                if (
                    lost
                    and not made_new
                    and not name.startswith("_")
                    and any(isinstance(x, Tensor) and x.requires_grad for x in args)
                ):
                    cls.undifferentiable.add(name)
        return result


def _is_ours(frame: FrameType | None) -> bool:
    """Whether this library calls the operation, or a rule of a custom Function, which has a guard of its own."""
    name = "" if frame is None else str(frame.f_globals.get("__name__", ""))
    # The user's function may itself be an operation, which the calls there call.
    ours = name.startswith(_PACKAGE) and not name.startswith(_PACKAGE + "_arguments.")
    while frame is not None and not ours:
        ours = str(frame.f_globals.get("__name__", "")).startswith(_PACKAGE + "_functions.")
        frame = frame.f_back
    return ours


def _moved(x: Tensor) -> Tensor:
    step: float = torch.finfo(x.dtype).eps ** 0.5
    return x + step * (1 + x.abs()) * wave(x)


# Functions whose constant outputs are meant to be so, wherever they are evaluated; with the flags around them.
_innocent: weakref.WeakKeyDictionary[Any, tuple[Flags, tuple[Any, ...]]] = weakref.WeakKeyDictionary()


def look_at_constants(call: Differentiable, primals: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Raise or warn where an output changes with the primals although autograd sees no dependence.

    The function is evaluated once more to see what stops the derivatives. ``detach()`` and ``no_grad()`` mean that the
    user wants zeros: where nothing else stops them, the function is not looked at again. Where numbers leave torch, or
    an operation has no derivative, it is evaluated at two points each time.
    """
    suspects = [
        k
        for k, output in enumerate(outputs)
        if not output.requires_grad and (output.is_floating_point() or output.is_complex())
    ]
    try:
        if not suspects:
            return
        known = _innocent.get(call.func)
        if known is not None and known[0].values(call.func) == known[1]:
            return
    except TypeError:  # neither hashed nor referred to weakly
        pass
    points = _Points(call, suspects)
    primals = [primal.detach() for primal in primals]
    found = points.observed(primals)
    if not found.left and (found.stopped or not found.undifferentiable):
        try:
            around = Flags(call.func)
            _innocent[call.func] = around, around.values(call.func)
        except TypeError:
            pass
        return
    if not points.differ(primals):
        return
    if found.undifferentiable:
        names = ", ".join(sorted(found.undifferentiable))
        raise UndifferentiatedError(
            f"an output changes with an input, but torch has no derivative of {names}: the derivative would be zero. "
            f"Give the operation a backward of its own with torch_func_compat.Function, or detach() its input if zero "
            f"is meant"
        )
    names = ", ".join(sorted(found.left))
    stack = "torch.stack() in place of torch.tensor() keeps them. " if "__float__" in found.left else ""
    reason = (
        f"an output changes with an input, but no derivative passes from one to the other, since numbers left torch by "
        f"{names}. {stack}Write a torch_func_compat.Function around that part, or detach() the numbers first if "
        f"zero is meant"
    )
    if found.left & MEMORY and facts.has("torch_func"):  # as torch.func does, by another name
        raise UndifferentiatedError(f"Cannot access data pointer of a tensor that is differentiated: {reason}")
    warn_user(reason, UndifferentiatedWarning)


class _Points:
    """The suspected outputs of a function at other points, with the same random numbers."""

    def __init__(self, call: Differentiable, suspects: Sequence[int]) -> None:
        self._call = call
        self._suspects = suspects
        self._others = call.others()

    def _at(self, point: Sequence[Tensor]) -> list[Tensor]:
        self._call.put_others([other.detach().clone() for other in self._others])
        try:
            with unchanged(*self._call.outside()):
                outputs = self._call(*point)[0]
            return [outputs[k] for k in self._suspects]
        finally:
            self._call.put_others(self._others)

    def observed(self, primals: Sequence[Tensor]) -> type[_Observed]:
        """What stops the derivatives."""

        class Observed(_Observed):
            left: ClassVar[set[str]] = set()
            stopped = False
            undifferentiable: ClassVar[set[str]] = set()

        try:
            with torch.enable_grad():
                self._at([x.clone().requires_grad_().as_subclass(Observed) for x in primals])
        except _ERRORS:  # what it has noted until then counts
            pass
        return Observed

    def differ(self, primals: Sequence[Tensor]) -> bool:
        """Whether the outputs move with the primals; not where the function fails beside them."""
        try:
            with no_grad():
                here, there = self._at(primals), self._at([_moved(x) for x in primals])
        except _ERRORS:
            return False
        return not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(here, there))
