"""Activations and other elementwise operations, which torch < 2.0 batches by a loop over rows.

See the fact "activations_are_looped_over". The derivative of such a node is a factor for each element. So a batched
backward pass gives ones to the node, which turns them into its factors, and multiplies the factors by the batch that
the node should have got. Hooks on the nodes above put that batch aside, and a hook on the node itself multiplies.

Where retain_grad() may have been called, the ones are a batch of one row. The gradient that it keeps is then batched,
as it is without this module: reading it raises torch's error and does not give the ones.
"""

from __future__ import annotations

import threading
from typing import Any, Callable, Iterable, Sequence, TypeVar

from torch import Tensor
from torch.autograd.function import BackwardCFunction

T = TypeVar("T")

# by the names of their nodes
_SMOOTH = frozenset(
    "Tanh TanhBackward Softplus Gelu Silu Mish Elu Celu LeakyRelu LogSigmoid MseLoss SmoothL1Loss".split()
)
# These give zero for some elements of any input. A factor of zero times infinity would be NaN.
_SELECTING = frozenset(
    "Hardtanh Hardshrink Softshrink Hardsigmoid Hardswish Logit Sinc Clamp ClampMin ClampMax SWhere Where MaskedFill "
    "Maximum Minimum Fmax Fmin HardtanhBackward HardshrinkBackward SoftshrinkBackward ThresholdBackward "
    "SoftplusBackward GeluBackward EluBackward CeluBackward LeakyReluBackward LogSigmoidBackward".split()
)

_known: dict[type, bool | None] = {}  # of torch's own nodes, whether they select; None for any other one


def _selects(node: Any) -> bool | None:
    cls = type(node)
    if cls not in _known:
        if isinstance(node, BackwardCFunction):  # by any name
            return None
        name = cls.__name__.rstrip("0123456789")
        name = name[: -len("Backward")] if name.endswith("Backward") else ""
        _known[cls] = name in _SELECTING if name in _SMOOTH or name in _SELECTING else None
    return _known[cls]


class _Twice(RuntimeError):
    """A node got a second gradient: the pass has begun again, or another pass runs within it."""


class Factors:
    """The activations among all nodes below `roots` that lead to `inputs`, and where batches enter them."""

    def __init__(self, every: Iterable[Any], roots: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> None:
        self.selecting = False
        self.found: set[Any] = set()
        self._above: dict[Any, list[tuple[int, Any]]] = {}  # nodes -> which of their gradients go to activations
        # activations -> the batches that enter them, by where they come from
        self._aside: dict[Any, dict[tuple[Any, int], Tensor]] = {}
        self._lock = threading.Lock()
        self._thread = 0
        self._one: Tensor
        # Hooks work in the thread that is in `run` only; on other devices than the CPU the engine has its own threads.
        on_cpu = all(root is None or root.device.type == "cpu" for root in roots)
        if on_cpu and any(_selects(node) is not None for node in every):
            self._find(every, inputs)
        self._roots = [root if root is not None and root.grad_fn in self.found else None for root in roots]

    def _find(self, every: Iterable[Any], inputs: Sequence[Tensor]) -> None:
        above: dict[Any, list[tuple[int, Any]]] = {}
        ends = [x.grad_fn for x in inputs if x.grad_fn is not None]
        for node in every:
            below = node.next_functions
            if not below and any(getattr(node, "variable", None) is x for x in inputs):
                ends.append(node)
            for index, (child, _) in enumerate(below):
                if child is not None:
                    above.setdefault(child, []).append((index, node))
        # hooks are on nodes that belong to the level, and all that lead to its inputs do
        seen, stack = set(ends), [parent for end in ends for _, parent in above.get(end, ())]
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            parents = above.get(node, ())
            selects = _selects(node)
            if selects is not None:
                self.found.add(node)
                self.selecting |= selects
                for index, parent in parents:
                    self._above.setdefault(parent, []).append((index, node))
            stack.extend([parent for _, parent in parents])

    def run(self, backward: Callable[[Sequence[Tensor]], T], vectors: Sequence[Tensor], one: Tensor) -> T:
        """`backward(vectors)`, a pass from the roots to the inputs, with activations by their factors.

        `one` is a scalar, with a batch of one row where the vectors have theirs or with none.
        """
        if not self._lock.acquire(blocking=False):
            return backward(vectors)  # the hooks there belong to another thread
        try:
            self._thread = threading.get_ident()
            self._one = one
            given = [
                vector if root is None else self._put_aside(root.grad_fn, (None, k), vector)
                for k, (root, vector) in enumerate(zip(self._roots, vectors))
            ]
            handles = [node.register_hook(self._hook(node)) for node in self.found | set(self._above)]
            try:
                return backward(given)
            finally:
                for handle in handles:
                    handle.remove()
        finally:
            self._aside.clear()
            self._lock.release()

    def _put_aside(self, activation: Any, origin: tuple[Any, int], batch: Tensor) -> Tensor:
        """The gradient to pass instead: ones from the first origin, zeros from others, since the engine adds them."""
        batches = self._aside.setdefault(activation, {})
        if origin in batches:
            raise _Twice
        one = self._one if self._one.dtype == batch.dtype else self._one.to(batch.dtype)
        filling = 0 * one if batches else one
        batches[origin] = batch
        return filling.expand(batch.shape)

    def _hook(self, node: Any) -> Callable[[Sequence[Tensor | None], Any], tuple[Tensor | None, ...] | None]:
        below = self._above.get(node, ())

        def hook(gradients: Sequence[Tensor | None], _: Any) -> tuple[Tensor | None, ...] | None:
            if threading.get_ident() != self._thread:
                return None
            passed = list(gradients)
            batches = list(self._aside.get(node, {}).values())
            if batches:
                batch = sum(batches[1:], batches[0])
                # where the node broadcast its input, torch raises: a hook must not change sizes
                passed = [g if g is None else batch * g for g in gradients]
            for index, activation in below:
                gradient = passed[index]
                if gradient is not None:
                    passed[index] = self._put_aside(activation, (node, index), gradient)
            return tuple(passed)

        return hook
