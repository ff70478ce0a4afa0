"""The modules that a function can reach, and what may switch it between behaviours."""

from __future__ import annotations

import functools
import types
from typing import Any, Callable, Iterable, Iterator

import torch

from .closures import alive, is_ours, names_of, references, transformed

# The most objects that are visited. If a function reaches more, the rest is ignored.
_MOST = 64


def modules(root: Any) -> Iterator[torch.nn.Module]:
    """The modules that a function is, closes over, is bound to, or names among its globals."""
    for value in _reached(root):
        if isinstance(value, torch.nn.Module):
            yield value


class Buffers:
    """The buffers of the modules that a function reaches, so that another evaluation finds the same tensors.

    A module may put another tensor in the place of a buffer, as batch norm did to its counter before torch 1.11.
    """

    def __init__(self, func: Callable[..., Any]) -> None:
        inner = [module for reached in alive(_modules.of(func)) for module in reached.modules()]
        self._held = [(module._buffers, dict(module._buffers)) for module in inner if module._buffers]

    def moved(self) -> bool:
        """Whether a module has replaced one of them."""
        return any(buffers.get(name) is not tensor for buffers, held in self._held for name, tensor in held.items())

    def restore(self) -> None:
        for buffers, held in self._held:
            buffers.update(held)


_modules = references(modules)


def switches(root: Any) -> tuple[Any, ...]:
    """The train mode of each reached module and its submodules, and the whole numbers in closures.

    Such a number may be a dimension. Numbers in containers, attributes and globals are left out: they may count steps.
    """
    found: list[Any] = []
    for value in _reached(root):
        if isinstance(value, torch.nn.Module):
            _add_modes(value, found)
        else:
            found.append(value)
    return tuple(found)


def _add_modes(module: torch.nn.Module, modes: list[Any]) -> None:
    # This runs in each call; modules() takes four times as long.
    modes.append(module.training)
    for child in module._modules.values():
        if child is not None:
            _add_modes(child, modes)


def _reached(root: Any) -> list[Any]:
    """Modules, and whole numbers of closures."""
    found: list[Any] = []
    seen: dict[int, Any] = {}
    stack = [root]
    while stack:
        value = stack.pop()
        look = _look(type(value))  # type: ignore[arg-type]  # a class is hashable
        if look is None:
            continue
        if look is _found:
            found.append(value)
        elif id(value) not in seen and len(seen) < _MOST:
            seen[id(value)] = value
            stack.extend(look(value))
    return found


# Returns the values that a value of some type holds; None where it is not looked into.
_Look = Callable[[Any], Iterable[Any]]


def _found(value: Any) -> Iterable[Any]:
    return ()


@functools.lru_cache(1024)
def _look(cls: type) -> _Look | None:
    """By type, since this is asked in each call."""
    if issubclass(cls, (bool, int, str, torch.nn.Module)):
        return _found
    if issubclass(cls, _NOTHING):
        return None
    if issubclass(cls, types.FunctionType):
        return _around
    if issubclass(cls, types.MethodType):
        return lambda method: (method.__func__, method.__self__)
    if issubclass(cls, functools.partial):
        return lambda partial: (partial.func, *partial.args, *partial.keywords.values())
    if issubclass(cls, (list, tuple)):
        return _without_numbers
    if issubclass(cls, dict):
        return lambda mapping: _without_numbers(mapping.values())
    return lambda value: _without_numbers(getattr(value, "__dict__", {}).values())


_NOTHING = (type, types.ModuleType, types.BuiltinFunctionType, torch.Tensor, float, complex, type(None))


def _without_numbers(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if not isinstance(value, (int, str))]


def _around(function: types.FunctionType) -> list[Any]:
    inner = transformed(function)
    if inner is not None:
        return [inner]
    held = list(function.__defaults__ or ())
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    if is_ours(function):
        return held
    around = function.__globals__
    for name in names_of(function.__code__):
        value = around.get(name)
        if isinstance(value, _NAMED):
            held.append(value)
    return held


_NAMED = (torch.nn.Module, types.FunctionType, types.MethodType, functools.partial)
