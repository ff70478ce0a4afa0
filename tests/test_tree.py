"""Pytrees: every container with the newest torch's rules, on every torch."""

from __future__ import annotations

import contextlib
from collections import OrderedDict, defaultdict, deque, namedtuple

import pytest
import torch
import torch.utils._pytree as torch_pytree
from support.xfails import TORCH

from torch_func_compat import grad, vmap
from torch_func_compat._torch import pytree

Point = namedtuple("Point", "x y")


class SubPoint(Point):
    """Inherits from a namedtuple and is one."""


class Box:
    """A container of the user, to be registered."""

    def __init__(self, label, content):
        self.label, self.content = label, content

    def __eq__(self, other):
        return type(other) is Box and (self.label, self.content) == (other.label, other.content)

    __hash__ = None


@pytest.fixture
def registered_box():
    register = getattr(torch_pytree, "register_pytree_node", None) or torch_pytree._register_pytree_node
    register(Box, lambda box: ([box.content], box.label), lambda children, label: Box(label, *children))
    yield
    for registry in ("SUPPORTED_NODES", "SUPPORTED_SERIALIZED_TYPES", "SERIALIZED_TYPE_TO_PYTHON_TYPE"):
        with contextlib.suppress(AttributeError):
            getattr(torch_pytree, registry).pop(Box, None)


CONTAINERS = {
    "leaf": (7, [7]),
    "None": (None, [None]),
    "list": ([1, 2], [1, 2]),
    "tuple": ((1, 2), [1, 2]),
    "empty": (((), [], {}), []),
    "dict in its order": ({"b": 1, "a": 2}, [1, 2]),
    "OrderedDict": (OrderedDict([("b", 1), ("a", 2)]), [1, 2]),
    "defaultdict": (defaultdict(list, b=1, a=2), [1, 2]),
    "deque": (deque([1, 2], maxlen=3), [1, 2]),
    "namedtuple": (Point(1, 2), [1, 2]),
    "return_types": (type(torch.ones(1).max(0))((1, 2)), [1, 2]),
    "nested": ([{"a": (1, None)}, Point(deque([2]), OrderedDict(c=[3]))], [1, None, 2, 3]),
    "a string is a leaf": (["text"], ["text"]),
    "a set is a leaf": ([{1}], [{1}]),
    "a subclass of dict is a leaf": ([type("Sub", (dict,), {})(a=1)], [{"a": 1}]),
    "a subclass of a namedtuple": (SubPoint(1, 2), [1, 2]),
}
containers = pytest.mark.parametrize(("tree", "leaves"), list(CONTAINERS.values()), ids=list(CONTAINERS))


@containers
def test_round_trip(tree, leaves):
    flat, spec = pytree.flatten(tree)
    assert flat == leaves
    assert spec.num_leaves == len(leaves)
    back = pytree.unflatten(flat, spec)
    assert type(back) is type(tree)
    assert back == tree


@containers
def test_map(tree, leaves):
    doubled = pytree.map(lambda leaf: (leaf, leaf), tree)
    if leaves == [tree]:
        assert doubled == (tree, tree)
    else:
        assert type(doubled) is type(tree)
        # the pairs are trees themselves
        assert pytree.flatten(doubled)[1].num_leaves == sum(2 * pytree.flatten(leaf)[1].num_leaves for leaf in leaves)


@containers
def test_the_newest_torch_agrees(tree, leaves):
    if TORCH < (2, 13):
        pytest.skip("this torch does not know every container yet")
    assert torch_pytree.tree_flatten(tree)[0] == leaves


def test_what_a_container_keeps_beside_its_children():
    by_default = pytree.map(str, defaultdict(list, a=1))
    assert by_default.default_factory is list
    assert pytree.map(str, deque([1], maxlen=3)).maxlen == 3
    assert list(pytree.map(str, OrderedDict([("b", 1), ("a", 2)]))) == ["b", "a"]


def test_size_is_a_tuple_of_numbers():
    leaves, spec = pytree.flatten(torch.Size([2, 3]))
    assert leaves == [2, 3]
    assert pytree.unflatten(leaves, spec) == (2, 3)


