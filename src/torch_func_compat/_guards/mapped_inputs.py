"""Inputs and surroundings of a function that a library's vmap would change without an error."""

from __future__ import annotations

import functools
from typing import Callable, Iterable, Iterator

import torch
from torch import Tensor

from .wrong_answers import MISTAKEN_AUTOCAST, MISTAKEN_SUBCLASS, MistakenRule


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
    """Tensors with attributes that the user has set. Forward mode keeps a tensor's class, but no attributes."""
    return (tensor for tensor in tensors if type(tensor) is not Tensor and tensor.__dict__)


def _is_autocast_anywhere() -> bool:
    """On torch 1.10 to 2.0, which cannot ask for all kinds of devices at once."""
    return bool(torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled())


is_autocast_on: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", _is_autocast_anywhere)


def forbid_autocast() -> None:
    """Raise under autocast, since torch casts other operations under vmap than for a sample.

    Linear layers with a bias and convolutions stay float32, dot products become bfloat16.
    """
    if is_autocast_on():
        raise MistakenRule(MISTAKEN_AUTOCAST)
