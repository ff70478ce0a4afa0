"""Products with a derivative: one evaluation of the function, then as many backward passes as there are vectors."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from ..autograd import vjp, vmap


class Product:
    """A linear map, as the vector-Jacobian product that `vjp` gives."""

    def __init__(self, pull: Callable[[Tensor], Any], chunks: dict[str, Any]) -> None:
        self._pull, self._chunks = pull, chunks
        # The vjp_fn itself, because all backends batch its backward passes. A wrapper would be called for each row.
        self._many = vmap(pull, **chunks)

    def one(self, vector: Tensor) -> Tensor:
        """The product with a vector."""
        (found,) = self._pull(vector)
        return found  # type: ignore[no-any-return]

    def rows(self, vectors: Tensor) -> Tensor:
        """The products with the rows of a matrix, as rows."""
        (found,) = self._many(vectors)
        return found  # type: ignore[no-any-return]

    def transposed(self, like: Tensor) -> Product:
        """The transpose: the map is linear, so that its own vector-Jacobian product is the same anywhere."""
        _, push = vjp(lambda vector: self._pull(vector)[0], torch.zeros_like(like))
        return Product(push, self._chunks)


class Chain:
    """Several maps one after the other."""

    def __init__(self, *maps: Product, chunk_size: Any = None) -> None:
        self._maps, self._step = maps, chunk_size if isinstance(chunk_size, int) else None

    def one(self, vector: Tensor) -> Tensor:
        """The product with a vector."""
        for product in self._maps:
            vector = product.one(vector)
        return vector

    def rows(self, vectors: Tensor) -> Tensor:
        """The products with each row of a matrix, as rows; intermediates between maps exist for one chunk only."""
        found = []
        for part in torch.split(vectors, self._step or max(len(vectors), 1)):
            for product in self._maps:
                part = product.rows(part)
            found.append(part)
        return torch.cat(found)
