"""Ask a library for a batch or for forward mode; where it refuses, compute on the autograd backend.

Reverse mode outside of a library's transforms cannot be refused, and goes straight through. Within a running transform
of a library nothing falls back: the outermost transform decides, and computes the whole of its call again. If a vmap
falls back, it becomes a Python loop over samples. Transforms inside the mapped function still ask the library, so only
batching is lost. If forward mode falls back, everything within it is computed by the autograd backend.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from contextvars import ContextVar
from typing import Any, Callable, ContextManager, Iterator

import torch
from torch import Tensor

from .. import _backends
from .._arguments.call import name_of
from .._arguments.protocol import Backend
from .._backends.autograd.level import recordings
from .._guards.checks import is_testing
from .._guards.refusals import Capability, LoopError, refusal
from .._torch import facts
from .._torch.callers import warn_user
from .._torch.random_state import RandomState
from .._torch.setting import Setting
from .._torch.tensors import version
from .._transforms.options import Report
from .choice import active_native, chosen, use_backend

MODES = ("warn", "silent", "error")

# What needs nothing of a library, so that nothing can be refused.
REVERSE = frozenset(("grad", "grad_and_value", "vjp", "jacrev", "linearize", "vhp"))


class FallbackWarning(UserWarning):
    """The native backend refused a function, and the autograd backend computed it, more slowly."""


def _check(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"unknown fallback {mode!r}: expected one of {', '.join(map(repr, MODES))}")


_setting = Setting("fallback", _check)


def get_fallback() -> str:
    """What happens here and now where the native backend refuses: 'warn', 'silent' or 'error'."""
    return _setting.get() or "warn"


def set_fallback(mode: str | None) -> None:
    """Choose for the whole process what happens where the native backend refuses a function.

    Parameters
    ----------
    mode : {'warn', 'silent', 'error'} or None
        Compute on the autograd backend with one `FallbackWarning` per function, do so without a word, or let
        torch's error pass. None goes back to the environment variable ``TORCH_FUNC_COMPAT_FALLBACK``, else to
        'warn'.

    Raises
    ------
    ValueError
        There is no such mode.
    """
    _setting.set(mode)


def use_fallback(mode: str) -> ContextManager[None]:
    """`set_fallback` within a ``with`` block, for this thread (or asyncio task) only.

    Examples
    --------
    >>> import torch_func_compat as tfc
    >>> with tfc.use_fallback("error"):
    ...     tfc.get_fallback()
    'error'
    """
    return _setting.use(mode)


class Record(Report):
    """What is known of a transform.

    Attributes
    ----------
    backend : str or None
        The backend that answered last.
    is_plain : bool
        Whether a backend with a library took a derivative by plain autograd.
    refused : Capability or None
        What its library refused once.
    trusted : Backend or None
        The backend that has answered without a refusal.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backend: str | None = None
        self.is_plain = False
        self.refused: Capability | None = None
        self.trusted: Backend | None = None


def explain(transformed: Callable[..., Any]) -> str:
    """Tell which backend answered a transformed function last, and why.

    Parameters
    ----------
    transformed : callable
        What vmap, grad, jacrev, ... of this library returned.

    Returns
    -------
    str
        One or two sentences.

    Raises
    ------
    TypeError
        `transformed` was not made by this library.

    Examples
    --------
    >>> import torch
    >>> import torch_func_compat as tfc
    >>> gradient = tfc.grad(torch.sin)
    >>> with tfc.use_backend("autograd"):
    ...     _ = gradient(torch.ones(()))
    >>> tfc.explain(gradient)
    'The backend that answered last is autograd.'
    """
    record = getattr(getattr(transformed, "__transform__", None), "record", None)
    if not isinstance(record, Record):
        raise TypeError(f"expected a function transformed by this library, got {transformed!r}")
    if record.backend is None:
        return "It was not called yet."
    last = f"The backend that answered last is {record.backend}."
    if record.is_plain:
        last += " Its reverse mode needs no library."
    if record.mode:
        last += f" It took {record.mode}."
    if record.chunk_size is not None:
        last += f" It took chunks of {record.chunk_size}."
    if record.refused is None:
        return last
    return (
        f"{last} The native backend refused, because {record.refused.meaning}. To stay native: {record.refused.advice}."
    )


