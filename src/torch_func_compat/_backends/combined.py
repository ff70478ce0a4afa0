"""Reverse mode by plain autograd; vmap and forward mode by a library.

A reverse derivative that runs on plain autograd cannot be refused, is the same on every torch, and costs what
hand-written autograd costs. A library does the two things that only it can do: batching, and pushing forward. Within
one of its running transforms, its own levels answer, since no other backend can see into its tensors.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any, Callable, Sequence, TypeVar

import torch
from torch import Tensor

from .._arguments.mapped import BatchedCall
from .._arguments.protocol import Differentiable, LinearMap, Pullback
from .._guards.trial import Trial
from .._guards.verdicts import shapes
from .._torch import pytree
from .._torch.random_state import RandomState
from .._torch.tensors import versions
from .autograd import AutogradBackend
from .autograd.level import recordings
from .native import NativeBackend
from .tried import is_recorded
from .tried_jvp import TriedPush, tried_jvp
from .tried_vmap import tried_vmap

Result = TypeVar("Result")

# Functions that write to their arguments. Torch writes to the tangents then, which are the caller's.
_writing: weakref.WeakSet[Any] = weakref.WeakSet()


def _writes(func: Callable[..., Any]) -> bool:
    try:
        return func in _writing
    except TypeError:  # it cannot be referred to weakly, so that its first call leaves no trace
        return True


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
        self.draws: Callable[..., RandomState] = native.draws
        self._native = native
        self._plain = AutogradBackend()

    def native(self, name: str, func: Callable[..., Any], options: Any) -> Any:
        made = self._native.native(name, func, options)
        if made is None or name != "vmap":
            return made
        is_active, in_dims, entered = self._native.is_active, options.in_dims, self._native.entered
        randomness = options.randomness

        def mapped(*args: Any, **kwargs: Any) -> Any:
            if is_active():
                return made(*args, **kwargs)
            trial = Trial(func, ("vmap", shapes((args, kwargs)), in_dims, randomness))

            def whole() -> Any:
                return entered.run(func, args, lambda: made(*args, **kwargs), _leaves)

            if trial.is_settled():
                result, is_tested = _run_settled(trial, whole, _leaves, (args, kwargs), randomness != "error")
                if is_tested:
                    return result

            def compute() -> tuple[list[Tensor], Any]:
                result = whole()
                return _leaves(result), result

            return tried_vmap(trial, compute, BatchedCall(func, in_dims, 0, args, kwargs), None, options.randomness)

        mapped.__wrapped__ = func  # type: ignore[attr-defined]  # what is captured is that of the user's function
        return mapped

    def vmap(self, call: BatchedCall, tensors: Sequence[Tensor], randomness: str) -> tuple[list[Tensor], list[Any]]:
        def compute() -> tuple[list[Tensor], tuple[list[Tensor], list[Any]]]:
            results = self._run(call.func, tensors, lambda: self._native.vmap(call, tensors, randomness))
            return results[0], results

        if self._native.is_active():
            return compute()[1]
        trial = Trial(call.func, ("chunk", shapes((tensors, call.leaves)), tuple(call.dims), randomness))
        if trial.is_settled():
            results, is_tested = _run_settled(
                trial, compute, lambda results: results[0], tensors, randomness != "error"
            )
            if is_tested:
                return results[1]
        return tried_vmap(trial, compute, call, tensors, randomness)

    def vjp(self, func: Differentiable, primals: Sequence[Tensor]) -> tuple[list[Tensor], Pullback, list[Tensor]]:
        return (self._native if self._native.is_active() else self._plain).vjp(func, primals)

    def jvp(
        self, func: Differentiable, primals: Sequence[Tensor], tangents: Sequence[Tensor], strict: bool
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        given = tangents

        def compute() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
            return self._run(func.func, primals, lambda: self._native.jvp(func, primals, given, strict))

        if self._native.is_active():
            return compute()
        if recordings():
            return self._plain.jvp(func, primals, tangents, strict)
        trial = Trial(func.func, ("jvp", shapes((primals, tangents, func.others()))))
        settled = trial.is_settled()
        if not settled or _writes(func.func):
            given = [tangent.clone() for tangent in tangents]
        if settled:
            results, is_tested = _run_settled(trial, compute, lambda results: results[1], primals)
            if is_tested:
                return results
        counts = versions(given)
        results = tried_jvp(trial, compute, lambda results: results[1], func, primals, tangents, self._plain)
        if versions(given) != counts and not _writes(func.func):
            _writing.add(func.func)
        return results

    def pushforward(
        self, func: Differentiable, primals: Sequence[Tensor], randomness: str
    ) -> tuple[LinearMap, Callable[[], list[Tensor]]]:
        if recordings() and not self._native.is_active():
            return self._plain.pushforward(func, primals, randomness)
        with self._native.entered:
            push, aux = self._native.pushforward(func, primals, randomness)
        around = _Around(push, functools.partial(self._run, func.func, primals))
        if self._native.is_active():
            return around, aux
        trial = Trial(func.func, ("pushforward", shapes((primals, func.others())), randomness))
        return TriedPush(trial, around, func, primals, self._plain, randomness), aux

    def _run(self, func: Callable[..., Any], inputs: Any, compute: Callable[[], Result]) -> Result:
        """A transform of `func` by the library."""

        def around() -> Result:
            with self._native.around():
                return compute()

        return self._native.entered.run(func, inputs, around, _leaves)

    def linearize(
        self, func: Differentiable, primals: Sequence[Tensor]
    ) -> tuple[list[Tensor], LinearMap, list[Tensor]]:
        return (self._native if self._native.is_active() else self._plain).linearize(func, primals)


def _leaves(result: Any) -> list[Any]:
    return [result] if isinstance(result, Tensor) else pytree.flatten(result)[0]


def _run_settled(
    trial: Trial,
    compute: Callable[[], Result],
    outputs_of: Callable[[Result], Sequence[Any]],
    inputs: Any,
    may_draw: bool = True,
) -> tuple[Result, bool]:
    """A result that was tested; and whether that is enough.

    It is not where plain autograd records this result and did not record the one that was tested, as after parameters
    were unfrozen. Then the random state is as before, and the function may run again; one that wrote to its inputs may
    not.
    """
    if not torch.is_grad_enabled():
        with trial.unwatched():
            return compute(), True
    before, state = versions(inputs), RandomState() if may_draw else None
    with trial.unwatched():
        result = compute()
    outputs = [x for x in outputs_of(result) if isinstance(x, Tensor)]
    if not is_recorded(outputs) or trial.verdict(recorded=True) is not None or versions(inputs) != before:
        return result, True
    if state is not None:
        state.restore()
    return result, False


class _Around:
    """A linear map whose applications are run by `run`."""

    batches_itself = False

    def __init__(self, linear: LinearMap, run: Callable[[Callable[[], list[Tensor]]], list[Tensor]]) -> None:
        self._linear = linear
        self._run = run

    def __call__(self, *vectors: Tensor) -> list[Tensor]:
        return self._run(lambda: self._linear(*vectors))

    def batched(self, *vectors: Tensor) -> list[Tensor]:
        return self._run(lambda: self._linear.batched(*vectors))
