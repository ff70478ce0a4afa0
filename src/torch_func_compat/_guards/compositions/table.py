"""The table of compositions, and how it is searched."""

from __future__ import annotations

import functools
from typing import Any, Callable, Iterator

import torch

from ..._torch import facts
from ..._torch.closures import names_in
from . import (
    activations,
    attention,
    ctc,
    distances,
    embedding_bags,
    grids,
    losses,
    matrices,
    normalisations,
    reductions,
    special_functions,
    undifferentiated,
)
from .composition import Composition

# The first row that a function or a node is found in counts.
COMPOSITIONS: tuple[Composition, ...] = (
    *attention.ROWS,
    *normalisations.ROWS,
    *distances.ROWS,
    *activations.ROWS,
    *losses.ROWS,
    *ctc.ROWS,
    *embedding_bags.ROWS,
    *grids.ROWS,
    *reductions.ROWS,
    *matrices.ROWS,
    *special_functions.ROWS,
    *undifferentiated.ROWS,
)


def functions(name: str) -> Iterator[Any]:
    """The functions of torch of that name, as far as there are any."""
    value: Any = torch
    of_dispatcher = name.startswith("ops.")
    if of_dispatcher and not facts.has("torch_function_modes"):
        return
    for part in name.split("."):
        value = getattr(value, part, None)
    if value is not None:
        yield value
        if of_dispatcher:
            yield from (getattr(value, overload) for overload in value.overloads() if "out" not in overload)


def _found(order: int) -> dict[Any, Callable[..., Any]]:
    """The functions to compose where derivatives up to that order may be taken."""
    found: dict[Any, Callable[..., Any]] = {}
    for row in COMPOSITIONS:
        if row.order <= order and row.is_needed():
            for name in row.functions:
                for function in functions(name):
                    found.setdefault(function, row.compose)
    return found


@functools.lru_cache(None)
def _by_order(order: int) -> tuple[dict[Any, Callable[..., Any]], dict[Any, Callable[..., Any]]]:
    found = _found(order)
    return found, {function: functools.partial(_or_fused, function, compose) for function, compose in found.items()}


def _or_fused(function: Callable[..., Any], compose: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    result = compose(*args, **kwargs)
    return function(*args, **kwargs) if result is NotImplemented else result


_HIGHEST = max(row.order for row in COMPOSITIONS)


def compositions(order: int) -> dict[Any, Callable[..., Any]]:
    """Functions of torch and their compositions, where derivatives up to that order may be taken.

    A composition returns NotImplemented for arguments that it does not know.
    """
    return _by_order(min(order, _HIGHEST))[0]


def composed(order: int) -> dict[Any, Callable[..., Any]]:
    """The same for modes: torch's own function takes the arguments that a composition does not know."""
    return _by_order(min(order, _HIGHEST))[1]


def order_of(node: str) -> int:
    """The first derivative of a node that torch lacks or gets wrong, by the node's name; 0 for none."""
    return next((row.order for row in COMPOSITIONS if node.startswith(row.nodes) and row.is_needed()), 0)


# Whether torch has a first derivative wrong, without an error, and the graph shows it.
WRONG_IN_FIRST_ORDER = any(
    row.order == 1 and row.is_needed() and row.nodes and "NotImplemented" not in row.nodes for row in COMPOSITIONS
)

# An operation that torch treats as a constant leaves no node in the graph. It is found by its name in the user's code.
_SILENT = {
    name.rpartition(".")[2]
    for row in COMPOSITIONS
    if row.order == 1 and not row.nodes and row.is_needed()
    for name in row.functions
}
_DERIVATIVES = __name__.partition("._guards.")[0] + "._transforms."


def is_derivative(func: Callable[..., Any]) -> bool:
    """Whether a function is a derivative of this library, made for a call: it has no operations of its own."""
    return isinstance(func, functools.partial) and (getattr(func.func, "__module__", None) or "").startswith(
        _DERIVATIVES
    )


def first_order(func: Callable[..., Any]) -> int:
    """The order up to which a function is composed before its graph is known: 1 if it names one of `_SILENT`."""
    if is_derivative(func):
        return 0  # the user's function is asked when it is called
    return int(not _SILENT.isdisjoint(names_in(func.func if isinstance(func, functools.partial) else func)))
