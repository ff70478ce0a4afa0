"""vmap as a loop: slice, evaluate, stack."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from ... import _facts
from ..._arguments import BatchedCall, slices, version
from ..._randomness import RandomState


def loop(call: BatchedCall, tensors: Sequence[Tensor], randomness: str) -> tuple[list[Tensor], list[Any]]:
    """Map `call` over the batch dimensions of `tensors`, sample by sample."""
    size = tensors[0].size(call.dims[0])
    state = RandomState(call.generators()) if randomness != "different" or size == 0 else None
    if size == 0:
        assert state is not None
        return _empty(call, tensors, state)
    around = [*call.shared(), *tensors]
    versions = [version(tensor) for tensor in around]
    results: list[list[Tensor]] = []
    shared: list[Any] = []
    spec: Any = None
    for i, sample in enumerate(zip(*map(slices, tensors, call.dims))):
        if i and randomness == "same":
            assert state is not None
            state.restore()
        outputs, shared_now = call(*sample)
        if i == 0:
            spec, shared = call.output_spec, shared_now
            for tensor, before in zip(around, versions):
                if version(tensor) != before:
                    _check_mutation(call, tensor, tensors)
            if randomness == "error":
                assert state is not None
                state.forbid_draws()
        else:
            _check_alike(call, i, spec, results[0], outputs)
            _check_shared(call, i, shared, shared_now)
        results.append(outputs)
    if randomness == "error":
        assert state is not None
        state.forbid_draws()
    return [torch.stack(parts) for parts in zip(*results)], shared


def _memory(tensor: Tensor) -> int:
    """Where the storage begins; storage() is deprecated on torch 2, untyped_storage() not there on torch 1."""
    storage: Any = getattr(tensor, "untyped_storage", tensor.storage if _facts.TORCH < (2, 0) else None)
    return int(storage().data_ptr())


def _check_mutation(call: BatchedCall, changed: Tensor, tensors: Sequence[Tensor]) -> None:
    """In place, only slices of mapped inputs can be changed: what samples share, each would change once more."""
    owner = [i for i, tensor in enumerate(tensors) if tensor is changed]
    overlap = sum(_memory(tensor) == _memory(changed) for tensor in tensors) > 1
    if len(owner) == 1 and not overlap and changed.stride(call.dims[owner[0]]) != 0:
        return
    raise RuntimeError(
        f"vmap: `{call.name}` modifies in place a tensor that all samples share (an input with in_dim None, a tensor "
        f"from its closure, a module's buffer, overlapping inputs): inplace arithmetic is not possible there. Work on "
        f"a clone(), or give it a batch dimension; for batch norm, eval() or replace the running statistics."
    )


def _empty(call: BatchedCall, tensors: Sequence[Tensor], state: RandomState) -> tuple[list[Tensor], list[Any]]:
    """No samples: only an evaluation on made-up values tells the shapes of the results."""
    samples = [
        # the sum over nothing is zero, and keeps the results differentiable
        tensor.sum(dim) + 1 if tensor.is_floating_point() or tensor.is_complex() else tensor.new_ones(shape)
        for tensor, dim in zip(tensors, call.dims)
        for shape in ([n for d, n in enumerate(tensor.shape) if d != dim],)
    ]
    try:
        outputs, shared = call(*samples)
    finally:
        state.restore()
    return [output.unsqueeze(0)[:0] for output in outputs], shared


def _check_alike(call: BatchedCall, i: int, spec: Any, first: list[Tensor], outputs: list[Tensor]) -> None:
    """torch.stack would promote dtypes silently, and reports shapes without saying whose."""
    if call.output_spec != spec:
        raise RuntimeError(
            f"vmap({call.name}, ...): the structure of the output must be the same for every sample: "
            f"sample 0 gave {spec}, sample {i} gave {call.output_spec}"
        )
    for a, b in zip(first, outputs):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise RuntimeError(
                f"vmap({call.name}, ...): outputs must have the same shape and dtype for every sample: sample 0 "
                f"gave {tuple(a.shape)} of {a.dtype}, sample {i} gave {tuple(b.shape)} of {b.dtype}"
            )


def _check_shared(call: BatchedCall, i: int, first: list[Any], now: list[Any]) -> None:
    for a, b in zip(first, now):
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            same = a is b or (a.shape == b.shape and bool(torch.isclose(a, b, 0.0, 0.0, equal_nan=True).all()))
        else:
            same = a is b or (type(a) is type(b) and bool(a == b or (a != a and b != b)))
        if not same:
            raise ValueError(
                f"vmap({call.name}, ...): `{call.name}` can not return a BatchedTensor when out_dim is None: "
                f"the value of sample {i} differs from that of sample 0"
            )
