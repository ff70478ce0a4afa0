"""Many vectors through one linear map: all at once where torch can batch the graph, else one by one."""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Sequence

import torch
from torch import Tensor

from ... import _facts

# Vectors -> results; None where a result does not depend on them. The flag is create_graph.
Apply = Callable[[Sequence[Tensor], bool], List[Optional[Tensor]]]


class Rows:
    """Applies a linear map to stacked vectors, and remembers where torch refused to batch it."""

    def __init__(self, apply: Apply) -> None:
        self.apply = apply
        self.vectorised: bool | None = None  # what happened last; None before the first batch

    def __call__(self, vectors: Sequence[Tensor]) -> list[Tensor | None]:
        """Results for each of the vectors stacked along dimension 0, stacked likewise."""
        create_graph = torch.is_grad_enabled()
        size = vectors[0].shape[0]
        if size > 1 and self.vectorised is not False:
            try:
                results = self._at_once(vectors, create_graph)
                self.vectorised = results is not None
                if results is not None:
                    return results
            except (RuntimeError, TypeError, ValueError) as error:
                # No batching rule, a backward in numpy, control flow on values: whatever it was, the
                # loop below decides, and an error that is the function's own comes back from there.
                if "out of memory" in str(error):
                    raise
                self.vectorised = False
        rows = [self.apply([v.select(0, i) for v in vectors], create_graph) for i in range(size)]
        return [stack([row[k] for row in rows]) for k in range(len(rows[0]))]

    def _at_once(self, vectors: Sequence[Tensor], create_graph: bool) -> list[Tensor | None] | None:
        present: list[bool] = []

        def apply(*rows: Tensor) -> tuple[Tensor, ...]:
            results = self.apply(rows, create_graph)
            present[:] = [result is not None for result in results]
            # vmap insists on at least one output: the first vector stands in where there is none
            return tuple(result for result in results if result is not None) or (rows[0],)

        if _facts.has("vmap_over_autograd_grad"):
            batched = iter(torch.vmap(apply)(*vectors))
            return [next(batched) if there else None for there in present]
        from torch import _vmap_internals

        vmapped: Any = _vmap_internals._vmap(apply)
        batched = iter(vmapped(*vectors))
        results = [next(batched) if there else None for there in present]
        return results if self._agrees(vectors, results) else None

    def _agrees(self, vectors: Sequence[Tensor], results: Sequence[Tensor | None]) -> bool:
        """Check batched rows against one unbatched application to a combination of them.

        The batching of torch < 2.0 has wrong rules: rows of layer_norm (1.8), group_norm (to 1.13) with
        create_graph, and of as_strided_scatter (1.13), come out wrong without an error. One more
        application finds any such rule, known or not.
        """
        size = vectors[0].shape[0]
        with torch.no_grad():
            # any fixed weights that no structure of the rows is likely to cancel
            weights = torch.cos(torch.arange(1, size + 1, dtype=torch.float64))
            expected = self.apply([_combine(weights, vector.detach()) for vector in vectors], False)
            for result, value in zip(results, expected):
                if result is None or value is None:
                    if result is not value:
                        return False
                    continue
                rows = result.detach()
                difference = (_combine(weights, rows) - value).abs()
                scale = _combine(weights.abs(), rows.abs()) + value.abs()
                if difference.numel() == 0:
                    continue
                limit = torch.finfo(rows.dtype).eps ** 0.5 * scale.max()
                if not bool((difference <= limit).all()):  # also where something is not finite
                    return False
        return True


def _combine(weights: Tensor, stacked: Tensor) -> Tensor:
    shape = (-1,) + (1,) * (stacked.dim() - 1)
    return (weights.to(stacked).reshape(shape) * stacked).sum(0)


def stack(parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    if not present:
        return None
    return torch.stack([torch.zeros_like(present[0]) if part is None else part for part in parts])
