"""A library's vmap, compared with its last sample computed alone."""

from __future__ import annotations

import copy
from typing import Any, Callable, Sequence, TypeVar

import torch
from torch import Tensor

from .._arguments.mapped import BatchedCall
from .._guards.adjoint_test import wave
from .._guards.checks import testing
from .._guards.trial import ERRORS, Trial, same
from .._guards.wrong_answers import MISTAKEN_BATCH
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
    Where plain autograd records the batch, the gradients of the last sample's outputs are compared, too.
    """
    tensors = call.tensors if tensors is None else tensors
    last = tensors[0].size(call.dims[0]) - 1
    if last < 0:
        return compute()[1]
    sample = [copied(tensor.select(dim, last)) for tensor, dim in zip(tensors, call.dims)]
    shared, generators = call.reachable()
    before = Surroundings(shared, generators)
    (stacked, result), doubtful = trial.run(compute, lambda results: is_recorded(results[0]), tensors)
    if not doubtful or before.changed():
        return result
    try:
        with testing():
            alone = copy.copy(call)(*sample)[0]
        right = same([leaf.select(0, last) for leaf in stacked], alone)
        if right and is_recorded(stacked):
            right = _has_same_gradients(stacked, alone, last, tensors, sample, call.dims, shared)
    except ANSWERS:
        raise
    except ERRORS:  # also of tensors without values
        return result
    trial.settle("" if right else MISTAKEN_BATCH.format(trial.operations or call.name))
    return result


def _has_same_gradients(
    stacked: Sequence[Tensor],
    alone: Sequence[Tensor],
    last: int,
    tensors: Sequence[Tensor],
    sample: Sequence[Tensor],
    dims: Sequence[int],
    shared: Sequence[Tensor],
) -> bool:
    """Whether gradients through the batch are those of the sample for the last one, and zero for the others."""
    cotangents = [wave(output.detach()) for output in alone]
    of_last = [torch.zeros_like(leaf) for leaf in stacked]
    for zeros, cotangent in zip(of_last, cotangents):
        zeros[last] = cotangent
    found = gradients(stacked, of_last, [*tensors, *shared])
    expected = gradients(alone, cotangents, [*sample, *shared])
    for k, dim in enumerate(dim for tensor, dim in zip(tensors, dims) if tensor.requires_grad):
        if k < len(expected):
            whole: Any = torch.zeros_like(found[k])
            whole.select(dim, last).copy_(expected[k])
            expected[k] = whole
    return same(found, expected)
