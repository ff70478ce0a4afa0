"""Functions that a library has refused: which, remembered within a loop, and told once."""

from __future__ import annotations

import contextlib
import functools
import weakref
from contextvars import ContextVar
from typing import Any, Callable, Iterator

from .._arguments.call import name_of
from .._guards.checks import is_testing
from .._guards.refusals import Capability
from .._torch.callers import warn_user
from .fallback_mode import get_fallback


class FallbackWarning(UserWarning):
    """The native backend refused a function, and the autograd backend computed it, more slowly."""


# What was refused to the samples before: transforms that the mapped function makes are new ones for each sample.
_refusals: ContextVar[dict[Any, Capability] | None] = ContextVar("refusals", default=None)


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """Around a loop over samples; the outermost one remembers for those within."""
    token = _refusals.set({}) if _refusals.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _refusals.reset(token)


def remember(transform: str, func: Callable[..., Any], refused: Capability) -> None:
    memory = _refusals.get()
    if memory is not None:
        memory[transform, _code(func)] = refused


def refused_in_this_loop(transform: str, func: Callable[..., Any]) -> Capability | None:
    memory = _refusals.get()
    return memory.get((transform, _code(func))) if memory else None


def _code(func: Callable[..., Any]) -> Any:
    """What a function is known by: a lambda is a new object each time, its code is not."""
    func = _innermost(func)
    code = getattr(func, "__code__", None)
    return id(func) if code is None else code


def _innermost(func: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(func, functools.partial) or hasattr(func, "__wrapped__"):
        func = func.func if isinstance(func, functools.partial) else func.__wrapped__
    return func


# The user's functions that were warned about, by their code.
_warned: weakref.WeakSet[Any] = weakref.WeakSet()


def tell(transform: str, func: Callable[..., Any], refused: Capability, text: str) -> None:
    if is_testing():
        return
    func = _innermost(func)
    key = getattr(func, "__code__", func)
    try:
        if key in _warned:
            return
        _warned.add(key)
    except TypeError:  # an unhashable callable: better warned twice than not at all
        pass
    if get_fallback() == "silent":
        return
    warn_user(
        f"{transform} of `{name_of(func)}` is computed by the autograd backend, sample by sample where torch would "
        f"batch, because {refused.meaning}. To stay native: {refused.advice}. "
        f"(torch refused with: {(text.strip() or 'an assertion').splitlines()[0][:200]})",
        FallbackWarning,
    )
