"""Functions that a library has refused: remembered within a loop, and told to the user once."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
import weakref
from contextvars import ContextVar
from typing import Any, Callable, Iterator

from .._arguments.call import name_of
from .._guards.capability import Capability
from .._guards.checks import is_testing
from .._torch.callers import warn_user
from .fallback_mode import get_fallback


class FallbackWarning(UserWarning):
    """The native backend refused a function, and the autograd backend computed it, more slowly."""


# The refusals in this loop so far: a mapped function makes its transforms anew for each sample.
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
        memory[transform, _known_by(func)] = refused


def refused_in_this_loop(transform: str, func: Callable[..., Any]) -> Capability | None:
    memory = _refusals.get()
    return memory.get((transform, _known_by(func))) if memory else None


def _innermost(func: Callable[..., Any]) -> Callable[..., Any]:
    """The user's function within partials and transforms."""
    while isinstance(func, functools.partial):
        func = func.func
    innermost: Callable[..., Any] = inspect.unwrap(func)
    return innermost


def _known_by(func: Callable[..., Any]) -> Any:
    """A key for a function: a lambda is a new object each time it is made, its code is not."""
    func = _innermost(func)
    if isinstance(func, types.MethodType) and isinstance(func.__self__, type):
        return func.__self__  # the apply() of all Functions has one code
    return getattr(func, "__code__", func)


# The user's functions that were warned about.
_warned: weakref.WeakSet[Any] = weakref.WeakSet()


def tell(transform: str, func: Callable[..., Any], refused: Capability, text: str, work: Callable[[], str]) -> None:
    """Warn of a refusal once for each function.

    Parameters
    ----------
    transform, func
        The name of the transform, and the user's function.
    refused : Capability
        The reason and the way out.
    text : str
        Torch's words.
    work : callable
        Returns what the autograd backend computes instead; called only if there is a warning.
    """
    if is_testing():
        return
    key = _known_by(func)
    try:
        if key in _warned:
            return
        _warned.add(key)
    except TypeError:  # an unhashable callable: better warned twice than not at all
        pass
    if get_fallback() == "silent":
        return
    name = name_of(_innermost(func))
    warn_user(
        f"{transform} of `{name}` is computed by the autograd backend, {work()}, because {refused.meaning}. "
        f"To stay native: {refused.advice}. "
        f"(torch refused with: {(text.strip() or 'an assertion').splitlines()[0][:200]})",
        FallbackWarning,
    )
