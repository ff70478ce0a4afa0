"""A library's vmap and forward mode with a test of their results.

A batch is compared with its last sample, computed alone. Tangents are compared with a reverse-mode derivative of plain
autograd by the adjoint test, <u, J t> = <J^T u, t>. Where they differ, finite differences of the function decide, since
a backward may be replaced on purpose (hooks, straight-through estimators).
"""

from __future__ import annotations

import copy
from typing import Callable, Sequence, TypeVar

import torch
from torch import Tensor

from .._arguments.mapped import BatchedCall
from .._arguments.protocol import Differentiable, LinearMap
from .._guards.adjoint_test import agree, wave
from .._guards.checks import testing
from .._guards.trial import ERRORS, Trial, same
from .._guards.wrong_answers import MISTAKEN_BATCH, MISTAKEN_TANGENTS, MistakenRule
from .._torch.grad_mode import no_grad
from .._torch.random_state import RandomState
from .._torch.tensors import version
from .autograd import AutogradBackend
from .autograd.constant_outputs import UndifferentiatedError

Result = TypeVar("Result")

# Errors of a test that answer its question: torch is wrong within, or has no derivative.
ANSWERS = (MistakenRule, UndifferentiatedError)


class _Surroundings:
    """The random state and the tensors that a function could change, as they were before it ran."""

    def __init__(self, tensors: Sequence[Tensor], generators: Sequence[torch.Generator]) -> None:
        self._tensors = tensors
        self._versions = [version(tensor) for tensor in tensors]
        self._state = RandomState(generators)

    def changed(self) -> bool:
        """Whether the function drew random numbers or wrote to a tensor, so that it cannot be evaluated again."""
        return self._state.moved() or [version(tensor) for tensor in self._tensors] != self._versions


def _copied(tensor: Tensor) -> Tensor:
    alone = tensor.detach().clone()
    return alone.requires_grad_() if tensor.requires_grad else alone


def tried_vmap(
    trial: Trial,
    compute: Callable[[], tuple[list[Tensor], Result]],
    call: BatchedCall,
    tensors: Sequence[Tensor] | None = None,
) -> Result:
    """The library's batch; raises `MistakenRule` where the last sample alone gives something else.

    ``compute()`` gives the outputs, stacked along dimension 0, and the result. `tensors` are a chunk of the call's.
    """
    tensors = call.tensors if tensors is None else tensors
    last = tensors[0].size(call.dims[0]) - 1
    if last < 0:
        return compute()[1]
    sample = [_copied(tensor.select(dim, last)) for tensor, dim in zip(tensors, call.dims)]
    shared, generators = call.reachable()
    before = _Surroundings(shared, generators)
    (stacked, result), doubtful = trial.run(compute)
    if not doubtful or before.changed():
        return result
    try:
        with testing():
            alone = copy.copy(call)(*sample)[0]
        right = same([leaf.select(0, last) for leaf in stacked], alone)
    except ANSWERS:
        raise
    except ERRORS:  # also of tensors without values
        return result
    trial.settle("" if right else MISTAKEN_BATCH.format(trial.operations or call.name))
    return result


def tried_jvp(
    trial: Trial,
    compute: Callable[[], Result],
    tangents_of: Callable[[Result], Sequence[Tensor]],
    func: Differentiable,
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor],
    plain: AutogradBackend,
) -> Result:
    """The library's pushforward; raises `MistakenRule` where reverse mode and finite differences differ from it.

    ``tangents_of(result)`` are the output tangents of the input tangents.
    """
    outside = [*primals, *func.others(), *func.captured()]
    before = _Surroundings(outside, func.generators())
    result, doubtful = trial.run(compute)
    if not doubtful or before.changed():
        return result
    pushed = tangents_of(result)
    copies = [_copied(primal) for primal in primals]
    with testing():
        right = _by_reverse_mode(func, copies, tangents, pushed, plain)
        if not right:
            right = _by_differences(func, copies, tangents, pushed)
    if right is not None:
        trial.settle("" if right else MISTAKEN_TANGENTS.format(trial.operations or getattr(func.func, "__name__", "f")))
    return result


def _by_reverse_mode(
    func: Differentiable,
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor],
    pushed: Sequence[Tensor],
    plain: AutogradBackend,
) -> bool | None:
    """The adjoint test; None where reverse mode has no answer."""
    try:
        outputs, pullback, _ = plain.vjp(func, primals)
        if [output.shape for output in outputs] != [tangent.shape for tangent in pushed]:
            return None
        cotangents = [wave(output.detach()) for output in outputs]
        pulled = pullback.pull(cotangents, False, False)
        real = [k for k, output in enumerate(outputs) if output.is_floating_point() or output.is_complex()]
        finite = all(bool(t.isfinite().all()) for t in pushed) or not all(bool(g.isfinite().all()) for g in pulled)
        return finite and agree([cotangents[k] for k in real], [pushed[k] for k in real], pulled, tangents)
    except ANSWERS:
        raise
    except ERRORS:
        return None


def _by_differences(
    func: Differentiable, primals: Sequence[Tensor], tangents: Sequence[Tensor], pushed: Sequence[Tensor]
) -> bool | None:
    """Whether central differences of the function agree with the tangents, to half of the digits of a difference."""
    eps = max(torch.finfo(primal.dtype).eps for primal in primals)
    step = eps ** (1 / 3)
    try:
        with no_grad():
            ahead, behind = ([x + sign * step * t for x, t in zip(primals, tangents)] for sign in (1, -1))
            quotients = [(a - b) / (2 * step) for a, b in zip(func(*ahead)[0], func(*behind)[0])]
            errors = [(q - t.detach()).abs().sum() for q, t in zip(quotients, pushed)]
            sizes = [q.abs().sum() + t.detach().abs().sum() for q, t in zip(quotients, pushed)]
            # written so that it also fails where something is not finite
            return bool((sum(errors) <= eps ** (1 / 3) * sum(sizes)).all())
    except ANSWERS:
        raise
    except ERRORS:
        return None


class TriedPush:
    """A pushforward that is tested when it is first applied."""

    batches_itself = False

    def __init__(
        self,
        trial: Trial,
        push: LinearMap,
        func: Differentiable,
        primals: Sequence[Tensor],
        plain: AutogradBackend,
    ) -> None:
        self._trial = trial
        self._push = push
        self._func = func
        self._primals = primals
        self._plain = plain
        self._tested = False

    def __call__(self, *vectors: Tensor) -> list[Tensor]:
        return self._tried(lambda: self._push(*vectors), list, vectors)

    def batched(self, *vectors: Tensor) -> list[Tensor]:
        size = len(vectors[0])
        if not size:
            return self._push.batched(*vectors)
        weights = torch.cos(torch.arange(1, size + 1, dtype=torch.float64))

        def combined(stacked: Sequence[Tensor]) -> list[Tensor]:
            with no_grad():
                return [(weights.to(x).reshape(-1, *[1] * (x.dim() - 1)) * x.detach()).sum(0) for x in stacked]

        return self._tried(lambda: self._push.batched(*vectors), combined, combined(vectors))

    def _tried(
        self,
        compute: Callable[[], list[Tensor]],
        one: Callable[[Sequence[Tensor]], list[Tensor]],
        vectors: Sequence[Tensor],
    ) -> list[Tensor]:
        if self._tested:
            return compute()
        self._tested = True
        return tried_jvp(self._trial, compute, one, self._func, self._primals, vectors, self._plain)
