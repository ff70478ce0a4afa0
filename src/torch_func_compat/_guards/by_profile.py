"""Functions that functorch gets wrong without an error, noticed as they are called.

These releases give no other way to see them: there are no modes, and hooks leave no trace in a graph.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from types import CodeType, FrameType
from typing import Any, Callable, ContextManager, Iterator

import torch

from .._torch import facts
from .._torch.closures import names_in
from .checks import get_checks
from .wrong_answers import (
    MISTAKEN_COMPLEX,
    MISTAKEN_EAGER,
    MISTAKEN_FORMULA,
    MISTAKEN_GRAD_MODE,
    MISTAKEN_HOOKS,
    SYMMETRIC,
    WRONG_FORMULAS,
    MistakenRule,
)


def _found() -> dict[CodeType, str]:
    """The code of each such function of this torch, and the text of the error."""
    found: dict[CodeType, str] = {}
    if facts.has("saved_tensor_hooks_lose_terms"):
        hooks: Any = torch.autograd.graph.saved_tensors_hooks
        found[hooks.__enter__.__code__] = MISTAKEN_HOOKS
    if facts.has("functional_is_zero_within_vmap"):
        for name in ("jacobian", "hessian", "vjp", "jvp", "vhp", "hvp"):
            found[getattr(torch.autograd.functional, name).__code__] = MISTAKEN_EAGER
    return found


class GradModeSwitches:
    """The switches of grad mode within a function that is differentiated in forward mode."""

    def __init__(self) -> None:
        self._off_outside = not torch.is_grad_enabled()
        self._switched_on = 0

    def switch(self, enabled: bool) -> None:
        """Raise where grad mode is switched off. Going back to off after an ``enable_grad()`` does not count."""
        is_on = torch.is_grad_enabled()
        if enabled:
            self._switched_on += not is_on
        elif is_on and self._switched_on:
            self._switched_on -= 1
        elif is_on or (self._off_outside and not self._switched_on):
            raise MistakenRule(MISTAKEN_GRAD_MODE)


class _Watch:
    """A profile function that raises at the call of a refused function, and passes events on to another one."""

    def __init__(self, python: dict[CodeType, str], native: dict[str, str], other: Callable[..., Any] | None) -> None:
        self.python = python
        self.native = native
        self._other = other
        self._grad_mode = GradModeSwitches()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            reason = self.python.get(frame.f_code)
            if reason == MISTAKEN_GRAD_MODE:
                self._grad_mode.switch(frame.f_locals["mode"])
            elif reason is not None and (reason != _PADDING or frame.f_locals["padding_idx"] is not None):
                raise MistakenRule(reason)
        elif event == "c_call":
            reason = self.native.get(argument.__name__)
            if reason is not None:
                raise MistakenRule(reason)
        if self._other is not None:
            self._other(frame, event, argument)


# Functions that make complex numbers of real ones, or mostly get complex ones (fact "functorch_loses_complex_parts").
# Forward mode and batched rows leave no graph that would show where numbers come from.
_FFT: Any = torch._C._fft  # type: ignore[attr-defined]
_COMPLEX = (
    *("complex", "polar", "angle", "view_as_complex", "stft"),
    *(name for name in dir(_FFT) if name.startswith("fft_")),
)
_refused = _found(), dict.fromkeys(_COMPLEX, MISTAKEN_COMPLEX)
# The function that switches grad mode off, which forward mode ignores.
_GRAD_MODE = {torch.set_grad_enabled.__init__.__code__: MISTAKEN_GRAD_MODE}
# Reverse mode treats the row of padding as a constant.
_PADDING = MISTAKEN_FORMULA.format("embedding")
_symmetric = {name.replace("linalg.", "linalg_") for name in SYMMETRIC}
_formulas: tuple[dict[CodeType, str], dict[str, str]] = (
    {**_GRAD_MODE, torch.nn.functional.embedding.__code__: _PADDING},
    {name: MISTAKEN_FORMULA.format(name) for name in (*WRONG_FORMULAS, *_symmetric)},
)


class _State(threading.local):
    is_trusted = False


_state = _State()
_NOTHING = contextlib.nullcontext()
# By these names a function reaches what is watched.
_NAMES = frozenset(
    (
        *("checkpoint", "checkpoint_sequential", "save_on_cpu", "saved_tensors_hooks"),
        *("enable_grad", "inference_mode", "no_grad", "set_grad_enabled"),
        *("Embedding", "embedding", *WRONG_FORMULAS, *_COMPLEX),
        *(name[len("fft_") :] for name in _COMPLEX if name.startswith("fft_")),
    )
)


@contextlib.contextmanager
def _trusting() -> Iterator[None]:
    before, _state.is_trusted = _state.is_trusted, True
    try:
        yield
    finally:
        _state.is_trusted = before


def unwatched(func: Callable[..., Any]) -> ContextManager[None]:
    """Around a function that was watched at its first call: it is not watched again, unless it names what is watched.

    A profile function doubles the time of a call.
    """
    if facts.has("modes_see_grad_mode") or get_checks() != "first-call" or not _NAMES.isdisjoint(names_in(func)):
        return _NOTHING
    return _trusting()


@contextlib.contextmanager
def _without(python: dict[CodeType, str], native: dict[str, str]) -> Iterator[None]:
    other = sys.getprofile()
    known = isinstance(other, _Watch) and native.keys() <= other.native.keys() and python.keys() <= other.python.keys()
    if known or _state.is_trusted:
        yield
        return
    if other is not None and not callable(other):
        # a profiler in C, which cannot pass events on: it stays, and the call is refused
        raise MistakenRule(MISTAKEN_HOOKS)
    sys.setprofile(_Watch(python, native, other))
    try:
        yield
    finally:
        sys.setprofile(other)


def refused_calls() -> ContextManager[None]:
    """Raises where the function calls something that would come out wrong in any transform."""
    return _without(*_refused) if _refused[0] else contextlib.nullcontext()


def refused_tangents() -> ContextManager[None]:
    """The same for functions that come out wrong in forward mode."""
    return _without(*_formulas)


def refused_grad_mode() -> ContextManager[None]:
    """The same for switches of grad mode alone, where no TorchFunctionMode sees them."""
    return _without(_GRAD_MODE, {})
