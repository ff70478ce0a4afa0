"""The backend that every torch has: ``torch.autograd`` and Python loops, nothing else.

It computes what functorch's interpreters compute, for functions of any kind: data-dependent control
flow, numpy inside, custom autograd.Functions in the old style. vmap costs a loop; Jacobian rows are
batched where torch can; forward mode is made of two backward passes.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

from torch import Tensor

from ..._arguments.mapped import BatchedCall
from ..._arguments.protocol import Differentiable, LinearMap, Pullback
from ..._torch.random_state import RandomState, generators_made
from ..._torch.surroundings import Surroundings
from . import linear_maps as _linear
from . import loop as _loop
from .vmap_rule import by_own_rule


class AutogradBackend:
    """See `torch_func_compat._arguments.protocol.Backend` for the methods."""

    name = "autograd"
    # torch.autograd.forward_ad has one level only, lacks formulas, and is silently wrong or absent on
    # several releases; the transpose of reverse mode is right wherever reverse mode is.
    has_forward_mode = False
    loops = True
    remembers = True

    def innermost(self) -> Any:
        return None

    def draws(self, call: BatchedCall | Differentiable | None) -> RandomState:
        return RandomState() if call is None else Surroundings(*call.outside())

    def native(self, name: str, func: Callable[..., Any], options: Any) -> Any:
        return None

    def vmap(self, call: BatchedCall, tensors: Sequence[Tensor], randomness: str) -> tuple[list[Tensor], list[Any]]:
        return by_own_rule(call, tensors, randomness) or _loop.loop(call, tensors, randomness)

    def vjp(self, func: Differentiable, primals: Sequence[Tensor]) -> tuple[list[Tensor], Pullback, list[Tensor]]:
        return _linear.vjp(func, primals)

    def jvp(
        self, func: Differentiable, primals: Sequence[Tensor], tangents: Sequence[Tensor], strict: bool
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        outputs, push, aux = _linear.linearize(func, primals)
        return outputs, push.tangents(tangents, strict), aux

    def pushforward(
        self, func: Differentiable, primals: Sequence[Tensor], randomness: str
    ) -> tuple[LinearMap, Callable[[], list[Tensor]]]:
        # The function runs once, so all tangents see the same draw. That is the meaning of 'same', and one of the
        # draws that 'different' allows.
        generators = func.generators()
        state = RandomState(generators) if randomness == "error" else None
        with generators_made(func.func, generators) as made:
            _, push, aux = _linear.linearize(func, primals)
        if state is not None:
            state.forbid_draws()
            made.forbid_draws()
        return push, lambda: aux

    def linearize(
        self, func: Differentiable, primals: Sequence[Tensor]
    ) -> tuple[list[Tensor], LinearMap, list[Tensor]]:
        return _linear.linearize(func, primals)
