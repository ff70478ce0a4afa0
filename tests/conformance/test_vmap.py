"""vmap on every backend: dimensions, pytrees, chunks, in-place operations, errors, gradients."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import pytest
import torch
from support.tolerances import assert_close

from torch_func_compat import grad, vmap

Pair = namedtuple("Pair", "left right")


def numbers(*shape, device="cpu", scale=1.0):
    """Distinct float64 numbers of order one, without the random generator."""
    size = int(torch.Size(shape).numel())
    return (torch.arange(1, size + 1, dtype=torch.float64, device=device) * scale).sin().reshape(shape)


def looped(func, *tensors):
    return torch.stack([func(*sample) for sample in zip(*tensors)])


# ---- in_dims and out_dims


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_in_dim(backend, device, dim):
    x = numbers(2, 3, 4, device=device)
    expected = looped(lambda a: a.sin().cumsum(0), x.unbind(dim))
    assert_close(vmap(lambda a: a.sin().cumsum(0), in_dims=dim)(x), expected)
    assert_close(vmap(lambda a: a.sin().cumsum(0), in_dims=(dim,))(x), expected)


@pytest.mark.parametrize(
    ("in_dims", "pack", "unpack"),
    [
        ((0, 0), lambda a, b: (a, b.t()), lambda a, b: (a, b)),
        ((0, -1), lambda a, b: (a, b), lambda a, b: (a, b)),
        (([0, 1],), lambda a, b: ([a, b],), lambda ab: ab),
        (((0, 1), None), lambda a, b: ((a, b), 2.0), lambda ab, _: ab),
        (({"a": 0, "b": 1},), lambda a, b: ({"a": a, "b": b},), lambda d: (d["a"], d["b"])),
        ((Pair(0, 1),), lambda a, b: (Pair(a, b),), lambda p: (p.left, p.right)),
        (({"a": 0, "b": [None, 1]},), lambda a, b: ({"a": a, "b": ["x", b]},), lambda d: (d["a"], d["b"][1])),
        (0, lambda a, b: (OrderedDict(a=a, b=b.t()),), lambda d: (d["a"], d["b"])),
        ((0,), lambda a, b: ({"p": Pair(a, [b.t()])},), lambda d: (d["p"].left, d["p"].right[0])),
    ],
)
def test_in_dims_of_any_structure(backend, device, in_dims, pack, unpack):
    a, b = numbers(5, 3, device=device), numbers(3, 5, device=device, scale=0.3)

    def func(*args):
        left, right = unpack(*args)
        return left * right.cos()

    assert_close(vmap(func, in_dims=in_dims)(*pack(a, b)), a * b.t().cos())


def test_dims_in_a_dict_belong_to_its_keys(backend, device):
    data = {"a": numbers(2, 3, device=device), "b": numbers(3, 2, device=device)}
    result = vmap(lambda d: d["a"] + d["b"], in_dims=({"b": 1, "a": 0},))(data)
    assert_close(result, data["a"] + data["b"].t())
    result = vmap(lambda a: {"a": a.sin(), "b": a.cos()}, out_dims={"b": 1, "a": 0})(data["a"])
    assert_close(result, {"a": data["a"].sin(), "b": data["a"].cos().t()})


@pytest.mark.parametrize("shared", [0, 1])
def test_none_shares_an_argument(backend, device, shared):
    x, w = numbers(4, 3, device=device), numbers(3, device=device, scale=0.7)
    in_dims, args = ((None, 0), (w, x)) if shared == 0 else ((0, None), (x, w))
    assert_close(vmap(torch.sub, in_dims=in_dims)(*args), args[0] - args[1])


def test_keyword_arguments_are_shared(backend, device):
    x, w = numbers(4, 3, device=device), numbers(4, 3, device=device, scale=0.7)
    result = vmap(lambda a, *, factor, name: a * factor if name == "times" else a)(x, factor=w, name="times")
    assert_close(result, x[:, None] * w)


@pytest.mark.parametrize("out_dim", [0, 1, 2, -1, -2, -3, (0,), (-1,), (1,)])
def test_out_dim(backend, device, out_dim):
    x = numbers(5, 2, 3, device=device)
    position = out_dim[0] if isinstance(out_dim, tuple) else out_dim
    assert_close(vmap(torch.sin, out_dims=out_dim)(x), x.sin().movedim(0, position))


@pytest.mark.parametrize(
    ("out_dims", "expected"),
    [
        (1, lambda x: {"s": (x.sin().t(), [x.cos().t()])}),
        (-1, lambda x: {"s": (x.sin().t(), [x.cos().t()])}),
        ({"s": 0}, lambda x: {"s": (x.sin(), [x.cos()])}),
        ({"s": (0, 1)}, lambda x: {"s": (x.sin(), [x.cos().t()])}),
        ({"s": (-1, [0])}, lambda x: {"s": (x.sin().t(), [x.cos()])}),
    ],
)
def test_out_dims_of_any_structure(backend, device, out_dims, expected):
    x = numbers(4, 3, device=device)
    assert_close(vmap(lambda a: {"s": (a.sin(), [a.cos()])}, out_dims=out_dims)(x), expected(x))


@pytest.mark.parametrize("shared", [3, "label", None, numbers(2)], ids=["int", "str", "None", "tensor"])
def test_out_dims_none_returns_what_samples_share(backend, device, shared):
    x = numbers(4, 3, device=device)
    result, same = vmap(lambda a: (a.sin(), shared), out_dims=(0, None))(x)
    assert_close(result, x.sin())
    assert same is shared or torch.equal(same, shared)


def test_an_output_that_does_not_depend_on_the_sample_is_repeated(backend, device):
    """torch < 2.15 puts the batch dimension elsewhere than `out_dims` says, without an error where sizes fit."""
    x, w = numbers(4, 3, device=device), numbers(4, 4, device=device)
    assert_close(vmap(lambda a: (a.sum(), w))(x), (x.sum(1), w.expand(4, 4, 4)))
    for out_dim in (1, 2):
        expected = w.unsqueeze(out_dim).expand(4, 4, 4)
        assert_close(vmap(lambda a: (a.sum(), w), out_dims=(0, out_dim))(x), (x.sum(1), expected))


def test_such_an_output_with_a_negative_out_dim(backend, device):
    """torch < 2.15 reads memory that is not its own: https://github.com/pytorch/pytorch/issues/178425."""
    x, w = numbers(4, 3, device=device), numbers(2, device=device)
    assert_close(vmap(lambda a: (a.sum(), w), out_dims=-1)(x), (x.sum(1), w[:, None].expand(2, 4)))


