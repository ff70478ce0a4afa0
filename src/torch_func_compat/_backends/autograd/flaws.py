"""Why second derivatives of a recorded run would be wrong."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from ..._guards.adjoint_test import wave
from ..._guards.checks import testing
from ..._guards.trial import ERRORS, Trial, tells
from ..._guards.verdicts import RIGHT, shapes
from ..._torch.surroundings import unchanged
from .graph import Graph
from .level import Level, recording, run
from .transpose import Transpose

_NORMALISATION = (
    "torch's third derivatives of normalisations (layer_norm, batch_norm, instance_norm) are wrong: write the "
    "normalisation with mean() and var() to differentiate it that often"
)
_NOT_DIFFERENTIABLE = (
    "the backward of a custom autograd.Function in it is not differentiable (marked with "
    "@once_differentiable, or with numpy, an extension, detach() or torch.compile inside), so its second "
    "derivative would come out wrong: write that backward in differentiable torch operations"
)
_LACKS_TERMS = (
    "the second derivative through a custom autograd.Function, a higher-order operator or TorchScript in it is not "
    "what finite differences of the first one are. A Function that saves an intermediate result of its forward loses "
    "the derivatives of that one: compute it in backward, return it as an output, or adapt the class with "
    "torch_func_compat.Function.from_legacy"
)


def find_flaw(level: Level, inputs: Sequence[Tensor], outputs: Sequence[Tensor], graph: Graph) -> str | None:
    """The reason why derivatives of the gradients would be wrong; None where they are right."""
    if not graph.notable:
        return None
    flaw = graph.second_order_flaw(inputs)
    if flaw is not None:
        return flaw
    if graph.is_wrong_in_third_order():
        return _NORMALISATION
    if not graph.has_custom_nodes():
        return None
    if level.func is None:  # recorded by hand, without a function to evaluate again
        return None if Transpose(level, inputs, outputs, graph).is_sound() else _NOT_DIFFERENTIABLE
    trial = Trial(level.func.func, ("second derivative", shapes(level.primals)))
    verdict = trial.verdict()
    if verdict is None:
        verdict, telling = _tested(level, inputs, outputs, graph)
        if verdict or telling:
            trial.note(verdict)
    return verdict or None


def _tested(level: Level, inputs: Sequence[Tensor], outputs: Sequence[Tensor], graph: Graph) -> tuple[str, bool]:
    """The flaw, or RIGHT; and whether any of the compared numbers was not zero."""
    if not Transpose(level, inputs, outputs, graph).is_sound():
        return _NOT_DIFFERENTIABLE, True
    if graph.may_lack_terms():
        differs = _differs(level, inputs, outputs)
        return (_LACKS_TERMS if differs else RIGHT), differs is not None
    pulled = level.gradients(outputs, inputs, [wave(output.detach()) for output in outputs], False)
    return RIGHT, tells([x for x in pulled if x is not None])


def _differs(level: Level, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool | None:
    """Whether the second derivative in one direction differs from central differences of the first one.

    With fixed u and t it is the derivative of <J(x)^T u, t> along t. Differences of two step sizes have to agree with
    each other: where they do not, the function is too rough for a test. None where all numbers are zero.
    """
    u = [wave(output.detach()) for output in outputs]
    t = [wave(x.detach()) for x in inputs]
    try:
        with testing(), recording():
            found = level.gradients(outputs, inputs, u, True)
            product = _dot(found, t)
            exact = 0.0
            if product.requires_grad:
                exact = float(_dot(level.gradients([product], inputs, [torch.ones_like(product)], False), t))
            wide, narrow = (_quotient(level, u, t, scale) for scale in (1.0, 0.5))
    except ERRORS:
        return False
    size = max(abs(exact), abs(wide), abs(narrow))
    if not size:
        return None
    return abs(wide - narrow) <= 0.01 * size < 0.2 * abs(narrow - exact)


def _quotient(level: Level, u: Sequence[Tensor], t: Sequence[Tensor], scale: float) -> float:
    eps = max(torch.finfo(x.dtype).eps for x in level.primals)
    size = max(float(x.detach().abs().max()) for x in level.primals if x.numel())
    step = scale * float(eps ** (1 / 3)) * (1 + size)
    assert level.func is not None
    values = []
    for sign in (1, -1):
        moved = [x.detach() + sign * step * direction for x, direction in zip(level.primals, t)]
        with unchanged(*level.func.outside()):
            there, inputs, outputs, _ = run(level.func, moved)
        values.append(float(_dot(there.gradients(outputs, inputs, u, False), t)))
    return (values[0] - values[1]) / (2 * step)


def _dot(found: Sequence[Tensor | None], vectors: Sequence[Tensor]) -> Tensor:
    """The real part of the inner product."""
    total = torch.zeros(())
    for x, vector in zip(found, vectors):
        if x is not None:
            product = (x.conj() * vector).sum()
            total = total + (torch.real(product) if product.is_complex() else product)
    return total
