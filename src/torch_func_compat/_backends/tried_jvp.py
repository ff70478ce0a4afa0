"""A library's forward mode, compared with reverse mode and with finite differences.

Tangents are compared with a reverse-mode derivative of plain autograd by the adjoint test, <u, J t> = <J^T u, t>. Where
they differ, finite differences of the function decide, since a backward may be another function's on purpose (hooks,
straight-through estimators).
"""

from __future__ import annotations

from typing import Callable, Sequence, TypeVar

import torch
from torch import Tensor

from .._arguments.call import name_of
from .._arguments.protocol import Differentiable, LinearMap
from .._guards.adjoint_test import agree, probes, wave
from .._guards.checks import testing
from .._guards.trial import ERRORS, Trial, noise, same, tells
from .._guards.wrong_answers import MISTAKEN_TANGENTS
from .._torch.closures import captured
from .._torch.grad_mode import no_grad
from .._torch.surroundings import Surroundings
from .autograd import AutogradBackend
from .tried import ANSWERS, copied, gradients, is_recorded, nudged

Result = TypeVar("Result")


def tried_jvp(
    trial: Trial,
    compute: Callable[[], Result],
    tangents_of: Callable[[Result], Sequence[Tensor]],
    func: Differentiable,
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor],
    plain: AutogradBackend,
    draws_differ: bool = False,
) -> Result:
    """The library's pushforward; raises `MistakenRule` where reverse mode and finite differences differ from it.

    ``tangents_of(result)`` are the output tangents of the input tangents. What writes to a tensor from outside is not
    tested, nor where `draws_differ` from tangent to tangent.
    """
    outside, generators = func.outside()
    before = Surroundings([*primals, *outside], generators, func.func)
    result, doubtful = trial.run(compute, lambda result: is_recorded(tangents_of(result)), primals)
    if not doubtful or not before.can_restore() or (draws_differ and before.moved()):
        return result
    pushed = tangents_of(result)
    with testing():
        with before.again():
            right, twice = _agrees_with_reverse_mode(func, primals, tangents, pushed, plain)
        # Finite differences ignore detach(), so they cannot decide where it is called.
        if right is None or (right is False and not trial.detaches):
            right = _agrees_with_differences(func, primals, tangents, pushed, before)
        telling = right is False or not twice or (right and tells(pushed, noise(primals)))
    if telling:
        verdict = "" if right and twice else MISTAKEN_TANGENTS.format(trial.operations or name_of(func.func))
        trial.settle(verdict, is_recorded(pushed))
    return result


def _agrees_with_reverse_mode(
    func: Differentiable,
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor],
    pushed: Sequence[Tensor],
    plain: AutogradBackend,
) -> tuple[bool | None, bool]:
    """The adjoint test, where reverse mode has an answer; and whether derivatives of both sides of it agree, too.

    The second test is made where plain autograd records the tangents.
    """
    twice = is_recorded(pushed)
    try:
        outputs, pullback, _ = plain.vjp(func, primals)
        if [output.shape for output in outputs] != [tangent.shape for tangent in pushed]:
            return None, True
        cotangents = probes(outputs, pushed)
        pulled = pullback.pull(cotangents, True, twice)
        real = [k for k, output in enumerate(outputs) if output.is_floating_point() or output.is_complex()]
        left, right = [pushed[k] for k in real], [cotangents[k] for k in real]
        finite = all(bool(t.isfinite().all()) for t in pushed) or not all(bool(g.isfinite().all()) for g in pulled)
        if not finite:
            return False, True
        if not agree(right, left, pulled, tangents):
            fixed = [wave(output.detach()) for output in outputs]
            if not agree(
                [fixed[k] for k in real],
                left,
                pullback.pull(fixed, True, False),
                tangents,
                [outputs[k] for k in real],
                noise(primals),
            ):
                return False, True
            moved = plain.vjp(func, [nudged(primal.detach()) for primal in primals])[1]
            if same(pulled, moved.pull(cotangents, True, False)):  # these are no rounding errors
                return False, True
    except ANSWERS:
        raise
    except ERRORS:
        return None, True
    if not twice:
        return True, True
    try:
        reached = captured([func.func, func.others()], parameters=True)
        inputs = [*primals, *(value for value in reached if isinstance(value, Tensor))]
        return True, same(gradients(left, right, inputs), gradients(pulled, tangents, inputs))
    except ERRORS:  # plain autograd has no second derivative to compare with
        return True, True


def _agrees_with_differences(
    func: Differentiable,
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor],
    pushed: Sequence[Tensor],
    before: Surroundings,
) -> bool | None:
    """Whether central differences of the function agree with the tangents, to half of the digits of a difference.

    Each output by itself. Tangents of the size of rounding errors are no mistake where two differences do not agree
    with each other either.
    """
    eps = max(torch.finfo(primal.dtype).eps for primal in primals)
    step, least = eps ** (1 / 3), noise([*primals, *tangents])

    def quotients(step: float) -> list[Tensor]:
        values = []
        for sign in (1, -1):
            with before.again():
                values.append(func(*[copied(x) + sign * step * t for x, t in zip(primals, tangents)])[0])
        return [(a - b) / (2 * step) for a, b in zip(*values)]

    def confirmed(wide: Tensor, narrow: Tensor, tangent: Tensor) -> bool:
        size = wide.abs().sum() + tangent.abs().sum()
        # written so that it also fails where something is not finite
        if bool((wide - tangent).abs().sum() <= step * size):
            return True
        tell = bool((wide != 0).any()) and bool((wide - narrow).abs().sum() <= 0.1 * wide.abs().sum())
        return not tell and bool((tangent.abs() <= least).all())

    try:
        with no_grad():
            return all(map(confirmed, quotients(step), quotients(0.5 * step), [t.detach() for t in pushed]))
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
        randomness: str,
    ) -> None:
        self._trial = trial
        self._push = push
        self._func = func
        self._primals = primals
        self._plain = plain
        self._draws_differ = randomness == "different"
        self._tested = False

    def __call__(self, *vectors: Tensor) -> list[Tensor]:
        return self._tried(lambda: self._push(*vectors), list, vectors, False)

    def batched(self, *vectors: Tensor) -> list[Tensor]:
        size = len(vectors[0])
        if not size:
            return self._push.batched(*vectors)
        weights = torch.cos(torch.arange(1, size + 1, dtype=torch.float64, device="cpu"))

        def combined(stacked: Sequence[Tensor]) -> list[Tensor]:
            return [(weights.to(x).reshape(-1, *[1] * (x.dim() - 1)) * x).sum(0) for x in stacked]

        return self._tried(lambda: self._push.batched(*vectors), combined, combined(vectors), self._draws_differ)

    def _tried(
        self,
        compute: Callable[[], list[Tensor]],
        one: Callable[[Sequence[Tensor]], list[Tensor]],
        vectors: Sequence[Tensor],
        draws_differ: bool,
    ) -> list[Tensor]:
        if not self._tested and self._trial.is_settled():
            with self._trial.unwatched():
                found = compute()
            # plain autograd may record this result although it did not record the tested one
            self._tested = not is_recorded(found) or self._trial.is_settled(recorded=True)
            if self._tested:
                return found
        if self._tested:
            with self._trial.unwatched():
                return compute()
        self._tested = True
        return tried_jvp(self._trial, compute, one, self._func, self._primals, vectors, self._plain, draws_differ)
