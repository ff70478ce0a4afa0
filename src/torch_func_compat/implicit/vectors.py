"""Unknowns as real vectors: the layout of a pytree in a vector, and norms and quotients of vectors.

A complex leaf becomes two real ones, so that equations with conjugates or absolute values are linearized correctly.
"""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from ..autograd.checks import unwrap
from . import trees


def is_differentiable(value: Any) -> bool:
    """Whether it is a tensor of real or complex numbers."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


class Layout:
    """The structure, shapes and dtypes of a pytree of tensors, and the places of its leaves in a vector.

    Parameters
    ----------
    tree : pytree of tensors
        Real or complex, on one device.
    what : str
        Its name in messages.
    """

    def __init__(self, tree: Any, what: str) -> None:
        leaves, spec = trees.flatten(tree)
        for leaf in leaves:
            if not is_differentiable(leaf):
                kind = f"a tensor of {leaf.dtype}" if isinstance(leaf, Tensor) else f"{leaf!r}"
                raise TypeError(f"expected {what} to be a pytree of real or complex tensors, got one with {kind}")
        if not leaves:
            raise TypeError(f"expected {what} to be a pytree with tensors in it, got {tree!r}")
        if len({leaf.device for leaf in leaves}) > 1:
            raise ValueError(f"expected {what} on one device, got {sorted({str(leaf.device) for leaf in leaves})}")
        self.spec: trees.Spec = spec
        self.what: str = what
        self.shapes: list[tuple[int, ...]] = [tuple(leaf.shape) for leaf in leaves]
        self.dtypes: list[torch.dtype] = [leaf.dtype for leaf in leaves]
        self.device: torch.device = leaves[0].device
        self.sizes: list[int] = [leaf.numel() * (2 if leaf.is_complex() else 1) for leaf in leaves]
        self.size: int = sum(self.sizes)
        self.dtype: torch.dtype = torch.float32  # no factorisation takes half precision
        for dtype in self.dtypes:
            self.dtype = torch.promote_types(self.dtype, _real(dtype))

    @property
    def count(self) -> int:
        return len(self.sizes)

    @property
    def eps(self) -> float:
        """The coarsest of the leaves' precisions."""
        return max(torch.finfo(_real(dtype)).eps for dtype in self.dtypes)

    def flatten(self, tree: Any, who: str) -> list[Tensor]:
        """Leaves of a pytree that must be alike."""
        leaves, spec = trees.flatten(tree)
        if spec != self.spec:
            raise TypeError(f"expected {who} to return the structure of {self.what}, {self.spec}, got {spec}")
        for leaf, shape, dtype in zip(leaves, self.shapes, self.dtypes):
            if not isinstance(leaf, Tensor):
                raise TypeError(f"expected {who} to return tensors, got {leaf!r}")
            if tuple(leaf.shape) != shape:
                raise ValueError(
                    f"expected {who} to return the shape of {self.what}, {shape}, got {tuple(leaf.shape)}: there must "
                    f"be one equation for each unknown"
                )
            if leaf.dtype != dtype:
                raise TypeError(
                    f"expected {who} to return the dtype of {self.what}, {dtype}, got {leaf.dtype}: convert one of "
                    f"them with to()"
                )
        return leaves

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        return self.spec.unflatten(leaves)

    def ravel(self, leaves: Sequence[Tensor]) -> Tensor:
        """One real vector of all leaves."""
        parts = [(_pairs(x) if x.is_complex() else x).reshape(-1) for x in leaves]
        parts = [x if x.dtype == self.dtype else x.to(self.dtype) for x in parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def unravel(self, vector: Tensor) -> list[Tensor]:
        """The leaves that lie in a vector."""
        leaves, start = [], 0
        for size, shape, dtype in zip(self.sizes, self.shapes, self.dtypes):
            part = vector if size == self.size and self.count == 1 else vector[start : start + size]
            start += size
            real = _real(dtype)
            part = part if part.dtype == real else part.to(real)
            if dtype.is_complex:
                leaves.append(torch.view_as_complex(part.reshape(*shape, 2).contiguous()))
            else:
                leaves.append(part.reshape(shape))
        return leaves

    def zeros(self) -> list[Tensor]:
        return [torch.zeros(s, dtype=d, device=self.device) for s, d in zip(self.shapes, self.dtypes)]


def _pairs(x: Tensor) -> Tensor:
    resolve = getattr(x, "resolve_conj", None)  # lazy from torch 1.10 on
    return torch.view_as_real((x if resolve is None else resolve()).contiguous())


def _real(dtype: torch.dtype) -> torch.dtype:
    return {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype, dtype)


def values(x: Tensor) -> Tensor:
    """The values of a tensor; those of all samples within a vmap."""
    return unwrap(x).detach()


def anywhere(flags: Tensor) -> bool:
    """Whether it is true for any of the samples."""
    return bool(values(flags).any())


def dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum()


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm, also of numbers whose squares are too large or too small."""
    if x.dtype == torch.float64 or x.numel() == 0:
        found: Tensor = x.norm()
        return found
    largest = x.detach().abs().max()
    safe = torch.where(largest > 0, largest, torch.ones_like(largest))
    return safe * ((x / safe) ** 2).sum().sqrt()


def divide(x: Tensor, y: Tensor) -> Tensor:
    """``x / y``, and zero where `y` is zero."""
    there = y != 0
    return torch.where(there, x / torch.where(there, y, torch.ones_like(y)), torch.zeros_like(y))


def signs(like: Tensor) -> Tensor:
    """A vector of 1 and -1, in an order that no structure of a matrix is likely to cancel."""
    wave = torch.cos(torch.arange(1, like.numel() + 1, device=like.device, dtype=like.dtype))
    ones = torch.ones_like(wave)
    return torch.where(wave > 0, ones, -ones).reshape(like.shape)
