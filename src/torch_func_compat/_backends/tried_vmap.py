"""A library's vmap, compared with its first and its last sample computed alone."""

from __future__ import annotations

import copy
from typing import Callable, Sequence, TypeVar

import torch
from torch import Tensor

from .._arguments.mapped import BatchedCall
from .._guards.adjoint_test import probes
from .._guards.checks import testing
from .._guards.exits import SealedError
from .._guards.trial import ERRORS, Trial, noise, same, tells
from .._guards.wrong_answers import MISTAKEN_BATCH, MISTAKEN_GRADIENTS, MISTAKEN_IN_A_BATCH, MISTAKEN_SIZES
from .._torch.closures import captured, names_in
from .._torch.surroundings import Surroundings
from .tried import ANSWERS, copied, gradients, is_recorded, nudged

Result = TypeVar("Result")


def tried_vmap(
    trial: Trial,
    compute: Callable[[], tuple[list[Tensor], Result]],
    call: BatchedCall,
    tensors: Sequence[Tensor] | None = None,
    randomness: str = "error",
) -> Result:
    """The library's batch; raises `MistakenRule` where its first or last sample alone gives something else.

    ``compute()`` gives the outputs, stacked along dimension 0, and the result. `tensors` are a chunk of the call's.
    Where plain autograd records the batch, the gradients of the samples' outputs are compared, too. A batch whose
    first and last samples are equal, or whose last outputs are zero, tells too little: the next call is tested, too.
    What writes to a tensor from outside cannot be evaluated again, and what draws other numbers for each sample cannot
    be compared: there, operations that torch is known to batch wrongly raise.
    """
    tensors = call.tensors if tensors is None else tensors
    last = tensors[0].size(call.dims[0]) - 1
    if last < 0:
        return compute()[1]
    # One sample is not enough: torch may give every sample the value that is right for that one.
    places = [last, 0] if last else [0]
    samples = [[copied(tensor.select(dim, k)) for tensor, dim in zip(tensors, call.dims)] for k in places]
    before, mapped = Surroundings(*call.outside(), call.func), Surroundings(tensors)
    (stacked, result), doubtful = trial.run(compute, lambda results: is_recorded(results[0]), tensors)
    if not doubtful:
        return result
    trial.require_none_of(MISTAKEN_SIZES | MISTAKEN_GRADIENTS if is_recorded(stacked) else MISTAKEN_SIZES)
    draws = before.moved() or "Generator" in names_in(call.func)
    if not before.can_restore() or (randomness == "different" and draws):
        trial.require_none_of(MISTAKEN_IN_A_BATCH)
        return result
    if any(leaf.size(0) != last + 1 for leaf in stacked):
        trial.settle(MISTAKEN_BATCH.format(trial.operations or call.name), False)
    recorded = is_recorded(stacked) and not mapped.written()
    if recorded:  # in the graph of the batch's own inputs, so that all that leads to them counts
        samples = [[tensor.select(dim, k).clone() for tensor, dim in zip(tensors, call.dims)] for k in places]
    right, telling = True, False
    try:
        for k, sample in zip(places, samples):
            with testing(), before.again():
                alone = copy.copy(call)(*sample)[0]
            rounding, batched = noise(sample), [leaf.select(0, k) for leaf in stacked]
            right = same(batched, alone)
            if not right and same(batched, alone, rounding):
                with testing(), before.again():
                    again = copy.copy(call)(*[nudged(copied(x.detach())) for x in sample])[0]
                right = all(
                    same([one], [other]) or not same([other], [moved])
                    for one, other, moved in zip(batched, alone, again)
                )
            if right and recorded:
                right = _has_same_gradients(stacked, alone, k, [*tensors, *_reached(call)])
            telling = telling or tells(alone, rounding)
            if not right:
                break
        telling = not right or (telling and _differ(tensors, call.dims, last))
    except (*ANSWERS, SealedError):  # nothing shows that terms are lost on levels of a library
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
    stacked: Sequence[Tensor], alone: Sequence[Tensor], place: int, inputs: Sequence[Tensor]
) -> bool:
    """Whether gradients of one sample's outputs through the batch are those of the sample alone."""
    cotangents = probes(alone)
    of_one = [torch.zeros_like(leaf) for leaf in stacked]
    for zeros, cotangent in zip(of_one, cotangents):
        zeros[place] = cotangent
    try:
        expected = gradients(alone, cotangents, inputs)
    except SealedError:  # the batch has the derivative without its lost terms
        return False
    try:
        return same(gradients(stacked, of_one, inputs), expected)
    except ERRORS:  # the batch has no derivative where a sample has one
        return False
