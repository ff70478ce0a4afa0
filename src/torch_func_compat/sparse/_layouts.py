"""Values in the pattern's order as a matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..autograd.checks import is_functorch_tensor
from ._patterns import Pattern

LAYOUTS = ("coo", "csr", "dense", "values")

# Indices of a pattern are valid. Where nothing is said of that, new releases of torch warn that they check nothing.
UNCHECKED: dict[str, Any] = (
    {"check_invariants": False} if hasattr(torch.sparse, "check_sparse_tensor_invariants") else {}
)


def check_layout(api: str, layout: str) -> None:
    """Raise ValueError unless there is such a layout, RuntimeError where this torch lacks it."""
    if layout not in LAYOUTS:
        raise ValueError(f"{api}: unknown layout {layout!r}, expected one of {', '.join(map(repr, LAYOUTS))}")
    if layout == "csr" and not hasattr(torch, "sparse_csr_tensor"):
        raise RuntimeError(
            f"{api}: torch {torch.__version__} has no CSR tensors; take layout='coo', or layout='values' and "
            "pattern.to_scipy(values).tocsr()"
        )


def assemble(pattern: Pattern, values: Tensor, layout: str, api: str) -> Tensor:
    """The matrix in a layout."""
    if layout == "values":
        return values
    rows, columns = pattern.rows.to(values.device), pattern.columns.to(values.device)
    if layout == "dense":
        flat = values.new_zeros(pattern.shape[0] * pattern.shape[1])
        return flat.scatter(0, rows * pattern.shape[1] + columns, values).reshape(pattern.shape)
    if layout == "coo":
        matrix = torch.sparse_coo_tensor(
            torch.stack([rows, columns]), values, pattern.shape, device=values.device, **UNCHECKED
        )
        # torch.func of torch < 2.7 does not know coalesce()
        return matrix if is_functorch_tensor(values) else matrix.coalesce()
    return _csr(pattern, values, api)


def _csr(pattern: Pattern, values: Tensor, api: str) -> Tensor:
    differentiable = values.requires_grad and torch.is_grad_enabled()
    if not is_functorch_tensor(values):
        order = torch.argsort(pattern.rows * max(pattern.shape[1], 1) + pattern.columns)
        starts = torch.zeros(pattern.shape[0] + 1, dtype=torch.long, device="cpu")
        starts[1:] = torch.bincount(pattern.rows, minlength=pattern.shape[0]).cumsum(0)
        where = values.device
        matrix = torch.sparse_csr_tensor(
            starts.to(where),
            pattern.columns[order].to(where),
            values[order.to(where)],
            pattern.shape,
            device=where,
            **UNCHECKED,
        )
        if matrix.requires_grad or not differentiable:
            return matrix
    # torch 1.9 to 2.0 drop the derivative of the values and say nothing, as functorch does
    raise RuntimeError(
        f"{api}: CSR tensors have no derivatives on torch {torch.__version__} here, in a transform or of arguments "
        "that require grad; take layout='values', 'coo' or 'dense', or detach the arguments"
    )
