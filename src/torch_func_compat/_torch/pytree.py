"""Pytrees with the newest torch's rules on every torch.

torch 1.8 knows dict, list and tuple only; namedtuple, OrderedDict, defaultdict and deque were added
one release after another. Here the built-in containers are always known, and torch is asked for all types
that the user (or torch) registered with ``torch.utils._pytree``. This module registers nothing: the
registry is global and belongs to its owner.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from typing import Any, Callable, ClassVar, List, Tuple

import torch
import torch.utils._pytree as _torch_pytree

# container -> (its children, the context that rebuilds it)
_Flatten = Callable[[Any], Tuple[List[Any], Any]]
# (children, that context) -> container
_Unflatten = Callable[[List[Any], Any], Any]


class TreeSpec:
    """The shape of a pytree: the type of its root, what rebuilds it, and its children's shapes.

    A leaf is a ``TreeSpec`` of type ``None``.
    """

    def __init__(self, type: Any = None, context: Any = None, children: tuple[TreeSpec, ...] = ()) -> None:
        self.type: Any = type
        self.context: Any = context
        self.children: tuple[TreeSpec, ...] = children
        self.num_leaves: int = 1 if type is None else sum([child.num_leaves for child in children])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TreeSpec):
            return NotImplemented
        return (self.type, self.context, self.children) == (other.type, other.context, other.children)

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __repr__(self) -> str:
        if self.type is None:
            return "*"
        name = getattr(self.type, "__name__", str(self.type))
        context = "" if self.context is None else f"{self.context}, "
        return f"{name}({context}[{', '.join(map(repr, self.children))}])"


LEAF = TreeSpec()
_ONE = TreeSpec(tuple, None, (LEAF,))  # the arguments of most functions


def _dict_like(rebuild: Callable[[Any, Any], Any], extra: Callable[[Any], Any]) -> tuple[_Flatten, _Unflatten]:
    def flatten(tree: Any) -> tuple[list[Any], Any]:
        return list(tree.values()), (list(tree.keys()), extra(tree))

    def unflatten(children: list[Any], context: Any) -> Any:
        keys, rest = context
        return rebuild(zip(keys, children), rest)

    return flatten, unflatten


_CONTAINERS: dict[type, tuple[_Flatten, _Unflatten]] = {
    list: (lambda tree: (list(tree), None), lambda children, _: children),
    tuple: (lambda tree: (list(tree), None), lambda children, _: tuple(children)),
    dict: _dict_like(lambda items, _: dict(items), lambda _: None),
    OrderedDict: _dict_like(lambda items, _: OrderedDict(items), lambda _: None),
    defaultdict: _dict_like(lambda items, factory: defaultdict(factory, items), lambda tree: tree.default_factory),
    torch.Size: (lambda tree: (list(tree), None), lambda children, _: tuple(children)),
    deque: (lambda tree: (list(tree), tree.maxlen), lambda children, maxlen: deque(children, maxlen)),
}


def _is_namedtuple(cls: type) -> bool:
    return issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple)


def _is_struct_sequence(cls: type) -> bool:
    """Types such as ``torch.return_types.max``, which old torches did not register."""
    return cls.__bases__ == (tuple,) and isinstance(getattr(cls, "n_sequence_fields", None), int)


def _handlers(cls: type) -> tuple[_Flatten, _Unflatten] | None:
    known = _CONTAINERS.get(cls)
    if known is not None:
        return known
    if _is_namedtuple(cls):
        return (lambda tree: (list(tree), None)), (lambda children, _: cls(*children))
    if _is_struct_sequence(cls):
        return (lambda tree: (list(tree), None)), (lambda children, _: cls(children))
    registered: Any = getattr(_torch_pytree, "SUPPORTED_NODES", {}).get(cls)
    if registered is None:
        return None
    return registered.flatten_fn, registered.unflatten_fn


def flatten(tree: Any) -> tuple[list[Any], TreeSpec]:
    """Leaves of a pytree in order, and its shape. ``None`` is a leaf, as in torch."""
    if type(tree) is torch.Tensor:
        return [tree], LEAF
    if type(tree) is tuple and len(tree) == 1 and type(tree[0]) is torch.Tensor:
        return [tree[0]], _ONE
    leaves: list[Any] = []
    return leaves, _collect(tree, leaves)


def _collect(tree: Any, leaves: list[Any]) -> TreeSpec:
    cls = type(tree)
    handlers = _handlers(cls)
    if handlers is None:
        leaves.append(tree)
        return LEAF
    children, context = handlers[0](tree)
    specs = []
    for child in children:
        # most leaves are tensors, for which this is quicker than the search for handlers
        if type(child) is torch.Tensor:
            leaves.append(child)
            specs.append(LEAF)
        else:
            specs.append(_collect(child, leaves))
    return TreeSpec(cls, context, tuple(specs))


def unflatten(leaves: Any, spec: TreeSpec) -> Any:
    """Build the pytree of shape `spec` from exactly as many leaves as it has."""
    leaves = list(leaves)
    if len(leaves) != spec.num_leaves:
        raise ValueError(f"expected {spec.num_leaves} leaves for the structure {spec}, got {len(leaves)}")
    if spec.type is None:
        return leaves[0]
    if spec is _ONE:
        return (leaves[0],)
    return _build(iter(leaves), spec)


def _build(leaves: Any, spec: TreeSpec) -> Any:
    if spec.type is None:
        return next(leaves)
    handlers = _handlers(spec.type)
    assert handlers is not None  # the spec was made by flatten()
    children = [next(leaves) if child.type is None else _build(leaves, child) for child in spec.children]
    return handlers[1](children, spec.context)


def map(func: Callable[[Any], Any], tree: Any) -> Any:
    """Apply `func` to every leaf."""
    leaves, spec = flatten(tree)
    return unflatten([func(leaf) for leaf in leaves], spec)


def broadcast_prefix(prefix: Any, spec: TreeSpec) -> list[Any] | None:
    """Leaves of `prefix`, each repeated over the subtree of `spec` that it stands for.

    ``None`` where `prefix` is not a prefix of that structure. This is how ``in_dims=(0, None)`` is
    spread over arguments that are themselves pytrees.
    """
    handlers = _handlers(type(prefix))
    if handlers is None:
        return [prefix] * spec.num_leaves
    children, context = handlers[0](prefix)
    mappings = isinstance(prefix, dict) and isinstance(spec.type, type) and issubclass(spec.type, dict)
    if not (mappings or spec.type is type(prefix)) or len(children) != len(spec.children):
        return None
    if mappings:  # by key, in any order
        if set(context[0]) != set(spec.context[0]):
            return None
        children = [prefix[key] for key in spec.context[0]]
    elif context != spec.context:
        return None
    result: list[Any] = []
    for child, child_spec in zip(children, spec.children):
        part = broadcast_prefix(child, child_spec)
        if part is None:
            return None
        result.extend(part)
    return result
