"""Tensors and generators that a function can reach although they are not among its arguments."""

from __future__ import annotations

import contextlib
import functools
import types
import weakref
from collections import deque
from itertools import chain
from typing import Any, Callable, Generic, Iterable, Iterator, List, TypeVar

import torch
from torch import Tensor

_PACKAGE = __name__.rsplit(".", 2)[0] + "."


Found = TypeVar("Found")
References = List["weakref.ref[Any]"]


def names_of(code: types.CodeType) -> list[str]:
    """The globals and attributes that a function's code names, and the functions that are written within it."""
    found = dict.fromkeys(code.co_names)
    for value in code.co_consts:
        if type(value) is types.CodeType:
            found.update(dict.fromkeys(names_of(value)))
    return list(found)


def captured(root: Any, limit: int = 200, parameters: bool = False, called: bool = False) -> list[Any]:
    """Tensors and random generators that a function can reach, as far as one can see from outside.

    The search follows closures, default arguments, partials, bound methods, buffers of modules, attributes of other
    objects, globals that the function names, and built-in containers of those. It visits `limit` objects at most. With
    `parameters` it also finds the parameters of modules; with `called` it also follows the functions and modules among
    the globals.
    """
    found: list[Any] = []
    seen: dict[int, Any] = {}
    queue: deque[Any] = deque([root])
    while queue and len(seen) < limit:
        value = queue.popleft()
        if id(value) in seen:
            continue
        look = _look(type(value))  # type: ignore[arg-type]  # a class is hashable
        if look is None:
            continue
        seen[id(value)] = value
        if look is _found:
            found.append(value)
        else:
            queue.extend(look(value))
            if called and isinstance(value, types.FunctionType):
                queue.extend(_called(value))
            if parameters and isinstance(value, torch.nn.Module):
                queue.extend(value.parameters())
    return found


def _reached(func: Callable[..., Any], limit: int) -> Iterator[Any]:
    """What a function is or can call, as far as one can see from outside; of a module, the module itself."""
    seen: dict[int, Any] = {}
    queue: deque[Any] = deque([func])
    while queue and len(seen) < limit:
        value = queue.popleft()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        yield value
        if isinstance(value, torch.nn.Module):
            continue
        look = _look(type(value))  # type: ignore[arg-type]
        if look is not None:
            queue.extend(look(value))
        if isinstance(value, types.FunctionType) and not is_ours(value):
            names = names_of(value.__code__)
            around = [value.__globals__.get(name) for name in names]
            queue.extend(filter(callable, around))
            for module in around:
                if isinstance(module, types.ModuleType) and not _is_foreign(module.__name__):
                    queue.extend(filter(_is_function, (getattr(module, name, None) for name in names)))


def _is_foreign(module: str) -> bool:
    """Whether a module is of torch, numpy or Python, whose functions are known by their names."""
    return module.split(".")[0] in ("torch", "numpy", "math", "builtins")


def _is_function(value: Any) -> bool:
    return isinstance(value, types.FunctionType)


def _methods(cls: type) -> Iterator[Any]:
    """The methods that users wrote for a class or its bases."""
    for base in cls.__mro__:
        if not _is_foreign(base.__module__ or ""):
            yield from filter(_is_function, vars(base).values())


_SCRIPTS = (torch.jit.ScriptFunction, torch.jit.ScriptModule)


def scripts_in(func: Callable[..., Any]) -> list[Any]:
    """The TorchScript that a function could call at its first call, as far as one can see; no mode sees into it."""
    return alive(_scripts.of(func))


def _find_scripts(func: Callable[..., Any], limit: int = 200) -> list[Any]:
    found = []
    for value in _reached(func, limit):
        of_module = value.modules() if isinstance(value, torch.nn.Module) else [value]
        found += [script for script in of_module if isinstance(script, _SCRIPTS)]
    return found


_DERIVATIVES = _PACKAGE + "_transforms."


def transformed(func: Any) -> Any:
    """The function that a transform was made of; None for a function that is no transform."""
    inner = getattr(func, "__wrapped__", None)
    if inner is None:
        return None
    # `functools.wraps` copies the attributes of a transform to a function of the user.
    made = getattr(func, "__transform__", None)
    return inner if getattr(made, "func", None) is inner or (func.__module__ or "").startswith(_PACKAGE) else None


def is_ours(func: types.FunctionType) -> bool:
    """Whether a function is of this library, which calls the functions of the user that it closes over."""
    return (func.__module__ or "").startswith(_PACKAGE) or transformed(func) is not None


def _asked_instead(func: Callable[..., Any]) -> list[Callable[..., Any]] | None:
    """The functions that a function of this library calls for the user; None for a function of the user.

    Transforms and derivatives are made for a call. What they call is known from call to call.
    """
    inner = transformed(func)
    if inner is not None:
        return [inner]
    if isinstance(func, functools.partial):
        ours = (getattr(func.func, "__module__", None) or "").startswith(_DERIVATIVES)
        return [x for x in (*func.args, *func.keywords.values()) if callable(x)] if ours else None
    if not (getattr(func, "__module__", None) or "").startswith(_DERIVATIVES):
        return None
    closed = [cell.cell_contents for cell in getattr(func, "__closure__", None) or () if _is_filled(cell)]
    return [value for value in closed if callable(value)]


