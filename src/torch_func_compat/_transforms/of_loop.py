"""Differentiate a loop over samples in blocks, if its graph shows that the samples are independent.

One backward pass through a block of samples takes less time than one pass for each sample.
"""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from .._arguments.call import Function
from .._torch import pytree
from .._torch.tensors import with_attributes

# How many samples keep their graphs at a time.
_BLOCK = 64


def in_blocks(func: Function, in_dims: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
    """``func(*args, **kwargs)`` for one block of samples at a time. The samples are along dimension 0."""
    leaves, spec = pytree.flatten(args)
    mapped = [dim == 0 for dim in pytree.broadcast_prefix(tuple(in_dims), spec) or ()]
    sizes = {leaf.size(0) for leaf, is_mapped in zip(leaves, mapped) if is_mapped and isinstance(leaf, Tensor)}
    if len(sizes) != 1 or max(sizes) <= _BLOCK:
        return func(*args, **kwargs)
    columns = [leaf.split(_BLOCK) if is_mapped else None for leaf, is_mapped in zip(leaves, mapped)]
    results = []
    for k in range(-(-max(sizes) // _BLOCK)):
        block = [x if column is None else with_attributes(column[k], x) for x, column in zip(leaves, columns)]
        found, found_spec = pytree.flatten(func(*pytree.unflatten(block, spec), **kwargs))
        results.append(found)
    return pytree.unflatten([torch.cat(parts) for parts in zip(*results)], found_spec)


def are_independent(stacked: Tensor, args: tuple[Any, ...]) -> bool:
    """Whether the graph shows that row `i` of a loop's result depends on row `i` of its inputs alone.

    The loop takes the first sample by a view of its own, and the others by one ``unbind``. So the edge from a sample to
    its inputs carries the sample's number.
    """
    top: Any = stacked.grad_fn
    if len(top.next_functions) != len(stacked) or any(node is None for node, _ in top.next_functions):
        return False
    sources = {_node(leaf) for leaf in pytree.flatten(args)[0] if isinstance(leaf, Tensor) and leaf.requires_grad}
    samples: dict[Any, int] = {}  # by node, the first sample that leads to it
    constant: set[Any] = set()
    for k, edge in enumerate(top.next_functions):
        edges = [edge]
        while edges:
            node, number = edges.pop()
            if node is None:
                continue
            if node in samples:
                if samples[node] != k and _leads_to(node, sources, constant):
                    return False
            elif node in sources:
                if k:
                    return False
            elif _is_unbind(type(node).__name__) and node.next_functions[0][0] in sources:
                if number != k:
                    return False
            else:
                samples[node] = k
                edges += node.next_functions
    return True


def _node(leaf: Tensor) -> Any:
    """The node that takes the gradient of a tensor."""
    node: Any = leaf.grad_fn
    return leaf.view_as(leaf).grad_fn.next_functions[0][0] if node is None else node  # type: ignore[union-attr]


def _is_unbind(name: str) -> bool:
    # by name, since the type is not public
    return name.startswith("UnbindBackward")


def _leads_to(start: Any, sources: set[Any], constant: set[Any]) -> bool:
    """Whether one of the sources is below a node; if not, all nodes below it are `constant`."""
    seen: set[Any] = set()
    stack = [start]
    while stack:
        node = stack.pop()
        if node in sources:
            return True
        if node is not None and node not in seen and node not in constant:
            seen.add(node)
            stack += [child for child, _ in node.next_functions]
    constant |= seen
    return False
