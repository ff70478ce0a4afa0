"""Forward mode without a jvp rule, on torch >= 2.0: the transpose of the backward.

A pullback is linear in its cotangents, so that differentiating it by them gives its transpose, the pushforward
(https://j-towns.github.io/2017/06/12/A-new-trick.html). Cost: two evaluations of the backward and one through it.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
import torch.func
from torch import Tensor

from .._guards.adjoint_test import agree, probes
from .._guards.wrong_answers import NOT_TRANSPOSED, MistakenRule
from .context import is_differentiable
from .rules import backward_of, is_once_differentiable


def pushed(
    definition: Any,
    primals: Sequence[Any],
    tangents: Sequence[Any],
    outputs: Sequence[Any],
    call: Callable[..., Any],
) -> list[Any]:
    """Tangents of the outputs; None for what is not differentiable."""
    if is_once_differentiable(backward_of(definition)):
        raise MistakenRule(NOT_TRANSPOSED.format(definition.__name__))
    moving = [i for i, t in enumerate(tangents) if t is not None]
    wanted = [n for n, x in enumerate(outputs) if is_differentiable(x)]
    if not wanted:
        return [None] * len(outputs)

    def chosen(*values: Tensor) -> tuple[Tensor, ...]:
        args = list(primals)
        for i, value in zip(moving, values):
            args[i] = value
        results = call(definition, tuple(args))
        flat = results if isinstance(results, (tuple, list)) else (results,)
        return tuple(flat[n] for n in wanted)

    def pull(*cotangents: Tensor) -> Any:
        return torch.func.vjp(chosen, *(primals[i] for i in moving))[1](cotangents)

    vectors = tuple(tangents[i] for i in moving)
    fixed = tuple(probes([outputs[n] for n in wanted]))
    try:
        # Taken at fixed cotangents. The result depends on them only if the backward is not linear.
        gradients, transpose = torch.func.vjp(pull, *fixed)[:2]
        found = transpose(vectors)
    except RuntimeError as error:
        # The backward cannot be differentiated or seen into. The autograd backend takes rows of it then, and raises an
        # error of the backward's own again.
        raise MistakenRule(NOT_TRANSPOSED.format(definition.__name__)) from error
    if not agree(fixed, found, gradients, vectors):
        raise MistakenRule(NOT_TRANSPOSED.format(definition.__name__))
    results: list[Any] = [None] * len(outputs)
    for n, tangent in zip(wanted, found):
        results[n] = tangent
    return results