@pytest.mark.parametrize(
    "make", [Pair, lambda a, b: OrderedDict(b=b, a=a), lambda a, b: [a, (b,)], lambda a, b: (a, b)]
)
def test_containers_come_back_as_they_went(backend, device, make):
    a, b = numbers(4, 3, device=device), numbers(4, device=device)
    result = vmap(lambda tree: tree)(make(a, b))
    assert type(result) is type(make(a, b))
    assert_close(result, make(a, b))


# ---- nesting, chunks, extreme batches


def test_nested(backend, device):
    x, y = numbers(3, 2, device=device), numbers(4, 2, device=device, scale=0.3)
    kernel = lambda a, b: torch.exp(-(a - b).pow(2).sum())
    expected = torch.exp(-(x[:, None] - y).pow(2).sum(-1))
    assert_close(vmap(vmap(kernel, (None, 0)), (0, None))(x, y), expected)
    assert_close(vmap(lambda a: vmap(lambda b: kernel(a, b))(y))(x), expected)
    assert_close(vmap(vmap(kernel, (0, None)), (None, 0), out_dims=1)(x, y), expected)


def test_nested_three_deep_with_dimensions(backend, device):
    x = numbers(2, 3, 4, 5, device=device)
    result = vmap(vmap(vmap(lambda a: a.sum() + a, -1, 0), 1, -1), 0, 1)(x)
    samples = x.permute(0, 2, 3, 1)  # each level takes its dimension from what the levels outside left
    expected = (samples.sum(-1, keepdim=True) + samples).permute(2, 0, 3, 1)
    assert_close(result, expected)


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 7])
def test_chunks_change_nothing(backend, device, chunk_size):
    x, w = numbers(3, 5, device=device), numbers(3, device=device, scale=0.3)
    func = lambda a, b: {"out": (a * b, a.sum())}
    for out_dims in (0, {"out": (-1, 0)}):
        expected = vmap(func, (1, None), out_dims)(x, w)
        assert_close(vmap(func, (1, None), out_dims, chunk_size=chunk_size)(x, w), expected)


