"""torch.func as torch.compile can trace it: its own vmap, vjp and jvp, without memory, and with guards by names."""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from .._arguments.mapped import BatchedCall
from .._arguments.protocol import Differentiable, LinearMap, Pullback
from .._guards.while_tracing import is_mapped, is_within_derivative, refuse_rows, watched
from .torch_func import LIBRARY, native_vmap


class _TracedMap:
    """A derivative at a point, batched by torch.func's vmap. Its function returns vectors and aux."""

    batches_itself = False
    outputs: Sequence[Tensor] = ()

    def __init__(self, apply: Callable[..., Any], normalisations: Sequence[str] = ()) -> None:
        self._apply = apply
        self._normalisations = normalisations
        self.aux: list[Tensor] = []

    def __call__(self, *vectors: Tensor) -> list[Tensor]:
        found, aux = self._apply(*vectors)
        self.aux = list(aux)
        return list(found)

    def pull(self, cotangents: Sequence[Tensor], retain_graph: bool, create_graph: bool | None) -> list[Tensor]:
        return self(*cotangents)

    def batched(self, *vectors: Tensor) -> list[Tensor]:
        if len(vectors[0]) > 1:
            refuse_rows(self._normalisations)
        found, aux = LIBRARY.vmap(self._apply)(*vectors)
        self.aux = [value[0] for value in aux]
        return list(found)


class _NoDraws:
    """A random state that cannot be put back: the compiler handles random numbers of a graph."""

    def restore(self) -> None:
        """Do nothing."""


def _tuples(func: Differentiable, kind: str, normalisations: list[str] | None = None) -> Callable[..., Any]:
    def flat(*primals: Tensor) -> Any:
        outputs, aux = func(*primals)
        return tuple(outputs), tuple(aux)

    return watched(flat, kind, normalisations)


def _again(normalisations: list[str], outputs: Sequence[Tensor]) -> list[str]:
    """The normalisations of a derivative that may be differentiated again."""
    return normalisations if is_within_derivative() or any(output.requires_grad for output in outputs) else []


class TracedBackend:
    """See `torch_func_compat._arguments.protocol.Backend` for the methods.

    Under a vmap, pushforwards are transposes of pullbacks: torch.compile cannot trace forward mode there, where the
    function has a Python number (https://github.com/pytorch/pytorch/issues/160508, torch 2.6 to 2.15).
    """

    name = "torch.func"
    has_forward_mode = True
    loops = False
    remembers = False

    def innermost(self) -> Any:
        # Results are not written into preallocated memory.
        return self

    def draws(self, call: Any) -> _NoDraws:
        return _NoDraws()

    def native(self, name: str, func: Callable[..., Any], options: Any) -> Any:
        if name == "vmap":
            return native_vmap(watched(func, "vmap"), options)
        # torch 2.6 loses the derivative of a custom Function in a vjp that it compiles, and not in its own gradient.
        return (LIBRARY.grad if name == "grad" else LIBRARY.grad_and_value)(
            watched(func, "reverse"), options.argnums, options.has_aux
        )

    def vmap(self, call: BatchedCall, tensors: Sequence[Tensor], randomness: str) -> tuple[list[Tensor], list[Any]]:
        shared: list[Any] = []

        def flat(*slices: Tensor) -> tuple[Tensor, ...]:
            outputs, shared[:] = call(*slices)
            return tuple(outputs)

        return list(
            LIBRARY.vmap(watched(flat, "vmap"), in_dims=tuple(call.dims), randomness=randomness)(*tensors)
        ), shared

    def vjp(self, func: Differentiable, primals: Sequence[Tensor]) -> tuple[list[Tensor], Pullback, list[Tensor]]:
        noted: list[str] = []
        outputs, pull, aux = LIBRARY.vjp(_tuples(func, "reverse", noted), *primals, has_aux=True)
        rows = _TracedMap(lambda *cotangents: (pull(tuple(cotangents)), ()), _again(noted, outputs))
        return list(outputs), rows, list(aux)

    def jvp(
        self, func: Differentiable, primals: Sequence[Tensor], tangents: Sequence[Tensor], strict: bool
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        if is_mapped():
            outputs, push, aux = self.linearize(func, primals)
            return outputs, push(*tangents), aux
        outputs, found, aux = LIBRARY.jvp(_tuples(func, "forward"), tuple(primals), tuple(tangents), has_aux=True)
        return list(outputs), list(found), list(aux)

    def pushforward(
        self, func: Differentiable, primals: Sequence[Tensor], randomness: str
    ) -> tuple[LinearMap, Callable[[], list[Tensor]]]:
        if is_mapped():
            _, transposed, aux = self.linearize(func, primals)
            return transposed, lambda: aux
        flat = _tuples(func, "forward")

        def push(*tangents: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            _, found, aux = LIBRARY.jvp(flat, tuple(primals), tuple(tangents), has_aux=True)
            return tuple(found), tuple(aux)

        linear = _TracedMap(push)
        return linear, lambda: linear.aux

    def linearize(
        self, func: Differentiable, primals: Sequence[Tensor]
    ) -> tuple[list[Tensor], LinearMap, list[Tensor]]:
        noted: list[str] = []
        outputs, pull, aux = LIBRARY.vjp(_tuples(func, "transposed", noted), *primals, has_aux=True)
        zeros = [torch.zeros_like(output) for output in outputs]
        _, push = LIBRARY.vjp(lambda *cotangents: pull(tuple(cotangents)), *zeros)
        columns = _TracedMap(lambda *tangents: (push(tuple(tangents)), ()), _again(noted, outputs))
        return list(outputs), columns, list(aux)
