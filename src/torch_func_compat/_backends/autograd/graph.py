"""The graph of a recorded function: what one walk tells of it, and who owns its leaves."""

from __future__ import annotations

import re
from typing import Any, Sequence

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from ..._guards.by_graph import NORMALISATIONS, nodes
from ..._guards.compositions import order_of
from ..._guards.wrong_answers import TWICE, wrong_twice
from ..._torch import engine, facts

# The attribute of a leaf that belongs to a transform. It is not named after this package, so that two vendored copies
# understand each other's leaves.
OWNER = "_autograd_transform_level"

# Backward nodes of a backward: torch differentiates them wrongly, for it takes the saved mean and
# standard deviation for constants there (layer_norm and batch_norm from 1.8, instance_norm, group_norm).
_NORM_TWICE = re.compile(r"(LayerNorm|BatchNorm|InstanceNorm|GroupNorm)\w*BackwardBackward")


# torch.func batches the backward of a normalisation with a constant mean and deviation. A derivative of such rows lacks
# terms. Before torch 2.0, batched backward passes loop there.
_ROWS_LOSE_TERMS = facts.has("torch_func")

# Nodes that torch batches rightly on every release (a test takes each through every release): arithmetic, products of
# matrices, sums and views, of real numbers; no node here makes real numbers of complex ones.
BATCHED_RIGHTLY = frozenset(
    "AccumulateGrad Add Sub Rsub Mul Div Neg Reciprocal Pow Sqrt Rsqrt Exp Expm1 Log Log1P Sin Cos Tan Sinh Cosh Atan "
    "Erf Tanh TanhBackward Sigmoid SigmoidBackward Softplus SoftplusBackward Relu Threshold "
    "ThresholdBackward Gelu GeluBackward Silu SiluBackward Elu EluBackward LeakyRelu LeakyReluBackward LogSigmoid "
    "LogSigmoidBackward Hardtanh HardtanhBackward Clamp ClampMin ClampMax SWhere Where MaskedFill Maximum Minimum "
    "Mm Mv Dot Bmm Addmm Sum Mean "
    "T Transpose Permute View UnsafeView ReshapeAlias Expand Squeeze Unsqueeze "
    "Select SelectBackward Slice SliceBackward Stack Cat Clone Split SplitWithSizes Unbind".split()
)


# The properties of a node, by its class: bits.
_LEAF, _UNTRUSTED, _NOTABLE, _COMPOSED, _DETERMINANT = 1, 2, 4, 8, 16

# Their backward solves with the matrix, which fails at a singular one, unless a graph is created: then it takes
# singular values. The derivative, the adjugate, exists there.
_DETERMINANTS = ("LinalgDetBackward", "DetBackward", "DetLuBasedHelperBackward")
_kinds: dict[type, int] = {}


def _kind(cls: type) -> int:
    if issubclass(cls, BackwardCFunction):  # a custom Function, by any name: not remembered, so that it can be freed
        return _UNTRUSTED | _NOTABLE
    name = cls.__name__.rstrip("0123456789")
    if name == "AccumulateGrad":
        kind = _LEAF
    else:
        kind = 0 if (name[: -len("Backward")] if name.endswith("Backward") else name) in BATCHED_RIGHTLY else _UNTRUSTED
        if name == "CppFunction" or name in TWICE or _NORM_TWICE.search(cls.__name__):
            kind |= _NOTABLE
        if order_of(name):
            kind |= _COMPOSED
        if name in _DETERMINANTS:
            kind |= _DETERMINANT
    _kinds[cls] = kind
    return kind


