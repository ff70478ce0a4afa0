"""The table of compositions, and what is looked up in it."""

from __future__ import annotations

from typing import Any, Callable

import torch

from . import attention, distances, normalisations
from .composition import Composition

# The first row that a name is found in counts.
COMPOSITIONS: tuple[Composition, ...] = (
    *normalisations.ROWS,
    *attention.ROWS,
    *distances.ROWS,
)


def _found(order: int) -> dict[Any, Callable[..., Any]]:
    """The functions to compose where derivatives up to that order may be taken."""
    found: dict[Any, Callable[..., Any]] = {}
    for row in COMPOSITIONS:
        for name in row.functions:
            value: Any = torch
            for part in name.split("."):
                value = getattr(value, part, None)
            if value is not None and row.order <= order:
                found[value] = row.compose
    return found


_by_order: dict[int, dict[Any, Callable[..., Any]]] = {}


def composed(order: int) -> dict[Any, Callable[..., Any]]:
    """Functions of torch and their compositions, where derivatives up to that order may be taken."""
    order = min(order, max(row.order for row in COMPOSITIONS))
    if order not in _by_order:
        _by_order[order] = _found(order)
    return _by_order[order]


def order_of(node: str) -> int:
    """The first derivative of a node that torch lacks or gets wrong, by the node's name; 0 for none."""
    return next((row.order for row in COMPOSITIONS if node.startswith(row.node)), 0)
