"""Derivatives at a point from one recorded run: the pullback, and its transpose, the pushforward."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from ..._arguments.protocol import Differentiable
from ..._guards.compositions import composing
from ..._torch.grad_mode import no_grad
from .batched_vjp import Rows
from .constant_outputs import look_at_constants
from .graph import Graph
from .level import Level, recording, recordings, run


class Pullback:
    """Cotangents of the outputs -> gradients of the inputs, by one backward pass each."""

    batches_itself = True

    def __init__(self, level: Level, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self.level = level
        self.inputs = inputs
        self.outputs = outputs
        # Whether the caller got outputs that share the graph, so that it must not be freed.
        self.is_shared = False
        self._graph: Graph | None = None
        self._rows: Rows | None = None
        self._flaw: list[str | None] = []

    @property
    def graph(self) -> Graph:
        """The graph of the outputs: walked once, when first asked for."""
        if self._graph is None:
            self._graph = Graph(self.outputs)
        return self._graph

    def _apply(
        self, cotangents: Sequence[Tensor], create_graph: bool, retain_graph: bool = True
    ) -> list[Tensor | None]:
        return self.level.gradients(self.outputs, self.inputs, cotangents, create_graph, retain_graph)

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
            self._rows = Rows(self.outputs, self.inputs, self.level.hooked)
        create = torch.is_grad_enabled() and self._is_differentiable(cotangents)
        found = self._rows(self._apply, cotangents, create, lambda: self.graph) if len(cotangents[0]) else []
        return self._finish(fill_rows(found, cotangents, self.inputs), create)

    def _is_differentiable(self, cotangents: Sequence[Tensor]) -> bool:
        """Whether the caller can differentiate the result."""
        return self.graph.outside or any(cotangent.requires_grad for cotangent in cotangents)

    def _finish(self, found: Sequence[Tensor], create_graph: bool) -> list[Tensor]:
        """What the caller gets; where it would be differentiated wrongly again, without an error, trying raises."""
        if not create_graph:
            # Also where torch's vmap has wrapped them, so that their graph is not to be seen from here.
            return [result.detach() for result in found]
        results = self.level.release(found)
        if self.graph.outside:
            if not self._flaw:
                self._flaw.append(self.find_flaw())
            return seal(results, self.outputs, self._flaw[0])
        return results

    def find_flaw(self) -> str | None:
        """Why second derivatives of what the pullback gives would be wrong, if they would."""
        graph = self.graph
        if not graph.notable:
            return None
        flaw = graph.second_order_flaw(self.inputs)
        if flaw is not None:
            return flaw
        if graph.is_wrong_in_third_order():
            return (
                "torch's third derivatives of layer_norm, batch_norm and their like are wrong: write the normalisation "
                "with mean() and var() to differentiate it that often"
            )
        if graph.has_custom_nodes() and not Pushforward(self.level, self.inputs, self.outputs, graph).is_sound():
            return (
                "the backward of a custom autograd.Function in it is not differentiable (marked with "
                "@once_differentiable, or with numpy, an extension, detach() or torch.compile inside), so its second "
                "derivative would come out wrong: write that backward in differentiable torch operations"
            )
        return None


class Pushforward:
    """Tangents of the inputs -> tangents of the outputs, as the transpose of the pullback.

    The pullback is linear in its cotangents, so differentiating it with respect to them gives its
    transpose (the double-backward trick, https://j-towns.github.io/2017/06/12/A-new-trick.html):
    one run and one backward pass in all, and one backward pass through both for each tangent.

    The transpose lacks, without an error, whatever a backward computes that is not differentiable
    (once_differentiable, numpy, an extension, a detaching hook). So it is checked against the pullback,
    <u, J t> = <J^T u, t> for a fixed u and every t; where they differ, the pullback is right, and the rows
    of the Jacobian are taken from it and contracted.
    """

    batches_itself = True

    def __init__(self, level: Level, inputs: Sequence[Tensor], outputs: Sequence[Tensor], graph: Graph) -> None:
        self.level = level
        self.inputs = inputs
        self.outputs = outputs
        self.graph = graph
        self.cotangents: list[Tensor] = []
        self.gradients: list[Tensor | None] = []
        self.by_rows = not self._transpose()
        self.rows = Rows(self.gradients, self.cotangents, level.hooked)
        self._flaw: str | None = None
        self._probe: tuple[list[Tensor], list[Tensor | None]] | None = None

    def _transpose(self) -> bool:
        """Record the pullback as a function of cotangents; False where that cannot be differentiated on."""
        outputs = [output for output in self.outputs if output.requires_grad]
        try:
            with recording():
                pairs = [self.level.mark(torch.zeros_like(output).detach().requires_grad_()) for output in outputs]
                self.cotangents = [leaf for leaf, _ in pairs]
                self.gradients = self.level.gradients(outputs, self.inputs, [used for _, used in pairs], True)
        except RuntimeError:
            # a backward that refuses tensors that require grad; rows give it plain ones
            return False
        # Derivatives of this would be third ones in reverse mode; those of rows are second ones.
        return not (self.graph.outside and self._graph_of_gradients().is_wrong_in_third_order())

    def _graph_of_gradients(self) -> Graph:
        return Graph([g for g in self.gradients if g is not None])

    def is_sound(self) -> bool:
        """Whether the transpose agrees with the pullback, for one tangent that stands for all."""
        if self.by_rows:
            return False
        tangents = [_wave(x) for x in self.inputs]
        try:
            return self._agrees(tangents, self._apply(tangents, False), ())
        except RuntimeError:
            return False

    def _apply(self, tangents: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
        pairs = [(g, t) for g, t in zip(self.gradients, tangents) if g is not None and g.requires_grad]
        found = iter(self.level.gradients([g for g, _ in pairs], self.cotangents, [t for _, t in pairs], create_graph))
        return [next(found) if output.requires_grad else None for output in self.outputs]

    def _agrees(self, tangents: Sequence[Tensor], found: Sequence[Tensor | None], batch: tuple[int, ...]) -> bool:
        """<u, J t> = <J^T u, t> for each t of the batch."""
        with no_grad():
            if self._probe is None:
                u = [_wave(output) for output in self.outputs]
                self._probe = u, self.level.gradients(self.outputs, self.inputs, u, False)
            left = [_dot(u, t, batch) for u, t in zip(self._probe[0], found) if t is not None]
            right = [_dot(g, t, batch) for g, t in zip(self._probe[1], tangents) if g is not None]
            if not left and not right:
                return True
            by_transpose, by_pullback = (sum(dot for dot, _ in side) for side in (left, right))
            difference = abs(by_transpose - by_pullback)
            scale = sum(size for _, size in left) + sum(size for _, size in right)
            eps = max(
                torch.finfo(x.dtype).eps for x in (*self.outputs, *tangents) if x.is_floating_point() or x.is_complex()
            )
            assert isinstance(difference, Tensor) and isinstance(scale, Tensor)
            # Where the derivative nearly vanishes, what is left of it is the rounding of values that cancel.
            size = sum(_dot(u, output, ())[1] for u, output in zip(self._probe[0], self.outputs))
            wrong = difference > eps**0.5 * scale + 64 * eps * size
            # Where only the transpose is not finite (it is taken at zero, where logcumsumexp wants a logarithm), the
            # pullback is right; where neither is, it is left to the caller to see.
            if isinstance(by_transpose, Tensor) and not bool(by_transpose.isfinite().all()):
                wrong = wrong | (~by_transpose.isfinite() & torch.as_tensor(by_pullback).isfinite())
            return not bool(wrong.any())

    def _apply_by_rows(self, tangents: Sequence[Tensor], batch: tuple[int, ...]) -> list[Tensor | None]:
        """Contract the whole Jacobian with the tangents: as many backward passes as output elements."""
        results: list[Tensor | None] = []
        for output in self.outputs:
            if not output.requires_grad:
                results.append(None)
                continue
            basis = torch.eye(output.numel(), dtype=output.dtype, device=output.device)
            result = self._contract(output, basis, tangents, batch)
            if output.is_complex():
                # <e, J t> is the real part only; <ie, J t> is the imaginary one
                result = torch.complex(result, self._contract(output, 1j * basis, tangents, batch))
            results.append(result.reshape(batch + output.shape))
        return results

    def _contract(self, output: Tensor, basis: Tensor, tangents: Sequence[Tensor], batch: tuple[int, ...]) -> Tensor:
        size = basis.shape[0]
        inputs = self.inputs
        total = _real(basis).new_zeros(*batch, size)
        if size == 0:
            return total
        rows = Rows([output], inputs, self.level.hooked)(
            lambda vectors, create: self.level.gradients([output], inputs, vectors, create),
            [basis.reshape(-1, *output.shape)],
            torch.is_grad_enabled(),
            lambda: Graph([output]),
        )
        for jacobian, tangent in zip(rows, tangents):
            if jacobian is not None:
                product = tangent.reshape(*batch, -1) @ jacobian.reshape(size, -1).conj().transpose(0, 1)
                total = total + _real(product)
        return total

    def _find(self, tangents: Sequence[Tensor], batch: tuple[int, ...]) -> list[Tensor | None]:
        if not self.by_rows:
            try:
                if batch:
                    found = self.rows(self._apply, tangents, torch.is_grad_enabled(), self._graph_of_gradients)
                else:
                    found = self._apply(tangents, torch.is_grad_enabled())
                if self._agrees(tangents, found, batch):
                    return found
            except RuntimeError as error:
                # "derivative for ... is not implemented", once_differentiable: no second backward
                if "out of memory" in str(error):
                    raise
            self.by_rows = True
        return self._apply_by_rows(tangents, batch)

    def _finish(self, found: Sequence[Tensor], tangents: Sequence[Tensor]) -> list[Tensor]:
        """As for the pullback, whose rows these are then."""
        if not (self.graph.outside or any(tangent.requires_grad for tangent in tangents)):
            return [result.detach() for result in found]
        results = self.level.release(found)
        if not torch.is_grad_enabled() or not self.graph.outside:
            return results
        if self._flaw is None:
            self._flaw = self.graph.second_order_flaw(self.inputs) or ""
        if not self.by_rows:
            return seal(results, self.outputs, self._flaw or None)
        return seal(results, self.outputs, Pullback(self.level, self.inputs, self.outputs).find_flaw())

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


class _Sealed(torch.autograd.Function):
    """The identity; its derivative raises."""

    @staticmethod
    def forward(ctx, reason, value, *anchors):  # type: ignore[no-untyped-def]
        ctx.reason = reason
        return value.clone()

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        raise RuntimeError(f"this derivative cannot be differentiated again: {ctx.reason}")


def seal(results: Sequence[Tensor], anchors: Sequence[Tensor], reason: str | None) -> list[Tensor]:
    """Make differentiating `results` by anything that the anchors depend on raise, if there is a reason to."""
    if reason is None:
        return list(results)
    attached = [anchor for anchor in anchors if anchor.requires_grad]
    apply: Any = _Sealed.apply
    return [apply(reason, result.detach(), *attached) for result in results]


def _wave(like: Tensor) -> Tensor:
    """A fixed tensor that no structure of a derivative is likely to cancel."""
    values = torch.cos(torch.arange(1, like.numel() + 1, device=like.device)).to(like.dtype)
    return values.reshape(like.shape)


def _real(tensor: Tensor) -> Tensor:
    """`torch.real`, which torch 1.8 does not take real tensors for."""
    return torch.real(tensor) if tensor.is_complex() else tensor


def _dot(fixed: Tensor, vectors: Tensor, batch: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Re<fixed, v> for each vector of the batch, and what size its rounding errors are relative to."""
    products = fixed.detach().reshape(-1).conj() * vectors.detach().reshape(*batch, fixed.numel())
    products = _real(products)
    products = products.float() if products.dtype in (torch.float16, torch.bfloat16) else products
    return products.sum(-1), products.abs().sum(-1)


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
    _require_dependence(func, primals, outputs)
    pullback = Pullback(level, inputs, outputs)
    if torch.is_grad_enabled():
        graph = pullback.graph
        if graph.fused and graph.outside and graph.fused <= _highest_order(graph):
            with composing(_highest_order(graph)):
                level, inputs, outputs, aux = run(func, primals)
            pullback = Pullback(level, inputs, outputs)
    pullback.is_shared = torch.is_grad_enabled() and pullback.graph.outside
    if pullback.is_shared:
        released = level.release(outputs)
    else:
        released = [output.detach() if output.requires_grad else output for output in outputs]
    return released, pullback, level.release(aux)


def _require_dependence(func: Differentiable, primals: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    for output in outputs:
        if not output.requires_grad:
            look_at_constants(func, primals, outputs)
            break


def linearize(func: Differentiable, primals: Sequence[Tensor]) -> tuple[list[Tensor], Pushforward, list[Tensor]]:
    """Outputs, pushforward and aux from one run."""
    level, inputs, outputs, aux = run(func, primals, copy=True)
    _require_dependence(func, primals, outputs)
    graph = Graph(outputs)
    # The transpose of the pullback is one derivative more.
    order = 1 + _highest_order(graph)
    if graph.fused and graph.fused <= order:
        with composing(order):
            level, inputs, outputs, aux = run(func, primals, copy=True)
        graph = Graph(outputs)
    return level.release(outputs), Pushforward(level, inputs, outputs, graph), level.release(aux)


def _highest_order(graph: Graph) -> int:
    """Up to which order the function may be differentiated, by recordings around it and by the user."""
    return 1 + recordings() + graph.user
