"""The errors that this library raises where torch would be wrong without an error: their class and their texts."""

from __future__ import annotations

from typing import Any, NamedTuple

from .._torch import facts


class MistakenRule(RuntimeError):
    """Raised by this library where torch would go on and return a wrong derivative."""


# The texts of a MistakenRule. The placeholder is an operation, a class or a function.
MISTAKEN_ROWS = "torch batches the backward of {} wrongly"
MISTAKEN_TANGENT = "torch drops the tangents of {} in forward mode"
MISTAKEN_FORMULA = "torch differentiates {} wrongly in forward mode"
# The functions and methods of MISTAKEN_FORMULA; scatter_reduce with products only.
WRONG_FORMULAS = ("cholesky_inverse", "scatter_reduce", "scatter_reduce_")
# Functions of symmetric matrices. Reverse mode takes the average of a matrix's two halves; forward mode is to have the
# same derivative.
SYMMETRIC = ("linalg.cholesky", "linalg.cholesky_ex", "linalg.eigh", "linalg.eigvalsh")
MISTAKEN_NESTING = "torch takes what {} saved for constant in a derivative of a derivative"
MISTAKEN_GRAD_MODE = "torch differentiates operations within no_grad() in forward mode"
MISTAKEN_SCRIPT = "torch loses terms of nested derivatives of optimized TorchScript"
MISTAKEN_GRAPH = "torch loses the graph to parameters of TorchScript in batches and forward mode"
MISTAKEN_HOOKS = "functorch transforms don't yet support saved tensor hooks"
MISTAKEN_COMPLEX = "functorch differentiates complex numbers wrongly"
MISTAKEN_EAGER = "functorch does not support torch.autograd.functional inside of it"
MISTAKEN_TANGENTS = "torch's forward mode is wrong: reverse mode and finite differences give another derivative of {}"
MISTAKEN_BATCH = "torch batches this wrongly: a sample of the batch differs from that sample alone, for {}"
# Of which that was seen (torch 2.15 and before), for functions that cannot be tested.
MISTAKEN_IN_A_BATCH = frozenset(
    "index_fill index_fill_ roll select_scatter as_strided as_strided_ resize_ resize_as_ lu_solve linalg_lu_solve "
    "linalg_solve linalg_solve_ex __setitem__:apart index_put:apart index_put_:apart".split()
)
# Of these, equal samples can hide it: a sample gets the numbers that lie before its own in memory.
MISTAKEN_SIZES = frozenset(("resize_", "resize_as_"))
# Of these, plain autograd gets gradients through the batch wrong, of some samples only.
MISTAKEN_GRADIENTS = frozenset(("embedding:padding",))
MISTAKEN_INDEX = "{} indexes by several mapped tensors wrongly"
MISTAKEN_AUTOCAST = "torch casts other operations under vmap than autocast does for a sample"
MISTAKEN_SUBCLASS = "torch gives a function under vmap or grad a plain tensor for a {}"
MISTAKEN_COMPILED = "torch may get {} wrong in this transform, and a compiled graph cannot tell"
# A Function without a jvp rule, whose backward cannot be transposed.
NOT_TRANSPOSED = "the backward of {} is not differentiable, and so has no transpose for forward mode"
# A Function in the old style that modifies its input.
LEGACY_IN_PLACE = "the forward of {} modifies its input in place, and would have to run again"
# A Function that uses more than its arguments.
FOREIGN = "{} uses a tensor of a transform around it that is not among its arguments"
# The second derivative of a backward with numpy in it.
LEFT_BY_ROWS = "the rows of a backward that takes numbers out of torch cannot be batched"


class Twice(NamedTuple):
    """A backward that torch differentiates wrongly once more, without an error."""

    fact: str
    pairs: tuple[tuple[int, int], ...]  # the inputs of the first and of the second derivative
    reason: str


# By the name of the node in torch's graphs.
TWICE = {
    "WeightNormInterfaceBackward": Twice(
        "weight_norm_twice",
        ((0, 0), (1, 0)),
        "torch's second derivatives of weight_norm are wrong: write the weight as v * g / v.norm(dim=..., "
        "keepdim=True) to differentiate it that often",
    ),
    "KlDivBackward": Twice(
        "kl_div_twice",
        ((0, 1), (1, 0)),
        "mixed derivatives of kl_div by its input and target are wrong on torch < 1.13: write it as target * "
        "(target.log() - input) to differentiate it that often",
    ),
}


def wrong_twice(node: Any) -> Twice | None:
    """The row of a node of the graph, on a torch with that mistake."""
    row = TWICE.get(type(node).__name__.rstrip("0123456789"))
    return row if row is not None and facts.has(row.fact) else None
