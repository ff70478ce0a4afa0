"""Flags and numbers around a function. Where one of them changed, the function may take another branch."""

from __future__ import annotations

import functools
import types
from typing import Any, Callable, Iterator, Tuple

import torch

from .._torch import facts
from .._torch.closures import names_of

_PACKAGE = __name__.rsplit(".", 2)[0] + "."
_SCALARS = frozenset((bool, int, float, complex, str, type(None)))
# Numbers may count steps. Where no mode can tell whether a changed number brings another operation, they are left out.
_WATCHED = _SCALARS if facts.has("torch_function_modes") else frozenset((bool, str, type(None)))
# Objects that are looked into, and elements of a container.
_OBJECTS, _LONG = 100, 16
_OF_MODULES = frozenset(vars(torch.nn.Module())) - {"training", "_modules"}
_MISSING = (AttributeError, IndexError, KeyError, TypeError, ValueError)

Getter = Callable[[Any], Any]
# The number of the object that something is found in (0 for the function), and how.
_Step = Tuple[int, Getter]


class Flags:
    """Where a function finds numbers, texts and None: in closures, globals, containers, and attributes of objects.

    Only the way to them is kept, since a reference would keep what the function belongs to alive.
    """

    __slots__ = ("_steps", "_wanted")

    def __init__(self, func: Callable[..., Any]) -> None:
        objects: list[Any] = [func]
        steps: list[_Step] = [(0, _attribute("itself"))]  # the first is not taken
        wanted: list[int] = []
        seen = {id(func)}
        for k, value in enumerate(objects):  # grows meanwhile
            if type(value) in _SCALARS:
                if type(value) in _WATCHED:
                    wanted.append(k)
                continue
            for getter, found in _parts(value):
                if type(found) not in _SCALARS:
                    if id(found) in seen or len(seen) >= _OBJECTS:
                        continue
                    seen.add(id(found))
                objects.append(found)
                steps.append((k, getter))
        self._steps, self._wanted = _needed(steps, wanted)

    def values(self, func: Callable[..., Any]) -> tuple[Any, ...]:
        """What they are now; of an object that took the place of one, its type."""
        if not self._wanted:
            return ()
        objects = [func]
        try:
            for parent, getter in self._steps:
                objects.append(getter(objects[parent]))
        except _MISSING:
            return (object(),)  # something else is there: equal to nothing
        found = [objects[k] for k in self._wanted]
        return tuple([value if type(value) in _WATCHED else type(value) for value in found])


def _needed(steps: list[_Step], wanted: list[int]) -> tuple[list[_Step], list[int]]:
    """The steps that lead to what is wanted, without the first, renumbered."""
    needed = {0}
    for k in wanted:
        while k not in needed:
            needed.add(k)
            k = steps[k][0]
    order = sorted(needed)
    number = {k: n for n, k in enumerate(order)}
    return [(number[steps[k][0]], steps[k][1]) for k in order[1:]], [number[k] for k in wanted]


def _parts(value: Any) -> Iterator[tuple[Getter, Any]]:
    """What a value holds, and how it is found there."""
    cls = type(value)
    getters: Any = ()
    if cls is types.FunctionType:
        getters = _of_function(value)
    elif cls is functools.partial:
        getters = [_attribute("func"), *(_nested("args", k) for k in range(len(value.args)))]
        getters += [_nested("keywords", name) for name in value.keywords]
    elif cls is types.MethodType:
        getters = [_attribute("__func__"), _attribute("__self__")]
    elif cls in (list, tuple):
        getters = [_item(k) for k in range(min(len(value), _LONG))]
    elif cls is dict:
        getters = [_item(key) for key in list(value)[:_LONG]]
    elif isinstance(value, torch.nn.Module):
        # a scripted module has neither an iterator over its modules nor its mode in its dict
        getters = [_nested("_modules", name) for name, _ in value._modules.items()]
        if (cls.__module__ or "").startswith("torch."):
            getters.append(_attribute("training"))
        else:
            getters += [_nested("__dict__", x) for x in vars(value) if x not in _OF_MODULES and x != "_modules"]
    elif not isinstance(value, (type, types.ModuleType, torch.Tensor)) and hasattr(value, "__dict__"):
        # the options of a transform do not change
        of_this_library = (cls.__module__ or "").startswith(_PACKAGE)
        getters = [_nested("__dict__", name) for name in vars(value) if not of_this_library or name == "func"]
    for getter in getters:
        try:
            yield getter, getter(value)
        except _MISSING:  # such as a cell that is not filled yet
            pass


def _of_function(function: Any) -> Iterator[Getter]:
    yield from (_nested("__defaults__", k) for k in range(len(function.__defaults__ or ())))
    yield from (_nested("__kwdefaults__", name) for name in function.__kwdefaults__ or ())
    yield from map(_closed_over, range(len(function.__closure__ or ())))
    if not (function.__module__ or "").startswith(_PACKAGE):
        around = function.__globals__
        yield from (_nested("__globals__", name) for name in names_of(function.__code__) if name in around)


def _attribute(name: str) -> Getter:
    return lambda value: getattr(value, name)


def _item(key: Any) -> Getter:
    return lambda value: value[key]


def _nested(name: str, key: Any) -> Getter:
    return lambda value: getattr(value, name)[key]


def _closed_over(k: int) -> Getter:
    return lambda function: function.__closure__[k].cell_contents