def test_chunks_with_a_shared_output(backend, device):
    x = numbers(5, 2, device=device)
    result, shared = vmap(lambda a: (a.sin(), x), out_dims=(0, None), chunk_size=2)(x)
    assert_close((result, shared), (x.sin(), x))


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize(
    ("func", "out_dims", "shape"),
    [
        (torch.sin, 0, (0, 3)),
        (torch.sin, 1, (3, 0)),
        (torch.sum, 0, (0,)),
        (lambda a: a[:, None] * a[:2], -1, (3, 2, 0)),
        (lambda a: torch.ones(2, dtype=torch.int64, device=a.device), 0, (0, 2)),
    ],
    ids=["sin", "out_dims", "sum", "outer", "unbatched"],
)
def test_no_samples(backend, device, func, out_dims, shape, chunk_size):
    result = vmap(func, out_dims=out_dims, chunk_size=chunk_size)(numbers(0, 3, device=device))
    assert result.shape == shape
    assert result.dtype == func(numbers(3, device=device)).dtype


def test_no_samples_stay_differentiable(backend, device):
    x = numbers(0, 3, device=device).requires_grad_()
    result = vmap(torch.sin)(x)
    assert result.requires_grad
    assert_close(torch.autograd.grad(result.sum(), x)[0], torch.zeros_like(x))


def test_one_sample(backend, device):
    x = numbers(1, 3, device=device)
    assert_close(vmap(lambda a: (a.sum(), a), out_dims=(0, 1))(x), (x.sum(1), x.t()))


# ---- in-place operations


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_in_place_on_a_slice_reaches_the_argument(backend, device, dim, chunk_size):
    x = numbers(3, 4, device=device)
    expected = x.exp() * 2
    result = vmap(lambda a: a.exp_().mul_(2), in_dims=dim, out_dims=dim, chunk_size=chunk_size)(x)
    assert_close((x, result), (expected, expected))


def test_in_place_on_a_slice_is_differentiated(backend, device):
    x = numbers(40, 3, device=device).requires_grad_()
    buffer = x * 1
    vmap(lambda a: a.mul_(a.detach().cos()))(buffer)
    assert_close(buffer, x * x.cos())
    assert_close(torch.autograd.grad(buffer.sum(), x)[0], x.detach().cos())


def test_in_place_into_a_buffer_made_inside(backend, device):
    def func(a):
        buffer = a.new_zeros(4)
        buffer[0] = a.sum()
        buffer[1:].copy_(a)
        buffer[2].mul_(a[0])
        return buffer

    x = numbers(5, 3, device=device)
    assert_close(vmap(func)(x), looped(func, x))
    gradient = vmap(grad(lambda a: func(a).square().sum()))(x)
    leaf = x.clone().requires_grad_()
    assert_close(gradient, torch.autograd.grad(looped(func, leaf).square().sum(), leaf)[0])


def test_in_place_into_a_shared_argument_raises(backend, device):
    x, shared = numbers(4, 3, device=device), torch.zeros(3, dtype=torch.float64, device=device)
    with pytest.raises(RuntimeError):
        vmap(lambda a, total: total.add_(a), in_dims=(0, None))(x, shared)


# ---- errors, as torch.func raises them

ERRORS = {
    "no inputs": (lambda x: vmap(lambda: x)(), "got no inputs"),
    "no tensor": (lambda x: vmap(lambda a: a)([]), "at least one Tensor"),
    "nothing mapped": (lambda x: vmap(torch.sin, in_dims=(None,))(x), "at least one Tensor"),
    "a number": (lambda x: vmap(lambda a: a)(3.0), "cannot vmap over non-Tensor"),
    "a number in a tree": (lambda x: vmap(lambda d: d["x"])({"x": x, "n": 2}), "cannot vmap over non-Tensor"),
    "no dimension": (lambda x: vmap(torch.sin)(x.sum()), "dimensionality 0"),
    "in_dim too large": (lambda x: vmap(torch.sin, in_dims=2)(x), r"-2 <= in_dim < 2"),
    "in_dim too small": (lambda x: vmap(torch.sin, in_dims=-3)(x), r"-2 <= in_dim < 2"),
    "unequal sizes": (lambda x: vmap(torch.add)(x, x[:2]), r"same size in the mapped dimension, got sizes \[3, 2\]"),
    "in_dims None": (lambda x: vmap(torch.sin, in_dims=None)(x), "expected `in_dims` to be int or"),
    "in_dims list": (lambda x: vmap(torch.sin, in_dims=[0])(x), "expected `in_dims` to be int or"),
    "in_dims float": (lambda x: vmap(torch.sin, in_dims=(0.5,))(x), "must be either an integer dimension or None"),
    "in_dims too few": (lambda x: vmap(torch.add, in_dims=(0,))(x, x), "in_dims is not compatible"),
    "in_dims too many": (lambda x: vmap(torch.sin, in_dims=(0, 0))(x), "in_dims is not compatible"),
    "in_dims other keys": (
        lambda x: vmap(lambda d: d["a"], in_dims=({"b": 0},))({"a": x}),
        "in_dims is not compatible",
    ),
    "out_dims too many": (lambda x: vmap(torch.sin, out_dims=(0, 0))(x), "out_dims is not compatible"),
    "out_dims too few": (lambda x: vmap(lambda a: (a, a), out_dims=(0,))(x), "out_dims is not compatible"),
    "out_dims list": (lambda x: vmap(torch.sin, out_dims=[0])(x), "out_dims is not compatible"),
    "out_dims str": (lambda x: vmap(torch.sin, out_dims="0")(x), "`out_dims` must be an int, None or"),
    "int output": (lambda x: vmap(lambda a: 3)(x), "must only return Tensors, got type <class 'int'>"),
    "None output": (lambda x: vmap(lambda a: (a, None))(x), "must only return Tensors, got type <class 'NoneType'>"),
    "out_dims None": (
        lambda x: vmap(torch.sin, out_dims=None)(x),
        "can not return a BatchedTensor when out_dim is None",
    ),
    "chunk_size": (lambda x: vmap(torch.sin, chunk_size=0)(x), "chunk_size"),
}


