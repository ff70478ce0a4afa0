"""What an evaluation of a function can change around it, kept so that another evaluation finds the same."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator, Sequence

import torch
from torch import Tensor

from .modules import Buffers
from .random_state import RandomState
from .tensors import version

# Elements. Larger tensors are not kept: what functions update beside computing (statistics, counters, power
# iterations) is small.
_LIMIT = 1 << 16


def is_kept(tensor: Tensor) -> bool:
    """Whether a tensor is small and plain enough to be kept."""
    if tensor.requires_grad or tensor.layout != torch.strided or getattr(tensor, "is_nested", False):
        return False
    return tensor.numel() <= _LIMIT and 0 not in tensor.stride()


def differ(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors differ, as far as they have values: a meta or fake tensor has none."""
    try:
        return not torch.equal(a, b)
    except (RuntimeError, AssertionError):
        return False


class Surroundings(RandomState):
    """The random state, some tensors, and the buffers of `func`, as they were when this was made."""

    def __init__(
        self,
        tensors: Sequence[Tensor],
        generators: Sequence[torch.Generator] = (),
        func: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(generators)
        self._func = func
        self._buffers = None if func is None else Buffers(func)
        self._tensors = tensors
        self._generators = generators
        self._versions = [version(tensor) for tensor in tensors]
        self._values: dict[int, Tensor] = {}  # by position
        for k, tensor in enumerate(tensors):
            if is_kept(tensor):
                try:
                    self._values[k] = tensor.clone()
                except RuntimeError:  # a tensor of a transform that has ended, which the function kept
                    pass

    def written(self) -> list[int]:
        """The positions of tensors that were written to since.

        Values are compared, too: some kernels do not count their writes, such as that of batch norm to its statistics.
        """
        return [
            k
            for k, (tensor, count) in enumerate(zip(self._tensors, self._versions))
            if version(tensor) != count or (k in self._values and differ(tensor, self._values[k]))
        ]

    def can_restore(self) -> bool:
        """Whether the values of all tensors that were written to are known."""
        return self._values.keys() >= set(self.written())

    def restore(self) -> None:
        """Put back the random state, and the tensors as far as they are known.

        Not by writes that torch counts, since a graph may have saved these tensors.
        """
        super().restore()
        if self._buffers is not None:
            self._buffers.restore()
        for k in self.written():
            if k in self._values:
                self._tensors[k].data.copy_(self._values[k])

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """A context in which everything is as it was then. On exit, everything is put back as it is now."""
        now = Surroundings(self._tensors, self._generators, self._func)
        self.restore()
        try:
            yield
        finally:
            now.restore()


@contextlib.contextmanager
def unchanged(tensors: Sequence[Tensor], generators: Sequence[torch.Generator] = ()) -> Iterator[None]:
    """A context that puts everything back on exit."""
    now = Surroundings(tensors, generators)
    try:
        yield
    finally:
        now.restore()
