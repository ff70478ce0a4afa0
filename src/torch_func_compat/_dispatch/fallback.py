"""Ask a library for a batch or for forward mode; where it refuses, compute on the autograd backend.

Reverse mode outside of a library's transforms cannot be refused, and goes straight through. Within a running transform
of a library nothing falls back: the outermost transform decides, and computes the whole of its call again. If a vmap
falls back, it becomes a Python loop over samples. Transforms inside the mapped function still ask the library, so only
batching is lost. If forward mode falls back, everything within it is computed by the autograd backend.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any, Callable

import torch

from .. import _backends
from .._arguments.protocol import Backend
from .._backends.autograd.level import recordings
from .._guards.capability import Capability
from .._guards.checks import is_testing
from .._guards.recognition import LoopError, ends_recomputation, is_doubtful, refusal
from .._guards.refusals import UNKNOWN
from .._torch import facts
from .._torch.closures import captured_tensors, names_in, transformed
from .._torch.compiling import eager
from .._torch.engine import graphs_kept
from .._torch.hidden_levels import levels_are_hidden, levels_shown
from .._torch.random_state import RandomState
from .._torch.surroundings import Surroundings
from .._torch.tensors import tensors_in, version
from .choice import active_native, chosen, use_backend
from .cost import cost
from .fallback_mode import get_fallback
from .record import Record
from .refused import refused_in_this_loop, remember, remembering, tell

# These need no library, so they cannot be refused.
REVERSE = frozenset(("grad", "grad_and_value", "vjp", "jacrev", "linearize", "hvp", "vhp"))


@eager
def answer(
    record: Record,
    name: str,
    func: Callable[..., Any],
    on: Callable[[Backend], Callable[..., Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The value of a transformed function on the backend in use.

    ``on(backend)`` is the transformed function of a backend.
    """
    if _in_inference_mode() and name != "vmap":
        with torch.inference_mode(False), torch.no_grad():
            return answer(record, name, func, on, args, kwargs)
    active = active_native()
    if active is None and levels_are_hidden():
        with levels_shown():
            return answer(record, name, func, on, args, kwargs)
    backend: Backend = active or chosen()
    if active is None and _is_traced():
        backend = _traceable(name)
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
    text, doubtful = "", None
    refused = record.refused or refused_in_this_loop(name, func)
    if refused is None:
        # A function that was answered without a refusal is trusted: the tensors around it are not kept, which would be
        # the largest cost here.
        tensors = tensors_in((args, kwargs))
        trusted = _is_trusted(name, func, backend)
        before = RandomState() if trusted else Surroundings([*tensors, *captured_tensors(func)], (), func)
        counts = [version(tensor) for tensor in tensors]
        around = sys.exc_info()[1]
        try:
            if trusted or name != "vmap":
                result = call(*args, **kwargs)
            else:  # a loop may have to come after it
                with graphs_kept(names_in(func)):
                    result = call(*args, **kwargs)
            # a function that draws random numbers, or writes to a tensor, is not trusted
            if isinstance(before, Surroundings) and not before.moved() and not before.written():
                _trust(name, func, backend)
            return result
        # Torch refuses by exceptions of any type, and the user's function may answer a refusal by its own. `_refusal`
        # raises again whatever is neither a refusal nor doubtful.
        except Exception as error:
            written = [version(tensor) for tensor in tensors] != counts
            if not before.can_restore() if isinstance(before, Surroundings) else written:
                raise  # a second evaluation would write to them again
            refused, error = _refusal(error, around)
            if refused is UNKNOWN:
                doubtful = error
            text = str(error)
        before.restore()
    # Leave the except block first, so that Python does not report later errors as "during handling of" the refusal.
    if doubtful is None and record.refused is None:
        _note(record, name, func, refused, text, args)
    record.backend = "autograd"
    with remembering() if name == "vmap" else use_backend("autograd"):
        try:
            result = on(_backends.load("autograd"))(*args, **kwargs)
        except LoopError as error:
            if not text:
                raise
            again: Exception = doubtful or LoopError(f"{error} (torch had refused with: {text})")
        # Any error of the function shows that torch was not to blame. The user should see the first one.
        except Exception as error:
            if doubtful is None or ends_recomputation(error):
                raise
            again = doubtful
        else:
            if doubtful is not None:
                _note(record, name, func, refused, text, args)
            return result
    record.backend = backend.name
    raise again


# By function and transform, the backend that answered without a refusal.
_trusted: weakref.WeakKeyDictionary[Any, dict[str, Backend | None]] = weakref.WeakKeyDictionary()


def _of_user(name: str, func: Callable[..., Any]) -> tuple[str, Callable[..., Any]]:
    """The user's function, and the names of the transforms around it: these are often made for each call."""
    inner = transformed(func)
    while inner is not None:
        name, func = f"{name}({_name(func)}", inner
        inner = transformed(func)
    return name, func


def _name(func: Callable[..., Any]) -> str:
    return str(getattr(getattr(func, "__transform__", None), "name", ""))


def _is_trusted(name: str, func: Callable[..., Any], backend: Backend) -> bool:
    name, func = _of_user(name, func)
    try:
        found = _trusted.get(func)
    except TypeError:  # neither hashed nor referred to weakly
        return False
    return found is not None and found.get(name) is backend


def _trust(name: str, func: Callable[..., Any], backend: Backend | None) -> None:
    name, func = _of_user(name, func)
    try:
        _trusted.setdefault(func, {})[name] = backend
    except TypeError:
        pass


def _note(
    record: Record, name: str, func: Callable[..., Any], refused: Capability, text: str, args: tuple[Any, ...]
) -> None:
    """Remember a refusal, and tell the user."""
    _trust(name, func, None)
    if refused.lasting:
        record.refused = refused
        remember(name, func, refused)
    tell(name, func, refused, text, lambda: cost(name, record.options, args))


_is_traced: Callable[[], Any] = (
    torch._C._get_tracing_state
    if facts.has("traces_of_derivatives_crash") or facts.has("traces_of_transforms_crash")
    else lambda: None
)


def _traceable(name: str) -> Backend:
    """The backend whose operations torch.jit.trace can record on an old torch."""
    if name != "vmap" and facts.has("traces_of_derivatives_crash"):
        raise RuntimeError(
            f"{name}: torch.jit.trace of a derivative would end the process on torch < 1.11: trace the function, and "
            f"differentiate what is traced, or upgrade torch"
        )
    return _backends.load("autograd")


_in_inference_mode: Callable[[], bool] = getattr(torch, "is_inference_mode_enabled", bool)


def _refusal(error: Exception, around: BaseException | None) -> tuple[Capability, Exception]:
    """The refusal and torch's error; an error of the user's own is raised again."""
    if isinstance(error, SystemError) and isinstance(error.__cause__, Exception):
        # Python raises it where C++ warns while the real error is on its way (seen on torch 2.14 with Python 3.10).
        error = error.__cause__
    refused = refusal(error, around)
    if refused is None:
        if not is_doubtful(error):
            raise error
        refused = UNKNOWN
    return refused, error
