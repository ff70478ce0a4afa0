"""From a transform's name and arguments to the function that computes it, when it is called."""

from __future__ import annotations

import functools
from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from .._arguments.protocol import Backend
from .._guards.by_graph import look
from .._torch import facts
from .._transforms import batch as _batched
from .._transforms import compiled as _compiled
from .._transforms import diagonal as _curvature
from .._transforms import jacobian as _jacobians
from .._transforms import products as _operators
from . import choice as _policy
from .fallback import Answer, answer

DERIVED: dict[str, Callable[..., Any]] = {
    name: getattr(module, name)
    for module, names in (
        (_operators, ("vmap", "vjp", "jvp", "linearize", "grad", "grad_and_value", "jacrev", "jacfwd")),
        (_jacobians, ("jacobian", "hessian", "value_and_jacobian", "value_grad_and_hessian")),
        (_curvature, ("hvp", "vhp", "hessian_diagonal", "laplacian")),
        (
            _batched,
            ("batch_jacobian", "batch_hessian", "batch_hvp", "batch_hessian_diagonal", "batch_laplacian"),
        ),
    )
    for name in names
}
_NOTHING: dict[str, Any] = {}

# found before anything is traced
_TRACED: Backend | None = _policy.compiled() if facts.has("compiled_transforms") else None
# torch.compile takes either for True; torch 2.0 and 2.1 have the second one only
_is_compiling: Callable[[], bool] = (
    getattr(getattr(torch, "compiler", None), "is_compiling", None)
    or getattr(torch._utils, "is_compiling", None)
    or (lambda: False)
)


def beside_the_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as torch.compile does not trace it: the graph breaks there."""
    disable: Any = torch.compiler.disable if hasattr(torch, "compiler") else torch._dynamo.disable  # type: ignore[attr-defined,unused-ignore]
    return disable(function)  # type: ignore[no-any-return]


def _resolve(
    backend: Backend, name: str, func: Callable[..., Any], options: dict[str, Any], extra: dict[str, Any]
) -> Callable[..., Any]:
    """`func` transformed by the backend's own transform, or by the derived one where that lacks something.

    `extra` holds the parameters that the libraries do not have; None and False mean not asked for.
    """
    native = backend.natives.get(name)
    if native is None or any(extra.values()) or _is_mistaken(name, options):
        return DERIVED[name](backend, func, **options, **extra)  # type: ignore[no-any-return]
    return native(func, **options)  # type: ignore[no-any-return]


def _resolve_compiled(
    name: str, func: Callable[..., Any], options: dict[str, Any], extra: dict[str, Any]
) -> Callable[..., Any]:
    """The same while torch.compile traces."""
    assert _TRACED is not None
    if name in _compiled.TRANSFORMS:
        return _compiled.TRANSFORMS[name](_TRACED.natives, func, **options, **extra)  # type: ignore[no-any-return]
    return _resolve(_TRACED, name, func, options, extra)


def _is_mistaken(name: str, options: dict[str, Any]) -> bool:
    """Whether torch.func gets a call with these options wrong, on some release or on all so far."""
    if name == "vmap":
        # Dicts in another order of keys, outputs that are not mapped in another place than the first one,
        # and chunks of shared outputs or generators are refused or mixed up: what is not plain, we derive.
        dims = options["in_dims"]
        flat = isinstance(dims, tuple) and all(dim is None or isinstance(dim, int) for dim in dims)
        return not (isinstance(dims, int) or flat) or options["out_dims"] != 0
    return False


def transform(
    name: str, func: Callable[..., Any], options: dict[str, Any], extra: dict[str, Any] = _NOTHING
) -> Callable[..., Any]:
    """A function that, when called, calls the transform of `func` by the backend of that moment."""
    made: dict[str, Callable[..., Any]] = {}
    record = Answer()

    def on(backend: Backend) -> Callable[..., Any]:
        transformed = made.get(backend.name)
        if transformed is None:
            transformed = made[backend.name] = _resolve(backend, name, func, options, extra)
        return transformed

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if _is_compiling():
            if _TRACED is None:
                return beside_the_graph(answer)(record, name, func, on, args, kwargs)
            if kwargs and name in _compiled.TRANSFORMS and name != "vmap":
                return _resolve_compiled(name, lambda *inner: func(*inner, **kwargs), options, extra)(*args)
            return _resolve_compiled(name, func, options, extra)(*args, **kwargs)
        return answer(record, name, func, on, args, kwargs)

    if _is_compiling():  # torch.compile (2.6) does not trace the assignment of attributes
        return wrapper
    # functools.wraps() costs a third of what a transform of ours may; this is what it does for a function
    wrapper.__wrapped__ = func  # type: ignore[attr-defined]
    wrapper.__name__ = getattr(func, "__name__", name)
    wrapper.__qualname__ = getattr(func, "__qualname__", name)
    wrapper.__doc__ = getattr(func, "__doc__", None)
    wrapper.__module__ = getattr(func, "__module__", __name__)
    wrapper.answered_by = record  # type: ignore[attr-defined]
    wrapper.made_by = made  # type: ignore[attr-defined]
    return wrapper


def call(name: str, func: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The same for vjp and jvp, which evaluate at once."""

    def on(backend: Backend) -> Callable[..., Any]:
        native = backend.natives.get(name)
        return functools.partial(DERIVED[name], backend) if native is None else native

    if _is_compiling():
        if _TRACED is None:
            return beside_the_graph(_untraced)(name, func, *args, **options)
        if name in _compiled.TRANSFORMS:
            return _compiled.TRANSFORMS[name](_TRACED.natives, func, *args, **options)
        return on(_TRACED)(func, *args, **options)
    record = Answer()
    result = answer(record, name, func, on, (func, *args), options)
    if record.backend == "autograd" and name == "vjp":
        result[1].check = _check_rows
    return result


def _untraced(name: str, func: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """`call`, whose vjp_fn or jvp_fn is not traced, either."""
    result = call(name, func, *args, **options)
    if name in ("vjp", "linearize"):
        linear = result[1]
        return (result[0], beside_the_graph(lambda *vectors, **asked: linear(*vectors, **asked)), *result[2:])
    return result


def _check_rows(outputs: Sequence[Tensor]) -> None:
    """Raise where a library's vmap is about to batch a backward that it batches wrongly."""
    if _policy.active_native() is not None:
        for error in look(outputs).rows:
            raise error
