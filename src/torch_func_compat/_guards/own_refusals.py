"""The rows of refusals that this library raises itself, where torch would go on and be wrong."""

from __future__ import annotations

import re

from . import wrong_answers as texts
from .capability import BY_ROWS, LOOPED, TRANSPOSED, Capability

OWN: tuple[Capability, ...] = (
    Capability(
        "mapped_indices",
        texts.MISTAKEN_INDEX.format("functorch"),
        "it maps over integers, and functorch on torch 1.11 silently indexes by several mapped tensors wrongly",
        "upgrade to torch >= 1.12",
    ),
    Capability(
        "function_without_transpose",
        texts.NOT_TRANSPOSED.format(r"\w+"),
        "it uses a Function in forward mode that has no jvp rule, and a backward that is not differentiable",
        "give the Function a jvp() staticmethod",
    ),
    Capability(
        "legacy_function_in_place",
        texts.LEGACY_IN_PLACE.format(r"\w+"),
        "it uses an adapted Function in the old style that modifies its input in place",
        "write the Function with setup_context()",
    ),
    Capability(
        "backward_leaves_torch",
        texts.LEFT_BY_ROWS,
        "it maps over the pullback of an autograd.Function whose backward uses numpy or an extension",
        "call another Function in that backward, with a backward and a vmap rule of its own",
        cost=LOOPED,
    ),
    Capability(
        "foreign_tensor",
        texts.FOREIGN.format(r"\S+"),
        "it uses a custom derivative rule that closes over a tensor of a transform",
        "pass that tensor to the function as an argument",
    ),
    Capability(
        "grad_mode",
        re.escape(texts.MISTAKEN_GRAD_MODE),
        "it switches grad mode off, which torch's forward mode ignores",
        "call detach() on the constant part instead",
        cost=TRANSPOSED,
    ),
    Capability(
        "mistaken_rows_of_prelu",
        texts.MISTAKEN_ROWS.format(r"Prelu\w*"),
        "it uses prelu, whose batched backward is wrong in torch, without an error",
        "write it as torch.where(x > 0, x, weight * x)",
        cost=BY_ROWS,
    ),
    Capability(
        "mistaken_rows",
        texts.MISTAKEN_ROWS.format(r"\w+"),
        "it uses an operation whose batched backward is wrong in torch, without an error (torch.cdist)",
        "write the distance as (x[:, None] - y[None]).norm(dim=-1)",
        cost=BY_ROWS,
    ),
    Capability(
        "optimized_script",
        texts.MISTAKEN_SCRIPT,
        "it uses TorchScript, and torch silently loses terms of its nested derivatives",
        "use the function that was scripted or traced",
    ),
    Capability(
        "script_parameters",
        texts.MISTAKEN_GRAPH,
        "it uses a scripted or traced module with parameters that require grad, and torch silently loses the graph to "
        "them",
        "use the module that was scripted or traced, or take the derivative within torch.no_grad()",
    ),
    Capability(
        "functorch_complex",
        texts.MISTAKEN_COMPLEX,
        "functorch 0.1 and 0.2 differentiate complex numbers wrongly",
        "upgrade to torch >= 1.13",
        until=(1, 13),
        cost=TRANSPOSED,
    ),
    Capability(
        "mistaken_nesting",
        texts.MISTAKEN_NESTING.format(r"\w+"),
        "it uses an operation that torch gets wrong, without an error, in forward mode within another derivative "
        "(layer_norm, batch_norm, det, solve, the jvp rule of an autograd.Function)",
        "take the inner derivative in reverse mode (jacrev, vjp), and use this library's Function",
        cost=TRANSPOSED,
    ),
    Capability(
        "mistaken_tangent",
        texts.MISTAKEN_TANGENT.format(r"\S+"),
        "it uses a custom operator with register_autograd, which torch takes for constant in forward mode",
        "use reverse mode (jacrev, vjp) for this function",
        cost=TRANSPOSED,
    ),
    Capability(
        "mistaken_formula",
        texts.MISTAKEN_FORMULA.format(r"\w+"),
        "it uses an operation whose formula for forward mode is wrong in torch, without an error (cholesky_inverse, "
        "scatter_reduce, polynomials of torch.special)",
        "use reverse mode (jacrev, vjp) for this function",
        cost=TRANSPOSED,
    ),
    Capability(
        "mistaken_tangents",
        texts.MISTAKEN_TANGENTS.format(".*"),
        "forward mode of torch gives another derivative than reverse mode and finite differences",
        "use reverse mode (jacrev, vjp) for this function",
        cost=TRANSPOSED,
    ),
    Capability(
        "mistaken_batch",
        texts.MISTAKEN_BATCH.format(".*"),
        "torch's batch gives another value for a sample than that sample alone",
        "write the operation in terms of others",
        cost=LOOPED,
    ),
    Capability(
        "autocast",
        texts.MISTAKEN_AUTOCAST,
        "it uses autocast, which under vmap casts other operations than for a sample",
        "cast by hand: pass a model and inputs of the dtype that you want",
        cost=LOOPED,
        lasting=False,
    ),
    Capability(
        "tensor_subclass",
        texts.MISTAKEN_SUBCLASS.format(r"\w+"),
        "it gets a subclass of Tensor, and torch's transforms would pass a plain tensor instead",
        "pass a plain tensor, and make the subclass inside",
        lasting=False,
    ),
)
