"""What a library's vmap would change about a function's inputs and surroundings, without an error."""

from __future__ import annotations

import functools
import threading
from typing import Any, Callable, Iterable, Iterator

import torch
from torch import Tensor

from .wrong_answers import MISTAKEN_AUTOCAST, MISTAKEN_MODULE_HOOKS, MISTAKEN_SUBCLASS, MistakenRule


@functools.lru_cache(maxsize=256)
def _is_plain(cls: type) -> bool:
    """Whether tensors of a class are torch's own: parameters, and those that torch makes while it traces."""
    return cls.__module__.partition(".")[0] == "torch"


def require_plain(tensors: Iterable[Tensor]) -> None:
    """Raise where a library's transform would give the function a Tensor for one of the user's subclass."""
    for tensor in tensors:
        cls = type(tensor)
        if cls is not Tensor and not _is_plain(cls):
            raise MistakenRule(MISTAKEN_SUBCLASS.format(cls.__name__))


def attributed(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Those on which the user has set attributes. Forward mode keeps the class of a tensor, and no attributes."""
    return (tensor for tensor in tensors if type(tensor) is not Tensor and tensor.__dict__)


def _is_autocast_anywhere() -> bool:
    """On torch 1.10 to 2.0, which have no question for all kinds of devices."""
    return bool(torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled())


_is_autocast_on: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", _is_autocast_anywhere)


class _Thread(threading.local):
    maps = 0
    batches = 0


_thread = _Thread()


class NoAutocast:
    """Within, a library maps: autocast raises, since under vmap other operations are cast than for a sample.

    Linear layers with a bias and convolutions stay float32, dot products become bfloat16.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        if _is_autocast_on():
            raise MistakenRule(MISTAKEN_AUTOCAST)
        _watch()
        _thread.maps += 1

    def __exit__(self, *_: Any) -> None:
        _thread.maps -= 1


class Batch(NoAutocast):
    """Within, a library maps the user's function: backward hooks of modules raise, too.

    A batched tensor does not require grad, so that no module registers its hooks, and the backward pass through the
    batch goes without them.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        super().__enter__()
        _thread.batches += 1

    def __exit__(self, *_: Any) -> None:
        _thread.batches -= 1
        super().__exit__()


@functools.lru_cache(maxsize=None)
def _watch() -> None:
    """Let autocast and modules with backward hooks raise within a map, at the places that all ways lead through."""
    autocast: Any = torch.autocast
    module: Any = torch.nn.Module
    autocast.__enter__ = _watched_autocast(autocast.__enter__)
    for name in ("_get_backward_hooks", "_get_backward_pre_hooks"):  # the second one from torch 2.0 on
        if hasattr(module, name):
            setattr(module, name, _watched_hooks(getattr(module, name)))


def _watched_autocast(enter: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(enter)
    def watched(self: Any) -> Any:
        if _thread.maps and self._enabled:
            raise MistakenRule(MISTAKEN_AUTOCAST)
        return enter(self)

    return watched


def _watched_hooks(hooks_of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(hooks_of)
    def watched(self: Any) -> Any:
        if _thread.batches and torch.is_grad_enabled():
            raise MistakenRule(MISTAKEN_MODULE_HOOKS.format(type(self).__name__))
        return hooks_of(self)

    return watched
