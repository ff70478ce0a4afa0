"""Fused operations that are composed of elementary ones: values, first and higher derivatives.

The reference is torch's own operation: its values, its first derivatives, and central differences of these.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from support import hermite
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat._guards.by_graph import NORMALISATIONS
from torch_func_compat._guards.compositions import (
    COMPOSITIONS,
    composing,
    given,
    interception,
    normalisations,
    order_of,
    plain,
    table,
)
from torch_func_compat._guards.compositions.composition import Composition
from torch_func_compat._torch import facts

DOUBLE = torch.float64


def numbers(*shape, seed=0, low=-1.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=DOUBLE) * (high - low) + low


class Case:
    """A function of one tensor, a point, and the first derivative that torch lacks or gets wrong of it.

    Where torch lacks the derivative before, the same is needed by hand.
    """

    def __init__(self, func, point, order=2, by_hand=None):
        self.func, self.point, self.order, self.by_hand = func, point, order, by_hand or func

    def loss(self, x):
        return self._loss(self.func(x), x)

    def reference(self, x):
        return self._loss(self.by_hand(x), x)

    @staticmethod
    def _loss(outputs, x):
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        weighted = [y.sin() * (1 + torch.arange(y.numel()).reshape(y.shape).cos()) for y in outputs]
        # of the point, too: by its grid, a nearest sample has no derivative
        return sum(y.sum() for y in weighted) + x.cos().sum()


CASES = {}


def add(name, func, point, **options):
    CASES[name] = Case(func, point, **options)


# --- distances ------------------------------------------------------------------------------------------------------

POINTS = numbers(4, 2)
OTHERS = POINTS + torch.tensor([0.1, 0.25], dtype=DOUBLE)
for p in (1.0, 1.5, 2.0, 3.0, math.inf):
    add(f"pdist {p}", lambda x, p=p: F.pdist(x, p), POINTS)
    add(f"cdist {p}", lambda x, p=p: torch.cdist(x, OTHERS, p), POINTS[:2])
add(
    "third derivatives of pdist",
    F.pdist,
    POINTS[:3],
    order=3,
    by_hand=lambda x: torch.stack([(x[i] - x[j]).pow(2).sum().sqrt() for i, j in ((0, 1), (0, 2), (1, 2))]),
)
add("pdist 0.5", lambda x: torch.pdist(x, 0.5), POINTS[:3])
add("cdist of batches", lambda x: torch.cdist(x, x.cos()), numbers(2, 2, 2, seed=1))

# --- activations ----------------------------------------------------------------------------------------------------

add("hardsigmoid", F.hardsigmoid, torch.tensor([-3.5, -2.0, 0.3, 2.5, 4.0], dtype=DOUBLE))
add("hardsigmoid in place", lambda x: F.hardsigmoid(x * 2, inplace=True), numbers(3))
add("Hardsigmoid", torch.nn.Hardsigmoid(), numbers(3))
add("hardswish", F.hardswish, torch.tensor([-3.5, -2.0, 0.3, 2.5, 4.0], dtype=DOUBLE))
add("hardswish in place", lambda x: F.hardswish(x * 2, inplace=True), numbers(3))

# --- losses ---------------------------------------------------------------------------------------------------------

SCORES, CLASSES, WEIGHT = numbers(3, 4, seed=2), torch.tensor([0, 3, 1]), numbers(4, seed=3, low=0.5)
for p in (1, 2):
    for reduction in ("none", "mean", "sum"):
        add(
            f"multi_margin_loss {p} {reduction}",
            lambda x, p=p, r=reduction: F.multi_margin_loss(x, CLASSES, p, reduction=r),
            SCORES,
        )
    add(
        f"multi_margin_loss {p} with weights",
        lambda x, p=p: F.multi_margin_loss(x, CLASSES, p, margin=0.4, weight=WEIGHT),
        SCORES,
    )
add("multi_margin_loss of a vector", lambda x: F.multi_margin_loss(x, CLASSES[1], 2), SCORES[0])
add(
    "multi_margin_loss of a vector, none",
    lambda x: F.multi_margin_loss(x, CLASSES[1:2], 2, reduction="none"),
    SCORES[0],
)
for size_average, reduce in ((True, False), (False, True), (True, True), (None, False), (False, None)):
    options = {"size_average": size_average, "reduce": reduce}
    add(f"multi_margin_loss {options}", lambda x, o=options: F.multi_margin_loss(x, CLASSES, 2, **o), SCORES)
LABELS = torch.tensor([[3, 0, -1, 1], [1, 1, 2, -1], [-1, 0, 1, 2]])
for reduction in ("none", "mean", "sum"):
    add(
        f"multilabel_margin_loss {reduction}",
        lambda x, r=reduction: F.multilabel_margin_loss(x, LABELS, reduction=r),
        SCORES,
    )
    add(
        f"multilabel_margin_loss of a vector, {reduction}",
        lambda x, r=reduction: F.multilabel_margin_loss(x, LABELS[0], reduction=r),
        SCORES[0],
    )
add("multilabel_margin_loss of old", lambda x: F.multilabel_margin_loss(x, LABELS, size_average=False), SCORES)
POSITIVE = numbers(2, 3, low=0.2)
# The derivatives at probabilities of zero are zero before torch 1.13, and infinite from then on.
FACTORS = torch.tensor([1.0, 0.0 if facts.TORCH < (1, 13) else 0.5, 2.0], dtype=DOUBLE)
for reduction in ("none", "sum", "batchmean"):
    add(
        f"kl_div {reduction}",
        lambda x, r=reduction: F.kl_div(x * x, x * FACTORS, reduction=r),
        POSITIVE,
    )
add("kl_div of logarithms", lambda x: F.kl_div(x * x, x.sin(), reduction="sum", log_target=True), POSITIVE)

# --- connectionist temporal classification --------------------------------------------------------------------------

LOGITS = numbers(5, 2, 3, seed=4)
PADDED, JOINED = torch.tensor([[1, 1], [2, 0]]), torch.tensor([1, 1, 2])
STEPS, COUNTS = torch.tensor([5, 3]), torch.tensor([2, 1])


def ctc(targets=PADDED, steps=STEPS, counts=COUNTS, **options):
    return lambda x: F.ctc_loss(x.log_softmax(-1), targets, steps, counts, **options)


for reduction in ("none", "mean", "sum"):
    add(f"ctc_loss {reduction}", ctc(reduction=reduction), LOGITS)
add("ctc_loss of joined targets", ctc(JOINED), LOGITS)
add("ctc_loss of lengths in lists", ctc(JOINED, [5, 3], [2, 1]), LOGITS)
add("ctc_loss with another blank", ctc(PADDED * 0 + torch.tensor([[0, 1]]), blank=2), LOGITS)
add("ctc_loss of no labels", ctc(counts=torch.tensor([2, 0])), LOGITS)
# two equal labels need three steps
add("ctc_loss of impossible labels", ctc(steps=torch.tensor([2, 3]), zero_infinity=True), LOGITS)
if facts.TORCH >= (1, 11):
    add("ctc_loss of one sample", ctc(PADDED[0], torch.tensor(5), torch.tensor(2)), LOGITS[:, 0])

# --- bags of embeddings ---------------------------------------------------------------------------------------------

TABLE, INDICES, OFFSETS = numbers(4, 2, seed=5), torch.tensor([0, 2, 1, 2, 2]), torch.tensor([0, 2, 2])
SCALES = numbers(5, seed=6)


def bag(input=INDICES, offsets=OFFSETS, **options):
    return lambda w: F.embedding_bag(input, w, offsets, **options)


for mode in ("sum", "mean", "max"):
    add(f"embedding_bag {mode}", bag(mode=mode), TABLE)
    add(f"embedding_bag {mode} of rows", bag(torch.tensor([[0, 1, 1], [3, 2, 0]]), None, mode=mode), TABLE)
    last = {"offsets": torch.tensor([0, 2, 2, 5]), "include_last_offset": True}
    add(f"embedding_bag {mode} with the last offset", bag(mode=mode, **last), TABLE)
    if facts.TORCH >= (1, 9):
        add(f"embedding_bag {mode} with padding", bag(mode=mode, padding_idx=2), TABLE)
        add(f"embedding_bag {mode} with padding from the end", bag(mode=mode, padding_idx=-2), TABLE)
add("embedding_bag with scales", bag(mode="sum", per_sample_weights=SCALES), TABLE)
add(
    "embedding_bag with scales of rows",
    bag(INDICES[:4].reshape(2, 2), None, mode="sum", per_sample_weights=SCALES[:4].reshape(2, 2)),
    TABLE,
)
add(
    "embedding_bag by table and scales",
    lambda x: F.embedding_bag(INDICES, x[:8].reshape(4, 2), OFFSETS, mode="sum", per_sample_weights=x[8:]),
    torch.cat([TABLE.flatten(), SCALES]),
)

# --- samples of images ----------------------------------------------------------------------------------------------

IMAGE, GRID = numbers(1, 2, 3, 4, seed=7), numbers(1, 2, 2, 2, seed=8, low=-1.3, high=1.3)
VOLUME, GRID_3D = numbers(1, 1, 2, 3, 2, seed=9), numbers(1, 1, 1, 3, 3, seed=10, low=-1.3, high=1.3)
for mode in ("bilinear", "nearest", "bicubic"):
    for padding in ("zeros", "border", "reflection"):
        for align in (False, True):
            options = {"mode": mode, "padding_mode": padding, "align_corners": align}
            add(
                f"grid_sample by grid {mode} {padding} {align}", lambda g, o=options: F.grid_sample(IMAGE, g, **o), GRID
            )
            if mode != "bicubic":
                add(
                    f"grid_sample in 3-D {mode} {padding} {align}",
                    lambda g, o=options: F.grid_sample(VOLUME, g, **o),
                    GRID_3D,
                )
    add(
        f"grid_sample by image and grid {mode}",
        lambda x, m=mode: F.grid_sample(x[:12].reshape(1, 1, 3, 4), x[12:].reshape(1, 2, 1, 2), m, align_corners=True),
        torch.cat([IMAGE[0, 0].flatten(), GRID.flatten()[:4]]),
    )
add("grid_sampler", lambda g: torch.grid_sampler(IMAGE, g, 0, 1, False), GRID)

# --- reductions -----------------------------------------------------------------------------------------------------

if facts.TORCH >= (2, 0):
    for reduce in ("sum", "mean"):
        add(
            f"segment_reduce {reduce}",
            lambda x, r=reduce: torch.segment_reduce(x, r, lengths=torch.tensor([1, 3])),
            POINTS,
        )
    add("segment_reduce offsets", lambda x: torch.segment_reduce(x, "sum", offsets=torch.tensor([0, 1, 4])), POINTS)


def cumulative(dim):
    """The cumulative sums of exponentials by sums of everything up to each element."""

    def by_hand(x):
        x = x.movedim(dim, 0) if hasattr(x, "movedim") else x
        return torch.stack([x[: k + 1].logsumexp(0) for k in range(len(x))], dim)

    return by_hand


for size in (1, 2, 3, 5):
    add(
        f"logcumsumexp of {size}",
        lambda x: torch.logcumsumexp(x, 0),
        3 * numbers(size, seed=size),
        order=3,
        by_hand=cumulative(0),
    )
add("logcumsumexp of rows", lambda x: x.logcumsumexp(dim=-1), POINTS[:3], order=3, by_hand=cumulative(-1))
add("logcumsumexp of a number", lambda x: x.sum().logcumsumexp(0), POINTS[0], order=3, by_hand=lambda x: x.sum())

# --- normalisations -------------------------------------------------------------------------------------------------

VALUES, SCALE, SHIFT = numbers(2, 2, 3, seed=11), numbers(2, seed=12), numbers(2, seed=13)
MEAN, VARIANCE = numbers(2, seed=14), numbers(2, seed=15, low=0.5)
LENGTHS = numbers(4, 1, seed=20, low=0.5)
add("weight_norm by its direction", lambda v: torch._weight_norm(v, LENGTHS, 0), POINTS)
add("weight_norm", lambda v: torch._weight_norm(v, v[:, :1].exp(), 0), POINTS)
add("layer_norm", lambda x: F.layer_norm(x, (2, 3)), VALUES, order=3)
add("torch.layer_norm", lambda x: torch.layer_norm(x, (3,), SCALE[:1].expand(3), None, 1e-3), VALUES, order=3)
add("batch_norm", lambda x: F.batch_norm(x, None, None, SCALE, SHIFT, True), VALUES, order=3)
add(
    "torch.batch_norm",
    lambda x: torch.batch_norm(x, SCALE, SHIFT, MEAN.clone(), VARIANCE.clone(), True, 0.1, 1e-3, False),
    VALUES,
    order=3,
)
add("batch_norm of evaluation", lambda x: F.batch_norm(x, MEAN, VARIANCE, SCALE, SHIFT), VALUES, order=3)
add("instance_norm", F.instance_norm, VALUES, order=3)
add("instance_norm with weights", lambda x: F.instance_norm(x, weight=SCALE, bias=SHIFT, eps=1e-3), VALUES, order=3)
add(
    "instance_norm with statistics",
    lambda x: F.instance_norm(x, MEAN.clone(), VARIANCE.clone(), SCALE, SHIFT),
    VALUES,
    order=3,
)
add(
    "instance_norm of evaluation",
    lambda x: F.instance_norm(x, MEAN, VARIANCE, SCALE, SHIFT, use_input_stats=False),
    VALUES,
    order=3,
)
add(
    "torch.instance_norm",
    lambda x: torch.instance_norm(x, SCALE, SHIFT, None, None, True, 0.1, 1e-3, False),
    VALUES,
    order=3,
)
if hasattr(torch, "native_layer_norm"):
    add("native_layer_norm", lambda x: torch.native_layer_norm(x, (3,), None, None, 1e-3)[0], VALUES, order=3)

# --- operators ------------------------------------------------------------------------------------------------------

if facts.has("torch_function_modes"):
    ATEN = torch.ops.aten
    QUERY = numbers(1, 1, 3, 2, seed=16)
    add("aten.layer_norm", lambda x: ATEN.layer_norm(x, [3]), VALUES, order=3)
    add(
        "aten.native_layer_norm", lambda x: ATEN.native_layer_norm.default(x, [3], None, None, 1e-3)[0], VALUES, order=3
    )
    add(
        "aten.batch_norm",
        lambda x: ATEN.batch_norm.default(x, SCALE, None, None, None, True, 0.1, 1e-3, False),
        VALUES,
        order=3,
    )
    add("aten.attention", lambda x: ATEN.scaled_dot_product_attention.default(x, x, x), QUERY)
    add("torch.embedding_bag", lambda w: torch.embedding_bag(w, INDICES, OFFSETS, mode=1)[0], TABLE)
    add("aten.embedding_bag", lambda w: ATEN.embedding_bag.default(w, INDICES, OFFSETS, False, 2)[0], TABLE)
    add("aten.grid_sampler", lambda g: ATEN.grid_sampler.default(IMAGE, g, 0, 2, True), GRID)
    add("aten.ctc_loss", lambda x: ATEN.ctc_loss(x.log_softmax(-1), PADDED, [5, 3], [2, 1], 0, 1, False), LOGITS)
    add("aten.hardsigmoid", ATEN.hardsigmoid.default, POINTS)
    add("aten.multi_margin_loss", lambda x: ATEN.multi_margin_loss.default(x, CLASSES, 2, 1.0, None, 0), SCORES)
    add("aten.cdist", lambda x: ATEN.cdist.default(x, OTHERS), POINTS)


@pytest.mark.parametrize("p", [0.5, 1.0, 1.5, 2.0, 3.0, math.inf])
def test_points_that_coincide_have_derivatives_of_zero(backend, p):
    """As in torch's kernels; the other distance goes on having its own."""
    point, other = torch.tensor([[0.2, -0.5], [1.1, 0.3]], dtype=DOUBLE)
    both = lambda distances: (distances + distances.pow(2)).sum()
    if p == 1.0:  # also of what has no second derivative
        straight = lambda x: torch.cdist(x[None], x[None] * 2 + 1, p).sum()
        with tfc.use_fallback("silent"):
            assert not tfc.hessian(straight)(torch.tensor([0.2, -0.5], dtype=DOUBLE)).any()
    twice = lambda x: both(F.pdist(torch.stack([x, x, other]), p)) / 2
    once = lambda x: both((x - other).abs().pow(p).sum().pow(1 / p) if p < math.inf else (x - other).abs().max())
    crossed = lambda x: both(torch.cdist(x[None], torch.stack([point, other]), p))
    for func in (twice, crossed):
        with tfc.use_fallback("silent"):
            assert_close(tfc.grad(func)(point), tfc.grad(once)(point))
            assert_close(tfc.hessian(func)(point), tfc.hessian(once)(point))


