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
from .graph import Graph, is_out_of_sight, leads_to
from .level import Level, recording, run
from .saved_constants import Applications, differ, keeps_constants, lacks_terms, real_dot
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
    found = _lacking(level, inputs, outputs, graph)
    if any(found):
        return _LACKS_TERMS, True
    pulled = level.gradients(outputs, inputs, [wave(output.detach()) for output in outputs], False)
    return RIGHT, None not in found and tells([x for x in pulled if x is not None])


def _lacking(level: Level, inputs: Sequence[Tensor], outputs: Sequence[Tensor], graph: Graph) -> list[bool | None]:
    """For the parts of a function that may lack terms whether they do; None where all numbers are zero."""
    found: list[bool | None] = []
    is_opaque = any(map(is_out_of_sight, graph.notable))
    if any(map(keeps_constants, graph.notable)):
        try:
            found, unseen = _lacking_parts(level)
            is_opaque = is_opaque or unseen
        except ERRORS:
            is_opaque = True
    return [*found, _differs(level, inputs, outputs)] if is_opaque else found


def _lacking_parts(level: Level) -> tuple[list[bool | None], bool]:
    """The same for each application of a custom Function, and whether some were not seen, as in other threads."""
    assert level.func is not None
    applications, outside = Applications(), level.func.outside()
    with testing(), recording(), unchanged(*outside):
        with applications.seen():
            _, inputs, outputs, _ = run(level.func, [x.detach().clone() for x in level.primals], copy=True)
        pairs = [(node, applications.of(node)) for node in Graph(outputs).notable if keeps_constants(node)]
        found = [lacks_terms(node, arguments, outside[1]) for node, arguments in pairs if arguments is not None]
        # what lies around the function was applied before, and is no part of it
        return found, any(leads_to(node, inputs) for node, arguments in pairs if arguments is None)


def _differs(level: Level, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool | None:
    """Whether the second derivative in one direction differs from central differences of the first one.

    With fixed u and t it is the derivative of <J(x)^T u, t> along t.
    """
    u = [wave(output.detach()) for output in outputs]
    t = [wave(x.detach()) for x in inputs]
    try:
        with testing(), recording():
            found = level.gradients(outputs, inputs, u, True)
            product = real_dot(found, t)
            exact = 0.0
            if product.requires_grad:
                exact = float(real_dot(level.gradients([product], inputs, [torch.ones_like(product)], False), t))
            wide, narrow = (_quotient(level, u, t, scale) for scale in (1.0, 0.5))
    except ERRORS:
        return False
    return differ(exact, wide, narrow)


def _quotient(level: Level, u: Sequence[Tensor], t: Sequence[Tensor], scale: float) -> float:
    eps = max(torch.finfo(x.dtype).eps for x in level.primals)
    size = max(float(x.detach().abs().max()) for x in level.primals if x.numel())
    step = scale * float(eps ** (1 / 3)) * (1 + size)
    assert level.func is not None
    values = []
    for sign in (1, -1):
        moved = [x.detach() + sign * step * direction for x, direction in zip(level.primals, t)]
        with unchanged(*level.func.outside()):
            there, inputs, outputs, _ = run(level.func, moved, copy=True)
        values.append(float(real_dot(there.gradients(outputs, inputs, u, False), t)))
    return (values[0] - values[1]) / (2 * step)
