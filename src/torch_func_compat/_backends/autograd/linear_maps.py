"""Derivatives at a point from one recorded run: the pullback, and its transpose, the pushforward."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any, Iterator, List, MutableMapping, Sequence, Tuple

import torch
from torch import Tensor

from ..._arguments.protocol import Differentiable
from ..._guards.compositions import WRONG_IN_FIRST_ORDER, first_order, is_derivative
from ..._guards.recognition import LoopError
from ..._guards.trial import same
from ..._torch.closures import names_in
from ..._torch.surroundings import Surroundings
from .constant_outputs import look_at_constants
from .graph import Graph
from .level import Level, cut, recordings, run
from .pullback import Pullback
from .pushforward import Pushforward

Run = Tuple[Level, List[Tensor], List[Tensor], List[Tensor]]

Fused = MutableMapping[Any, bool]
# Whether the graph of a function had fused operations when it was last seen, by `vjp` and by `linearize`.
_in_vjp: Fused = weakref.WeakKeyDictionary()
_in_linearize: Fused = weakref.WeakKeyDictionary()


def vjp(func: Differentiable, primals: Sequence[Tensor]) -> tuple[list[Tensor], Pullback, list[Tensor]]:
    """Outputs, pullback and aux from one run."""
    looks = torch.is_grad_enabled() or WRONG_IN_FIRST_ORDER
    before = _before(_in_vjp, func, ()) if looks else None
    level, inputs, outputs, aux = _recorded(func, primals)
    pullback = Pullback(level, inputs, outputs)
    if looks:
        graph = pullback.graph
        if before is not None or graph.fused:
            _remember(_in_vjp, func, graph)
        composes = graph.fused == 1 or (graph.fused and graph.outside and graph.fused <= _highest_order(graph))
        if composes or (_loses_terms(func, outputs, graph) and before is not None and before.can_restore()):
            level, inputs, outputs, aux = _composed(
                before, outputs, func, primals, max(graph.fused, _highest_order(graph))
            )
            pullback = Pullback(level, inputs, outputs)
    pullback.is_shared = torch.is_grad_enabled() and pullback.graph.outside
    if pullback.is_shared:
        return level.release(outputs), pullback, level.release(aux)
    released = [cut(output) if output.requires_grad else output for output in outputs]
    return released, pullback, level.release(aux, set(pullback.inside)) if aux else []


def _loses_terms(func: Differentiable, outputs: Sequence[Tensor], graph: Graph) -> bool:
    """Whether rows would have to be taken one by one."""
    return func.takes_rows and graph.loses_terms_in_rows and sum(output.numel() for output in outputs) > 1


def _recorded(func: Differentiable, primals: Sequence[Tensor], *, copy: bool = False) -> Run:
    found = run(func, primals, copy=copy, order=first_order(func.func))
    for output in found[2]:
        if not output.requires_grad:
            look_at_constants(func, primals, found[2])
            break
    return found


def _before(seen: Fused, func: Differentiable, primals: Sequence[Tensor]) -> Surroundings | None:
    """The tensors that the function could write to, kept if it may have to be evaluated again."""
    try:
        if not seen.get(func.func, True):
            return None
    except TypeError:  # neither hashed nor referred to weakly
        pass
    # The user's function in a derivative is composed in time, since it knows what is being recorded around it.
    return (
        None if is_derivative(func.func) else Surroundings([*primals, *func.others(), *func.captured()], (), func.func)
    )


def _remember(seen: Fused, func: Differentiable, graph: Graph) -> None:
    try:
        seen[func.func] = bool(graph.fused)
    except TypeError:
        pass


def _composed(
    before: Surroundings | None,
    first: Sequence[Tensor],
    func: Differentiable,
    primals: Sequence[Tensor],
    order: int,
    *,
    copy: bool = False,
) -> Run:
    """Run again, with the fused operations evaluated in elementary ones."""
    if before is not None:
        if not before.can_restore():
            raise LoopError(
                "the function has a fused operation whose derivative of that order torch lacks or gets "
                "wrong (attention, a normalisation), and writes in place to a large tensor from outside, so that it "
                "cannot be evaluated again without that operation. Work on a clone(), or return what is to be changed"
            )
        before.restore()
    found = run(func, primals, copy=copy, order=order)
    # In its first call with a fused operation, a function that had none before was not prepared to run again.
    if before is None and not is_derivative(func.func) and not same(first, found[2]):
        raise LoopError(
            "the function computes something else when it is evaluated again, since it draws random numbers or writes "
            "to a tensor from outside: it now has a fused operation, which an earlier call had not. Call it once more"
        )
    return found


_hooks: Any = getattr(getattr(torch.autograd, "graph", None), "saved_tensors_hooks", None)
# Functions that overwrite what autograd saves without an operation that they name, as x *= x and x[0] = ... do.
_overwriting: weakref.WeakSet[Any] = weakref.WeakSet()


@contextlib.contextmanager
def _values_kept() -> Iterator[None]:
    """Copies of what autograd saves. Forward mode takes each derivative before a value is overwritten."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_hooks(lambda tensor: tensor.detach().clone(), lambda copy: copy))
        # Hooks are forbidden here, or torch 1.10, which takes one pair at a time, has that of the level around.
        except RuntimeError:
            pass
        yield


def _overwrites(func: Differentiable) -> bool:
    """Whether the function may overwrite what autograd saves, by the names of its operations or an earlier call."""
    if _hooks is None:
        return False
    if any(name[-1:] == "_" and name[-2:] != "__" for name in names_in(func.func)):
        return True
    try:
        return func.func in _overwriting
    except TypeError:  # it cannot be referred to weakly
        return False


def linearize(func: Differentiable, primals: Sequence[Tensor]) -> tuple[list[Tensor], Pushforward, list[Tensor]]:
    """Outputs, pushforward and aux from one run."""
    before = _before(_in_linearize, func, primals)
    known = _overwrites(func)
    outputs, pushforward, aux = _linearized(func, primals, before, known)
    if known or _hooks is None or not pushforward.is_overwritten or before is None or not before.can_restore():
        return outputs, pushforward, aux
    before.restore()
    try:
        _overwriting.add(func.func)
    except TypeError:
        pass
    return _linearized(func, primals, before, True)


def _linearized(
    func: Differentiable, primals: Sequence[Tensor], before: Surroundings | None, keep: bool
) -> tuple[list[Tensor], Pushforward, list[Tensor]]:
    with _values_kept() if keep else contextlib.nullcontext():
        level, inputs, outputs, aux = _recorded(func, primals, copy=True)
    graph = Graph(outputs)
    if before is not None or graph.fused:
        _remember(_in_linearize, func, graph)
    # The transpose of the pullback takes one more derivative.
    order = 1 + _highest_order(graph)
    if graph.fused and graph.fused <= order:
        level, inputs, outputs, aux = _composed(before, outputs, func, primals, order, copy=True)
        graph = Graph(outputs)
    return level.release(outputs), Pushforward(level, inputs, outputs, graph), level.release(aux)


def _highest_order(graph: Graph) -> int:
    """The order up to which the function may be differentiated, by recordings around it and by the user."""
    return 1 + recordings() + graph.user
