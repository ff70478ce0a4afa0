"""The vmap rule that a Function has of its own, for the backends that call it."""

from __future__ import annotations

from typing import Any, NamedTuple

from .._torch import pytree
from .rules import has


class VmapInfo(NamedTuple):
    """The first argument of a rule, with torch's names."""

    batch_size: int
    randomness: str


def has_vmap_rule(definition: Any) -> bool:
    """Whether there is a vmap rule; an error if there is another one, too."""
    if not has(definition, "vmap"):
        return False
    if getattr(definition, "generate_vmap_rule", False):
        raise RuntimeError(
            f"{definition.__name__} has both generate_vmap_rule=True and a vmap staticmethod: remove one of them"
        )
    return True


def by_rule(definition: Any, info: VmapInfo, dims: Any, args: Any) -> tuple[Any, Any]:
    """The result of the rule for a batch, and the batch dimensions."""
    result = definition.vmap(info, dims, *args)
    if isinstance(result, tuple) and len(result) == 2:
        return result
    raise RuntimeError(
        f"Expected the vmap staticmethod to have two returns, an output and out_dims with pytree structure compatible "
        f"with the output. Got {result!r} instead"
    )


def matched(definition: Any, outputs: Any, out_dims: Any) -> tuple[list[Any], list[Any], pytree.TreeSpec]:
    """Leaves of the outputs and the batch dimension of each, and the structure."""
    flat, spec = pytree.flatten(outputs)
    flat_dims = pytree.broadcast_prefix(out_dims, spec)
    if flat_dims is None:
        raise RuntimeError(
            f"The vmap staticmethod of {definition.__name__} returned an incompatible (output, out_dims) tuple: "
            f"out_dims={out_dims} does not fit the structure {spec} of the output"
        )
    return flat, flat_dims, spec
