"""Derivatives at a point from one recorded run: the pullback, and its transpose, the pushforward."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from ..protocol import Differentiable
from ._graph import custom_nodes, gradients
from ._level import Level, recording, run
from ._rows import Rows, stack


class Pullback:
    """Cotangents of the outputs -> gradients of the inputs, by one backward pass each."""

    def __init__(self, level: Level, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self.level = level
        self.inputs = inputs
        self.outputs = outputs
        self.rows = Rows(lambda cotangents, create: gradients(outputs, inputs, cotangents, create_graph=create))

    def pull(self, cotangents: Sequence[Tensor], retain_graph: bool, create_graph: bool | None) -> list[Tensor]:
        """Apply to one vector of cotangents, as torch.func's ``vjp_fn`` with the same two flags."""
        create = torch.is_grad_enabled() if create_graph is None else create_graph
        found = gradients(self.outputs, self.inputs, cotangents, retain_graph=retain_graph, create_graph=create)
        return self.level.release([torch.zeros_like(x) if g is None else g for x, g in zip(self.inputs, found)])

    def __call__(self, *cotangents: Tensor) -> list[Tensor]:
        return self.pull(cotangents, True, None)

    def batched(self, *cotangents: Tensor) -> list[Tensor]:
        """One row for each of the stacked cotangents."""
        found = self.rows(cotangents) if len(cotangents[0]) else []
        return self.level.release(fill_rows(found, cotangents, self.inputs))


