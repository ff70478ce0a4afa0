"""The transpose of a pullback, recorded once, and whether it is one."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from ..._guards.adjoint_test import probes
from ..._torch.grad_mode import no_grad
from ..._torch.tensors import wave
from .graph import Graph
from .level import Level, recording


class Transpose:
    """The pullback differentiated by its cotangents, in which it is linear.

    This is the double-backward trick (https://j-towns.github.io/2017/06/12/A-new-trick.html): one run and one backward
    pass in all, and one backward pass through both for each tangent.

    The transpose lacks, without an error, the parts of a backward that are not differentiable
    (once_differentiable, numpy, an extension, a detaching hook). The adjoint test, <u, J t> = <J^T u, t> for a fixed
    u, finds that.

    Attributes
    ----------
    exists : bool
        Whether the pullback could be differentiated.
    is_overwritten : bool
        Whether it could not since the function overwrote what autograd had saved.
    cotangents, gradients : list
        The inputs and the outputs of the recorded pullback.
    """

    def __init__(self, level: Level, inputs: Sequence[Tensor], outputs: Sequence[Tensor], graph: Graph) -> None:
        self.level = level
        self.inputs = inputs
        self.outputs = outputs
        self.cotangents: list[Tensor] = []
        self.gradients: list[Tensor | None] = []
        self.is_overwritten = False
        self.exists = self._record(graph)
        self._probe: tuple[list[Tensor], list[Tensor | None]] | None = None

    def _record(self, graph: Graph) -> bool:
        """Record the pullback as a function of cotangents; False where it cannot be differentiated again."""
        outputs = [output for output in self.outputs if output.requires_grad]
        try:
            with recording():
                pairs = [self.level.mark(torch.zeros_like(output).detach().requires_grad_()) for output in outputs]
                self.cotangents = [leaf for leaf, _ in pairs]
                self.gradients = self.level.gradients(outputs, self.inputs, [used for _, used in pairs], True)
        except RuntimeError as error:
            # a backward that refuses tensors that require grad; rows give it plain ones
            self.is_overwritten = "modified by an inplace operation" in str(error)
            return False
        # A derivative of the transpose is a third derivative in reverse mode; one of rows is a second derivative.
        return not (graph.outside and self.graph().is_wrong_in_third_order())

    def graph(self) -> Graph:
        """The graph of the gradients."""
        return Graph([g for g in self.gradients if g is not None])

    def is_sound(self) -> bool:
        """Whether the transpose agrees with the pullback, for one tangent that stands for all."""
        if not self.exists:
            return False
        tangents = [wave(x) for x in self.inputs]
        try:
            return self.agrees(tangents, self.apply(tangents, False), ())
        except RuntimeError:
            return False

    def apply(self, tangents: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
        """Tangents of the outputs; None for one that depends on no input."""
        pairs = [(g, t) for g, t in zip(self.gradients, tangents) if g is not None and g.requires_grad]
        found = iter(self.level.gradients([g for g, _ in pairs], self.cotangents, [t for _, t in pairs], create_graph))
        return [next(found) if output.requires_grad else None for output in self.outputs]

    def agrees(self, tangents: Sequence[Tensor], found: Sequence[Tensor | None], batch: tuple[int, ...]) -> bool:
        """<u, J t> = <J^T u, t> for each t of the batch."""
        with no_grad():
            if self._probe is None:
                u = probes(self.outputs, found)
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
            # A derivative that nearly vanishes consists of the rounding errors of values that cancel.
            size = sum(_dot(u, output, ())[1] for u, output in zip(self._probe[0], self.outputs))
            wrong = difference > eps**0.5 * scale + 64 * eps * size
            # Where only the transpose is not finite (it is taken at zero, where logcumsumexp wants a logarithm), the
            # pullback is right; where neither is, it is left to the caller to see.
            if isinstance(by_transpose, Tensor) and not bool(by_transpose.isfinite().all()):
                wrong = wrong | (
                    ~by_transpose.isfinite() & torch.as_tensor(by_pullback, device=by_transpose.device).isfinite()
                )
            return not bool(wrong.any())


def real(tensor: Tensor) -> Tensor:
    """`torch.real`, which torch 1.8 does not take real tensors for."""
    return torch.real(tensor) if tensor.is_complex() else tensor


def _dot(fixed: Tensor, vectors: Tensor, batch: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Re<fixed, v> for each vector of the batch, and the sum of sizes that its rounding errors are relative to."""
    products = fixed.detach().reshape(-1).conj() * vectors.detach().reshape(*batch, fixed.numel())
    products = real(products)
    products = products.float() if products.dtype in (torch.float16, torch.bfloat16) else products
    return products.sum(-1), products.abs().sum(-1)
