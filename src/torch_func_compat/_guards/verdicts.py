"""The memory of tests: for which functions and shapes a library's result was right, and for which it was wrong.

A verdict belongs to a function and to the shapes and dtypes that it was called with. A function that is made anew for
each call, as a lambda in a loop, is known by its code and by the functions and objects that it closes over. Two
closures of one code that hold different functions have verdicts of their own.
"""

from __future__ import annotations

import functools
import itertools
import types
import weakref
from collections import OrderedDict
from typing import AbstractSet, Any, Callable, Hashable, Iterable, Optional, Tuple

import torch
from torch import Tensor

from .._torch.closures import names_of
from .flags import Flags

# Another function in a global, or another class (an autograd.Function), is another function to test.
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, functools.partial, type)
_PACKAGE = __name__.rsplit(".", 2)[0] + "."
# Functions in closures deeper than this are told apart by identity.
_DEPTH = 6
_LONG = 32
_MOST = 4096

# The result of a test: empty for right, else a text that says what is wrong.
Verdict = str
RIGHT = ""


# Recorded operations: `torch_func_compat._guards.recorder.Pairs`; None where there are no modes to record them.
Operations = Optional[AbstractSet[Tuple[str, str]]]
# Changes that brought no other operation, until numbers are not looked at any more: they may count steps.
_PATIENCE = 16


class Entry:
    """A verdict, the values of the flags around the function that it holds for, and the operations."""

    __slots__ = ("changes", "flags", "known", "operations", "verdict")

    def __init__(self, verdict: Verdict, func: Callable[..., Any], operations: Operations) -> None:
        self.verdict = verdict
        self.flags = Flags(func)
        self.known = {self.flags.values(func)}
        self.operations = operations
        self.changes = 0

    def holds_now(self, func: Callable[..., Any]) -> bool:
        """Whether the flags are what they were; also of another function of the same identity."""
        values = self.flags.values(func)
        return values in self.known or (
            self.changes >= _PATIENCE and _without_numbers(values) in map(_without_numbers, self.known)
        )

    def extend(self, before: Entry) -> None:
        """Let the verdict hold for the flags and operations, too, that an earlier one like it held for."""
        if self.operations is not None and before.operations is not None:
            self.operations = self.operations | before.operations
        if self.operations == before.operations:
            self.changes = before.changes + (not self.known <= before.known)
        if len(before.known) < 2 * _PATIENCE:
            self.known |= before.known


