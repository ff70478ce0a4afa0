"""Whether torch.compile is tracing, and how to keep a function out of its graph."""

from __future__ import annotations

import functools
import sys
from typing import Any, Callable, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])

# torch.compile takes either for True; torch 2.0 and 2.1 have the second one only.
is_compiling: Callable[[], bool] = (
    getattr(getattr(torch, "compiler", None), "is_compiling", None)
    or getattr(torch._utils, "is_compiling", None)
    or (lambda: False)
)


def graph_break(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` in a form that torch.compile calls without tracing it: the graph breaks there."""
    disable: Any = torch.compiler.disable if hasattr(torch, "compiler") else torch._dynamo.disable  # type: ignore[attr-defined,unused-ignore]
    return disable(function)  # type: ignore[no-any-return]


_native: Any = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)
_has_strategies = hasattr(_native, "set_code_exec_strategy")  # torch 2.13 at least


def inlined_only(function: F) -> F:
    """Mark `function` as one that torch.compile may trace within a graph, and that runs eagerly where that fails.

    Where a graph breaks within a function, torch.compile traces that function again alone. There `is_compiling()` would
    be True in code that then runs eagerly.
    """
    return _skipped(function, recursively=False)


def eager(function: F) -> F:
    """Mark `function` as one that torch.compile leaves alone, with all that it calls, where it is not traced."""
    return _skipped(function, recursively=True)


def _skipped(function: F, recursively: bool) -> F:
    code: Any = function.__code__
    if _has_strategies:
        action = _native._FrameAction
        inner = action.SKIP if recursively else action.DEFAULT
        _native.set_code_exec_strategy(code, _native._FrameExecStrategy(action.SKIP, inner))
    elif hasattr(_native, "skip_code"):  # torch 2.0 to 2.6 at least
        _native.skip_code(code)
    return function


def functions_traced() -> int | None:
    """How many calls of a torch.autograd.Function torch.compile has traced for its graph; None if that is unknown.

    Nothing public says so. Its tracer, which is on the stack, keeps their contexts and, on torch 2.13 and newer, lists
    the code that it has traced. torch.compile calls this while it traces, and treats the result as a constant.
    """
    frame: Any = sys._getframe(1)
    tracing = False
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith("torch._dynamo."):
            output = getattr(frame.f_locals.get("tx"), "output", None)
            kept = getattr(getattr(output, "side_effects", None), "keepalive", None)
            if kept is not None:
                traced = getattr(output, "traced_code", ())
                forwards = _forwards(torch.autograd.Function) if traced else set()
                contexts = sum(isinstance(value, torch.autograd.function.FunctionCtx) for value in kept)
                return contexts + sum(code in forwards for code in traced)
            tracing = tracing or frame.f_globals["__name__"] == "torch._dynamo.symbolic_convert"
        frame = frame.f_back
    return None if tracing else 0  # eagerly, a Function is differentiated by its backward


functions_traced._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _forwards(cls: type) -> set[Any]:
    """The code of the forward methods of a Function and its subclasses."""
    function = cls.__dict__.get("forward")
    own = {getattr(getattr(function, "__func__", function), "__code__", None)} - {None}
    return own.union(*map(_forwards, cls.__subclasses__()))


def untraced(function: F) -> F:
    """Return `function` with a graph break around each call that torch.compile would trace."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return graph_break(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return wrapper  # type: ignore[return-value]
