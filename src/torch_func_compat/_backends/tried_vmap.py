"""A library's vmap, compared with its last sample computed alone."""

from __future__ import annotations

import copy
from typing import Callable, Sequence, TypeVar

import torch
from torch import Tensor

from .._arguments.mapped import BatchedCall
from .._guards.adjoint_test import wave
from .._guards.checks import testing
from .._guards.trial import ERRORS, Trial, same, tells
from .._guards.wrong_answers import MISTAKEN_BATCH
from .._torch.closures import captured
from .surroundings import ANSWERS, Surroundings, copied, gradients, is_recorded

Result = TypeVar("Result")


def tried_vmap(
    trial: Trial,
    compute: Callable[[], tuple[list[Tensor], Result]],
    call: BatchedCall,
    tensors: Sequence[Tensor] | None = None,
) -> Result:
    """The library's batch; raises `MistakenRule` where the last sample alone gives something else.

    ``compute()`` gives the outputs, stacked along dimension 0, and the result. `tensors` are a chunk of the call's.
    Where plain autograd records the batch, the gradients of the last sample's outputs are compared, too. A batch whose
    first and last samples are equal, or whose last outputs are zero, tells too little: the next call is tested, too.
    """
    tensors = call.tensors if tensors is None else tensors
    last = tensors[0].size(call.dims[0]) - 1
    if last < 0:
        return compute()[1]
    sample = [copied(tensor.select(dim, last)) for tensor, dim in zip(tensors, call.dims)]
    shared, generators = call.reachable()
    before, mapped = Surroundings(shared, generators), Surroundings(tensors, ())
    (stacked, result), doubtful = trial.run(compute, lambda results: is_recorded(results[0]), tensors)
    if not doubtful or before.changed():
        return result
    recorded = is_recorded(stacked) and not mapped.wrote()
    if recorded:  # in the graph of the batch's own inputs, so that all that leads to them counts
        sample = [tensor.select(dim, last) for tensor, dim in zip(tensors, call.dims)]
    try:
        with testing():
            alone = copy.copy(call)(*sample)[0]
        of_last = [leaf.select(0, last) for leaf in stacked]
        right = same(of_last, alone)
        if right and recorded:
            right = _has_same_gradients(stacked, alone, last, [*tensors, *_reached(call)])
        telling = not right or (tells(alone) and _differ(tensors, call.dims, last))
    except ANSWERS:
        raise
    except ERRORS:  # also of tensors without values
        return result
    if telling:
        trial.settle("" if right else MISTAKEN_BATCH.format(trial.operations or call.name), recorded)
    return result


def _reached(call: BatchedCall) -> list[Tensor]:
    """Tensors beside the slices that can be differentiated: other arguments, closed-over tensors and parameters."""
    found = captured([call.func, call.leaves, call.kwargs], parameters=True)
    return [value for value in found if isinstance(value, Tensor)]


def _differ(tensors: Sequence[Tensor], dims: Sequence[int], last: int) -> bool:
    """Whether the first and the last sample differ, so that numbers from one in the place of the other are seen."""
    pairs = [(tensor.select(dim, 0), tensor.select(dim, last)) for tensor, dim in zip(tensors, dims)]
    return not last or any(bool((first != other).any()) for first, other in pairs)


def _has_same_gradients(
    stacked: Sequence[Tensor], alone: Sequence[Tensor], last: int, inputs: Sequence[Tensor]
) -> bool:
    """Whether gradients of the last sample's outputs through the batch are those of the sample alone."""
    cotangents = [wave(output.detach()) for output in alone]
    of_last = [torch.zeros_like(leaf) for leaf in stacked]
    for zeros, cotangent in zip(of_last, cotangents):
        zeros[last] = cotangent
    expected = gradients(alone, cotangents, inputs)
    try:
        return same(gradients(stacked, of_last, inputs), expected)
    except ERRORS:  # the batch has no derivative where a sample has one
        return False
