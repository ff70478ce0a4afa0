"""The results of samples, gathered and stacked."""

from __future__ import annotations

import operator
from typing import Any, Sequence

import torch
from torch import Tensor

from ..._arguments.mapped import BatchedCall
from ..._guards.recognition import LoopError
from ..._torch import pytree
from .level import is_dual
from .strided_views import as_view, is_view

_dtype = operator.attrgetter("dtype")

LARGE = 1 << 24  # bytes of a stacked result from which on it is not built of all its parts at once


class Pile:
    """One output of all samples.

    Where it is large and nothing is differentiated, each result is moved into its place and freed, so that the
    parts and the whole do not take memory at the same time.

    Parameters
    ----------
    call : BatchedCall
        For messages.
    first : Tensor
        The output for the first sample.
    size : int
        How many samples there are.
    mapped : sequence of Tensor
        The tensors that are mapped over.
    """

    def __init__(self, call: BatchedCall, first: Tensor, size: int, mapped: Sequence[Tensor]) -> None:
        self._call = call
        self._first = first
        self._roots = [tensor if tensor._base is None else tensor._base for tensor in (*mapped, *call.unbatched)]
        # nested tensors have samples of different shapes; so have their images
        self._ragged = bool(first.dim()) and any(getattr(tensor, "is_nested", False) for tensor in mapped)
        self._waiting: list[Tensor] = [first]
        self._done = 0
        self._whole: Tensor | None = None
        plain = first.layout == torch.strided and not (first.requires_grad or is_dual() or self._ragged)
        if plain and not is_view(first, self._roots) and first.numel() * first.element_size() * size > LARGE:
            self._whole = first.new_empty((size, *first.shape))

    @property
    def is_large(self) -> bool:
        """Whether few results should wait at a time."""
        return self._whole is not None

    def add(self, start: int, results: Sequence[Tensor]) -> None:
        """Add the outputs of the samples from `start` on."""
        dtype = self._first.dtype
        if set(map(_dtype, results)) != {dtype}:  # torch.stack would promote silently
            raise next(self._unlike(i, result) for i, result in enumerate(results, start) if result.dtype != dtype)
        self._waiting += results
        if self._whole is not None and not any(result.requires_grad for result in self._waiting):
            until = self._done + len(self._waiting)
            self._stack(out=self._whole[self._done : until])
            self._done, self._waiting = until, []

    def stacked(self) -> Tensor:
        """All of them, along dimension 0."""
        if self._whole is None or self._done == 0:
            view = as_view(self._waiting, self._roots)
            return self._stack() if view is None else view
        return torch.cat([self._whole[: self._done], self._stack()]) if self._waiting else self._whole

    def _stack(self, **options: Any) -> Tensor:
        if self._ragged:
            return torch.nested.as_nested_tensor(self._waiting)  # type: ignore[attr-defined, unused-ignore]
        try:
            return torch.stack(self._waiting, **options)
        except RuntimeError:
            for i, result in enumerate(self._waiting, self._done):
                if result.shape != self._first.shape:
                    raise self._unlike(i, result) from None
            raise

    def _unlike(self, i: int, result: Tensor) -> LoopError:
        a, b = self._first, result
        return LoopError(
            f"vmap({self._call.name}, ...): outputs must have the same shape and dtype for every sample: sample 0 "
            f"gave {tuple(a.shape)} of {a.dtype}, sample {i} gave {tuple(b.shape)} of {b.dtype}"
        )


def columns(call: BatchedCall, start: int, block: Sequence[Any]) -> Sequence[Sequence[Any]]:
    """The leaves of the results of the samples from `start` on, each leaf with those of the other samples."""
    spec = call.output_spec
    if spec.type is None:
        if _are_tensors(block):
            return (block,)
    elif spec.type in (tuple, list) and not any(child.type for child in spec.children):
        length = len(spec.children)
        if set(map(type, block)) == {spec.type} and set(map(len, block)) == {length}:
            found = list(zip(*block))
            if all(map(_are_tensors, found)):
                return found
    rows = []
    for i, output in enumerate(block, start):
        leaves, found_spec = pytree.flatten(output)
        require_structure(call, spec, i, found_spec)
        for leaf in leaves:
            call.require_tensor(leaf)
        rows.append(leaves)
    return list(zip(*rows))


def _are_tensors(values: Sequence[Any]) -> bool:
    return all(issubclass(cls, Tensor) for cls in set(map(type, values)))


def require_structure(call: BatchedCall, spec: Any, i: int, found: Any) -> None:
    """Raise unless sample `i` gave the structure that the first one gave."""
    if found != spec:
        raise LoopError(
            f"vmap({call.name}, ...): the structure of the output must be the same for every sample: "
            f"sample 0 gave {spec}, sample {i} gave {found}"
        )
