"""The backend of torch 1.11-1.13: functorch, as a package of its own or as torch 1.13 ships it.

Importing this module imports functorch, and functorch 0.1 and 0.2 patch torch when they are imported:
only ``_backends.load`` does it, when the backend is asked for. Its transforms lack chunk_size,
OrderedDicts, keyword arguments and more, one thing on each release, so none is used as a whole: what
the user calls is derived from its vmap, vjp and jvp.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any, Callable, Iterator, Sequence

import functorch
import functorch.experimental
import torch
from torch import Tensor

from .._arguments.mapped import BatchedCall
from .._arguments.protocol import Differentiable, LinearMap, Pullback
from .._guards.by_graph import IN_FORWARD_MODE, NORMALISATIONS, kept_outside, nodes_of
from .._guards.by_profile import refused_calls, refused_tangents
from .._guards.wrong_answers import MISTAKEN_INDEX, MISTAKEN_NESTING, MistakenRule
from .._torch import facts
from .._torch.tensors import version
from .native import NativeBackend

# torch 1.13 took functorch's extension in; before, it was the package's own
_private = getattr(torch._C, "_functorch", None) or functorch._C

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


# Backward nodes that are wrong within another derivative: facts "weight_norm_twice" and "kl_div_twice", and forward
# mode over the backward of triangular_solve (measured: 1.11 to 1.13); determinants where singular values coincide, and
# sinc at zero.
_TWICE = ("WeightNormInterface", "KlDiv", "TriangularSolve", "LinalgDet", "DetB", "DetLu", "Sinc")
_THREE_TIMES = (*NORMALISATIONS, "Logcumsumexp", "SpecialI1", "I0B")
# And of complex numbers (fact "functorch_loses_complex_parts"), however these were made.
_TWICE_OF_COMPLEX = ("Abs", "Sgn")


def _is_wrong_twice(node: Any) -> bool:
    name = type(node).__name__
    if name.startswith(_TWICE):
        return True
    if not name.startswith(_TWICE_OF_COMPLEX) or not facts.has("functorch_loses_complex_parts"):
        return False
    return bool(node._saved_self.is_complex())


def _is_wrong_three_times(node: Any) -> bool:
    return _is_wrong_twice(node) or type(node).__name__.startswith(_THREE_TIMES)


def is_active() -> bool:
    """Whether a functorch transform is running in this thread."""
    if not _private.are_transforms_active():
        return False
    # That counts the transforms of all threads; the level is this thread's, and an error if there is none.
    try:
        _private.current_level()
    except RuntimeError:
        return False
    return True


def _samples(call: BatchedCall, tensors: Sequence[Tensor]) -> dict[int, list[Tensor]] | None:
    """The results of the first and the last sample alone, from copies of the inputs; None for no samples."""
    size = tensors[0].size(call.dims[0])
    if not size:
        return None
    return {
        i: call(*[tensor.select(dim, i).clone() for tensor, dim in zip(tensors, call.dims)])[0] for i in {0, size - 1}
    }


def _is_sample(alone: Sequence[Tensor], i: int, stacked: Sequence[Tensor]) -> bool:
    """Whether sample `i` of the stacked results is what it is alone."""
    return all(
        one.shape == many.shape[1:] and torch.allclose(one.detach(), many[i].detach(), equal_nan=True)
        for one, many in zip(alone, stacked)
    )


class _Unwritten:
    """A function to differentiate that raises if it wrote to a tensor from outside."""

    def __init__(self, func: Differentiable) -> None:
        self._func = func

    def __getattr__(self, name: str) -> Any:
        return getattr(self._func, name)

    def __call__(self, *primals: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        # integers, such as counters of calls, have no derivative to lose
        reached = (*self._func.others(), *self._func.captured())
        outside = [x for x in reached if x.is_floating_point() or x.is_complex()]
        before = [version(tensor) for tensor in outside]
        result = self._func(*primals)
        if [version(tensor) for tensor in outside] != before:
            raise RuntimeError(
                "the function writes to a tensor that it is not differentiated by, and functorch on torch < 1.13 can "
                "lose what is written: return the tensor, write to a clone(), upgrade torch, or choose the backend "
                "'autograd'"
            )
        return result


def _unwritten(func: Differentiable) -> Differentiable:
    return _Unwritten(func) if facts.has("writes_to_slices_are_lost") else func


class FunctorchBackend(NativeBackend):
    """Standalone `functorch` 0.1.1 and 0.2.1, and that of torch 1.13."""

    name = "functorch"

    def __init__(self) -> None:
        super().__init__(functorch, _private, is_active)
        self._derivatives = threading.local()
        # Two threads in functorch's transforms at once trip over each other's levels ("INTERNAL ASSERT").
        lock, interpreted = threading.RLock(), self.around

        @contextlib.contextmanager
        def around() -> Iterator[None]:
            with lock, interpreted(), refused_calls():
                yield

        self.around = around

    def vmap(
        self, call: BatchedCall, tensors: Sequence[torch.Tensor], randomness: str
    ) -> tuple[list[torch.Tensor], list[Any]]:
        if not facts.has("mapped_indices_are_wrong") or not any(t.dtype in _INTEGERS for t in tensors):
            return super().vmap(call, tensors, randomness)
        # There is no way to see what the function indexes by mapped integers, but samples tell whether it was right.
        alone = _samples(call, tensors) if randomness == "error" else None
        try:
            results = super().vmap(call, tensors, randomness)
        except IndexError as error:
            raise MistakenRule(MISTAKEN_INDEX.format("functorch")) from error
        if alone is None or not all(_is_sample(found, i, results[0]) for i, found in alone.items()):
            raise MistakenRule(MISTAKEN_INDEX.format("functorch"))
        return results

    def vjp(self, func: Differentiable, primals: Sequence[Tensor]) -> tuple[list[Tensor], Pullback, list[Tensor]]:
        return super().vjp(_unwritten(func), primals)

    def jvp(
        self, func: Differentiable, primals: Sequence[Tensor], tangents: Sequence[Tensor], strict: bool
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        return super().jvp(_unwritten(func), primals, tangents, strict)

    def pushforward(
        self, func: Differentiable, primals: Sequence[Tensor], randomness: str
    ) -> tuple[LinearMap, Callable[[], list[Tensor]]]:
        return super().pushforward(_unwritten(func), primals, randomness)

    def guard(self, func: Callable[..., Any], *, forward: bool) -> Callable[..., Any]:
        # The same mistakes as torch.func's (see _guards/by_operation.py). Forward mode leaves no graph to see
        # operations in, so within another derivative it is left to the autograd backend.
        around = getattr(self._derivatives, "count", 0)
        if forward and around:
            raise MistakenRule(MISTAKEN_NESTING.format("functorch"))

        def guarded(*primals: Any) -> Any:
            self._derivatives.count = around + 1
            try:
                with refused_tangents() if forward else contextlib.nullcontext():
                    results = func(*primals)
            finally:
                self._derivatives.count = around
            wrong = _is_wrong_twice if around < 2 else _is_wrong_three_times
            if around and any(map(wrong, nodes_of(results))):
                raise MistakenRule(MISTAKEN_NESTING.format("functorch"))
            return results

        if forward or around:
            return kept_outside(guarded, _private, IN_FORWARD_MODE if forward else NORMALISATIONS)
        return guarded
