"""Many vectors through one linear map: all at once where torch can batch the graph, else one by one."""

from __future__ import annotations

import functools
from typing import Any, Callable, List, Optional, Sequence

import torch
from torch import Tensor

from ..._guards.trial import ERRORS, Trial, tells
from ..._guards.verdicts import RIGHT, shapes
from ..._torch import facts
from ..._torch.grad_mode import no_grad
from .elementwise_vjps import Factors
from .graph import Graph
from .level import Level

# Torch loops over fewer rows than these in less time than the hooks of `Factors` take (torch 1.8 and 1.13).
FEW = 24

# Vectors -> results; None where a result does not depend on them. The flag is create_graph.
Apply = Callable[[Sequence[Tensor], bool], List[Optional[Tensor]]]


@functools.lru_cache(None)
def _vmap() -> Callable[..., Sequence[Tensor]]:
    """vmap of a function of flat tensors, as torch has it: (function, tensors, randomness) -> results."""
    from .. import levels

    if levels.are_known():
        return levels.at_once
    vmap = facts.FUNC["vmap"]
    return lambda function, tensors, randomness: vmap(function, randomness=randomness)(*tensors)


class Rows:
    """Take many vectors at once from `roots` to `ends`, and remember where torch refused to batch.

    Parameters
    ----------
    roots, ends : sequence of Tensor
    level : Level
        The run that recorded the graph between them.
    kind : str
        What is batched, 'rows' or 'columns': a part of the key by which a test is remembered.
    """

    def __init__(self, roots: Sequence[Tensor | None], ends: Sequence[Tensor], level: Level, kind: str) -> None:
        self.vectorised: bool | None = None  # what happened last; None before the first batch
        self._roots = roots
        self._ends = ends
        self._hooked = level.hooked
        self._level = level
        self._kind = kind
        self._trusted = False
        self._factors: Factors | None = None

    def __call__(
        self, apply: Apply, vectors: Sequence[Tensor], create_graph: bool, graph: Callable[[], Graph]
    ) -> list[Tensor | None]:
        """Results for stacked vectors, stacked along dimension 0, too; ``graph()`` is the graph of the roots."""
        size = vectors[0].shape[0]
        if size > 1 and self.vectorised is None:
            self._look(graph(), size)
        batches = size > 1 and self.vectorised is not False
        if batches and create_graph and self._kind == "rows":  # functions with columns are composed beforehand
            batches = not graph().loses_terms_in_rows
        if batches:
            try:
                results = self._by_factors(apply, vectors, create_graph) or _at_once(apply, vectors, create_graph)
                self.vectorised = self._trusted or self._is_right(apply, vectors, results)
                if self.vectorised:
                    return results
            except ERRORS as error:
                # No batching rule, a backward in numpy, control flow on values: in each case the loop below
                # decides. It raises an error of the function's own again.
                if "out of memory" in str(error):
                    raise
                self.vectorised = False
        rows = [apply([v.select(0, i) for v in vectors], create_graph) for i in range(size)]
        return [stack([row[k] for row in rows]) for k in range(len(rows[0]))]

    def _is_right(self, apply: Apply, vectors: Sequence[Tensor], results: Sequence[Tensor | None]) -> bool:
        """Whether batched rows are right: tested in the first call of a function, and remembered."""
        level = self._level
        if level.func is None:
            return _agrees(apply, vectors, results)
        trial = Trial(level.func.func, (self._kind, shapes(level.primals), shapes(vectors)))
        verdict = trial.verdict()
        if verdict is None:
            verdict = RIGHT if _agrees(apply, vectors, results) else "rows"
            if verdict or tells([rows for rows in results if rows is not None]):
                trial.note(verdict)
        return verdict == RIGHT

    def _look(self, graph: Graph, size: int) -> None:
        """Learn from the graph how to batch."""
        present = [root for root in self._roots if root is not None]
        if facts.has("optimized_scripts_lose_terms") and graph.has_scripts():
            self.vectorised = False
        self._trusted = graph.trusted and not any(root.is_complex() for root in present)
        if facts.has("activations_are_looped_over") and not self._hooked and size >= FEW:
            self._factors = Factors(graph.nodes, self._roots, self._ends)

    def _by_factors(self, apply: Apply, vectors: Sequence[Tensor], create_graph: bool) -> list[Tensor | None] | None:
        """The results by factors of activations; None where these save no loop, or fail for these numbers."""
        factors = self._factors
        if factors is None or not factors.found:
            return None
        one = torch.ones(1, dtype=vectors[0].dtype, device="cpu")
        # where retain_grad() is no visible hook, the gradient that it keeps has to be batched (see elementwise_vjps.py)
        given = vectors if facts.has("retain_grad_is_a_hook") else [*vectors, one]
        count = len(vectors)

        def take(rows: Sequence[Tensor], create: bool) -> list[Tensor | None]:
            filling = rows[count] if len(rows) > count else one[0]
            return factors.run(lambda inner: apply(inner, create), rows[:count], filling)

        try:
            results = _at_once(take, given, create_graph)
            if factors.selecting and not all(bool(x.isfinite().all()) for x in results if x is not None):
                return None  # infinity times a factor that is zero
        except RuntimeError as error:
            if "out of memory" in str(error):
                raise
            self._factors = None
            return None
        return results


