"""Pytrees: the built-in containers, named tuples and dictionaries of any kind. Everything else is a leaf."""

from __future__ import annotations

import copy
from typing import Any, Callable, ClassVar, Iterator, Sequence, Tuple

from torch import Tensor

# A key of the structure, the number of leaves, and a function that builds the tree from an iterator of leaves.
_Node = Tuple[Any, int, Callable[[Iterator[Any]], Any]]


class Spec:
    """The structure of a pytree."""

    def __init__(self, kind: Any, count: int, build: Callable[[Iterator[Any]], Any]) -> None:
        self.kind = kind
        self.num_leaves = count
        self._build = build

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self.kind == other.kind

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __repr__(self) -> str:
        return _describe(self.kind)

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """The pytree with these leaves."""
        assert len(leaves) == self.num_leaves
        return self._build(iter(leaves))


def flatten(tree: Any) -> tuple[list[Any], Spec]:
    """Leaves in order, and the structure. None is a leaf."""
    leaves: list[Any] = []
    return leaves, Spec(*_collect(tree, leaves))


def _collect(tree: Any, leaves: list[Any]) -> _Node:
    cls = type(tree)
    if isinstance(tree, dict):
        keys = list(tree)
        nodes = [_collect(tree[key], leaves) for key in keys]
        empty = copy.copy(tree)  # a defaultdict keeps its factory

        def dictionary(values: Iterator[Any]) -> Any:
            built = copy.copy(empty)
            built.update({key: node[2](values) for key, node in zip(keys, nodes)})
            return built

        return (cls, tuple(keys), tuple(node[0] for node in nodes)), sum(node[1] for node in nodes), dictionary
    if cls in (tuple, list) or (isinstance(tree, tuple) and hasattr(tree, "_fields")):
        nodes = [_collect(child, leaves) for child in tree]

        def sequence(values: Iterator[Any]) -> Any:
            children = [node[2](values) for node in nodes]
            return cls(*children) if hasattr(cls, "_fields") else cls(children)

        return (cls, None, tuple(node[0] for node in nodes)), sum(node[1] for node in nodes), sequence
    leaves.append(tree)
    return None, 1, next


def _describe(kind: Any) -> str:
    if kind is None:
        return "*"
    cls, keys, children = kind
    inner = [_describe(child) for child in children]
    if keys is not None:
        inner = [f"{key!r}: {child}" for key, child in zip(keys, inner)]
    return f"{cls.__name__}({', '.join(inner)})"


class Arguments:
    """The arguments of a function without their tensors."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        leaves, self._spec = flatten(args)
        self._where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self._rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def tensors(self, args: tuple[Any, ...]) -> list[Tensor]:
        """The tensors of the arguments."""
        leaves = flatten(args)[0]
        return [leaves[i] for i in self._where]

    def filled(self, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        """The arguments with these tensors."""
        leaves = list(self._rest)
        for i, tensor in zip(self._where, tensors):
            leaves[i] = tensor
        return tuple(self._spec.unflatten(leaves))