def _without_numbers(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple([type(value) if type(value) in (int, float, complex) else value for value in values])


class Verdicts:
    """Verdicts by function and call."""

    def __init__(self) -> None:
        # None where `_of_codes` has no verdict either: computing the identity of a function takes longer than all else.
        self._of_functions: weakref.WeakKeyDictionary[Any, dict[Hashable, Entry | None]] = weakref.WeakKeyDictionary()
        self._of_codes: OrderedDict[Hashable, Entry] = OrderedDict()

    def _entry(self, func: Callable[..., Any], call: Hashable) -> Entry | None:
        try:
            found = self._of_functions.get(func)
        except TypeError:  # neither hashed nor referred to weakly
            return self._of_codes.get((identity(func), call))
        if found is not None and call in found:
            return found[call]
        entry = self._of_codes.get((identity(func), call))
        self._of_functions.setdefault(func, {})[call] = entry
        return entry

    def get(self, func: Callable[..., Any], call: Hashable, by_flags: bool = True) -> Verdict | None:
        """The verdict on a function in such a call; None if there is none, or none for the flags of now."""
        entry = self._entry(func, call)
        return entry.verdict if entry is not None and (not by_flags or entry.holds_now(func)) else None

    def holds_for(self, func: Callable[..., Any], call: Hashable, operations: AbstractSet[tuple[str, str]]) -> bool:
        """Whether such a call was right with all of these operations, by whatever flags."""
        entry = self._entry(func, call)
        return entry is not None and entry.verdict == RIGHT and operations <= (entry.operations or frozenset())

    def set(self, func: Callable[..., Any], call: Hashable, verdict: Verdict, operations: Operations = None) -> None:
        """Remember a verdict."""
        entry, before = Entry(verdict, func, operations), self._entry(func, call)
        if before is not None and before.verdict == verdict:
            entry.extend(before)
        try:
            self._of_functions.setdefault(func, {})[call] = entry
        except TypeError:
            pass
        self._of_codes[identity(func), call] = entry
        while len(self._of_codes) > _MOST:
            self._of_codes.popitem(last=False)


def shapes(values: Iterable[Any]) -> Hashable:
    """Shape, dtype and requires_grad of tensors, and integers and names, among arguments and in containers."""
    found: list[Hashable] = []
    for value in values:
        if isinstance(value, Tensor):
            try:
                found.append((value.shape, value.dtype, value.requires_grad))
            except RuntimeError:  # a nested tensor has no shape
                found.append(value.dtype)
        elif isinstance(value, (list, tuple)):
            found.append(shapes(value))
        elif isinstance(value, dict):
            found.append((tuple(value), shapes(value.values())))
        else:
            found.append(value if isinstance(value, (bool, int, str)) else None)
    return tuple(found)


_counter = itertools.count()
_tokens: dict[int, tuple[Any, int]] = {}


def _token(value: Any) -> Hashable:
    """A number for an object, which no other one gets."""
    key = id(value)
    known = _tokens.get(key)
    if known is None or known[0]() is not value:
        try:
            reference = weakref.ref(value, lambda _: _tokens.pop(key, None))
        except TypeError:
            return type(value).__qualname__, key
        known = _tokens[key] = reference, next(_counter)
    return known[1]


def identity(value: Any, depth: int = 0) -> Hashable:
    """A key that tells a function, or an object that a function closes over, from others.

    Tensors, floating-point numbers and what lists and dicts hold beside functions change from step to step in a loop:
    their types and shapes alone count.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    cls = type(value)
    if isinstance(value, (float, complex)):
        return cls.__name__
    if isinstance(value, Tensor):
        return cls, value.shape, value.dtype
    if depth > _DEPTH or isinstance(value, type):
        return _token(value)
    inner = functools.partial(_identities, depth=depth + 1)
    if cls is types.FunctionType:
        made = getattr(value, "__transform__", None)
        if made is not None:
            return inner((made,))
        return value.__code__, inner(_around(value))
    if cls is types.MethodType:
        return inner((value.__func__, value.__self__))
    if isinstance(value, functools.partial):
        return inner((value.func, value.args, tuple(value.keywords), tuple(value.keywords.values())))
    if isinstance(value, list):
        return cls, inner([x for x in value[:_LONG] if callable(x)])
    if isinstance(value, tuple) and len(value) <= _LONG:
        return cls, inner(value)
    if isinstance(value, dict) and len(value) <= _LONG:
        return cls, tuple(map(str, value)), inner([x for x in value.values() if callable(x)])
    if isinstance(value, torch.nn.Module):
        return _token(value), tuple([module.training for module in value.modules()])
    if (cls.__module__ or "").startswith(_PACKAGE):
        # Objects of this library, such as Options, are made anew for each transform: their contents count.
        parts = getattr(value, "identified_by", None)
        if parts is not None:
            return cls, inner(parts)
        held = vars(value) if hasattr(value, "__dict__") else {}
        if "func" not in held:
            private = cls.__module__.startswith(_PACKAGE + "_") and not callable(value)
            return cls.__qualname__ if private else _token(value)
        public = [x for name, x in held.items() if not name.startswith("_")]
        settings = [x for x in public if callable(x) or x is None or isinstance(x, (str, int, list, tuple, dict))]
        return cls, tuple([_setting(x, depth + 1) for x in settings])
    return _token(value)


def _setting(value: Any, depth: int) -> Hashable:
    """A key for an option of a transform, such as ``mode`` and ``in_dims``: all of it counts."""
    if isinstance(value, (list, tuple)):
        return type(value), tuple([_setting(x, depth) for x in value])
    if isinstance(value, dict):
        return tuple(map(str, value)), tuple([_setting(x, depth) for x in value.values()])
    return identity(value, depth)


def _identities(values: Iterable[Any], depth: int) -> Hashable:
    return tuple([identity(value, depth) for value in values])


def _around(function: Any) -> Iterable[Any]:
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            yield None
    around = function.__globals__
    for name in names_of(function.__code__):
        value = around.get(name)
        if isinstance(value, _FUNCTIONS):
            yield name
            yield _token(value)
