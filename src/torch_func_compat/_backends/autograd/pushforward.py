"""The pushforward of a recorded run."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from ..._torch.tensors import allocated, identity
from .batched_vjp import Rows, fill_rows
from .flaws import find_flaw
from .graph import Graph
from .level import Level, cut
from .sealed import seal
from .transpose import Transpose, real


class Pushforward:
    """Tangents of the inputs -> tangents of the outputs, as the transpose of the pullback.

    Where the transpose fails the adjoint test, the pullback is right: the rows of the Jacobian are taken from it and
    contracted.
    """

    batches_itself = True

    def __init__(self, level: Level, inputs: Sequence[Tensor], outputs: Sequence[Tensor], graph: Graph) -> None:
        self.level = level
        self.inputs = inputs
        self.outputs = outputs
        self.graph = graph
        self._transpose = Transpose(level, inputs, outputs, graph)
        self.is_overwritten = self._transpose.is_overwritten
        self._by_rows = not self._transpose.exists
        self._rows = Rows(self._transpose.gradients, self._transpose.cotangents, level, "columns")
        self._flaw: str | None = None

    def _apply_by_rows(self, tangents: Sequence[Tensor], batch: tuple[int, ...]) -> list[Tensor | None]:
        """Contract the whole Jacobian with the tangents: as many backward passes as output elements."""
        results: list[Tensor | None] = []
        for output in self.outputs:
            if not output.requires_grad:
                results.append(None)
                continue
            basis = identity(output.numel(), output)
            result = self._contract(output, basis, tangents, batch)
            if output.is_complex():
                # <e, J t> is the real part only; <ie, J t> is the imaginary one
                result = torch.complex(result, self._contract(output, 1j * basis, tangents, batch))
            results.append(result.reshape(batch + output.shape))
        return results

    def _contract(self, output: Tensor, basis: Tensor, tangents: Sequence[Tensor], batch: tuple[int, ...]) -> Tensor:
        size = basis.shape[0]
        inputs = self.inputs
        total = real(basis).new_zeros(*batch, size)
        if size == 0:
            return total
        rows = Rows([output], inputs, self.level, "rows")(
            lambda vectors, create: self.level.gradients([output], inputs, vectors, create),
            [basis.reshape(-1, *output.shape)],
            torch.is_grad_enabled(),
            lambda: Graph([output]),
        )
        for jacobian, tangent in zip(rows, tangents):
            if jacobian is not None:
                product = tangent.reshape(*batch, -1) @ jacobian.reshape(size, -1).conj().transpose(0, 1)
                total = total + real(product)
        return total

    def _find(self, tangents: Sequence[Tensor], batch: tuple[int, ...]) -> list[Tensor | None]:
        if not self._by_rows:
            try:
                if batch:
                    found = self._rows(self._transpose.apply, tangents, torch.is_grad_enabled(), self._transpose.graph)
                else:
                    found = self._transpose.apply(tangents, torch.is_grad_enabled())
                if self._transpose.agrees(tangents, found, batch):
                    return found
            except RuntimeError as error:
                # "derivative for ... is not implemented", once_differentiable: no second backward
                if "out of memory" in str(error):
                    raise
            self._by_rows = True
        return self._apply_by_rows(tangents, batch)

    def _finish(self, found: Sequence[Tensor], tangents: Sequence[Tensor]) -> list[Tensor]:
        """As for the pullback, whose rows these are then."""
        if not (self.graph.outside or any(tangent.requires_grad for tangent in tangents)):
            return [allocated(cut(result)) for result in found]
        results = [allocated(x) for x in self.level.release(found)]
        if not torch.is_grad_enabled() or not self.graph.outside:
            return results
        if self._flaw is None:
            self._flaw = self.graph.second_order_flaw(self.inputs) or ""
        if not self._by_rows:
            return seal(results, self.outputs, self._flaw or None)
        return seal(results, self.outputs, find_flaw(self.level, self.inputs, self.outputs, self.graph))

    def tangents(self, tangents: Sequence[Tensor], strict: bool) -> list[Tensor]:
        """Apply to one vector of tangents."""
        found = self._find(tangents, ())
        if strict and any(tangent is None for tangent in found):
            raise RuntimeError(
                "jvp(f, primals, tangents, strict=True): The output of f is independent of the inputs. "
                "This is not allowed with strict=True."
            )
        filled = [torch.zeros_like(x) if t is None else t for x, t in zip(self.outputs, found)]
        return self._finish(filled, tangents)

    def __call__(self, *tangents: Tensor) -> list[Tensor]:
        return self.tangents(tangents, strict=False)

    def batched(self, *tangents: Tensor) -> list[Tensor]:
        """One result for each of the stacked tangents."""
        size = len(tangents[0])
        found = self._find(tangents, (size,)) if size else []
        return self._finish(fill_rows(found, tangents, self.outputs), tangents)
