"""Pytrees as the checks see them: dictionaries, lists, tuples and named tuples. Everything else is a leaf.

The checks have a definition of their own, so that they do not compare the library with itself.
"""

from __future__ import annotations

import copy
from typing import Any, Callable, Iterator, Sequence

import torch
from torch import Tensor


class Structure:
    """The structure of a pytree. Two structures are equal where containers, keys and lengths are."""

    def __init__(self, kind: Any, count: int, build: Callable[[Iterator[Any]], Any]) -> None:
        self.kind = kind
        self.count = count
        self._build = build

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and self.kind == other.kind

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return _describe(self.kind)

    def fill(self, leaves: Sequence[Any]) -> Any:
        """The pytree with these leaves, which may be pytrees themselves."""
        return self._build(iter(leaves))


def flatten(tree: Any) -> tuple[list[Any], Structure]:
    """Leaves in order, dictionaries in the order of their keys, and the structure."""
    leaves: list[Any] = []
    return leaves, _collect(tree, leaves)


def _collect(tree: Any, leaves: list[Any]) -> Structure:
    cls = type(tree)
    if isinstance(tree, dict):
        # the order of insertion is no part of the structure
        keys = sorted(tree, key=lambda key: (str(type(key)), key))
        children = [_collect(tree[key], leaves) for key in keys]
        kind: Any = (cls, tuple(keys), tuple(child.kind for child in children))

        def mapping(values: Iterator[Any]) -> Any:
            built = copy.copy(tree)  # a defaultdict keeps its factory
            built.update((key, child._build(values)) for key, child in zip(keys, children))
            return built

        return Structure(kind, sum(child.count for child in children), mapping)
    named = isinstance(tree, tuple) and hasattr(tree, "_fields")
    if cls in (tuple, list) or named:
        children = [_collect(child, leaves) for child in tree]
        kind = (cls, None, tuple(child.kind for child in children))

        def sequence(values: Iterator[Any]) -> Any:
            parts = [child._build(values) for child in children]
            return cls(*parts) if named else cls(parts)

        return Structure(kind, sum(child.count for child in children), sequence)
    leaves.append(tree)
    return Structure(None, 1, next)


def _describe(kind: Any) -> str:
    if kind is None:
        return "*"
    cls, keys, children = kind
    inner = [_describe(child) for child in children]
    if keys is not None:
        inner = [f"{key!r}: {child}" for key, child in zip(keys, inner)]
    return f"{cls.__name__}({', '.join(inner)})"


def tensors(tree: Any) -> list[Tensor]:
    """The tensors among the leaves."""
    return [leaf for leaf in flatten(tree)[0] if isinstance(leaf, Tensor)]


def mapped(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """The pytree with `function` applied to its tensors."""
    leaves, structure = flatten(tree)
    return structure.fill([function(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves])


def stacked(trees: Sequence[Any]) -> Any:
    """The tensors of pytrees of one structure, stacked along a new dimension 0."""
    flat = [flatten(tree) for tree in trees]
    return flat[0][1].fill([torch.stack(list(leaves)) for leaves in zip(*(leaves for leaves, _ in flat))])