SLICES = numbers(2, 3, 2, seed=17)
FIRST = {
    "i0": (torch.i0, lambda x: sum((x / 2) ** (2 * k) / float(math.factorial(k)) ** 2 for k in range(25)), POINTS),
    "cdist of broadcast batches": (
        lambda x: torch.cdist(x, POINTS),
        lambda x: (x[..., None, :] - POINTS).pow(2).sum(-1).sqrt(),
        SLICES,
    ),
}
if hasattr(torch, "aminmax"):
    FIRST["aminmax"] = lambda x: sum(torch.aminmax(x)), lambda x: x.min() + x.max(), POINTS
    FIRST["aminmax of rows"] = lambda x: x.aminmax(dim=1, keepdim=True)[1], lambda x: x.max(1, keepdim=True)[0], POINTS


@pytest.mark.parametrize("name", FIRST)
def test_operations_without_a_first_derivative(backend, name):
    func, by_hand, x = FIRST[name]
    losses = [lambda x, f=f: f(x).exp().sum() + x.cos().sum() for f in (func, by_hand)]
    with tfc.use_fallback("silent"):
        assert_close(losses[0](x), losses[1](x))
        for transform in (tfc.grad, tfc.jacfwd, tfc.hessian, lambda f: tfc.hessian(f, mode="forward-forward")):
            assert_close(transform(losses[0])(x), transform(losses[1])(x))
        samples = torch.stack([x, x.sin()])
        assert_close(tfc.vmap(tfc.grad(losses[0]))(samples), tfc.vmap(tfc.grad(losses[1]))(samples))
        with torch.no_grad():
            if name.startswith("cdist"):
                assert_close(tfc.grad(losses[0])(x), tfc.grad(losses[1])(x))


