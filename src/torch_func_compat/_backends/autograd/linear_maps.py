"""Derivatives at a point from one recorded run: the pullback, and its transpose, the pushforward."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from ..._arguments.protocol import Differentiable
from ..._guards.compositions import WRONG_IN_FIRST_ORDER, first_order
from .constant_outputs import look_at_constants
from .graph import Graph
from .level import Level, cut, recordings, run
from .pullback import Pullback
from .pushforward import Pushforward


def vjp(func: Differentiable, primals: Sequence[Tensor]) -> tuple[list[Tensor], Pullback, list[Tensor]]:
    """Outputs, pullback and aux from one run."""
    level, inputs, outputs, aux = _recorded(func, primals)
    pullback = Pullback(level, inputs, outputs)
    if torch.is_grad_enabled() or WRONG_IN_FIRST_ORDER:
        graph = pullback.graph
        if graph.fused == 1 or (graph.fused and graph.outside and graph.fused <= _highest_order(graph)):
            level, inputs, outputs, aux = run(func, primals, order=_highest_order(graph))
            pullback = Pullback(level, inputs, outputs)
    pullback.is_shared = torch.is_grad_enabled() and pullback.graph.outside
    if pullback.is_shared:
        return level.release(outputs), pullback, level.release(aux)
    released = [cut(output) if output.requires_grad else output for output in outputs]
    return released, pullback, level.release(aux, set(pullback.inside)) if aux else []


def _recorded(
    func: Differentiable, primals: Sequence[Tensor], *, copy: bool = False
) -> tuple[Level, list[Tensor], list[Tensor], list[Tensor]]:
    found = run(func, primals, copy=copy, order=first_order(func.func))
    for output in found[2]:
        if not output.requires_grad:
            look_at_constants(func, primals, found[2])
            break
    return found


def linearize(func: Differentiable, primals: Sequence[Tensor]) -> tuple[list[Tensor], Pushforward, list[Tensor]]:
    """Outputs, pushforward and aux from one run."""
    level, inputs, outputs, aux = _recorded(func, primals, copy=True)
    graph = Graph(outputs)
    # The transpose of the pullback is one derivative more.
    order = 1 + _highest_order(graph)
    if graph.fused and graph.fused <= order:
        level, inputs, outputs, aux = run(func, primals, copy=True, order=order)
        graph = Graph(outputs)
    return level.release(outputs), Pushforward(level, inputs, outputs, graph), level.release(aux)


def _highest_order(graph: Graph) -> int:
    """Up to which order the function may be differentiated, by recordings around it and by the user."""
    return 1 + recordings() + graph.user
