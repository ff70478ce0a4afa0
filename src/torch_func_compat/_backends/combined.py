"""Reverse mode by plain autograd; vmap and forward mode by a library.

A reverse derivative that runs on plain autograd cannot be refused, is the same on every torch, and costs what
hand-written autograd costs. A library is asked for what it alone can do: batching, and pushing forward. Within one of
its running transforms, its own levels answer, since no other backend can see into its tensors.
"""

from __future__ import annotations

from typing import Any, Callable, ContextManager, Sequence

from torch import Tensor

from .._arguments.mapped import BatchedCall
from .._arguments.protocol import Differentiable, LinearMap, Pullback
from .._torch.random_state import RandomState
from .autograd import AutogradBackend
from .native import NativeBackend


class CombinedBackend:
    """See `torch_func_compat._arguments.protocol.Backend` for the methods.

    Parameters
    ----------
    native : NativeBackend
        The library, as it answers within its own transforms.
    """

    has_forward_mode = True
    loops = False
    remembers = True

    def __init__(self, native: NativeBackend) -> None:
        self.name = native.name
        self.innermost = native.innermost
        self.native = native.native
        self.draws: Callable[..., RandomState] = native.draws
        self._native = native
        self._plain = AutogradBackend()

    def vmap(self, call: BatchedCall, tensors: Sequence[Tensor], randomness: str) -> tuple[list[Tensor], list[Any]]:
        with self._native.around():
            return self._native.vmap(call, tensors, randomness)

    def vjp(self, func: Differentiable, primals: Sequence[Tensor]) -> tuple[list[Tensor], Pullback, list[Tensor]]:
        return (self._native if self._native.is_active() else self._plain).vjp(func, primals)

    def jvp(
        self, func: Differentiable, primals: Sequence[Tensor], tangents: Sequence[Tensor], strict: bool
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        with self._native.around():
            return self._native.jvp(func, primals, tangents, strict)

    def pushforward(
        self, func: Differentiable, primals: Sequence[Tensor], randomness: str
    ) -> tuple[LinearMap, Callable[[], list[Tensor]]]:
        push, aux = self._native.pushforward(func, primals, randomness)
        return _Around(push, self._native.around), aux

    def linearize(
        self, func: Differentiable, primals: Sequence[Tensor]
    ) -> tuple[list[Tensor], LinearMap, list[Tensor]]:
        return (self._native if self._native.is_active() else self._plain).linearize(func, primals)


class _Around:
    """A linear map that is applied within a context."""

    batches_itself = False

    def __init__(self, linear: LinearMap, around: Callable[[], ContextManager[Any]]) -> None:
        self._linear = linear
        self._around = around

    def __call__(self, *vectors: Tensor) -> list[Tensor]:
        with self._around():
            return self._linear(*vectors)

    def batched(self, *vectors: Tensor) -> list[Tensor]:
        with self._around():
            return self._linear.batched(*vectors)