def gradient(func, x, create_graph=False):
    x = x if x.requires_grad else x.detach().requires_grad_()
    (found,) = torch.autograd.grad(func(x), x, create_graph=create_graph)
    return found


def derivative_of_gradient(func, x):
    """The product of a Hessian with a fixed vector: the second derivative where it is right."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    return gradient(lambda x: (gradient(func, x, True) * wave(x)).sum(), x)


def wave(x):
    return (1 + torch.arange(x.numel(), dtype=DOUBLE)).sin().reshape(x.shape)


def differences(func, x, step=1e-5):
    """The Jacobian by central differences."""
    columns = []
    for i in range(x.numel()):
        moved = torch.zeros_like(x)
        moved.view(-1)[i] = step
        columns.append((func(x + moved) - func(x - moved)) / (2 * step))
    return torch.stack(columns, -1).reshape(*columns[0].shape, *x.shape)


_references = {}


def reference(name):
    """The second derivative, or the third one along a vector, by differences of what torch has right."""
    if name not in _references:
        case = CASES[name]
        lower = gradient if case.order == 2 else derivative_of_gradient
        _references[name] = differences(lambda x: lower(case.reference, x).detach(), case.point)
    return _references[name]


@pytest.fixture
def all_rows(monkeypatch):
    """Compose also what this torch has right."""

    def forget():
        table._by_order.cache_clear()
        interception._composed_to.cache_clear()

    monkeypatch.setattr(Composition, "is_needed", lambda row: True)
    forget()
    yield
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize("name", CASES)
def test_compositions_are_what_torch_computes(name, all_rows):
    case = CASES[name]
    x = case.point.clone().requires_grad_()

    def composed(x):
        with composing(3):
            return plain([case.loss(*given([x], 3))])[0]

    nodes = set()
    stack = [composed(x).grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            stack += [child for child, _ in node.next_functions]
    assert not [node for node in nodes if order_of(type(node).__name__)]
    assert_close(composed(x), case.loss(x))
    # torch's kernel has one sixth in single precision for the slope of hardsigmoid
    assert_close(gradient(composed, x), gradient(case.loss, x), atol=1e-7 if "igmoid" in name else None)
    along = derivative_of_gradient(composed, x)
    if case.order == 2:
        assert_close(along, (reference(name) * wave(x)).flatten(x.dim()).sum(-1), atol=1e-6, rtol=1e-5)
    else:
        assert_close(along, derivative_of_gradient(case.reference, x))


@pytest.mark.parametrize("mode", ["reverse-reverse", "forward-forward"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.order == 2])
def test_second_derivatives(backend, name, mode):
    case = CASES[name]
    with tfc.use_fallback("silent"):
        assert_close(tfc.hessian(case.loss, mode=mode)(case.point), reference(name), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.order == 2])
def test_second_derivatives_by_plain_autograd_of_mapped_gradients(backend, name):
    case = CASES[name]
    batch = torch.stack([case.point, case.point]).requires_grad_()
    with tfc.use_fallback("silent"):
        (tfc.vmap(tfc.grad(case.loss))(batch)[1] * wave(case.point)).sum().backward()
    expected = (reference(name) * wave(case.point)).flatten(case.point.dim()).sum(-1)
    assert_close(batch.grad[1], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.order == 3])
def test_third_derivatives(backend, name):
    case = CASES[name]
    along = lambda x: tfc.jvp(tfc.grad(case.loss), (x,), (wave(x),))[1]
    with tfc.use_fallback("silent"):
        assert_close(tfc.jacrev(along)(case.point), reference(name), atol=1e-6, rtol=1e-5)


def test_what_a_composition_does_not_know_is_left_to_torch():
    frequent = bag(scale_grad_by_freq=True, mode="sum")
    with composing(3):
        found = plain([frequent(*given([TABLE], 3))])[0]
    assert type(found) is torch.Tensor
    assert_close(found, frequent(TABLE))


NATIVE = {
    "native_layer_norm": lambda x: torch.native_layer_norm(x, (3,), None, None, 1e-3),
    "native_batch_norm": lambda x: torch.native_batch_norm(x[:, None], None, None, None, None, True, 0.1, 1e-3),
}


@pytest.mark.parametrize("name", [name for name in NATIVE if hasattr(torch, name)])
def test_what_a_normalisation_returns_beside_its_output_has_derivatives(backend, name):
    if not facts.has("torch_function_modes"):
        pytest.skip("operations cannot be intercepted")
    parts = NATIVE[name]
    x = VALUES[0, 0].reshape(-1)[:3]
    inverse = ((x - x.mean()).pow(2).mean() + 1e-3).rsqrt()
    with tfc.use_fallback("silent"):
        for jacobian in (tfc.jacrev, tfc.jacfwd):
            assert_close(jacobian(lambda x: parts(x)[1][0])(x), torch.full_like(x, 1 / 3))
            assert_close(jacobian(lambda x: parts(x)[2][0])(x), -(inverse**3) * (x - x.mean()) / 3)
        assert_close(
            tfc.vmap(tfc.grad(lambda x: parts(x)[1].sum()))(torch.stack([x, 2 * x]))[0], torch.full_like(x, 1 / 3)
        )


def test_a_composed_batch_norm_that_uses_its_statistics_returns_none():
    options = (None, None, MEAN, VARIANCE, False, 0.1, 1e-3)
    composed = normalisations._native_batch_norm(VALUES, *options)
    for found, expected in zip(composed, torch.native_batch_norm(VALUES, *options)):
        assert_close(found, torch.empty(0, dtype=DOUBLE) if expected is None else expected)  # None on torch 1.8


@pytest.mark.parametrize("normalise", [F.batch_norm, F.instance_norm])
def test_a_composed_normalisation_updates_its_statistics(normalise):
    expected = [MEAN.clone(), VARIANCE.clone()]
    normalise(VALUES, *expected, None, None, True, 0.3)
    found = [MEAN.clone(), VARIANCE.clone()]
    with composing(3):
        normalise(given([VALUES], 3)[0], *found, None, None, True, 0.3)
    for statistic, wanted in zip(found, expected):
        assert_close(statistic, wanted)


@pytest.mark.parametrize(
    "node, order",
    [
        *((name, 3) for name in ("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "BatchNormWithUpdate")),
        *((name, 2) for name in ("CtcLoss", "CudnnCtcLoss")),
    ],
)
def test_nodes_of_other_devices(node, order):
    """A machine without a GPU makes only some of them."""
    assert table.order_of(f"{node}Backward0") == order
    assert order == 2 or f"{node}Backward0".startswith(NORMALISATIONS)


def test_rows():
    for row in COMPOSITIONS:
        assert row.reason and 1 <= row.order <= 4
        found = [function for name in row.functions for function in table.functions(name)]
        assert all(callable(function) for function in found)
        if row.is_needed() and row.functions[0].startswith("nn."):
            assert found or facts.TORCH < (2, 0)


# --- where a formula is 0 / 0 ---------------------------------------------------------------------------------------

# The coefficients of x**k: https://dlmf.nist.gov/10.25.E2 of Bessel functions.
SERIES = {
    "sinc": {2 * k: (-1) ** k * math.pi ** (2 * k) / math.factorial(2 * k + 1) for k in range(12)},
    "i0": {2 * k: 0.25**k / math.factorial(k) ** 2 for k in range(9)},
    "i1": {2 * k + 1: 0.5 * 0.25**k / (math.factorial(k) * math.factorial(k + 1)) for k in range(9)},
}

SERIES.update({f"modified_bessel_{name}": SERIES[name] for name in ("i0", "i1")})


@pytest.mark.parametrize("x", [0.0, 1e-9, -1e-5, 0.02, 0.4])
@pytest.mark.parametrize("name", SERIES)
def test_special_functions_at_zero(backend, name, x):
    func = getattr(getattr(torch, "special", torch), name, getattr(torch, name, None))
    if func is None:
        pytest.skip("torch has no such function here")
    forward = lambda f: lambda x: tfc.jvp(f, (x,), (torch.ones_like(x),))[1]
    for order in (1, 2, 3, 4):
        terms = SERIES[name].items()
        expected = sum(c * math.perm(k, order) * x ** (k - order) for k, c in terms if k >= order)
        for kinds in {(forward,) * order, (tfc.grad,) * order, (forward,) + (tfc.grad,) * (order - 1)}:
            found = lambda x: func(x)
            for kind in kinds:
                found = kind(found)
            points = torch.tensor([0.7, x], dtype=DOUBLE)
            for value in (found(points[1]), tfc.vmap(found)(points)[1]):
                assert_close(value, torch.tensor(expected, dtype=DOUBLE), atol=1e-6)


@pytest.mark.parametrize("scaled", ["i0e", "i1e"])
def test_third_derivatives_of_scaled_bessel_functions(backend, scaled):
    if not hasattr(getattr(torch, "special", None), scaled):
        pytest.skip("torch has no such function here")
    plain = getattr(torch.special, scaled[:2])
    for x in (torch.tensor(1e-9, dtype=DOUBLE), torch.tensor(-3.0, dtype=DOUBLE)):
        thrice = [lambda x: getattr(torch.special, scaled)(x), lambda x: plain(x) * (-x.abs()).exp()]
        for _ in range(3):
            thrice = [tfc.grad(f) for f in thrice]
        assert_close(thrice[0](x), thrice[1](x), atol=1e-6)


def test_powers_of_zero(backend):
    """A Vandermonde matrix is a cumulative product."""
    if not hasattr(getattr(torch, "linalg", None), "vander"):
        pytest.skip("torch has no such function here")
    func = lambda x: (torch.linalg.vander(x, N=4) * torch.arange(4)).sum()
    point = torch.tensor([0.0, 0.5, 0.0], dtype=DOUBLE)
    expected = torch.diag(4 + 18 * point)
    with tfc.use_fallback("silent"):
        for mode in ("forward-reverse", "reverse-reverse", "forward-forward", "reverse-forward"):
            assert_close(tfc.hessian(func, mode=mode)(point), expected)
            assert_close(tfc.vmap(tfc.hessian(func, mode=mode))(torch.stack([point + 1, point]))[1], expected)


# --- what torch takes for constant -----------------------------------------------------------------------------------

SPECIAL = torch.tensor([-0.9, 0.2, 0.4, 1.7], dtype=DOUBLE)
POLYNOMIALS = sorted(
    name.rpartition(".")[2]
    for row in COMPOSITIONS
    for name in row.functions
    if name.startswith("special.") and "polynomial" in name and hasattr(torch, "special")
)
BESSEL = ("spherical_bessel_j0", "modified_bessel_i0", "modified_bessel_i1")
TAKEN_FOR_CONSTANT = {
    **{f"{name} {n}": (name, lambda f, x, n=n: f(x, n)) for name in POLYNOMIALS for n in (0, 1, 2, 5)},
    **{name: (name, lambda f, x: f(x)) for name in BESSEL},
}


@pytest.mark.parametrize("name", TAKEN_FOR_CONSTANT)
def test_derivatives_of_what_torch_takes_for_constant(backend, name):
    special, call = TAKEN_FOR_CONSTANT[name]
    function = getattr(getattr(torch, "special", None), special, None)
    if function is None:
        pytest.skip("torch has no such function here")
    func = lambda x: (call(function, x) + x.sin()) * x.cos()
    step = 1e-4
    ahead, behind = (func(SPECIAL + sign * step) for sign in (1, -1))
    first, second = (ahead - behind) / (2 * step), (ahead - 2 * func(SPECIAL) + behind) / step**2
    total = lambda x: func(x).sum()
    scale = {"rtol": 1e-5, "atol": 1e-5}
    with tfc.use_fallback("silent"):
        for found in (tfc.grad(total)(SPECIAL), tfc.vmap(tfc.grad(func))(SPECIAL), tfc.vmap(tfc.jacfwd(func))(SPECIAL)):
            assert_close(found, first, **scale)
        assert_close(tfc.jacfwd(func)(SPECIAL), torch.diag(first), **scale)
        assert_close(tfc.hessian(total)(SPECIAL), torch.diag(second), **scale)


def test_they_are_found_in_what_a_function_calls(backend):
    function = getattr(getattr(torch, "special", None), "hermite_polynomial_h", None)
    if function is None:
        pytest.skip("torch has no such function here")

    class Layer(torch.nn.Module):
        def forward(self, x):
            return self.basis(x) + x

        def basis(self, x):
            return torch.special.hermite_polynomial_h(x, 2)

    aliased = lambda x: function(x, 2) + x
    layer = Layer()
    for func in (layer, layer.forward, aliased, lambda x: aliased(x), lambda x: hermite.basis(x) + x):
        assert_close(tfc.jacrev(func)(SPECIAL), torch.diag(8 * SPECIAL + 1))


# --- whole layers ---------------------------------------------------------------------------------------------------

MEMORY = numbers(3, 1, 4, seed=18)
LAYERS = {
    "MultiheadAttention": (lambda: torch.nn.MultiheadAttention(4, 2), lambda m, x: m(x, x, x, need_weights=False)[0]),
    "TransformerEncoderLayer": (lambda: torch.nn.TransformerEncoderLayer(4, 2, 8, 0.0), lambda m, x: m(x)),
    "TransformerDecoderLayer": (lambda: torch.nn.TransformerDecoderLayer(4, 2, 8, 0.0), lambda m, x: m(x, MEMORY)),
}
if facts.TORCH >= (1, 12):  # what takes a fused path in evaluation
    LAYERS["TransformerEncoderLayer, batch first"] = (
        lambda: torch.nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True),
        lambda m, x: m(x.transpose(0, 1)),
    )
    LAYERS["TransformerEncoder"] = (
        lambda: torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), 2),
        lambda m, x: m(x.transpose(0, 1)),
    )


@pytest.mark.parametrize("is_frozen", [True, False])
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_of_transformers(backend, name, is_training, is_frozen):
    make, call = LAYERS[name]
    module = make().to(DOUBLE).train(is_training).requires_grad_(not is_frozen)
    func = lambda x: call(module, x).sin().sum()
    x = numbers(2, 1, 4, seed=19)
    expected = differences(lambda x: gradient(func, x), x)
    with tfc.use_fallback("silent"):
        for mode in ("reverse-reverse", "forward-reverse", "reverse-forward", "forward-forward"):
            assert_close(tfc.hessian(func, mode=mode)(x), expected, atol=1e-6, rtol=1e-5)
        samples = torch.stack([x, x.cos()])
        gradients = [gradient(func, sample) for sample in samples]
        assert_close(tfc.jacfwd(func)(x), gradients[0])
        assert_close(tfc.vmap(tfc.grad(func))(samples), torch.stack(gradients))
        with torch.no_grad():
            assert_close(tfc.jacfwd(func)(x), gradients[0])
            assert_close(tfc.vmap(tfc.jacfwd(func))(samples), torch.stack(gradients))
            assert_close(tfc.vmap(func)(samples), torch.stack([func(sample) for sample in samples]))