def answer(
    record: Record,
    name: str,
    func: Callable[..., Any],
    on: Callable[[Backend], Callable[..., Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The value of a transformed function by the backend of the moment.

    ``on(backend)`` is the transformed function of a backend.
    """
    if _in_inference_mode() and name != "vmap" and facts.has("derivatives_vanish_in_inference_mode"):
        with torch.inference_mode(False), torch.no_grad():
            return answer(record, name, func, on, args, kwargs)
    active = active_native()
    backend: Backend = active or chosen()
    if active is None and not backend.loops and name not in REVERSE and name != "vmap" and recordings():
        # Plain autograd is about to differentiate this. It cannot do so through every formula of forward mode.
        backend = _backends.load("autograd")
    record.backend = backend.name
    record.is_plain = active is None and not backend.loops and name in REVERSE
    if active is not None or backend.loops or name in REVERSE:
        return on(backend)(*args, **kwargs)
    return _with_fallback(record, name, func, on, backend, args, kwargs)


def _with_fallback(
    record: Record,
    name: str,
    func: Callable[..., Any],
    on: Callable[[Backend], Callable[..., Any]],
    backend: Backend,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The value by a library, or by the autograd backend where the library refuses.

    A transform that was refused once goes straight to the autograd backend from then on.
    """
    call = on(backend)
    if get_fallback() == "error" and not is_testing():
        return call(*args, **kwargs)
    text = ""
    refused = record.refused or _refused_in_this_loop(name, func)
    if refused is None:
        # What was answered without a refusal is trusted: no random state and no versions are kept for it, which
        # costs more than all else here. Should a refusal come all the same, arguments that were never modified
        # cannot have been modified this time.
        trusted = record.trusted is backend
        before, state = (None, None) if trusted else (_versions(args), RandomState())
        try:
            result = call(*args, **kwargs)
            # what draws random numbers keeps the random state in view
            if state is not None and not state.moved():
                record.trusted = backend
            return result
        except REFUSALS as error:
            refused, text = _refusal(error, [0] * len(_versions(args)) if before is None else before, args)
        if state is not None:
            state.restore()
    # Out of the except blocks: an error from here on did not happen "during handling of" the refusal.
    if record.refused is None:
        record.refused, record.trusted = refused, None
        _remember(name, func, refused)
        _warn(name, func, refused, text)
    record.backend = "autograd"
    with _loop() if name == "vmap" else use_backend("autograd"):
        try:
            return on(_backends.load("autograd"))(*args, **kwargs)
        except LoopError as error:
            if not text:
                raise
            again = LoopError(f"{error} (torch had refused with: {text})")
    raise again


# What was refused to the samples before: transforms that the mapped function makes are new ones for each sample.
_refusals: ContextVar[dict[Any, Capability] | None] = ContextVar("refusals", default=None)


@contextlib.contextmanager
def _loop() -> Iterator[None]:
    """Around a loop over samples; the outermost one remembers for those within."""
    token = _refusals.set({}) if _refusals.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _refusals.reset(token)


def _remember(transform: str, func: Callable[..., Any], refused: Capability) -> None:
    memory = _refusals.get()
    if memory is not None:
        memory[transform, _code(func)] = refused


def _refused_in_this_loop(transform: str, func: Callable[..., Any]) -> Capability | None:
    memory = _refusals.get()
    return memory.get((transform, _code(func))) if memory else None


_in_inference_mode: Callable[[], bool] = getattr(torch, "is_inference_mode_enabled", bool)

# What a refusal can come as; see _guards/refusals.py.
REFUSALS = (RuntimeError, AssertionError, IndexError, SystemError)


def _refusal(error: Exception, before: list[int], args: tuple[Any, ...]) -> tuple[Capability, str]:
    """What was refused, and torch's words; any other error is raised again."""
    if isinstance(error, SystemError) and isinstance(error.__cause__, Exception):
        # Python's, where C++ warns on the way out of the error that counts (seen on torch 2.14 with Python 3.10)
        error = error.__cause__
    refused = refusal(error)
    # A function that changed its arguments before it was refused would change them once more.
    if refused is None or _versions(args) != before:
        raise error
    return refused, str(error)


def _versions(values: Any) -> list[int]:
    """How often each tensor among arguments was modified in place; built-in containers are entered."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(version(value))
        elif isinstance(value, (list, tuple)):
            found += _versions(value)
        elif isinstance(value, dict):
            found += _versions(value.values())
    return found


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


def _warn(transform: str, func: Callable[..., Any], refused: Capability, text: str) -> None:
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
