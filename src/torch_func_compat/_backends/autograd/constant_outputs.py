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
from ..._torch import facts
from ..._torch.callers import warn_user
from ..._torch.grad_mode import no_grad
from ..._torch.random_state import RandomState
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


# Functions whose constant outputs are meant to be so, wherever they are evaluated.
_innocent: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def look_at_constants(call: Differentiable, primals: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Raise or warn where an output changes with the primals although autograd sees no dependence.

    The function is evaluated at two points, and once more to see what stops the derivatives. ``detach()`` and
    ``no_grad()`` mean that the user wants zeros; numbers that leave torch, and operations that torch does not
    differentiate, do not. A function in which nothing else stops derivatives is not tested again.
    """
    suspects = [
        k
        for k, output in enumerate(outputs)
        if not output.requires_grad and (output.is_floating_point() or output.is_complex())
    ]
    try:
        if not suspects or call.func in _innocent:
            return
    except TypeError:  # neither hashed nor referred to weakly
        pass
    found, moves = _observe(call, [primal.detach() for primal in primals], suspects)
    if not (found.left or found.undifferentiable):
        try:
            _innocent[call.func] = True
        except TypeError:
            pass
        return
    if not moves or (found.stopped and not found.left):
        return
    if found.undifferentiable:
        names = ", ".join(sorted(found.undifferentiable))
        raise UndifferentiatedError(
            f"an output changes with an input, but torch has no derivative of {names}: the derivative would be zero. "
            f"Give the operation a backward of its own with torch_func_compat.Function, or detach() its input if zero "
            f"is meant"
        )
    names = ", ".join(sorted(found.left))
    reason = (
        f"an output changes with an input, but no derivative passes from one to the other, since numbers left torch by "
        f"{names}. Write a torch_func_compat.Function around that part, or detach() the numbers first if zero is "
        f"meant"
    )
    if found.left & MEMORY and facts.has("torch_func"):  # as torch.func does, by another name
        raise UndifferentiatedError(f"Cannot access data pointer of a tensor that is differentiated: {reason}")
    warn_user(reason, UndifferentiatedWarning)


def _observe(call: Differentiable, primals: Sequence[Tensor], suspects: Sequence[int]) -> tuple[type[_Observed], bool]:
    """What stops the derivatives of the suspects; and whether these move."""

    class Observed(_Observed):
        left: ClassVar[set[str]] = set()
        stopped = False
        undifferentiable: ClassVar[set[str]] = set()

    others = call.others()
    state = RandomState()

    def evaluated(point: Sequence[Tensor]) -> list[Tensor]:
        state.restore()
        call.put_others([other.detach().clone() for other in others])
        outputs = call(*point)[0]
        return [outputs[k] for k in suspects]

    moves = False
    try:
        with no_grad():
            here, there = evaluated(primals), evaluated([_moved(x) for x in primals])
        moves = not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(here, there))
        with torch.enable_grad():
            evaluated([x.clone().requires_grad_().as_subclass(Observed) for x in primals])
    except _ERRORS:  # what it has noted until then counts
        pass
    finally:
        call.put_others(others)
        state.restore()
    return Observed, moves
