"""Linear maps of a library: its pullback and its pushforward, batched by its vmap."""

from __future__ import annotations

from typing import Any, Callable, List, Sequence, TypeVar

import torch
from torch import Tensor

from .._guards.by_graph import Look, is_mapped
from .._guards.recognition import refusal
from .._torch.random_state import RandomState

Result = TypeVar("Result")

# Maps a function of flat tensors over their dimension 0: (function, tensors, randomness) -> results
AtOnce = Callable[[Callable[..., Sequence[Tensor]], Sequence[Tensor], str], List[Tensor]]
# Cotangents, retain_graph and create_graph -> gradients
Pull = Callable[[Sequence[Tensor], bool, bool], Sequence[Tensor]]


def is_unmapped_write(error: RuntimeError) -> bool:
    """Whether the library refuses to write mapped values into a tensor that is not mapped."""
    row = refusal(error)
    return row is not None and row.name in ("inplace_into_unbatched", "broadcast_by_vmap")


def pushed(
    push: Callable[[Sequence[Tensor]], Result],
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor],
    before: RandomState | None,
) -> Result:
    """``push(tangents)``, whose tangents become mapped as their primals are where the library has to write to them.

    The tangents of a Jacobian are unit vectors, which all samples share until then. `before` is the random state before
    the call; without it, the primals are not mapped. Torch lets no function write to a tensor from outside here.
    """
    try:
        return push(tangents)
    except RuntimeError as error:
        if before is None or not is_unmapped_write(error):
            raise
    before.restore()
    return push([t + torch.zeros_like(x) for t, x in zip(tangents, primals)])


class NativeMap:
    """A linear map of the library's; it is batched by the library's vmap."""

    batches_itself = False

    def __init__(self, at_once: AtOnce, apply: Callable[..., Sequence[Tensor]], randomness: str) -> None:
        self._apply = apply
        self._at_once = at_once
        self._randomness = randomness

    def __call__(self, *vectors: Tensor) -> list[Tensor]:
        return list(self._apply(*vectors))

    def batched(self, *vectors: Tensor) -> list[Tensor]:
        if len(vectors[0]) == 0:  # not every operation can be batched over nothing
            return [
                result.new_zeros((0, *result.shape)) for result in self(*(v.new_zeros(v.shape[1:]) for v in vectors))
            ]
        return self._at_once(self._apply, vectors, self._randomness)


class NativePullback:
    """The library's ``vjp_fn``, within its running transforms.

    Parameters
    ----------
    at_once, pull
        How it is mapped, and what is mapped.
    outputs : sequence of Tensor
        On the level where they have their graph.
    found : Look
        What that graph has.
    private
        The library's private functions.
    """

    batches_itself = False

    def __init__(self, at_once: AtOnce, pull: Pull, outputs: Sequence[Tensor], found: Look, private: Any) -> None:
        self.outputs = outputs
        self.values = outputs  # the same on the level around
        self._at_once = at_once
        self._pull = pull
        self._found = found
        self._private = private

    def _check(self) -> None:
        """Raise where rows through the graph are batched wrongly: a transform around may batch them."""
        for error in self._found.rows:
            raise error
        if self._found.mapped and is_mapped(self.outputs, self._private):
            raise self._found.mapped[0]

    def batched(self, *cotangents: Tensor) -> list[Tensor]:
        self._check()
        create = torch.is_grad_enabled()
        rows = NativeMap(self._at_once, lambda *row: self._pull(row, True, create), "error")
        try:
            return rows.batched(*cotangents)
        except RuntimeError as error:
            if not is_unmapped_write(error):
                raise
        # Torch writes mapped values into tensors that it made of unmapped cotangents: so all cotangents become mapped.
        return rows.batched(*(c + torch.zeros_like(value) for c, value in zip(cotangents, self.values)))

    def __call__(self, *cotangents: Tensor) -> list[Tensor]:
        return self.pull(cotangents, True, None)

    def pull(self, cotangents: Sequence[Tensor], retain_graph: bool, create_graph: bool | None) -> list[Tensor]:
        self._check()
        create = torch.is_grad_enabled() if create_graph is None else create_graph
        return list(self._pull(cotangents, retain_graph, create))


class Push(NativeMap):
    """A pushforward, which gives tangents and aux: aux is that of the first tangent, as torch.func has it.

    The function to apply sets the entry of `counts`, how many of its results are tangents; aux goes to `collected`.
    """

    def __init__(
        self, at_once: AtOnce, apply: Callable[..., Sequence[Tensor]], randomness: str, counts: list[int]
    ) -> None:
        super().__init__(at_once, apply, randomness)
        self.counts = counts
        self.collected: list[Tensor] = []

    def __call__(self, *vectors: Tensor) -> list[Tensor]:
        return self._split(super().__call__(*vectors), lambda aux: aux)

    def batched(self, *vectors: Tensor) -> list[Tensor]:
        if len(vectors[0]) == 0:  # there is no first tangent: it calls itself with zeros
            return super().batched(*vectors)
        return self._split(super().batched(*vectors), lambda aux: aux[0])

    def _split(self, results: list[Tensor], first: Callable[[Tensor], Tensor]) -> list[Tensor]:
        count = self.counts[0]
        self.collected[:] = [first(aux) for aux in results[count:]]
        return results[:count]
