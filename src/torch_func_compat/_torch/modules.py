"""The modules that a function can reach, and what may switch it between behaviours."""

from __future__ import annotations

import functools
import types
from typing import Any, Iterator

import torch

# Objects that are looked at; a function with more around it is known by the first ones.
_MOST = 64
_NUMBERS = (bool, int, str)
_NOTHING = (*_NUMBERS, type, types.ModuleType, types.BuiltinFunctionType, torch.Tensor, float, complex, type(None))


def modules(root: Any) -> Iterator[torch.nn.Module]:
    """The modules that a function is, closes over, is bound to, or names among its globals."""
    for value in _reached(root):
        if isinstance(value, torch.nn.Module):
            yield value


def switches(root: Any) -> tuple[Any, ...]:
    """Whether each of these modules and those within it is in train mode; and whole numbers that a closure has.

    The number may be a dimension. Numbers in containers, attributes and globals are left out, since they count steps.
    """
    found: list[Any] = []
    for value in _reached(root):
        if isinstance(value, torch.nn.Module):
            found.extend([inner.training for inner in value.modules()])
        else:
            found.append(value)
    return tuple(found)


def _reached(root: Any) -> Iterator[Any]:
    """Modules, and whole numbers of closures."""
    seen: dict[int, Any] = {}
    stack = [root]
    while stack and len(seen) < _MOST:
        value = stack.pop()
        if isinstance(value, _NUMBERS):
            yield value
        elif isinstance(value, _NOTHING) or id(value) in seen:
            continue
        elif isinstance(value, torch.nn.Module):
            seen[id(value)] = value
            yield value
        else:
            seen[id(value)] = value
            stack.extend(_held(value))


def _held(value: Any) -> Iterator[Any]:
    if isinstance(value, types.FunctionType):
        yield from _around(value)
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    else:
        inner = value if isinstance(value, (list, tuple, dict)) else getattr(value, "__dict__", {})
        values = inner if isinstance(inner, (list, tuple)) else inner.values()
        yield from (x for x in values if not isinstance(x, _NOTHING))


def _around(function: types.FunctionType) -> Iterator[Any]:
    yield from function.__defaults__ or ()
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    around = function.__globals__
    for name in function.__code__.co_names:
        value = around.get(name)
        if isinstance(value, (torch.nn.Module, types.FunctionType, types.MethodType, functools.partial)):
            yield value