def test_return_types_of_torch():
    result = torch.ones(2, 3).max(dim=0)
    leaves, spec = pytree.flatten(result)
    assert [leaf.dtype for leaf in leaves] == [torch.float32, torch.int64]
    back = pytree.unflatten(leaves, spec)
    assert type(back) is type(result)
    assert back.indices is result.indices


def test_nodes_registered_with_torch(registered_box):
    tree = {"box": Box("mine", [1, 2])}
    leaves, spec = pytree.flatten(tree)
    assert leaves == [1, 2]
    assert pytree.unflatten([3, 4], spec) == {"box": Box("mine", [3, 4])}
    assert spec != pytree.flatten({"box": Box("other", [1, 2])})[1]


def test_an_unregistered_class_is_a_leaf():
    box = Box("mine", 1)
    assert pytree.flatten([box])[0] == [box]


def test_registered_nodes_go_through_transforms(registered_box, backend, device):
    x = torch.arange(3.0, device=device)
    result = vmap(lambda box: Box("out", box.content * 2))(Box("in", x))
    assert result.label == "out"
    assert torch.equal(result.content, x * 2)
    gradient = grad(lambda box: box.content.square().sum())(Box("in", x))
    assert gradient.label == "in"
    assert torch.equal(gradient.content, x * 2)


# ---- TreeSpec


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ([1, 2], (1, 2)),
        ([1, 2], [1, [2]]),
        ([1, 2], [1, 2, 3]),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, OrderedDict(a=1)),
        ((1, 2), Point(1, 2)),
        (deque([1]), deque([1], maxlen=2)),
        (defaultdict(list, a=1), defaultdict(int, a=1)),
        ([], 1),
    ],
)
def test_unequal_structures(left, right):
    assert pytree.flatten(left)[1] != pytree.flatten(right)[1]


def test_equal_structures_whatever_the_leaves():
    assert pytree.flatten([1, {"a": None}])[1] == pytree.flatten(["x", {"a": torch.ones(2)}])[1]
    assert pytree.flatten(1)[1] == pytree.LEAF
    assert pytree.LEAF != "*"


def test_repr_shows_the_structure():
    assert repr(pytree.LEAF) == "*"
    assert repr(pytree.flatten([1, (2,)])[1]) == "list([*, tuple([*])])"
    shown = repr(pytree.flatten({"key": Point(1, 2)})[1])
    assert "dict" in shown and "key" in shown and "Point([*, *])" in shown


@pytest.mark.parametrize("leaves", [[], [1], [1, 2, 3]])
def test_unflatten_needs_as_many_leaves_as_there_are(leaves):
    with pytest.raises(ValueError, match=f"expected 2 leaves .* got {len(leaves)}"):
        pytree.unflatten(leaves, pytree.flatten([0, (0,)])[1])


def test_unflatten_takes_any_iterable():
    assert pytree.unflatten((i for i in (1, 2)), pytree.flatten([0, (0,)])[1]) == [1, (2,)]


# ---- prefixes


@pytest.mark.parametrize(
    ("prefix", "tree", "expected"),
    [
        (0, [1, {"a": 2}], [0, 0]),
        (None, (1, 2), [None, None]),
        ((0, None), (1, [2, 3]), [0, None, None]),
        ((0, [1, None]), (1, [2, 3]), [0, 1, None]),
        ({"a": 0, "b": 1}, {"a": [1, 2], "b": 3}, [0, 0, 1]),
        (Point(0, 1), Point(1, (2, 3)), [0, 1, 1]),
        (OrderedDict(a=5), OrderedDict(a=(1, 2)), [5, 5]),
        (0, (), []),
        ((), (), []),
        ((0,), 1, None),
        ((0,), (1, 2), None),
        ([0, 1], (1, 2), None),
        ({"b": 0}, {"a": 1}, None),
        ((0, 1), Point(1, 2), None),
        ((0, (1, 2)), (1, 2), None),
    ],
)
def test_broadcast_prefix(prefix, tree, expected):
    assert pytree.broadcast_prefix(prefix, pytree.flatten(tree)[1]) == expected


def test_prefix_of_dicts_in_another_order():
    spec = pytree.flatten({"a": 1, "b": (2, 3)})[1]
    assert pytree.broadcast_prefix({"b": 1, "a": 0}, spec) == [0, 1, 1]
