"""Random functions of random pytrees under random compositions of transforms.

Two properties: the outermost transform is what finite differences (for vmap: a loop) make of the function
inside, on every backend; and all backends give the same, including which results require grad.

A function is a program: a list of steps, each of which makes one more tensor from those there are. Data
are fixed by their shapes, so that an example shrinks to fewer steps, smaller shapes, fewer transforms.
"""

from __future__ import annotations

import gc
import os
from typing import Any, Callable, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.tolerances import assert_close
from torch import Tensor

import torch_func_compat as tfc
from torch_func_compat._torch import pytree

MAX_INPUT, MAX_OUTPUT, MAX_ORDER = 6, 6, 3

SETTINGS = settings(
    max_examples=40,
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    phases=[phase for phase in Phase if phase is not Phase.explain],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# ---- functions

# Bounded or nearly so: what grows in four steps also oscillates, and finite differences lose their digits.
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "sin": torch.sin,
    "tanh": torch.tanh,
    "exp": lambda a: (0.5 * a.sin()).exp(),
    "square": lambda a: a.sin() * a.sin(),
    "power": lambda a: (1.5 + a.cos()).pow(-1.5),
    "log": lambda a: (1 + a * a).log(),
    "reciprocal": lambda a: 1 / (2 + a.sin()),
    "softmax": lambda a: torch.softmax(a, -1),
    "cumsum": lambda a: a.cumsum(-1),
    "sum": lambda a: a.sum(),
    "sum last": lambda a: a.sum(-1),
    "reverse": lambda a: a.flip(-1) if a.dim() else a,
    "transpose": lambda a: a.transpose(0, -1) if a.dim() else a,
    "first": lambda a: a.narrow(-1, 0, 1) if a.dim() and a.shape[-1] else a,
    "flatten": lambda a: a.reshape(-1),
    "constant": torch.ones_like,
    "detached": lambda a: a.detach().cos(),
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b.sin(),
    "div": lambda a, b: a / (2 + b.cos()),
    "where": lambda a, b: torch.where(weights(a, 0.8) > 0, a.tanh(), b),
}


def weights(like: Tensor, phase: float) -> Tensor:
    """Fixed numbers of order one in the shape of `like`."""
    return torch.cos(torch.arange(like.numel(), dtype=like.dtype, device=like.device) * 0.7 + phase).reshape(like.shape)


class Step(NamedTuple):
    op: str
    left: int
    right: int

    def apply(self, values: list[Tensor]) -> Tensor:
        left, right = values[self.left % len(values)], values[self.right % len(values)]
        if self.op in UNARY:
            return UNARY[self.op](left)
        if left.shape != right.shape:
            right = (right * weights(right, 0.1)).sum()  # always broadcasts
        return BINARY[self.op](left, right)


class Program(NamedTuple):
    """A smooth function; `closed` is a tensor that it closes over."""

    steps: tuple[Step, ...]
    outputs: str
    closed: bool

    def bind(self, outside: Tensor) -> Callable[..., Any]:
        def func(*args: Any) -> Any:
            values = list(pytree.flatten(args)[0])
            if self.closed:
                values.append(outside)
            for step in self.steps:
                values.append(step.apply(values))
            # Every output depends on every tensor, and nonlinearly: so do all of its derivatives, and what
            # requires grad is the same by any way to compute them.
            all_of_them = sum((v * weights(v, 0.3)).sum() for v in values).sin()
            last, first = values[-1] * (2 + all_of_them), values[0] * all_of_them
            return {"one": last, "tuple": (last, first), "dict": {"last": [last]}}[self.outputs]

        return func


# ---- transforms, on arguments of the same shapes, so that they compose in any order


def contract(tree: Any) -> Any:
    """Leaves with few elements that still depend on all there were."""
    return pytree.map(
        lambda t: t if t.numel() <= MAX_OUTPUT else (t * weights(t, 0.2)).sum((*range(t.dim() - 1),)), tree
    )


def total(tree: Any) -> Tensor:
    return sum((t * weights(t, 0.4)).sum() for t in pytree.flatten(tree)[0])


def _vmap(api: Any, func: Callable[..., Any], argnums: Any) -> Callable[..., Any]:
    def mapped(*args: Any) -> Any:
        # the batch is made of the arguments, so that what is outside differentiates through it
        batch = pytree.map(lambda t: torch.stack([t, t.sin() + 0.1], -1), args)
        return api.vmap(func, in_dims=-1, out_dims=-1)(*batch)

    return mapped


def _vjp(api: Any, func: Callable[..., Any], argnums: Any) -> Callable[..., Any]:
    def pulled(*args: Any) -> Any:
        output, pull = api.vjp(func, *args)
        return output, pull(pytree.map(lambda t: weights(t, 0.5), output))

    return pulled