def _at_once(apply: Apply, vectors: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
    if not facts.has("torch_func"):
        return _at_once_by_old_vmap(apply, vectors, create_graph)
    present: list[bool] = []

    def flat(*rows: Tensor) -> tuple[Tensor, ...]:
        results = apply(rows, create_graph)
        present[:] = [result is not None for result in results]
        # vmap insists on at least one output: the first vector stands in where there is none
        return tuple(result for result in results if result is not None) or (rows[0],)

    found = iter(_vmap()(flat, vectors, "error"))
    return [next(found) if there else None for there in present]


def _at_once_by_old_vmap(apply: Apply, vectors: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
    """By what is_grads_batched=True uses, without its warnings and checks, and on torch < 1.11, too."""
    private: Any = torch._C
    library: Any = torch
    level = private._vmapmode_increment_nesting()
    try:
        results = apply([library._add_batch_dim(vector, 0, level) for vector in vectors], create_graph)
        size = len(vectors[0])
        return [x if x is None else library._remove_batch_dim(x, level, size, 0) for x in results]
    finally:
        private._vmapmode_decrement_nesting()


def _agrees(apply: Apply, vectors: Sequence[Tensor], results: Sequence[Tensor | None]) -> bool:
    """Check batched rows against one unbatched application to a combination of them.

    Some of torch's batching rules give wrong rows without an error: on torch < 2.0 those of layer_norm, group_norm
    and as_strided_scatter, in torch.func that of cdist, up to the newest. One more application finds any of them, known
    or not.
    """
    with no_grad():
        # fixed weights that no structure of the rows is likely to cancel
        steps = torch.arange(1, vectors[0].shape[0] + 1, dtype=torch.float64, device="cpu")
        weights = torch.cos(steps) / _sizes(results)
        expected = apply([_combine(weights, vector.detach()) for vector in vectors], False)
        for rows, value in zip(results, expected):
            if rows is None or value is None:
                if rows is not value:
                    return False
                continue
            difference = (_combine(weights, rows.detach()) - value).abs()
            if difference.numel() == 0:
                continue
            scale = _combine(weights.abs(), rows.detach().abs()) + value.abs()
            # written so that it also fails where something is not finite
            if not bool((difference <= torch.finfo(rows.dtype).eps ** 0.5 * scale.max()).all()):
                return False
    return True


def _sizes(results: Sequence[Tensor | None]) -> Tensor:
    """The sizes of rows, by which small ones count as much as large ones, unless they may be rounding errors."""
    present = [rows.detach() for rows in results if rows is not None and rows.numel()]
    if not present:
        return torch.ones((), dtype=torch.float64, device="cpu")
    largest = [rows.abs().reshape(len(rows), -1).max(1)[0].double().cpu() for rows in present]
    sizes = torch.stack(largest).max(0)[0]
    eps = max(torch.finfo(rows.dtype).eps for rows in present)
    noise = float(min(1.0, 64 * eps**0.5) * sizes.max())
    return sizes.clamp(min=noise) if 0 < noise < float("inf") else torch.ones_like(sizes)


def _combine(weights: Tensor, stacked: Tensor) -> Tensor:
    shape = (-1,) + (1,) * (stacked.dim() - 1)
    return (weights.to(stacked).reshape(shape) * stacked).sum(0)


def stack(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Stack results; None where every one is None, zeros where only some are."""
    present = [part for part in parts if part is not None]
    if not present:
        return None
    return torch.stack([torch.zeros_like(present[0]) if part is None else part for part in parts])


def fill_rows(found: Sequence[Tensor | None], vectors: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Zeros of the right shape for results that do not depend on the vectors."""
    size = vectors[0].shape[0]
    return [
        x.new_zeros((size, *x.shape)) if k >= len(found) or found[k] is None else found[k]  # type: ignore[misc]
        for k, x in enumerate(like)
    ]
