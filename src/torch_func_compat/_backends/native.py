"""The common base of torch.func and functorch: the primitives on their vmap, vjp and jvp."""

from __future__ import annotations

import contextlib
import functools
import threading
from typing import Any, Callable, ContextManager, Sequence

import torch
from torch import Tensor

from .._arguments.call import name_of
from .._arguments.mapped import BatchedCall
from .._arguments.protocol import Differentiable, LinearMap, Pullback
from .._guards.adjoint_test import agree, probes, wave
from .._guards.by_graph import (
    NORMALISATIONS,
    Look,
    below,
    is_fused,
    is_mapped,
    is_transposable,
    kept_outside,
    look,
    require_derivatives,
)
from .._guards.compositions import composing, first_order
from .._guards.mapped_inputs import attributed, forbid_autocast, require_plain
from .._guards.recorder import derivatives
from .._guards.trial import ERRORS, Trial
from .._guards.verdicts import RIGHT, shapes
from .._guards.wrong_answers import MISTAKEN_FORMULA, MISTAKEN_TANGENTS, MistakenRule
from .._torch import facts
from .._torch.random_state import RandomState
from .._torch.surroundings import Surroundings
from .entered import Entered
from .native_maps import NativeMap, NativePullback, Pull, Push, pushed

# Forward mode counts its levels for the whole process: in two threads at once, derivatives come out zero or
# raise "no level exists" (torch 2.0-2.15, raw torch.func in four threads).
FORWARD_MODE = threading.RLock()

_optimized_execution: Any = torch.jit.optimized_execution  # type: ignore[attr-defined]