class Pushforward:
    """Tangents of the inputs -> tangents of the outputs, as the transpose of the pullback.

    The pullback is linear in its cotangents, so differentiating it with respect to them gives its
    transpose (the double-backward trick, https://j-towns.github.io/2017/06/12/A-new-trick.html):
    one run and one backward pass in all, and one backward pass through both for each tangent.
    """

    def __init__(self, level: Level, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self.level = level
        self.inputs = inputs
        self.outputs = outputs
        self.cotangents: list[Tensor] = []
        self.gradients: list[Tensor | None] = []
        self.by_rows = not self._transpose()
        self.rows = Rows(self._apply)
        self.pullback = Pullback(level, inputs, outputs)

    def _transpose(self) -> bool:
        """Record the pullback as a function of cotangents; False where it cannot be differentiated.

        Where a backward is not differentiable (numpy or C++ inside, once_differentiable) the graph
        breaks off there, and the transpose would lack that part without an error: all torches. So every
        custom node is watched: cotangents that require grad went in, must gradients that do come out.
        """
        broken: list[bool] = []

        def watch(grad_inputs: Any, grad_outputs: Any) -> None:
            if any(g is not None and g.requires_grad for g in grad_outputs):
                broken.extend(
                    True
                    for g in grad_inputs
                    if g is not None and not g.requires_grad and (g.is_floating_point() or g.is_complex())
                )

        differentiable = [output for output in self.outputs if output.requires_grad]
        handles = [node.register_hook(watch) for node in custom_nodes(differentiable)]
        try:
            with recording():
                self.cotangents = [
                    self.level.own(torch.zeros_like(output).detach().requires_grad_()) for output in differentiable
                ]
                self.gradients = gradients(differentiable, self.inputs, self.cotangents, create_graph=True)
        except RuntimeError:
            # a backward that refuses tensors that require grad; rows give it plain ones
            return False
        finally:
            for handle in handles:
                handle.remove()
        return not broken

    def _apply(self, tangents: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
        pairs = [(g, t) for g, t in zip(self.gradients, tangents) if g is not None and g.requires_grad]
        found = iter(
            gradients([g for g, _ in pairs], self.cotangents, [t for _, t in pairs], create_graph=create_graph)
        )
        return [next(found) if output.requires_grad else None for output in self.outputs]

    def _apply_by_rows(self, tangents: Sequence[Tensor]) -> list[Tensor | None]:
        """Contract the whole Jacobian with the tangents: as many backward passes as output elements."""
        results: list[Tensor | None] = []
        for k, output in enumerate(self.outputs):
            if not output.requires_grad:
                results.append(None)
                continue
            basis = torch.eye(output.numel(), dtype=output.dtype, device=output.device)
            result = self._contract(k, basis, tangents)
            if output.is_complex():
                # <e, J t> is the real part only; <ie, J t> is the imaginary one
                result = torch.complex(result, self._contract(k, 1j * basis, tangents))
            results.append(result.reshape(output.shape))
        return results

    def _contract(self, k: int, basis: Tensor, tangents: Sequence[Tensor]) -> Tensor:
        if basis.shape[0] == 0:
            return basis.new_zeros(0)
        output = self.outputs[k]
        rows = Rows(lambda vectors, create: gradients([output], self.inputs, vectors, create_graph=create))
        total: Tensor | None = None
        for jacobian, tangent in zip(rows([basis.reshape(-1, *output.shape)]), tangents):
            if jacobian is not None:
                product = (jacobian.conj() * tangent).flatten(1).sum(1)
                product = torch.real(product) if product.is_complex() else product
                total = product if total is None else total + product
        return torch.real(basis).new_zeros(basis.shape[0]) if total is None else total

    def _find(self, tangents: Sequence[Tensor]) -> list[Tensor | None]:
        if not self.by_rows:
            try:
                return self._apply(tangents, torch.is_grad_enabled())
            except RuntimeError:
                # "derivative for ... is not implemented", once_differentiable: no second backward
                self.by_rows = True
        return self._apply_by_rows(tangents)

    def tangents(self, tangents: Sequence[Tensor], strict: bool) -> list[Tensor]:
        """Apply to one vector of tangents."""
        found = self._find(tangents)
        if strict and any(tangent is None for tangent in found):
            raise RuntimeError(
                "jvp(f, primals, tangents, strict=True): The output of f is independent of the inputs. "
                "This is not allowed with strict=True."
            )
        return self.level.release([torch.zeros_like(x) if t is None else t for x, t in zip(self.outputs, found)])

    def __call__(self, *tangents: Tensor) -> list[Tensor]:
        return self.tangents(tangents, strict=False)

    def batched(self, *tangents: Tensor) -> list[Tensor]:
        """One result for each of the stacked tangents."""
        if not len(tangents[0]):
            found: list[Tensor | None] = []
        elif self.by_rows:
            parts = [self._apply_by_rows([t.select(0, i) for t in tangents]) for i in range(len(tangents[0]))]
            found = [stack(list(part)) for part in zip(*parts)]
        else:
            found = self.rows(tangents)
        return self.level.release(fill_rows(found, tangents, self.outputs))


def fill_rows(found: Sequence[Tensor | None], vectors: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Zeros of the right shape for results that do not depend on the vectors."""
    size = vectors[0].shape[0]
    return [
        x.new_zeros((size, *x.shape)) if k >= len(found) or found[k] is None else found[k]  # type: ignore[misc]
        for k, x in enumerate(like)
    ]


def vjp(func: Differentiable, primals: Sequence[Tensor]) -> tuple[list[Tensor], Pullback, list[Tensor]]:
    """Outputs, pullback and aux from one run."""
    level, inputs, outputs, aux = run(func, primals)
    for output in outputs:
        if not (output.is_floating_point() or output.is_complex()):
            raise RuntimeError(
                "vjp(f, ...): All outputs of f must be floating-point or complex Tensors, got Tensor "
                f"with dtype {output.dtype}"
            )
    return level.release(outputs), Pullback(level, inputs, outputs), level.release(aux)


def linearize(func: Differentiable, primals: Sequence[Tensor]) -> tuple[list[Tensor], Pushforward, list[Tensor]]:
    """Outputs, pushforward and aux from one run."""
    level, inputs, outputs, aux = run(func, primals)
    return level.release(outputs), Pushforward(level, inputs, outputs), level.release(aux)