def _jvp(api: Any, func: Callable[..., Any], argnums: Any) -> Callable[..., Any]:
    return lambda *args: api.jvp(func, args, pytree.map(lambda t: weights(t, 0.6), args))


TRANSFORMS: dict[str, tuple[int, Callable[[Any, Callable[..., Any], Any], Callable[..., Any]]]] = {
    # name: (order of the derivative, transform)
    "vmap": (0, _vmap),
    "grad": (1, lambda api, f, argnums: api.grad(lambda *args: total(f(*args)), argnums)),
    "vjp": (1, _vjp),
    "jvp": (1, _jvp),
    "jacrev": (1, lambda api, f, argnums: api.jacrev(f, argnums)),
    "jacfwd": (1, lambda api, f, argnums: api.jacfwd(f, argnums)),
    "hessian": (2, lambda api, f, argnums: api.hessian(f, argnums)),
}


def compose(api: Any, names: tuple[str, ...], func: Callable[..., Any], argnums: Any) -> Callable[..., Any]:
    """Transforms by name, the innermost first."""
    for name in names:
        inner = func
        func = TRANSFORMS[name][1](api, lambda *args, inner=inner: contract(inner(*args)), argnums)
    return func


class Numerical:
    """torch.func's names by finite differences of fourth order and Python loops."""

    step = 1e-3

    @staticmethod
    def vmap(func: Callable[..., Any], in_dims: int, out_dims: int) -> Callable[..., Any]:
        def mapped(*args: Any) -> Any:
            leaves, spec = pytree.flatten(args)
            samples = [func(*pytree.unflatten(sample, spec)) for sample in zip(*(t.unbind(in_dims) for t in leaves))]
            flat = zip(*(pytree.flatten(sample)[0] for sample in samples))
            return pytree.unflatten([torch.stack(parts, out_dims) for parts in flat], pytree.flatten(samples[0])[1])

        return mapped

    @classmethod
    def jvp(cls, func: Callable[..., Any], primals: Any, tangents: Any) -> Any:
        (leaves, spec), directions = pytree.flatten(primals), pytree.flatten(tangents)[0]
        at = lambda h: pytree.flatten(func(*pytree.unflatten([p + h * t for p, t in zip(leaves, directions)], spec)))
        (a, b, c, d), output = (at(k * cls.step)[0] for k in (-2, -1, 1, 2)), func(*primals)
        slopes = [(w - 8 * x + 8 * y - z) / (12 * cls.step) for w, x, y, z in zip(a, b, c, d)]
        return output, pytree.unflatten(slopes, pytree.flatten(output)[1])

    @classmethod
    def jacfwd(cls, func: Callable[..., Any], argnums: Any) -> Callable[..., Any]:
        def jacobian(*args: Any) -> Any:
            leaves, spec = pytree.flatten(args)
            outputs, output_spec = pytree.flatten(func(*args))
            columns: list[list[list[Tensor]]] = []  # [leaf of the arguments][element of it][output]
            for k, leaf in enumerate(leaves):
                basis = torch.eye(leaf.numel(), dtype=leaf.dtype, device=leaf.device).reshape(leaf.numel(), *leaf.shape)
                zeros = [torch.zeros_like(t) for t in leaves]
                along = ([*zeros[:k], basis[i], *zeros[k + 1 :]] for i in range(leaf.numel()))
                columns.append([pytree.flatten(cls.jvp(func, args, pytree.unflatten(v, spec))[1])[0] for v in along])

            def block(i: int, output: Tensor, k: int, leaf: Tensor) -> Tensor:
                parts = [column[i].reshape(-1) for column in columns[k]] or [output.new_zeros(0)]
                return torch.stack(parts, -1).reshape(output.shape + leaf.shape)

            rows = [[block(i, o, k, t) for k, t in enumerate(leaves)] for i, o in enumerate(outputs)]
            return pytree.unflatten([select(pytree.unflatten(row, spec), argnums) for row in rows], output_spec)

        return jacobian

    jacrev = grad = jacfwd  # of a scalar function, the gradient is the Jacobian

    @classmethod
    def hessian(cls, func: Callable[..., Any], argnums: Any) -> Callable[..., Any]:
        return cls.jacfwd(cls.jacfwd(func, argnums), argnums)

    @classmethod
    def vjp(cls, func: Callable[..., Any], *primals: Any) -> Any:
        output = func(*primals)

        def pull(cotangents: Any) -> Any:
            flat = pytree.flatten(cotangents)[0]
            dot = lambda *args: sum((o * c).sum() for o, c in zip(pytree.flatten(func(*args))[0], flat))
            return cls.grad(dot, tuple(range(len(primals))))(*primals)

        return output, pull


def select(args: tuple[Any, ...], argnums: Any) -> Any:
    return args[argnums] if isinstance(argnums, int) else tuple(args[i] for i in argnums)


