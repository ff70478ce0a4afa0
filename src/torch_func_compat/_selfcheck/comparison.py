"""Compare a result with the one that a closed form gives."""

from __future__ import annotations

from typing import Any

from .._torch import pytree


def difference(actual: Any, expected: Any) -> float:
    """Largest deviation over the leaves, NaN included.

    Raises AssertionError where the structure, shape, dtype or device differs, and where a leaf requires grad.
    """
    leaves, spec = pytree.flatten(actual)
    wanted, wanted_spec = pytree.flatten(expected)
    if spec != wanted_spec:
        raise AssertionError(f"the result has structure {spec}, expected {wanted_spec}")
    largest = 0.0
    for leaf, want in zip(leaves, wanted):
        kind, wanted_kind = ((tuple(t.shape), t.dtype, str(t.device)) for t in (leaf, want))
        if kind != wanted_kind:
            raise AssertionError(f"the result is {kind}, expected {wanted_kind}")
        if leaf.requires_grad:
            raise AssertionError("the result requires grad, and nothing outside does")
        error = float((leaf - want).abs().max())
        if not error <= largest:  # also NaN
            largest = error
    return largest
