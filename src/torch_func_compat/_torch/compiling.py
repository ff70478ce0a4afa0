"""Whether torch.compile is tracing, and how to keep a function out of its graph."""

from __future__ import annotations

import functools
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
    """Return `function` as torch.compile calls it without tracing it: the graph breaks there."""
    disable: Any = torch.compiler.disable if hasattr(torch, "compiler") else torch._dynamo.disable  # type: ignore[attr-defined,unused-ignore]
    return disable(function)  # type: ignore[no-any-return]


def inlined_only(function: F) -> F:
    """Mark `function` as one that torch.compile may trace within a graph, and that runs as it is where that fails.

    Where a graph breaks within a function, torch.compile tries that function again by itself, and would take
    `is_compiling()` for True in what then runs as it is.
    """
    native: Any = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)
    if hasattr(native, "skip_code"):  # torch 2.0 to 2.6 at least
        native.skip_code(function.__code__)
    elif hasattr(native, "set_code_exec_strategy"):
        action = native._FrameAction
        native.set_code_exec_strategy(function.__code__, native._FrameExecStrategy(action.SKIP, action.DEFAULT))
    return function


def untraced(function: F) -> F:
    """Return `function` with a graph break around each call that torch.compile would trace."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return graph_break(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return wrapper  # type: ignore[return-value]