@pytest.mark.parametrize(("call", "match"), list(ERRORS.values()), ids=list(ERRORS))
def test_value_errors(backend, device, call, match):
    with pytest.raises(ValueError, match=match):
        call(numbers(3, 2, device=device))


@pytest.mark.parametrize("out_dim", [2, -3])
def test_out_dim_out_of_range(backend, device, out_dim):
    with pytest.raises(IndexError, match="Dimension out of range"):
        vmap(torch.sin, out_dims=out_dim)(numbers(3, 2, device=device))


# ---- what only a loop can do


def test_functions_that_look_at_values(backend, device):
    x = numbers(6, 3, device=device)
    func = lambda a: a.exp() if a.sum() > 0 else a * a[0].item()
    assert_close(vmap(func)(x), looped(func, x))


@pytest.mark.parametrize(
    "func",
    [lambda a: a[: 2 if a[0] == 1 else 1], lambda a: a.float() if a[0] == 1 else a, lambda a: (a,) if a[0] == 1 else a],
    ids=["shape", "dtype", "structure"],
)
def test_results_that_differ_name_the_sample(backend, device, func):
    with pytest.raises(RuntimeError, match="sample 1 "):
        vmap(func)(torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64, device=device))


# ---- gradients through vmap


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_gradients_of_mapped_shared_and_closed_over_tensors(backend, device, chunk_size):
    leaves = [numbers(*s, device=device, scale=k).requires_grad_() for k, s in enumerate([(5, 3), (3,), (3, 3)], 1)]
    x, shared, closed = leaves
    mapped = vmap(lambda a, b: torch.tanh(closed @ a) * b, in_dims=(0, None), chunk_size=chunk_size)
    expected = torch.tanh(x @ closed.t()) * shared
    assert_close(mapped(x, shared), expected)
    weights = numbers(5, 3, device=device, scale=0.2)
    gradients = torch.autograd.grad((mapped(x, shared) * weights).sum(), leaves)
    assert_close(list(gradients), list(torch.autograd.grad((expected * weights).sum(), leaves)))


def test_nothing_requires_grad_of_itself(backend, device):
    x = numbers(3, 2, device=device)
    assert not vmap(torch.sin)(x).requires_grad
    with torch.no_grad():
        assert not vmap(torch.sin)(x.clone().requires_grad_()).requires_grad


def test_backward_costs_no_square_of_the_batch(backend, device):
    size, allocated, seen = 2048, [0], set()
    x = numbers(size, device=device).requires_grad_()
    result = vmap(torch.sin)(x)

    def count(grad_inputs, _):
        allocated[0] += sum(g.numel() for g in grad_inputs if g is not None)

    nodes = [result.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            node.register_hook(count)
            nodes += [below for below, _ in node.next_functions]
    assert_close(torch.autograd.grad(result.sum(), x)[0], x.detach().cos())
    assert allocated[0] < size**2 / 10, "elements of all gradients on the way"


def test_in_dims_of_one_mapping_fit_another(backend):
    """torch.func takes dicts, OrderedDicts and defaultdicts for each other in in_dims."""
    argument = OrderedDict(b=torch.ones(3, 2), a=2 * torch.ones(2, 3))
    mapped = vmap(lambda d: d["a"] * d["b"], in_dims=({"b": 0, "a": 1},))
    assert mapped(argument).tolist() == [[2.0, 2.0]] * 3