class Memory(Generic[Found]):
    """Remember what a search finds for each function. A search in each call would cost too much.

    Parameters
    ----------
    find : callable
        Looks at a function of the user.
    join : callable
        One result of several.
    """

    def __init__(self, find: Callable[[Any], Found], join: Callable[[list[Found]], Found]) -> None:
        self._find = find
        self._join = join
        # A WeakKeyDictionary would take more than twice the time, and each derivative asks twice.
        self._known: dict[weakref.ref[Any], Found] = {}

    def of(self, func: Callable[..., Any]) -> Found:
        try:
            known = self._known.get(weakref.ref(func))
        except TypeError:  # neither hashed nor referred to weakly
            known = None
        if known is not None:
            return known
        instead = _asked_instead(func)
        if instead is not None:
            return self._join([self.of(inner) for inner in instead])
        found = self._find(func)
        with contextlib.suppress(TypeError):
            self._known[weakref.ref(func, self._forget)] = found
        return found

    def _forget(self, reference: weakref.ref[Any]) -> None:
        self._known.pop(reference, None)


def references(find: Callable[[Any], Iterable[Any]]) -> Memory[References]:
    """A memory of objects, which it does not keep alive."""
    return Memory(lambda func: [weakref.ref(value) for value in find(func)], lambda found: [*chain(*found)])


def alive(found: References) -> list[Any]:
    """The objects of a memory that still exist."""
    return [value for value in [reference() for reference in found] if value is not None]


def names_in(func: Callable[..., Any]) -> set[str]:
    """The names that a function's code uses, and the code of what it can call, as far as one can see from outside."""
    return _names.of(func)


def _find_names(func: Callable[..., Any], limit: int = 200) -> set[str]:
    found: set[str] = set()
    for value in _reached(func, limit):
        if isinstance(value, types.FunctionType):
            if not is_ours(value):
                found.update(names_of(value.__code__))
            continue
        found.add(getattr(value, "__name__", ""))
        for owner in value.modules() if isinstance(value, torch.nn.Module) else [value]:
            for method in _methods(type(owner)):
                found.update(names_of(method.__code__))
    return found


_names = Memory(_find_names, lambda found: set().union(*found))


def captured_tensors(func: Callable[..., Any]) -> list[Tensor]:
    """The tensors that `func` could reach at its first call."""
    return alive(_tensors.of(func))


def _find_tensors(func: Callable[..., Any]) -> list[Tensor]:
    return [value for value in captured(func, called=True) if isinstance(value, Tensor)]


_tensors = references(_find_tensors)
_scripts = references(_find_scripts)


# Returns the values that a value of some type holds; None where it is not looked into.
_Look = Callable[[Any], Iterable[Any]]


def _found(value: Any) -> Iterable[Any]:
    return ()


@functools.lru_cache(1024)
def _look(cls: type) -> _Look | None:
    """By type, since asking whether a value is a Tensor takes a microsecond."""
    if issubclass(cls, (type, types.ModuleType, str, int, float, complex, type(None))):
        return None
    if issubclass(cls, (Tensor, torch.Generator)):
        # A stand-in that the function has kept from a computation that has ended has no values.
        return None if getattr(cls, "is_stand_in", False) else _found
    if issubclass(cls, torch.nn.Module):
        return lambda module: module.buffers()
    if issubclass(cls, functools.partial):
        return lambda partial: (partial.func, *partial.args, *partial.keywords.values())
    if issubclass(cls, types.MethodType):
        return lambda method: (method.__func__, method.__self__)
    if issubclass(cls, types.FunctionType):
        return _in_function
    if issubclass(cls, (list, tuple, deque)):
        return lambda values: values
    if issubclass(cls, dict):
        return lambda mapping: mapping.values()
    return lambda value: getattr(value, "__dict__", {}).values()


def _in_function(function: Any) -> Iterator[Any]:
    inner = transformed(function)
    if inner is not None:
        yield inner
        return
    yield from function.__defaults__ or ()
    yield from (cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell))
    if is_ours(function):
        return
    around = function.__globals__
    for name in names_of(function.__code__):
        value = around.get(name)
        if value is not None and not callable(value):
            yield value


def _called(function: Any) -> Iterator[Any]:
    """The users' functions and modules among the globals that a function names."""
    if is_ours(function):
        return
    around = function.__globals__
    for name in names_of(function.__code__):
        value = around.get(name)
        if isinstance(value, torch.nn.Module) or (_is_function(value) and not _is_foreign(value.__module__ or "")):
            yield value


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
