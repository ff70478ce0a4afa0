"""Questions to the autograd graph: who is in it, and does anything outside depend on it?"""

from __future__ import annotations

import re
from typing import Any, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from ..._guards.refusals import wrong_twice

# The attribute of a leaf that belongs to a transform. Duck-typed and not named after this package,
# so that two vendored copies of it understand each other's leaves.
OWNER = "_autograd_transform_level"


def nodes(roots: Iterable[Any], seen: set[Any] | None = None) -> Iterator[Any]:
    """Every node below `roots` (grad_fn objects or None), once. `seen` is extended with them."""
    # The set also keeps the nodes' Python wrappers alive: a wrapper is the same object only as long.
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


def _is_outside(variable: Tensor) -> bool:
    level = getattr(variable, OWNER, None)
    return level is None or level.running


def depends_on_outside(tensor: Tensor, inside: set[Any]) -> bool:
    """Whether a leaf of the user, or of a transform that is still running, is below `tensor`.

    `inside` remembers nodes that are known to have none below; pass the same set for many tensors.
    """
    if tensor.grad_fn is None:
        return tensor.requires_grad and _is_outside(tensor)
    # a copy, since a positive answer leaves nodes unexplored
    seen = set(inside)
    if _leads_outside(tensor.grad_fn, seen):
        return True
    inside |= seen
    return False


def _leads_outside(start: Any, seen: set[Any] | None = None) -> bool:
    # AccumulateGrad is the node of a leaf; by name, since its type is not public
    return any(type(node).__name__ == "AccumulateGrad" and _is_outside(node.variable) for node in nodes([start], seen))


def custom_nodes(tensors: Sequence[Tensor]) -> list[Any]:
    """Nodes of autograd.Functions that are not torch's own: their backward can be anything."""
    return [
        node
        for node in nodes(tensor.grad_fn for tensor in tensors)
        if isinstance(node, BackwardCFunction) or type(node).__name__ == "CppFunction"
    ]


def has_scripts(every: Iterable[Any]) -> bool:
    """Whether one of the nodes is of what TorchScript has optimized."""
    return any(type(node).__name__ == "CppFunction" and "DifferentiableGraph" in node.name() for node in every)


# Backward nodes of a backward: torch differentiates them wrongly, for it takes the saved mean and
# standard deviation for constants there (layer_norm and batch_norm from 1.8, instance_norm, group_norm).
_NORM_TWICE = re.compile(r"(LayerNorm|BatchNorm|InstanceNorm|GroupNorm)\w*BackwardBackward")


def third_order_nodes(tensors: Sequence[Tensor]) -> bool:
    """Whether the graph has nodes whose own derivative, a third one, torch gets wrong."""
    return any(_NORM_TWICE.search(type(node).__name__) for node in nodes(tensor.grad_fn for tensor in tensors))


def second_order_flaw(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> str | None:
    """What to say of nodes between `inputs` and `outputs` whose derivative by what is outside torch gets wrong."""
    for node in nodes(output.grad_fn for output in outputs):
        row = wrong_twice(node)
        if row is None:
            continue
        below = [child for child, _ in node.next_functions]
        for first, then in row.pairs:
            if _leads_to(below[first], inputs) and _leads_outside(below[then]):
                return row.reason
    return None


def _leads_to(start: Any, inputs: Sequence[Tensor]) -> bool:
    ours = [tensor for tensor in inputs if tensor.requires_grad]
    return any(getattr(node, "variable", None) is x or node is x.grad_fn for node in nodes([start]) for x in ours)


# What torch batches rightly on every release (a test takes each of them through every one): arithmetic, products of
# matrices, sums and views, of real numbers; no node here makes real numbers of complex ones.
_BATCHED_RIGHTLY = frozenset(
    "AccumulateGrad Add Sub Rsub Mul Div Neg Reciprocal Pow Sqrt Rsqrt Exp Expm1 Log Log1P Sin Cos Tan Sinh Cosh Atan "
    "Erf Tanh TanhBackward Sigmoid SigmoidBackward Softplus SoftplusBackward Relu Threshold "
    "ThresholdBackward Gelu GeluBackward Silu SiluBackward Elu EluBackward LeakyRelu LeakyReluBackward LogSigmoid "
    "LogSigmoidBackward Hardtanh HardtanhBackward Clamp ClampMin ClampMax SWhere Where MaskedFill Maximum Minimum "
    "Mm Mv Dot Bmm Addmm Sum Mean "
    "T Transpose Permute View UnsafeView ReshapeAlias Expand Squeeze Unsqueeze "
    "Select SelectBackward Slice SliceBackward Stack Cat Clone Split SplitWithSizes Unbind".split()
)


_known: dict[type, bool] = {}  # of torch's own nodes, whether they are among these


def are_batched_rightly(every: Iterable[Any]) -> bool:
    """Whether real rows through these nodes can be batched without a look at what comes out."""
    for node in every:
        cls = type(node)
        right = _known.get(cls)
        if right is None:
            if isinstance(node, BackwardCFunction):  # by any name
                return False
            name = cls.__name__.rstrip("0123456789")
            right = _known[cls] = (name[: -len("Backward")] if name.endswith("Backward") else name) in _BATCHED_RIGHTLY
        if not right:
            return False
    return True


def leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Leaf variables below `tensors`."""
    return [
        node.variable for node in nodes(tensor.grad_fn for tensor in tensors) if type(node).__name__ == "AccumulateGrad"
    ]


def gradients(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    *,
    retain_graph: bool = True,
    create_graph: bool,
) -> list[Tensor | None]:
    """`torch.autograd.grad` that answers None, and no error, for whatever does not depend."""
    pairs = [(out, ct) for out, ct in zip(outputs, cotangents) if out.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    heads, vectors = tuple(out for out, _ in pairs), tuple(ct for _, ct in pairs)

    def run(wanted: Sequence[Tensor]) -> list[Tensor | None]:
        found = torch.autograd.grad(
            heads, tuple(wanted), vectors, retain_graph=retain_graph, create_graph=create_graph, allow_unused=True
        )
        return list(found)

    try:
        return run(inputs)
    except RuntimeError as error:
        # torch 1.13: an in-place operation on a view makes the engine insist on leaves that nobody
        # asked for (https://github.com/pytorch/pytorch/issues/90298); ask for them and drop them.
        if "dependency not found" not in str(error):
            raise
    return run([*inputs, *leaves(heads)])[: len(inputs)]
