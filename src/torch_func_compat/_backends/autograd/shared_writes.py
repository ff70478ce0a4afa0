"""Tensors that all samples of a loop share, to which the function may write.

A function under torch.func may write to a tensor that is not mapped, unless the values are mapped; it does so once for
the whole batch. A loop would write once for each sample. So each sample finds such a tensor as the first one found it,
and has to leave it as the first one left it.
"""

from __future__ import annotations

import contextlib
from typing import Any, Sequence

import torch
from torch import Tensor

from ..._arguments.mapped import BatchedCall
from ..._guards.recognition import LoopError
from ..._torch import facts
from ..._torch.grad_mode import no_grad
from ..._torch.random_state import RandomState
from ..._torch.surroundings import differ, is_kept
from ..._torch.tensors import version


class Common:
    """Watches what samples share: tensors that are not mapped, and memory in which mapped ones overlap."""

    def __init__(
        self, call: BatchedCall, shared: Sequence[Tensor], mapped: Sequence[Tensor], state: RandomState
    ) -> None:
        self._call = call
        self._state = state
        self._mapped = mapped
        self._tensors = [*shared, *mapped]
        self._versions = [version(tensor) for tensor in self._tensors]
        # by position among the tensors: values before the first sample, and after it of what it wrote to
        self._before: dict[int, Tensor] = {}
        for k, tensor in enumerate(self._tensors):
            if self._is_kept(tensor):
                # a tensor of a transform that has ended, which the function kept, cannot be read
                with contextlib.suppress(RuntimeError):
                    self._before[k] = tensor.clone()
        self._after: dict[int, Tensor] = {}

    @property
    def written(self) -> bool:
        """Whether the first sample wrote to something, so that the others have to be watched."""
        return bool(self._after)

    def first(self) -> None:
        """Raise if the first sample wrote to what cannot be written to for all samples at once."""
        # by value, too: some kernels write without saying so, as that of batch norm to its statistics
        silently = [k for k, before in self._before.items() if differ(self._tensors[k], before)]
        for k in {*self._written(), *silently}:
            tensor = self._tensors[k]
            if k not in self._before or tensor.requires_grad or self._overlaps(tensor):
                raise self.refusal()
            self._after[k] = tensor.clone()

    def rewind(self) -> None:
        """Let the next sample find what the first one found."""
        with no_grad():
            for k in self._after:
                self._tensors[k].copy_(self._before[k])

    def later(self) -> None:
        """Raise if a later sample left something otherwise than the first one did."""
        for k, after in self._after.items():
            if self._tensors[k].requires_grad or not is_same(self._tensors[k], after):
                raise self.refusal()

    def last(self) -> None:
        """Raise if a later sample wrote where the first one did not."""
        if any(k not in self._after for k in self._written()):
            raise self.refusal()

    def forbid_draws(self) -> None:
        """Raise torch.func's error, with everything put back, if random numbers were drawn."""
        if self._state.moved():
            self._undo()
            self._state.forbid_draws()

    def _undo(self) -> None:
        """Put back what was written, and that it needs no gradient."""
        with no_grad():
            for k, before in self._before.items():
                tensor = self._tensors[k]
                written = version(tensor) != self._versions[k] or differ(tensor, before)
                if written and not self._overlaps(tensor):
                    if tensor.requires_grad:
                        whole = tensor if tensor._base is None else tensor._base
                        whole.detach_()
                    tensor.copy_(before)

    def refusal(self) -> LoopError:
        """The error to raise; what was written is put back."""
        self._undo()
        why = ""
        if self._state.moved():
            why = ", and different inplace randomness on an unbatched tensor would depend on the order of samples"
        return LoopError(
            f"vmap: `{self._call.name}` modifies in place a tensor that all samples share (an input with in_dim None, "
            f"a tensor from its closure, a module's buffer, overlapping inputs): inplace arithmetic is not possible "
            f"there with mapped values{why}. Work on a clone(), or give it a batch dimension; for batch norm, eval() "
            f"or replace the running statistics."
        )

    def _is_kept(self, tensor: Tensor) -> bool:
        # writing to a larger tensor is refused
        return is_kept(tensor) and not any(tensor is mapped for mapped in self._mapped)

    def _written(self) -> list[int]:
        """The tensors that were written to, without slices of mapped inputs, since no other sample sees those."""
        return [
            k
            for k, (tensor, count) in enumerate(zip(self._tensors, self._versions))
            if version(tensor) != count and not self._is_own(tensor)
        ]

    def _is_own(self, tensor: Tensor) -> bool:
        mapped = [i for i, other in enumerate(self._mapped) if other is tensor]
        alone = len(mapped) == 1 and self._overlaps(tensor) == 1
        return alone and tensor.stride(self._call.dims[mapped[0]]) != 0

    def _overlaps(self, tensor: Tensor) -> int:
        """How many mapped inputs share memory with it."""
        return sum(_memory(other) == _memory(tensor) for other in self._mapped)


def _memory(tensor: Tensor) -> int:
    """Where the storage begins; storage() is deprecated on torch 2, untyped_storage() not there on torch 1."""
    storage: Any = getattr(tensor, "untyped_storage", tensor.storage if facts.TORCH < (2, 0) else None)
    return int(storage().data_ptr())


def is_same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, nan to nan."""
    return a.shape == b.shape and bool(torch.isclose(a, b, 0.0, 0.0, equal_nan=True).all())
