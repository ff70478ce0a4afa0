"""What the graph of a field tells: may it be differentiated as often as one likes, and does it reach outside?"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

# Operations whose derivatives of all orders torch gets right on every release, or refuses with an error (a test takes
# each of them through its third derivative). Fields with others, like normalisations and custom Functions, go by
# `vjp`, which knows of each what is wrong with it.
_RIGHT = frozenset(
    "AccumulateGrad Add Sub Rsub Mul Div Neg Reciprocal Pow Sqrt Rsqrt Exp Expm1 Log Log1P Sin Cos Tan Sinh Cosh Atan "
    "Erf Tanh Sigmoid Softplus Relu Silu Abs Square "
    "Mm Mv Dot Bmm Addmm Baddbmm Sum Mean "
    "T Transpose Permute View UnsafeView ReshapeAlias Expand Squeeze Unsqueeze Alias "
    "Select Slice Stack Cat Clone Split SplitWithSizes Unbind Index IndexSelect "
    "ViewAsReal ViewAsComplex Complex Real Imag "
    "TanhBackward SigmoidBackward SoftplusBackward SiluBackward "
    "SelectBackward SliceBackward".split()
)

_known: dict[type, bool] = {}


def _is_right(cls: type) -> bool:
    right = _known.get(cls)
    if right is None:
        if issubclass(cls, BackwardCFunction):  # by any name
            return False
        name = cls.__name__.rstrip("0123456789")
        right = _known[cls] = (name[: -len("Backward")] if name.endswith("Backward") else name) in _RIGHT
    return right


# The attribute by which the autograd backend's transforms, here as elsewhere, know whose a leaf is.
LEVEL = "_autograd_transform_level"


class Level:
    """An evaluation. While it is running, its leaf counts as outside for the transforms within."""

    running = False


def _is_outside(leaf: Tensor) -> bool:
    level = getattr(leaf, LEVEL, None)
    return level is None or bool(level.running)


def look(output: Tensor, own: Tensor) -> tuple[bool, bool]:
    """Whether all nodes below `output` are known to be right, and whether a leaf other than `own` is below it."""
    right, outside = True, output.grad_fn is None and output.requires_grad and output is not own
    seen: set[Any] = set()
    stack: list[Any] = [output.grad_fn]
    end = own.grad_fn
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node is end:
            outside = True  # what is differentiated belongs to a graph itself
            continue
        cls = type(node)
        if not _is_right(cls):
            right = False
        if cls.__name__ == "AccumulateGrad":
            outside = outside or (node.variable is not own and _is_outside(node.variable))
        stack.extend([child for child, _ in node.next_functions])
    return right, outside


@functools.lru_cache(maxsize=None)
def leaves_keep_attributes() -> bool:
    """Whether a leaf that only a graph holds keeps what Python has put on it (not on torch 1.8)."""
    with torch.enable_grad():
        leaf: Any = torch.ones(1, requires_grad=True)
        leaf.mark = True
        node: Any = (leaf * 1).grad_fn
    del leaf
    return hasattr(node.next_functions[0][0].variable, "mark")