# ---- strategies

SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple).filter(lambda s: torch.Size(s).numel() <= MAX_INPUT)


@st.composite
def arguments(draw: Any) -> Any:
    """One or two pytrees of shapes with at most MAX_INPUT elements in all."""
    shapes = draw(st.lists(SHAPES, min_size=1, max_size=3))
    while sum(torch.Size(s).numel() for s in shapes) > MAX_INPUT:
        shapes.pop()
    make = draw(st.sampled_from([lambda s: s, lambda s: [s], lambda s: {"k": (s,)}]))
    if len(shapes) == 3 and draw(st.booleans()):
        return make((Shape(shapes[0]), Shape(shapes[1]))), Shape(shapes[2])
    return tuple(make(Shape(shape)) for shape in shapes)


class Shape:
    """A leaf of a tree of shapes."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __repr__(self) -> str:
        return f"Shape{self.shape}"


def fill(shapes: Any, device: Any) -> Any:
    leaves, spec = pytree.flatten(shapes)
    data = [weights(torch.empty(s.shape, dtype=torch.float64, device=device), 0.9 * k) for k, s in enumerate(leaves)]
    return pytree.unflatten(data, spec)


def programs(*, without: tuple[str, ...] = ()) -> Any:
    names = [name for name in (*UNARY, *BINARY) if name not in without]
    steps = st.builds(Step, st.sampled_from(names), st.integers(0, 5), st.integers(0, 5))
    outputs = st.sampled_from(["one", "tuple", "dict"])
    return st.builds(Program, st.lists(steps, min_size=1, max_size=4).map(tuple), outputs, st.booleans())


COMPOSITIONS = (
    st.lists(st.sampled_from(list(TRANSFORMS)), min_size=1, max_size=3)
    .map(tuple)
    .filter(lambda names: sum(TRANSFORMS[name][0] for name in names) <= MAX_ORDER)
)
ARGNUMS = st.sampled_from([0, (0,), "all"])


# ---- properties


def check_outermost(names: tuple[str, ...], func: Callable[..., Any], args: Any, argnums: Any) -> None:
    inner = compose(tfc, names[:-1], func, argnums)
    result = compose(tfc, names[-1:], inner, argnums)(*args)
    expected = compose(Numerical, names[-1:], inner, argnums)(*args)
    assert_close(result, expected, rtol=1e-5, atol=1e-6)


def closed_over(device: Any) -> Tensor:
    return weights(torch.empty(2, dtype=torch.float64, device=device), 2.0)


# finite differences see through detach()
@SETTINGS
@given(programs(without=("detached",)), arguments(), COMPOSITIONS, ARGNUMS)
def test_the_outermost_transform_is_what_it_says(backend, device, program, shapes, names, argnums):
    argnums = tuple(range(len(shapes))) if argnums == "all" else argnums
    check_outermost(names, program.bind(closed_over(device)), fill(shapes, device), argnums)


@pytest.mark.parametrize("shape", [(0,), (2, 0)], ids=str)
@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_without_elements(backend, device, name, shape):
    check_outermost(
        (name,), lambda x, y: (x.sin(), x.exp() * y, y * y), fill((Shape(shape), Shape(())), device), (0, 1)
    )


def test_garbage_collection_changes_nothing(backend, device):
    """Up to torch 2.0 it clears the attributes of a tensor in a cycle of garbage that a graph still holds."""
    program, thresholds = Program((Step("div", 1, 4),), "one", True), gc.get_threshold()
    try:
        for threshold in range(1, 60):
            gc.set_threshold(threshold)
            func = compose(tfc, ("vmap", "jvp", "grad"), program.bind(closed_over(device)), 0)
            assert not func(*fill((Shape((3,)), Shape(())), device)).requires_grad
    finally:
        gc.set_threshold(*thresholds)


@pytest.mark.skipif(len(tfc.available_backends()) == 1, reason="one backend only")
@SETTINGS
@given(programs(), arguments(), COMPOSITIONS, ARGNUMS, st.lists(st.booleans(), min_size=4, max_size=4))
def test_backends_agree(device, program, shapes, names, argnums, flags):
    argnums = tuple(range(len(shapes))) if argnums == "all" else argnums
    args, outside = fill(shapes, device), closed_over(device)
    for tensor, flag in zip([outside, *pytree.flatten(args)[0]], flags):
        tensor.requires_grad_(flag)
    results = []
    for name in tfc.available_backends():
        with tfc.use_backend(name):
            results.append(compose(tfc, names, program.bind(outside), argnums)(*args))
    first, *others = results
    for other in others:
        assert_close(first, other, rtol=1e-7, atol=1e-8)
        required = [pytree.map(lambda t: t.requires_grad, result) for result in (first, other)]
        assert required[0] == required[1], "which results require grad"
