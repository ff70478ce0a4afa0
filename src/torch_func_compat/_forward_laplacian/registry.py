"""The table of rules: by name in the sources, by torch's own function objects when it is made."""

from __future__ import annotations

from typing import Any, Callable, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

Rule = Callable[..., Any]
AnyRule = TypeVar("AnyRule", bound=Rule)

_named: dict[str, Rule] = {}


def rule(names: str) -> Callable[[AnyRule], AnyRule]:
    """Register a rule ``(run, func, *args, **kwargs)`` for functions by their names.

    A plain name stands for the functions of that name in torch, torch.Tensor and torch.nn.functional, which have to
    agree in their arguments; a dotted one like ``linalg.norm`` or ``Tensor.norm`` for that one alone. A name after a
    dot alone, like ``.T``, is an attribute of tensors.
    """

    def register(function: AnyRule) -> AnyRule:
        for name in names.split():
            assert name not in _named, name
            _named[name] = function
        return function

    return register


def _functions(name: str) -> list[Any]:
    if name.startswith("."):
        descriptor = getattr(Tensor, name[1:], None)
        return [] if descriptor is None else [descriptor.__get__]
    if "." in name:
        space, _, name = name.partition(".")
        places = [{"torch": torch, "Tensor": Tensor, "F": functional}.get(space) or getattr(torch, space, None)]
    else:
        places = [torch, Tensor, functional]
    found = [getattr(place, name, None) for place in places]
    return [function for function in found if callable(function)]


def resolved(modules: Any) -> dict[Any, Rule]:
    """The table for this torch, once the modules with the rules are imported."""
    return {function: rule for name, rule in _named.items() for function in _functions(name)}
