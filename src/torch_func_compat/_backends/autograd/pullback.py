"""The pullback of a recorded run: cotangents of the outputs to gradients of the inputs."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from ..._torch.tensors import allocated
from .batched_vjp import Rows, fill_rows
from .flaws import find_flaw
from .graph import Graph
from .level import Level, cut
from .sealed import seal


class Pullback:
    """Cotangents of the outputs -> gradients of the inputs, by one backward pass each."""

    batches_itself = True

    def __init__(self, level: Level, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self.level = level
        self.inputs = inputs
        self.outputs = outputs
        # Whether the caller got outputs that share the graph, so that it must not be freed.
        self.is_shared = False
        self.graph = Graph(outputs)
        self._rows: Rows | None = None
        self._flaw: list[str | None] = []

    @property
    def inside(self) -> set[Any]:
        """Nodes that are known to have no leaf from outside below."""
        return set() if self.graph.outside else self.graph.nodes

    def _apply(
        self, cotangents: Sequence[Tensor], create_graph: bool, retain_graph: bool = True
    ) -> list[Tensor | None]:
        create = create_graph or self.graph.determinants
        return self.level.gradients(self.outputs, self.inputs, cotangents, create, retain_graph)

    def pull(self, cotangents: Sequence[Tensor], retain_graph: bool, create_graph: bool | None) -> list[Tensor]:
        """Apply to one vector of cotangents, as torch.func's ``vjp_fn`` with the same two flags."""
        create = torch.is_grad_enabled() if create_graph is None else create_graph
        create = create and self._is_differentiable(cotangents)
        found = self._apply(cotangents, create, retain_graph or self.is_shared)
        return self._finish([torch.zeros_like(x) if g is None else g for x, g in zip(self.inputs, found)], create)

    def __call__(self, *cotangents: Tensor) -> list[Tensor]:
        return self.pull(cotangents, True, None)

    def batched(self, *cotangents: Tensor) -> list[Tensor]:
        """One row for each of the stacked cotangents."""
        if self._rows is None:
            self._rows = Rows(self.outputs, self.inputs, self.level, "rows")
        create = torch.is_grad_enabled() and self._is_differentiable(cotangents)
        found = self._rows(self._apply, cotangents, create, lambda: self.graph) if len(cotangents[0]) else []
        return self._finish(fill_rows(found, cotangents, self.inputs), create)

    def _is_differentiable(self, cotangents: Sequence[Tensor]) -> bool:
        """Whether the caller can differentiate the result."""
        return self.graph.outside or any(cotangent.requires_grad for cotangent in cotangents)

    def _finish(self, found: Sequence[Tensor], create_graph: bool) -> list[Tensor]:
        """The caller's results. Differentiating them again raises where torch would do so wrongly, without an error."""
        if not create_graph:
            # cut() in any case: torch's vmap may have wrapped them, and hidden their graph.
            return [allocated(cut(result)) for result in found]
        results = [allocated(x) for x in self.level.release(found)]
        if self.graph.outside:
            if not self._flaw:
                self._flaw.append(find_flaw(self.level, self.inputs, self.outputs, self.graph))
            return seal(results, self.outputs, self._flaw[0])
        return results