class Graph:
    """The properties of the graph of some tensors, from one walk through it.

    Attributes
    ----------
    nodes : set
        Every node. The set keeps their Python wrappers alive: a node whose wrapper has died gets another one.
    outside : bool
        Whether a leaf of the user, or of a transform that is still running, is in it.
    user : bool
        Whether a leaf of the user is in it.
    fused : int
        The first derivative that torch lacks or gets wrong of a fused operation in it, or 0.
    trusted : bool
        Whether torch is known to batch all of its nodes rightly.
    notable : list
        Nodes of custom Functions, of TorchScript, and those whose own derivative torch gets wrong.
    determinants : bool
        Whether it has a determinant, whose backward has to create a graph to be right at singular matrices.
    """

    __slots__ = ("determinants", "nodes", "outside", "user", "fused", "trusted", "notable")

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.notable: list[Any] = []
        self.trusted = True
        self.outside = self.user = self.determinants = False
        self.fused = 0
        seen: set[Any] = set()
        self.nodes = seen
        stack: list[Any] = []
        for tensor in tensors:
            if tensor.grad_fn is not None:
                stack.append(tensor.grad_fn)
            elif tensor.requires_grad:
                self._meet(getattr(tensor, OWNER, None))
        known, add, push = _kinds.get, seen.add, stack.append
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            add(node)
            cls = type(node)
            kind = known(cls)
            if kind is None:
                kind = _kind(cls)
            if kind:
                if kind & _LEAF:
                    if not self.user:
                        self._meet(owner_of(node))
                    continue
                self.trusted = False
                if kind & _DETERMINANT:
                    self.determinants = True
                if kind & _NOTABLE:
                    self.notable.append(node)
                if kind & _COMPOSED:
                    order = order_of(cls.__name__)
                    self.fused = min(order, self.fused or order)
            for child, _ in node.next_functions:
                if child is not None:
                    push(child)

    def _meet(self, level: Any) -> None:
        if level is None:
            self.outside = self.user = True
        elif level.running:
            self.outside = True

    @property
    def loses_terms_in_rows(self) -> bool:
        """Whether a derivative of batched rows, by tensors outside, lacks terms: torch's batches of them keep none."""
        return (
            self.outside and self.fused > 0 and _ROWS_LOSE_TERMS and self._has((*NORMALISATIONS, "BatchNormWithUpdate"))
        )

    def _has(self, names: tuple[str, ...]) -> bool:
        return any(type(node).__name__.startswith(names) for node in self.nodes)

    def has_scripts(self) -> bool:
        """Whether TorchScript has optimized a part of it."""
        return any(
            type(node).__name__ == "CppFunction" and "DifferentiableGraph" in node.name() for node in self.notable
        )

    def is_wrong_in_third_order(self) -> bool:
        """Whether it has nodes whose own derivative, a third one, torch gets wrong."""
        return any(_NORM_TWICE.search(type(node).__name__) for node in self.notable)

    def has_custom_nodes(self) -> bool:
        """Whether it has nodes of autograd.Functions that are not torch's own: their backward can be anything."""
        return any(isinstance(node, BackwardCFunction) or type(node).__name__ == "CppFunction" for node in self.notable)

    def second_order_flaw(self, inputs: Sequence[Tensor]) -> str | None:
        """Why torch gets derivatives by tensors outside wrong, for a node above `inputs`; None if it does not."""
        for node in self.notable:
            row = wrong_twice(node)
            if row is None:
                continue
            below = [child for child, _ in node.next_functions]
            for first, then in row.pairs:
                if leads_to(below[first], inputs) and _leads_outside(below[then], set()):
                    return row.reason
        return None


def is_out_of_sight(node: Any) -> bool:
    """Whether a node is of C++, TorchScript or a higher-order operator, which do not show the tensors they save."""
    module = getattr(getattr(type(node), "_forward_cls", None), "__module__", None) or ""
    return type(node).__name__ == "CppFunction" or module.startswith("torch._higher_order_ops.")


def owner_of(node: Any) -> Any:
    """The level of a leaf, by the leaf's node; None for a leaf of the user."""
    if facts.has("leaves_keep_python_attributes"):
        return getattr(node.variable, OWNER, None)
    return node.metadata.get(OWNER)


def is_outside(level: Any) -> bool:
    return level is None or level.running


def depends_on_outside(tensor: Tensor, inside: set[Any]) -> bool:
    """Whether a leaf of the user, or of a transform that is still running, is below `tensor`.

    `inside` remembers nodes that are known to have none below; pass the same set for many tensors.
    """
    if tensor.grad_fn is None:
        return tensor.requires_grad and is_outside(getattr(tensor, OWNER, None))
    return _leads_outside(tensor.grad_fn, inside)


def _leads_outside(start: Any, inside: set[Any]) -> bool:
    # apart from `inside`, since a positive answer leaves nodes unexplored
    seen: set[Any] = set()
    stack = [start]
    while stack:
        node = stack.pop()
        if node in seen or node in inside:
            continue
        seen.add(node)
        if _is_leaf(node) and is_outside(owner_of(node)):
            return True
        for child, _ in node.next_functions:
            if child is not None:
                stack.append(child)
    inside |= seen
    return False


def _is_leaf(node: Any) -> bool:
    # by name, since the type is not public
    return type(node).__name__ == "AccumulateGrad"


def leads_to(start: Any, inputs: Sequence[Tensor]) -> bool:
    """Whether an input that is differentiated is below a node."""
    ours = [tensor for tensor in inputs if tensor.requires_grad]
    return any(getattr(node, "variable", None) is x or node is x.grad_fn for node in nodes([start]) for x in ours)


def leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Leaf variables below `tensors`."""
    return [node.variable for node in Graph(tensors).nodes if _is_leaf(node)]


def gradients(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    *,
    retain_graph: bool = True,
    create_graph: bool,
) -> list[Tensor | None]:
    """`torch.autograd.grad` that gives None, and no error, for an input that nothing depends on."""
    heads, vectors = outputs, cotangents
    for output in outputs:
        if not output.requires_grad:
            pairs = [(out, ct) for out, ct in zip(outputs, cotangents) if out.requires_grad]
            heads, vectors = [out for out, _ in pairs], [ct for _, ct in pairs]
            break
    if not heads:
        return [None] * len(inputs)
    try:
        return engine.grad(heads, inputs, vectors, retain_graph, create_graph)
    except RuntimeError as error:
        # torch 1.13: after an in-place operation on a view the engine also needs other leaves
        # (https://github.com/pytorch/pytorch/issues/90298): ask for them and drop their gradients.
        if "dependency not found" not in str(error):
            raise
    return engine.grad(heads, [*inputs, *leaves(heads)], vectors, retain_graph, create_graph)[: len(inputs)]
