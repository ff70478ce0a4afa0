"""Pytrees of tensors as vectors, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._torch import pytree


def flatten(tree: Any, what: str) -> tuple[list[Tensor], pytree.TreeSpec]:
    """The tensors of a pytree in order, and its structure."""
    leaves, spec = pytree.flatten(tree)
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"{what}: expected a pytree of tensors, got {type(leaf).__name__} in it")
    return leaves, spec


class Space:
    """Tuples of pytrees of one structure, with tensors of the same shapes, as vectors of one length."""

    dtype: torch.dtype
    device: torch.device

    def __init__(self, tree: tuple[Any, ...], what: str) -> None:
        leaves, self._node = flatten(tree, what)
        self._what = what
        if not leaves:
            raise ValueError(f"{what}: there is no tensor, expected at least one")
        kinds = {(leaf.dtype, leaf.device) for leaf in leaves}
        if len(kinds) > 1:
            named = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
            raise ValueError(f"{what}: tensors of one dtype on one device make a vector, got {named}")
        ((self.dtype, self.device),) = kinds
        if not self.dtype.is_floating_point:
            raise ValueError(f"{what}: expected real tensors of floating-point numbers, got {self.dtype}")
        self._shapes = [leaf.shape for leaf in leaves]
        self._sizes = [leaf.numel() for leaf in leaves]
        self.size: int = sum(self._sizes)

    def vector(self, tree: Any) -> Tensor:
        """The elements of all tensors, one tensor after the other."""
        leaves, node = flatten(tree, self._what)
        if node != self._node:
            raise ValueError(f"{self._what}: expected the structure {self._node}, got {node}")
        if [leaf.shape for leaf in leaves] != self._shapes:
            expected, got = ([tuple(shape) for shape in those] for those in (self._shapes, [s.shape for s in leaves]))
            raise ValueError(f"{self._what}: expected tensors of shapes {expected}, got {got}")
        other = [leaf for leaf in leaves if leaf.dtype != self.dtype or leaf.device != self.device]
        if other:
            its = f"{other[0].dtype} on {other[0].device}"
            raise ValueError(f"{self._what}: expected {self.dtype} on {self.device}, got {its}")
        return torch.cat([leaf.reshape(-1) for leaf in leaves])

    def tree(self, vector: Tensor) -> Any:
        """The tuple with these elements."""
        parts = torch.split(vector, self._sizes)
        return pytree.unflatten([part.reshape(shape) for part, shape in zip(parts, self._shapes)], self._node)
