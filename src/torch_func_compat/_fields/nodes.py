"""What a field's graph tells: are derivatives of all orders right, and does it reach tensors outside?"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from .._backends.autograd.graph import is_outside, owner_of

# Operations whose derivatives of all orders torch gets right on every release, or refuses with an error (a test takes
# each of them through its third derivative). Fields with others, like normalisations and custom Functions, go by
# `vjp`, which knows what is wrong with each.
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
            outside = True  # the tensor to differentiate by belongs to a graph itself
            continue
        cls = type(node)
        if not _is_right(cls):
            right = False
        if cls.__name__ == "AccumulateGrad":
            outside = outside or (node.variable is not own and is_outside(owner_of(node)))
        stack.extend([child for child, _ in node.next_functions])
    return right, outside
