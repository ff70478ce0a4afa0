"""Batches in other layouts: samples of different sizes in one tensor, and outputs with their samples elsewhere."""

from __future__ import annotations

import functools
from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from .._torch import pytree
from .._torch.tensors import movedim
from .call import positions

Function = Callable[..., Any]


def samples_first(api: str, func: Function, out_dims: Any, has_aux: bool) -> Function:
    """`func` with the samples of each output along dimension 0, where `out_dims` tells where they are."""

    @functools.wraps(func, updated=())
    def moved(*args: Any, **kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        output = result[0] if has_aux and isinstance(result, tuple) and result else result
        leaves, spec = pytree.flatten(output)
        dims = [out_dims] * len(leaves) if isinstance(out_dims, int) else pytree.broadcast_prefix(out_dims, spec)
        if dims is None or not all(isinstance(dim, int) for dim in dims):
            raise ValueError(f"{api}: expected out_dims to be an int or of the structure of the output, got {out_dims}")
        for leaf, dim in zip(leaves, dims):
            if isinstance(leaf, Tensor) and not -leaf.dim() <= dim < leaf.dim():
                raise ValueError(f"{api}: out_dims={out_dims} names dimension {dim} of an output of {leaf.dim()}")
        parts = [movedim(leaf, dim, 0) if isinstance(leaf, Tensor) else leaf for leaf, dim in zip(leaves, dims)]
        output = pytree.unflatten(parts, spec)
        return (output, *result[1:]) if has_aux else output

    return moved


class Ragged:
    """Samples of different sizes, one after another or mixed, along dimension 0 of tensors.

    They are padded to the size of the largest one. A function of all of them becomes a function of a batch of samples
    of one size, and nothing depends on the padding.

    Parameters
    ----------
    api : str
        The name of the public function, for messages.
    index : Tensor
        Of shape (N,), with integers: the sample that each of the N rows belongs to.
    """

    def __init__(self, api: str, index: Tensor) -> None:
        integers = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
        if not isinstance(index, Tensor) or index.dim() != 1 or index.dtype not in integers or not len(index):
            raise ValueError(f"{api}: expected batch_index to be a vector of integers, one for each row, got {index!r}")
        index = index.long()
        if bool((index < 0).any()):
            raise ValueError(f"{api}: expected batch_index to be numbers of samples from 0 on, got {int(index.min())}")
        rows = len(index)
        self.api = api
        self.counts: list[int] = torch.bincount(index).tolist()
        self.largest = max(self.counts)
        arange = torch.arange(rows, device=index.device)
        order = (index * rows + arange).argsort()
        starts = torch.bincount(index).cumsum(0) - torch.bincount(index)
        slots = torch.empty_like(index)
        slots[order] = arange - starts[index[order]]
        self.where = (index, slots)

    def padded(self, rows: Any) -> Tensor:
        """(N, ...) to (B, n, ...)"""
        total = len(self.where[0])
        if not isinstance(rows, Tensor) or rows.shape[:1] != (total,):
            what = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows)
            raise ValueError(f"{self.api}: expected tensors with the {total} rows of batch_index, got {what}")
        return rows.new_zeros(len(self.counts), self.largest, *rows.shape[1:]).index_put(self.where, rows)

    def rows(self, padded: Tensor) -> Tensor:
        """(B, n, ...) to (N, ...)"""
        return padded[self.where]

    def transformed(
        self, transform: Callable[[Function], Function], func: Function, argnums: Any, has_aux: bool, orders: int
    ) -> Function:
        """``transform(func)``, which differentiates `orders` times, of padded samples; as blocks of each sample."""

        def of_padded(*args: Any, **kwargs: Any) -> Any:
            return func(*self._each(self.rows, args, argnums), **kwargs)

        inner = transform(functools.update_wrapper(of_padded, func, updated=()))

        @functools.wraps(func, updated=())
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = inner(*self._each(self.padded, args, argnums), **kwargs)
            if not orders:
                return result
            blocks = result[0] if has_aux else result
            where = positions(argnums, len(args))
            features = [len(leaf.shape) - 1 for leaf in pytree.flatten(tuple([args[i] for i in where]))[0]]
            leaves, spec = pytree.flatten(blocks)
            # the blocks of an output by all arguments follow each other, the last one fastest
            found = [self._blocks(leaf, self._axes(k, features, orders)) for k, leaf in enumerate(leaves)]
            blocks = pytree.unflatten(found, spec)
            return (blocks, *result[1:]) if has_aux else blocks

        wrapper.__transform__ = inner.__transform__  # type: ignore[attr-defined]
        return wrapper

    def _each(self, change: Callable[[Any], Any], args: tuple[Any, ...], argnums: Any) -> list[Any]:
        """The arguments, with each leaf of those that are differentiated changed."""
        changed = list(args)
        for i in positions(argnums, len(args)):
            leaves, spec = pytree.flatten(args[i])
            changed[i] = pytree.unflatten([change(leaf) for leaf in leaves], spec)
        return changed

    def _axes(self, number: int, features: Sequence[int], orders: int) -> list[int]:
        """The dimensions of a block that run over rows, counted from the end."""
        axes, offset = [], 0
        for _ in range(orders):
            number, which = divmod(number, len(features))
            offset -= features[which] + 1
            axes.append(offset)
        return axes

    def _blocks(self, padded: Tensor, axes: Sequence[int]) -> list[Tensor]:
        blocks = []
        for block, count in zip(padded.unbind(0), self.counts):
            for axis in axes:
                block = block.narrow(axis, 0, count)
            blocks.append(block)
        return blocks


def ragged(
    index: Tensor,
    api: str,
    transform: Callable[[Function], Function],
    func: Function,
    argnums: Any,
    has_aux: bool,
    orders: int,
) -> Function:
    """``transform(func)`` for samples of different sizes; see `Ragged`."""
    return Ragged(api, index).transformed(transform, func, argnums, has_aux, orders)
