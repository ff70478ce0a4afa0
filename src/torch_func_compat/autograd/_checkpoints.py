"""Checkpoints within functional_call: their second run finds the tensors that were given to the call.

A checkpoint computes its part of a module once more when a backward pass needs it. By then functional_call has put the
module's own tensors back, so that the gradient would be that of other parameters, without an error. For the time of a
call, the functions of torch.utils.checkpoint that keep the user's function are given one that exchanges the tensors
again when it runs after the call.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from typing import Any, Callable, ContextManager, Iterator

from .._backends.autograd.level import recordings

# A call's exchange of tensors, made again.
Exchange = Callable[[], ContextManager[Any]]

# The functions of torch that keep the user's function; it is their first argument.
_FUNCTIONS = (
    "_checkpoint_without_reentrant",  # torch 1.11 to 2.0
    "_checkpoint_without_reentrant_generator",  # from 2.1 on
    "_checkpoint_without_reentrant_generator_impl",
)


class _Running(threading.local):
    """The exchanges of this thread's calls that are running, the outermost first."""

    def __init__(self) -> None:
        self.exchanges: tuple[Exchange, ...] = ()


_running = _Running()
_lock = threading.Lock()
_calls = 0  # how many are running, in all threads
_originals: dict[str, Any] = {}


def _repeatable(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, made to find the present tensors whenever it runs."""
    exchanges = _running.exchanges
    if not exchanges:
        return function

    @functools.wraps(function, updated=())
    def again(*args: Any, **kwargs: Any) -> Any:
        missing = [exchange for exchange in exchanges if exchange not in _running.exchanges]
        with contextlib.ExitStack() as stack:
            for exchange in missing:
                stack.enter_context(exchange())
            return function(*args, **kwargs)

    return again


def _keeping(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def keeps(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return original(_repeatable(function), *args, **kwargs)

    return keeps


class _Reentrant:
    """Stands in for the autograd.Function of reentrant checkpoints."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def apply(self, function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        if recordings():
            # torch lets only Tensor.backward() pass a reentrant checkpoint, and parameters get no gradient where inputs
            # have none. A checkpoint saves memory and changes no result, so it is left out.
            return function(*args)
        return self._original.apply(_repeatable(function), preserve_rng_state, *args)


@contextlib.contextmanager
def repeated_with(exchange: Exchange) -> Iterator[None]:
    """A context in which checkpoints note to run again with these tensors in the module's places."""
    global _calls
    module: Any = sys.modules.get("torch.utils.checkpoint")
    before = _running.exchanges
    with _lock:
        _calls += 1
        if _calls == 1 and module is not None:
            _originals.update({name: getattr(module, name) for name in _FUNCTIONS if hasattr(module, name)})
            for name, original in _originals.items():
                setattr(module, name, _keeping(original))
            _originals["CheckpointFunction"] = module.CheckpointFunction
            module.CheckpointFunction = _Reentrant(module.CheckpointFunction)
    _running.exchanges = (*before, exchange)
    try:
        yield
    finally:
        _running.exchanges = before
        with _lock:
            _calls -= 1
            if _calls == 0 and _originals:
                for name, original in _originals.items():
                    setattr(module, name, original)
                _originals.clear()
