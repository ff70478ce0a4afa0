"""Nodes in the graph of a function that torch.func or functorch differentiates wrongly, without an error."""

from __future__ import annotations

from typing import Any, Callable, Iterable, Iterator, NamedTuple, Sequence

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from .._torch import facts, pytree
from .compositions import BATCH_NODES, order_of
from .wrong_answers import MISTAKEN_NESTING, MISTAKEN_ROWS, MISTAKEN_SCRIPT, TWICE, MistakenRule, wrong_twice

# Nodes that the libraries batch wrongly, without an error, where cotangents are mapped and inputs are not: rows of
# jacrev(cdist) are wrong from functorch 0.1 to torch 2.15.
_MISTAKEN = ("CdistBackward",)
# Nodes that they batch wrongly where the function is mapped, too. If there are as many samples as elements of one, the
# numbers are those of other samples; else torch raises (measured: vmap(jacrev(prelu)), torch 2.0 to 2.15).
_MISTAKEN_MAPPED = ("PreluKernelBackward",)


def _leaves(tree: Any) -> list[Tensor]:
    leaves = [tree] if isinstance(tree, Tensor) else pytree.flatten(tree)[0]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def nodes(roots: Iterable[Any], seen: set[Any] | None = None) -> Iterator[Any]:
    """Every node below `roots` (grad_fn objects or None), once. `seen` is extended with them."""
    # The set also keeps the nodes' Python wrappers alive: a node whose wrapper has died gets another one.
    seen = set() if seen is None else seen
    stack = [node for node in roots if node is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        for child, _ in node.next_functions:
            if child is not None:
                stack.append(child)


def nodes_of(output: Any, until: Iterable[Any] = ()) -> Iterator[Any]:
    """The nodes of the graph of a pytree of outputs, up to the nodes of `until`."""
    return nodes([leaf.grad_fn for leaf in _leaves(output)], set(until))


# Nodes of the operations that by_operation.py watches. Forward mode saves intermediate results of them, which another
# derivative takes for constant; with normalisations, a third derivative does so in any mode.
NORMALISATIONS = ("NativeLayerNorm", *BATCH_NODES)
IN_FORWARD_MODE = (
    *(*NORMALISATIONS, "LinalgHouseholderProduct"),
    *("LinalgEig", "Cumprod"),  # NaN: for eigenvectors (also of LinalgEigh), and for products with a zero
    "LinalgDet",  # inaccurate next to a singular matrix
    *(("KlDiv",) if facts.TORCH < (1, 13) else ()),
    *(("LinalgSlogdet", "LinalgSolve") if facts.TORCH < (2, 15) else ()),
)


def kept_outside(func: Callable[..., Any], private: Any, names: tuple[str, ...]) -> Callable[..., Any]:
    """`func`, raising where plain autograd, outside of all transforms, is recording operations of these names.

    If tensors require grad outside, the result can be differentiated once more than there are transforms.
    """

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        output = func(*args, **kwargs)
        for node in _outside(output, (args, kwargs), private):
            if type(node).__name__.startswith(names):
                raise _nesting(node)
        return output

    return wrapper


SCRIPTS = facts.has("optimized_scripts_lose_terms")


def _outside(output: Any, inputs: Any, private: Any) -> Iterator[Any]:
    """The nodes that plain autograd, outside of all transforms, recorded between inputs and output."""
    outputs = below(output, private)
    if any(leaf.requires_grad for leaf in outputs):
        yield from nodes_of(outputs, [leaf.grad_fn for leaf in below(inputs, private)])


def below(tree: Any, private: Any) -> list[Tensor]:
    found = _leaves(tree)
    for k, leaf in enumerate(found):
        while private.is_batchedtensor(leaf) or private.is_gradtrackingtensor(leaf):
            leaf = private.get_unwrapped(leaf)
        found[k] = leaf
    return found


def require_derivatives(tangents: Sequence[Tensor], private: Any) -> None:
    """Raise where plain autograd has recorded tangents by a formula that has no derivative."""
    found = below(tangents, private)
    if any(leaf.requires_grad for leaf in found):
        for node in nodes_of(found):
            if type(node).__name__ == "NotImplemented":
                raise MistakenRule(MISTAKEN_NESTING.format("forward_mode"))


def is_mapped(tree: Any, private: Any, floating: bool = False) -> bool:
    """Whether a tensor of `tree`, or one of floating-point numbers, has a batch dimension of any level."""
    for leaf in _leaves(tree):
        if floating and not leaf.is_floating_point():
            continue
        while private.is_gradtrackingtensor(leaf):
            leaf = private.get_unwrapped(leaf)
        if private.is_batchedtensor(leaf):
            return True
    return False


def _nesting(node: Any) -> MistakenRule:
    return MistakenRule(MISTAKEN_NESTING.format(type(node).__name__.partition("Backward")[0]))


def is_script(node: Any) -> bool:
    """Whether a node of the graph is the backward of code that TorchScript has optimized."""
    return type(node).__name__ == "CppFunction" and "DifferentiableGraph" in node.name()


def is_fused(outputs: Sequence[Tensor], order: int) -> bool:
    """Whether torch lacks a derivative up to that order of an operation in the graph, or has it wrong."""
    return order > 1 and any(0 < order_of(type(node).__name__) <= order for node in nodes_of(outputs))


class Look(NamedTuple):
    """The nodes of a graph that the library, or plain autograd after it, gets wrong without an error."""

    rows: list[MistakenRule]  # the error to raise if rows through the graph are batched
    mapped: list[MistakenRule]  # the same where the function is mapped, too
    twice: set[tuple[type, int]]  # nodes whose derivative is wrong once more, and by which input

    def refuse(self, output: Any, inputs: Any, private: Any) -> None:
        """Raise where plain autograd has recorded such nodes from inputs to output, and would differentiate them."""
        for node in _outside(output, inputs, private) if self.twice else ():
            if any((type(node), k) in self.twice for k, (child, _) in enumerate(node.next_functions) if child):
                raise _nesting(node)


_NOTABLE = (*_MISTAKEN, *_MISTAKEN_MAPPED, *TWICE, "CppFunction")


def look(output: Any) -> Look:
    """Look at the graph of `output`.

    TorchScript in the graph raises at once, since the caller may differentiate the derivative again.
    """
    found = Look([], [], set())
    for node in nodes_of(output):
        name = type(node).__name__
        if not name.startswith(_NOTABLE):
            continue
        row = wrong_twice(node)
        if row is not None:
            found.twice.update((type(node), then) for first, then in row.pairs if node.next_functions[first][0])
        elif name.startswith((*_MISTAKEN, *_MISTAKEN_MAPPED)):
            errors = found.rows if name.startswith(_MISTAKEN) else found.mapped
            errors.append(MistakenRule(MISTAKEN_ROWS.format(name.partition("Backward")[0])))
        elif SCRIPTS and is_script(node):
            raise MistakenRule(MISTAKEN_SCRIPT)
    return found


# The double-backward trick takes a cotangent of zero, and the backward of logcumsumexp takes its logarithm.
_NOT_TRANSPOSABLE = (*_MISTAKEN, "CppFunction", "Logcumsumexp")


def is_transposable(outputs: Sequence[Tensor]) -> bool:
    """Whether the pullback can be differentiated: the backward of a Function can be anything."""
    return all(output.is_floating_point() or output.is_complex() for output in outputs) and not any(
        isinstance(node, BackwardCFunction) or type(node).__name__.startswith(_NOT_TRANSPOSABLE)
        for node in nodes_of(outputs)
    )
