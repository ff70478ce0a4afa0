"""From a transform's name and options to the function that computes it, when it is called."""

from __future__ import annotations

import functools
import types
from typing import Any, Callable

import torch

from .._arguments.protocol import Backend
from .._arguments.required import require_callable
from .._torch import facts
from .._torch.compiling import graph_break, inlined_only, is_compiling
from .._transforms import PRODUCTS, TRANSFORMS
from .._transforms.linear_functions import JvpFunction, VjpFunction
from .._transforms.of_batch import derivative_of_batch
from .._transforms.options import Options
from . import choice
from .fallback import answer
from .record import Record

# found before anything is traced
_TRACED: Backend | None = choice.traced() if facts.has("compiled_transforms") else None


class Transform:
    """A transform of a function, and its record.

    Parameters
    ----------
    name : str
        Its public name.
    func : callable
        The user's function.
    asked : dict
        The options of `torch_func_compat._transforms.options.Options`.
    """

    def __init__(self, name: str, func: Callable[..., Any], asked: dict[str, Any]) -> None:
        self.name = name
        self.func = func
        self.record = Record(asked)
        self.asked = asked
        self.options = Options(name, func, report=self.record, **asked)
        self._made: dict[Backend, Callable[..., Any]] = {}

    def on(self, backend: Backend) -> Callable[..., Any]:
        """The transformed function of a backend."""
        made = self._made.get(backend)
        if made is None:
            made = self._made[backend] = _derive(backend, self.name, self.func, self.options)
        return made


def _derive(backend: Backend, name: str, func: Callable[..., Any], options: Options) -> Callable[..., Any]:
    if name in ("vmap", "grad", "grad_and_value") and options.chunks.trivial:
        # torch.compile does not trace a test of the type of a function.
        if not (backend.remembers and isinstance(func, (JvpFunction, VjpFunction))):
            native: Callable[..., Any] | None = backend.native(name, func, options)
            if native is not None:
                return _by_batch(backend, func, options, native) if name == "vmap" else native
    made: Callable[..., Any] = TRANSFORMS[name](backend, func, options)
    if name == "vmap" and backend.loops and options.chunks.trivial:
        return _by_batch(backend, func, options, made)
    return made


def _by_batch(
    backend: Backend, func: Callable[..., Any], options: Options, by_samples: Callable[..., Any]
) -> Callable[..., Any]:
    """The vmap of `func`. If `func` is a derivative of this library, differentiate the whole batch instead."""
    made = getattr(func, "__transform__", None)
    if not (backend.remembers and isinstance(made, Transform) and func.__wrapped__ is made.func):  # type: ignore[attr-defined]
        return by_samples
    return derivative_of_batch(backend, made.func, made.options, options, by_samples)


def transform(
    name: str, func: Callable[..., Any], *, create_graph: bool | None = None, **asked: Any
) -> Callable[..., Any]:
    """Return a function that applies the transform to `func` on the backend in use when it is called."""
    if create_graph is False:
        made_without = transform(name, func, **asked)

        def without_graph(*args: Any, **kwargs: Any) -> Any:
            with torch.no_grad():  # outside of a transform, it changes nothing but the graph of the result
                return made_without(*args, **kwargs)

        return without_graph if is_compiling() else functools.update_wrapper(without_graph, made_without)
    if is_compiling():
        if _TRACED is None:
            return graph_break(_made_eagerly)(name, func, asked)  # type: ignore[no-any-return]
        return lambda *args, **kwargs: _traced(name, func, asked, args, kwargs)
    require_callable(name, func)
    made = Transform(name, func, asked)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            if _TRACED is None:
                return graph_break(answer)(made.record, name, func, made.on, args, kwargs)
            return _traced(name, func, asked, args, kwargs)
        return answer(made.record, name, func, made.on, args, kwargs)

    # functools.wraps() would take a third of the time of a transform. This does the same for a function.
    wrapper.__wrapped__ = func  # type: ignore[attr-defined]
    wrapper.__name__ = getattr(func, "__name__", name)
    wrapper.__qualname__ = getattr(func, "__qualname__", name)
    wrapper.__doc__ = getattr(func, "__doc__", None)
    wrapper.__module__ = getattr(func, "__module__", __name__)
    wrapper.__annotations__ = getattr(func, "__annotations__", {})
    if type(func) is types.FunctionType and func.__dict__:
        kept = {name: value for name, value in func.__dict__.items() if not name.startswith("_torchdynamo")}
        wrapper.__dict__ = {**kept, **wrapper.__dict__}
    wrapper.__transform__ = made  # type: ignore[attr-defined]
    return wrapper


@inlined_only
def _traced(
    name: str, func: Callable[..., Any], asked: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The value of a transform within a graph. Where torch.compile cannot trace it, the graph breaks around it."""
    if is_compiling() and _TRACED is not None:
        return _derive(_TRACED, name, func, Options(name, func, **asked))(*args, **kwargs)
    return graph_break(_eagerly)(name, func, asked, args, kwargs)


def _eagerly(
    name: str, func: Callable[..., Any], asked: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    return transform(name, func, **asked)(*args, **kwargs)


@inlined_only
def _traced_product(name: str, func: Callable[..., Any], args: tuple[Any, ...], asked: dict[str, Any]) -> Any:
    """The same for products."""
    if is_compiling() and _TRACED is not None:
        return PRODUCTS[name](_TRACED, func, *args, options=Options(name, func, **asked))
    return graph_break(_untraced)(name, func, *args, **asked)


def _made_eagerly(name: str, func: Callable[..., Any], asked: dict[str, Any]) -> Callable[..., Any]:
    return transform(name, func, **asked)


def call(name: str, func: Callable[..., Any], *args: Any, create_graph: bool | None = None, **asked: Any) -> Any:
    """The same for products, which are evaluated at once."""
    if create_graph is False:
        with torch.no_grad():
            return call(name, func, *args, **asked)
    if is_compiling():
        if _TRACED is None:
            return graph_break(_untraced)(name, func, *args, **asked)
        return _traced_product(name, func, args, asked)
    require_callable(name, func)
    product = PRODUCTS[name]
    options = Options(name, func, **asked, running_library=choice.active_native)

    def on(backend: Backend) -> Callable[..., Any]:
        return lambda *inner, **keywords: product(backend, *inner, **keywords)

    return answer(Record(), name, func, on, (func, *args), {"options": options})


def _untraced(name: str, func: Callable[..., Any], *args: Any, **asked: Any) -> Any:
    """`call`, with a vjp_fn or jvp_fn that is not traced, either."""
    result = call(name, func, *args, **asked)
    if name in ("vjp", "linearize"):
        linear = result[1]
        return (result[0], graph_break(lambda *vectors, **flags: linear(*vectors, **flags)), *result[2:])
    return result
