"""Partition of Jacobian rows, columns or samples over processes."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Sequence

from torch import Tensor

from .protocol import Backend


def bounds(rank: int, size: int, total: int) -> tuple[int, int]:
    """Start and stop of the share of `rank`, if `size` ranks share `total`. Shares differ by at most one."""
    each, rest = divmod(total, size)
    start = rank * each + min(rank, rest)
    return start, start + each + (rank < rest)


class Partition:
    """The place of this process in its group, looked up only when something is computed.

    Parameters
    ----------
    place : callable
        Returns the rank of this process and how many there are.
    forward_mode : callable
        Returns whether to count on forward mode. Processes may end on different backends, but all must use the same
        mode.
    """

    def __init__(self, place: Callable[[], tuple[int, int]], forward_mode: Callable[[], bool]) -> None:
        self._place = place
        self._forward_mode = forward_mode

    def bounds(self, total: int) -> tuple[int, int]:
        """Start and stop of this process's share of `total`."""
        return bounds(*self._place(), total)

    def has_forward_mode(self, backend: Backend) -> bool:
        """Whether the choice of a mode counts on forward mode."""
        return backend.has_forward_mode if self._place()[1] == 1 else self._forward_mode()


class PartialResult(NamedTuple):
    """The share of a result that one process computed.

    Attributes
    ----------
    axis : {'rows', 'columns', 'samples'}
    start, stop, total : int
        Which of them.
    parts : list of Tensor
        Their dimension 0 is the share's.
    shard : callable
        Puts the parts into the structure that belongs to one row, column or sample.
    whole : callable
        Puts the parts of all processes into the structure of the result.
    """

    axis: str
    start: int
    stop: int
    total: int
    parts: Sequence[Tensor]
    shard: Callable[[Sequence[Tensor]], Any]
    whole: Callable[[Sequence[Tensor]], Any]