class NativeBackend:
    """A backend on a namespace with functorch's transforms."""

    name: str
    has_forward_mode = True
    loops = False
    remembers = True

    def __init__(self, namespace: Any, private: Any, is_active: Callable[[], bool]) -> None:
        self.library = namespace
        # The context of the library's outermost transform, such as a lock where the library is not thread-safe.
        # A script that TorchScript optimizes within a transform is wrong from then on (fact
        # "optimized_scripts_lose_terms"): nothing is optimized there, and scripts are interpreted.
        self.around: Callable[[], ContextManager[Any]] = (
            functools.partial(_optimized_execution, False)
            if facts.has("optimized_scripts_lose_terms")
            else contextlib.nullcontext
        )
        self.entered = Entered()
        self._private = private
        self.innermost: Callable[[], Any] = getattr(private, "peek_interpreter_stack", lambda: is_active() or None)
        self.is_active = is_active

    def draws(self, call: BatchedCall | Differentiable | None) -> RandomState:
        return RandomState() if call is None else Surroundings(*call.outside())

    def native(self, name: str, func: Callable[..., Any], options: Any) -> Any:
        """The library's own transform of `func`, or None where it lacks something or gets it wrong."""
        return None

    def guard(self, func: Callable[..., Any], *, forward: bool) -> Callable[..., Any]:
        """`func`, or one that raises where the library would get its next derivative wrong."""
        return func

    def given(self, func: Differentiable) -> Callable[..., tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """`func` with tuples for lists, which the libraries would take for one output."""

        def flat(*primals: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            outputs, aux = func(*primals)
            return tuple(outputs), tuple(aux)

        return self._composed(flat) if first_order(func.func) else flat

    def _composed(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """`func` with what torch takes for constant composed of what it differentiates."""
        if not facts.has("torch_function_modes"):
            raise MistakenRule(MISTAKEN_FORMULA.format("special_functions"))

        def composed(*primals: Tensor) -> Any:
            with composing(1):
                return func(*primals)

        return composed

    def is_tracked(self, tensors: Sequence[Tensor]) -> bool:
        """Whether one of the tensors belongs to a derivative of the library that is running."""
        private = self._private
        for tensor in tensors:
            while True:
                if private.is_gradtrackingtensor(tensor):
                    return True
                if not private.is_batchedtensor(tensor):
                    break
                tensor = private.get_unwrapped(tensor)
        return False

    def check_rows(self, outputs: Sequence[Tensor]) -> None:
        """Raise where the library's vmap would batch the backward of `outputs` wrongly."""
        for error in look(outputs).rows:
            raise error

    def is_batched_here(self, tensor: Tensor) -> bool:
        """Whether `tensor` has a batch dimension of the innermost active vmap."""
        private = self._private
        return bool(private.is_batchedtensor(tensor) and private.maybe_get_level(tensor) == private.current_level())

    def vmap(self, call: BatchedCall, tensors: Sequence[Tensor], randomness: str) -> tuple[list[Tensor], list[Any]]:
        shared: list[Any] = []

        def flat(*slices: Tensor) -> tuple[Tensor, ...]:
            outputs, shared[:] = call(*slices)
            for value in shared:
                if isinstance(value, Tensor) and self.is_batched_here(value):
                    raise ValueError(
                        f"vmap({call.name}, ...): `{call.name}` can not return a BatchedTensor when out_dim is None"
                    )
            # the libraries insist on an output; the first slice stands in where there is none
            return tuple(outputs) or (slices[0],)

        require_plain(tensors)
        forbid_autocast()
        stacked = self.library.vmap(flat, in_dims=tuple(call.dims), randomness=randomness)(*tensors)
        wanted = sum(dim is not None for dim in call.flat_out_dims)
        return list(stacked[:wanted]), shared

    def record(self, func: Callable[..., Any], primals: Sequence[Tensor]) -> tuple[list[Tensor], Pull, list[Tensor]]:
        """Outputs of a function that returns tuples of outputs and aux; the pullback; and aux."""
        require_plain(primals)
        outputs, vjp_fn, aux = self.library.vjp(func, *primals, has_aux=True)
        return list(outputs), lambda cotangents, *flags: vjp_fn(tuple(cotangents), *flags), list(aux)

    def push(
        self, func: Callable[..., Any], primals: Sequence[Tensor], tangents: Sequence[Tensor], strict: bool
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Outputs of such a function, their tangents and aux."""
        require_plain(attributed(primals))
        results = self.library.jvp(func, tuple(primals), tuple(tangents), strict=strict, has_aux=True)
        return tuple(map(list, results))  # type: ignore[return-value]

    def at_once(
        self, apply: Callable[..., Sequence[Tensor]], vectors: Sequence[Tensor], randomness: str
    ) -> list[Tensor]:
        """The function mapped over dimension 0 of the vectors."""
        forbid_autocast()
        return list(self.library.vmap(apply, randomness=randomness)(*vectors))

    def vjp(self, func: Differentiable, primals: Sequence[Tensor]) -> tuple[list[Tensor], Pullback, list[Tensor]]:
        recorded: list[Tensor] = []  # the outputs on the level where they have their graph
        findings: list[Look] = []
        given = self.given(func)

        def noted(*primals: Tensor) -> Any:
            recorded[:], aux = given(*primals)
            findings[:] = [look(recorded)]
            is_kept = any(leaf.requires_grad for leaf in below(recorded, self._private))
            order = (1 + derivatives() if is_kept else 0) if facts.has("torch_function_modes") else None
            if order is not None and (findings[0].rows or is_fused(recorded, order)):
                with composing(max(order, 2)):
                    recorded[:], aux = given(*primals)
                findings[:] = [look(recorded)]
            if is_kept:
                findings[0].refuse(recorded, primals, self._private)
            return tuple(recorded), aux

        outputs, pull, aux = self.record(self.guard(noted, forward=False), primals)
        pullback = NativePullback(self.at_once, pull, recorded, findings[0], self._private)
        pullback.values = outputs
        return outputs, pullback, aux

    def jvp(
        self, func: Differentiable, primals: Sequence[Tensor], tangents: Sequence[Tensor], strict: bool
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        if self._is_wrong_here(func, primals, "jvp", tangents, lambda t: self._jvp(func, primals, t, False)[1]):
            outputs, push, aux = self.linearize(func, primals, only_transposed=True)
            return outputs, push(*tangents), aux
        return self._jvp(func, primals, tangents, strict)

    def _is_wrong_here(
        self,
        func: Differentiable,
        primals: Sequence[Tensor],
        kind: str,
        tangents: Sequence[Tensor],
        push: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    ) -> bool:
        """Whether forward mode fails the adjoint test, within a transform that the user took from the library."""
        if self.entered.count or not self.is_active():
            return False
        trial = Trial(func.func, (kind, str(self.innermost()), shapes(primals)))
        verdict = trial.verdict()
        if verdict is None:
            agrees = self._agrees(func, primals, tangents, push)
            verdict = "forward mode" if agrees is False else RIGHT
            if agrees is not None:
                trial.note(verdict)
        return verdict != RIGHT

    def _agrees(
        self,
        func: Differentiable,
        primals: Sequence[Tensor],
        tangents: Sequence[Tensor],
        push: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    ) -> bool | None:
        """The adjoint test; None where there is no answer."""
        state = self.draws(func)
        try:
            with self.entered:
                pushed = push(tangents)
                state.restore()
                outputs, pullback, _ = self.vjp(func, primals)
                # with the layers of the outputs alone: what batches tangents wrongly may do so to these, too
                cotangents = probes(outputs)
                pulled = pullback.pull(cotangents, True, False)
            return agree(cotangents, pushed, pulled, tangents, outputs)
        except (MistakenRule, *ERRORS):  # the call itself raises it
            return None
        finally:
            state.restore()

    def _jvp(
        self, func: Differentiable, primals: Sequence[Tensor], tangents: Sequence[Tensor], strict: bool
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        return self._pushed(self.guard(self.given(func), forward=True), primals, tangents, strict)

    def _pushed(
        self, guarded: Callable[..., Any], primals: Sequence[Tensor], tangents: Sequence[Tensor], strict: bool
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        before = RandomState() if is_mapped(primals, self._private) else None
        with FORWARD_MODE:
            results = pushed(lambda t: self.push(guarded, primals, t, strict), primals, tangents, before)
        require_derivatives(results[1], self._private)
        return results

    def pushforward(
        self, func: Differentiable, primals: Sequence[Tensor], randomness: str
    ) -> tuple[LinearMap, Callable[[], list[Tensor]]]:
        guarded = self.guard(self.given(func), forward=True)
        counts = [0]

        def push(*tangents: Tensor) -> tuple[Tensor, ...]:
            _, output_tangents, aux = self._pushed(guarded, primals, tangents, False)
            counts[0] = len(output_tangents)
            return (*output_tangents, *aux)

        linear = Push(self.at_once, push, randomness, counts)

        def batched(tangents: Sequence[Tensor]) -> list[Tensor]:
            return [x[0] for x in linear.batched(*[torch.stack([t, 2 * t]) for t in tangents])]

        if self._is_wrong_here(func, primals, "pushforward", [wave(x) for x in primals], batched):
            _, transposed, beside = self.linearize(func, primals, only_transposed=True)
            return transposed, lambda: beside
        return linear, lambda: linear.collected

    def linearize(
        self, func: Differentiable, primals: Sequence[Tensor], only_transposed: bool = False
    ) -> tuple[list[Tensor], LinearMap, list[Tensor]]:
        transposable = [True]
        given = self.given(func)

        def noted(*primals: Tensor) -> Any:
            outputs, aux = given(*primals)
            transposable[0] = is_transposable(outputs)
            look(outputs).refuse(outputs, primals, self._private)
            return outputs, aux

        # a derivative that is taken outside of this would be the third one
        kept = kept_outside(noted, self._private, NORMALISATIONS)
        outputs, pull, aux = self.record(self.guard(kept, forward=False), primals)
        if transposable[0]:
            # the double-backward trick: the function is not evaluated again, and any mix of levels can call the result
            zeros = [torch.zeros_like(output) for output in outputs]
            _, push, _ = self.record(lambda *ct: (tuple(pull(ct, True, torch.is_grad_enabled())), ()), zeros)
            transposed = lambda *tangents: push(tangents, True, torch.is_grad_enabled())
            return outputs, NativeMap(self.at_once, transposed, "error"), aux

        if only_transposed:
            raise MistakenRule(MISTAKEN_TANGENTS.format(name_of(func.func)))

        def again(*tangents: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.jvp(func, primals, tangents, False)[1])

        again(*(torch.zeros_like(primal) for primal in primals))  # a refusal has to come now
        return outputs, NativeMap(self.at_once, again, "error"), aux
