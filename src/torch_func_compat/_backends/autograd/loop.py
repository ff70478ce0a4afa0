"""vmap as a loop: slice, evaluate, stack.

The first sample tells what the function returns and whether it writes to what it is given; the others
then run with as little around them as a loop written by hand has.
"""

from __future__ import annotations

import itertools
from typing import Any, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..._arguments.mapped import BatchedCall
from ..._guards.recognition import LoopError
from ..._torch.closures import names_in
from ..._torch.engine import graphs_kept
from ..._torch.modules import Buffers
from ..._torch.random_state import RandomState, generators_made
from ..._torch.tensors import slices, version, with_attributes
from .output_stack import Pile, columns, require_structure
from .shared_writes import Common, is_same

# How many samples' views exist at a time, and how many results wait to be stacked where they are large
AHEAD, FEW = 1024, 16


def read_only(tensor: Tensor, dim: int) -> Iterator[Tensor]:
    """`slices` in a fraction of the time. Torch may refuse writes to them."""
    if tensor.size(dim) <= AHEAD:
        return iter(tensor.unbind(dim))
    return itertools.chain.from_iterable(block.unbind(dim) for block in tensor.split(AHEAD, dim))


def _apart(tensor: Tensor, dim: int) -> Iterator[Tensor]:
    """Copies of the samples: as_strided() counts its offset from the beginning of the memory, which views share."""
    return map(torch.clone, read_only(tensor, dim))


def _like(samples: Iterator[Tensor], tensor: Tensor) -> Iterator[Tensor]:
    """The samples of a tensor, with what the user has set on it."""
    if type(tensor) is Tensor or not tensor.__dict__:
        return samples
    return (with_attributes(sample, tensor) for sample in samples)


def loop(call: BatchedCall, tensors: Sequence[Tensor], randomness: str) -> tuple[list[Tensor], list[Any]]:
    """Map `call` over the batch dimensions of `tensors`, sample by sample."""
    names = names_in(call.func)
    with graphs_kept(names):
        return _loop(call, tensors, randomness, "as_strided" in names)


def _loop(call: BatchedCall, tensors: Sequence[Tensor], randomness: str, apart: bool) -> tuple[list[Tensor], list[Any]]:
    size = tensors[0].size(call.dims[0])
    shared_tensors, generators = call.outside(called=False)
    state = RandomState(generators)
    if size == 0:
        return _empty(call, tensors, state, generators, randomness)
    common = Common(call, shared_tensors, tensors, state)
    versions = [version(tensor) for tensor in tensors]
    buffers = Buffers(call.func)
    first = [tensor.select(dim, 0) for tensor, dim in zip(tensors, call.dims)]
    first = [sample.clone() for sample in first] if apart else first
    with generators_made(call.func, generators) as made:
        outputs, shared = call(*map(with_attributes, first, tensors))
    if apart and any(map(version, first)):
        raise LoopError(
            f"vmap: `{call.name}` modifies in place a sample whose memory it reads by as_strided(), and copies of the "
            f"samples are evaluated. Modify a clone()"
        )
    after = RandomState(generators) if randomness == "same" else None
    if randomness == "error":
        common.forbid_draws()
        made.forbid_draws()
    elif randomness == "different" and size > 1 and made.have_drawn:
        raise LoopError(
            f"vmap({call.name}, ..., randomness='different'): `{call.name}` makes a random generator, from which every "
            f"sample of a loop draws the same numbers. Make it outside and close over it"
        )
    common.first()
    piles = [Pile(call, output, size, tensors) for output in outputs]
    if size > 1:
        views = [read_only if version(tensor) == count else slices for tensor, count in zip(tensors, versions)]
        if apart:
            views = [_apart] * len(tensors)
        rest = [_like(view(tensor, dim), tensor) for view, tensor, dim in zip(views, tensors, call.dims)]
        for samples in rest:
            next(samples)
        moved = buffers.moved()
        if shared or common.written or moved or after is not None:
            same = None if after is None else (state, after)
            _one_by_one(call, zip(*rest), piles, shared, common, same, buffers if moved else None)
        else:
            _in_blocks(call, rest, piles)
    if randomness == "error":
        common.forbid_draws()
    common.last()
    return [pile.stacked() for pile in piles], shared


def _one_by_one(
    call: BatchedCall,
    samples: Iterable[tuple[Tensor, ...]],
    piles: Sequence[Pile],
    shared: list[Any],
    common: Common,
    same: tuple[RandomState, RandomState] | None,
    buffers: Buffers | None,
) -> None:
    """Evaluate the other samples, and compare what is `shared` or in `common` after each.

    With randomness='same', every sample starts from the random state that the first one started from, and has to leave
    the one that it left.
    """
    spec = call.output_spec
    for i, sample in enumerate(samples, 1):
        common.rewind()
        if buffers is not None:
            buffers.restore()
        if same is not None:
            same[0].restore()
        outputs, shared_now = call(*sample)
        if same is not None and same[1].moved():
            raise LoopError(
                f"vmap({call.name}, ..., randomness='same'): sample {i} took another amount of random numbers than "
                f"sample 0, so that what it draws afterwards would not be the same. Draw outside and pass the numbers "
                f"in, or use randomness='different'"
            )
        common.later()
        require_structure(call, spec, i, call.output_spec)
        _check_shared(call, i, shared, shared_now)
        for pile, output in zip(piles, outputs):
            pile.add(i, [output])


def _in_blocks(call: BatchedCall, samples: Sequence[Iterator[Tensor]], piles: Sequence[Pile]) -> None:
    """As a loop written by hand."""
    func, arguments = call.direct(samples)
    ahead = FEW if any(pile.is_large for pile in piles) else AHEAD
    rows = zip(*arguments)
    done = 1
    while True:
        if len(arguments) == 1:
            block = [func(argument) for argument in itertools.islice(arguments[0], ahead)]
        else:
            block = [func(*row) for row in itertools.islice(rows, ahead)]
        if not block:
            return
        for pile, column in zip(piles, columns(call, done, block)):
            pile.add(done, column)
        done += len(block)


def _empty(
    call: BatchedCall,
    tensors: Sequence[Tensor],
    state: RandomState,
    generators: Sequence[torch.Generator],
    randomness: str,
) -> tuple[list[Tensor], list[Any]]:
    """No samples: only an evaluation on made-up values tells the shapes of the results."""
    samples = [
        # the sum over nothing is zero, and keeps the results differentiable
        tensor.sum(dim) + 1 if tensor.is_floating_point() or tensor.is_complex() else tensor.new_ones(shape)
        for tensor, dim in zip(tensors, call.dims)
        for shape in ([n for d, n in enumerate(tensor.shape) if d != dim],)
    ]
    try:
        with generators_made(call.func, generators) as made:
            outputs, shared = call(*samples)
        if randomness == "error":
            state.forbid_draws()
            made.forbid_draws()
    finally:
        state.restore()
    return [output.unsqueeze(0)[:0] for output in outputs], shared


def _check_shared(call: BatchedCall, i: int, first: list[Any], now: list[Any]) -> None:
    for a, b in zip(first, now):
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            same = a is b or is_same(a, b)
        else:
            same = a is b or (type(a) is type(b) and bool(a == b or (a != a and b != b)))
        if not same:
            raise ValueError(
                f"vmap({call.name}, ...): `{call.name}` can not return a BatchedTensor when out_dim is None: "
                f"the value of sample {i} differs from that of sample 0"
            )
