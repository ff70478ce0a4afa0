"""Python functions that functorch 0.1 and 0.2 get wrong without an error, noticed as they are called.

These releases give no other way to see them: there are no modes, and hooks leave no trace in a graph.
"""

from __future__ import annotations

import contextlib
import sys
from types import CodeType, FrameType
from typing import Any, Callable, ContextManager, Iterator

import torch

from .. import _facts
from .._capabilities import MISTAKEN_COMPLEX, MISTAKEN_EAGER, MISTAKEN_HOOKS, MistakenRule


def _found() -> dict[CodeType, str]:
    """The code of each such function of this torch, and what to say of it."""
    found: dict[CodeType, str] = {}
    if _facts.has("saved_tensor_hooks_lose_terms"):
        hooks: Any = torch.autograd.graph.saved_tensors_hooks
        found[hooks.__enter__.__code__] = MISTAKEN_HOOKS
    if _facts.has("functional_is_zero_within_vmap"):
        for name in ("jacobian", "hessian", "vjp", "jvp", "vhp", "hvp"):
            found[getattr(torch.autograd.functional, name).__code__] = MISTAKEN_EAGER
    return found


class _Watch:
    """A profile function that raises at the call of a refused one, and leaves all events to another."""

    def __init__(self, refused: dict[CodeType, str], other: Callable[..., Any] | None) -> None:
        self._refused = refused
        self._other = other

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            reason = self._refused.get(frame.f_code)
            if reason is not None:
                raise MistakenRule(reason)
        elif event == "c_call" and argument.__name__ in _COMPLEX:
            raise MistakenRule(MISTAKEN_COMPLEX)
        if self._other is not None:
            self._other(frame, event, argument)


_refused = _found()

# What makes complex numbers of real ones (fact "functorch_loses_complex_parts")
_FFT: Any = torch._C._fft  # type: ignore[attr-defined]
_COMPLEX = {"complex", "polar", "view_as_complex", "stft", *(name for name in dir(_FFT) if name.startswith("fft_"))}


@contextlib.contextmanager
def _refused_calls() -> Iterator[None]:
    other = sys.getprofile()
    if isinstance(other, _Watch):
        yield
        return
    if other is not None and not callable(other):
        # a profiler in C, whose place cannot be shared: it stays, and nothing is computed unseen
        raise MistakenRule(MISTAKEN_HOOKS)
    sys.setprofile(_Watch(_refused, other))
    try:
        yield
    finally:
        sys.setprofile(other)


# Raises within where the function calls what would come out wrong.
refused_calls: Callable[[], ContextManager[None]] = _refused_calls if _refused else contextlib.nullcontext
