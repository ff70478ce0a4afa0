"""A linear map applied to the standard basis: the rows of a pullback, the columns of a pushforward."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from .._arguments.batch import Like, SampleSpace
from .._arguments.chunks import in_chunks
from .._arguments.protocol import Backend, LinearMap
from .._torch import pytree
from .._torch.tensors import movedim
from .options import Options


def count_elements(tree: Any) -> int:
    """Return how many elements the tensors of a pytree have."""
    return sum([leaf.numel() for leaf in pytree.flatten(tree)[0] if isinstance(leaf, Tensor)])


def dimension(space: Sequence[Like]) -> int:
    """Return how many elements a vector of the space has."""
    return sum([like.numel() for like in space])


def map_basis(
    backend: Backend,
    linear: LinearMap,
    space: Sequence[Like],
    options: Options,
    bounds: tuple[int, int] | None = None,
) -> list[Tensor]:
    """Apply `linear` to the vectors of the standard basis of `space`, from ``bounds[0]`` to ``bounds[1]`` or all.

    Returns the results, stacked.
    """
    chunks = options.chunks
    total = dimension(space)
    first, last = (0, total) if bounds is None else bounds
    if first == last and total:
        # An empty share still evaluates one vector, so that shapes, aux, dependencies and refusals match those of
        # the other processes.
        return [part[:0] for part in map_basis(backend, linear, space, options, (0, 1))]

    def run(start: int, rows: int) -> list[Tensor]:
        vectors = basis(space, first + start, rows)
        if rows == 1 and (chunks.size is not None or total == 1):
            # As in torch.func, chunk_size=1 is a plain loop, for functions that cannot be batched.
            return [row.unsqueeze(0) for row in linear(*[vector.squeeze(0) for vector in vectors])]
        return linear.batched(*vectors)

    in_place = backend.innermost() is None
    found, size = in_chunks(last - first, chunks, run, label=options.label, device=space[0].device, in_place=in_place)
    options.report_chunk(size)
    return found


def basis(space: Sequence[Like], start: int, rows: int) -> list[Tensor]:
    """Return rows of the identity matrix from `start` on, cut into the tensors of `space`."""
    vectors, offset = [], 0
    for like in space:
        size = like.numel()
        lead = (like.size,) if isinstance(like, SampleSpace) else ()
        if rows == size == 1 and start == offset:
            block = torch.ones((1, *lead, 1), dtype=like.dtype, device=like.device)
        else:
            block = torch.zeros((rows, *lead, size), dtype=like.dtype, device=like.device)
            # Row r of the chunk is basis vector start + r, whose one is in column start + r - offset.
            block.diagonal(start - offset, 0, -1).fill_(1)
        vector = block.view((rows, *lead, *like.shape))
        if isinstance(like, SampleSpace) and like.dim:
            vector = movedim(vector, 1, like.dim + 1)
        vectors.append(vector)
        offset += size
    return vectors
