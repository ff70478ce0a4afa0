"""Operations of which torch lacks a derivative, or has it wrong, under each name that a table knows them by.

The reference is a polynomial through values of torch's operation: no derivative of torch's is trusted.
"""

from __future__ import annotations

import itertools
import math
import re
import warnings

import pytest
import torch
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat._guards.compositions import COMPOSITIONS
from torch_func_compat._guards.compositions.table import functions
from torch_func_compat._guards.wrong_answers import SYMMETRIC, WRONG_FORMULAS
from torch_func_compat._torch import facts

WATCHED = {*SYMMETRIC, *WRONG_FORMULAS}
REFUSED_HERE = set()
if facts.has("torch_func"):
    from torch_func_compat._guards import by_operation

    WATCHED |= {*by_operation.WATCHED}
    REFUSED_HERE = {re.sub("^(linalg|special)_", "", name.rpartition(".")[2]) for name in by_operation.WATCHED}

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch_func_compat.FallbackWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
DOUBLE = torch.float64


def numbers(*shape, seed=0, low=-1.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=DOUBLE) * (high - low) + low


def symmetric(a):
    return (a + a.transpose(-2, -1)) / 2


class Call:
    """How to call an operation at a point; `by_hand` gives the function that is differentiated, where it is another.

    `order` is the highest derivative that is compared.
    """

    def __init__(self, call, point, by_hand=None, direction=None, order=2):
        self.call, self.point, self.by_hand = call, point, by_hand or call
        self.direction = point.cos() if direction is None else direction
        self.order = order

    def along(self, function, call=None):
        """The operation on a line through the point, as a function of a number."""
        call = call or self.call
        return lambda t: call(function, self.point + t * self.direction).reshape(-1)


VECTOR, POINTS = numbers(4, seed=1), numbers(4, 2, seed=2)
OTHERS = numbers(3, 2, seed=3)
ROWS_AND_COLUMNS = numbers(4, 3, seed=4)
IMAGE = numbers(1, 2, 3, 4, seed=7)
GRID = torch.tensor([-0.6, 0.3, 0.2, -0.3, 0.31, 0.27, -0.62, -0.29], dtype=DOUBLE).reshape(1, 2, 2, 2)
VOLUME, GRID_3D = numbers(1, 1, 3, 3, 3, seed=9), (GRID.reshape(-1)[:6] * 0.5).reshape(1, 1, 1, 2, 3)
LOGITS = numbers(5, 2, 3, seed=6)
PADDED = torch.tensor([[1, 1], [2, 0]])
INDICES, OFFSETS = torch.tensor([0, 2, 1, 2, 2]), torch.tensor([0, 2, 2])
CLASSES = torch.tensor([0, 2, 1, 1])
LABELS = torch.tensor([[2, 0, -1], [1, -1, 2], [-1, 0, 1], [0, 1, 2]])
VALUES = numbers(2, 2, 3, seed=11)
ZERO_INSIDE = torch.tensor([0.7, 0.0, -0.4, 1.2], dtype=DOUBLE)
SINGULAR = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [1.0, 0.0, 1.0]], dtype=DOUBLE)
REGULAR = numbers(3, 3, seed=12) + 2 * torch.eye(3, dtype=DOUBLE)
POSITIVE = symmetric(numbers(3, 3, seed=13)) + torch.diag(torch.tensor([2.0, 3.0, 5.0], dtype=DOUBLE))
QUERY = numbers(3, 1, 2, seed=14)
WEIGHTS = numbers(6, 2, seed=15), numbers(6, seed=16), numbers(2, 2, seed=17), numbers(2, seed=18)
MASK = torch.tensor([True, False, True, True])
TARGETS = torch.tensor([0, 0, 1, 3])


def attention_of_heads(f, x):
    return f(*(x, x, x, 2, 1, *WEIGHTS[:2], None, None, False, 0.0, *WEIGHTS[2:]), need_weights=False)[0]


layer_norm = Call(lambda f, x: f(x, [3]), VALUES, order=3)
batch_norm = Call(lambda f, x: f(x, None, None, None, None, True, 0.1, 1e-3, False), VALUES, order=3)
determinant = Call(lambda f, x: f(x), SINGULAR)
of_regular = Call(lambda f, x: f(x), REGULAR)
solution = Call(lambda f, x: f(x, REGULAR[0] if "tensorsolve" in str(f) else REGULAR[:, :1]), REGULAR)
cumulative = Call(lambda f, x: f(x, 0), ZERO_INSIDE)
selection = Call(lambda f, x: f(x**2, MASK), VECTOR)
elementwise = Call(lambda f, x: f(x), VECTOR)
grid_2d = Call(lambda f, x: f(IMAGE, x, 0, 0, False), GRID)
grid_3d = Call(lambda f, x: f(VOLUME, x, 0, 0, False), GRID_3D)
cholesky = Call(lambda f, x: f(x), POSITIVE, lambda f, x: f(symmetric(x)), numbers(3, 3, seed=19))
products = Call(lambda f, x: f(x[:4] * 1, 0, TARGETS, x[:4].sin(), "prod"), VECTOR)

# By the name without its place in torch.
CALLS = {
    "layer_norm": layer_norm,
    "native_layer_norm": Call(lambda f, x: f(x, [3], None, None, 1e-3)[0], VALUES, order=3),
    "nn.functional.batch_norm": Call(lambda f, x: f(x, None, None, training=True), VALUES, order=3),
    "batch_norm": batch_norm,
    "native_batch_norm": Call(lambda f, x: f(x, None, None, None, None, True, 0.1, 1e-3)[0], VALUES, order=3),
    "nn.functional.instance_norm": Call(lambda f, x: f(x), VALUES, order=3),
    "instance_norm": batch_norm,
    "_weight_norm": Call(lambda f, x: f(x, x[:, :1].exp(), 0), POINTS),
    "scaled_dot_product_attention": Call(lambda f, x: f(x, x, x), QUERY),
    "multi_head_attention_forward": Call(attention_of_heads, QUERY),
    "cdist": Call(lambda f, x: f(x, OTHERS), POINTS),
    "pdist": Call(lambda f, x: f(x), POINTS, order=3),
    "hardsigmoid": elementwise,
    "hardswish": elementwise,
    "_C._nn.multi_margin_loss": Call(lambda f, x: f(x, CLASSES, 2, 1.0, None, 1), ROWS_AND_COLUMNS),
    "multi_margin_loss": Call(lambda f, x: f(x, CLASSES, 2), ROWS_AND_COLUMNS),
    "_C._nn.multilabel_margin_loss": Call(lambda f, x: f(x, LABELS, 1).sin(), ROWS_AND_COLUMNS),
    "multilabel_margin_loss": Call(lambda f, x: f(x, LABELS).sin(), ROWS_AND_COLUMNS),
    "nn.functional.kl_div": Call(lambda f, x: f(x, x.exp(), reduction="none"), VECTOR),
    "kl_div": Call(lambda f, x: f(x, x.exp(), 0), VECTOR),
    "ctc_loss": Call(lambda f, x: f(x.log_softmax(-1), PADDED, [5, 3], [2, 1]), LOGITS),
    "nn.functional.embedding": Call(
        lambda f, x: f(INDICES, x**2, padding_idx=-2),
        POINTS,
        direction=POINTS.cos() * torch.tensor([[1.0], [1.0], [0.0], [1.0]]),
    ),
    "embedding": Call(
        lambda f, x: f(x**2, INDICES, 2), POINTS, direction=POINTS.cos() * torch.tensor([[1.0], [1.0], [0.0], [1.0]])
    ),
    "nn.functional.embedding_bag": Call(lambda f, x: f(INDICES, x**2, OFFSETS, mode="sum"), POINTS),
    "embedding_bag": Call(lambda f, x: f(x**2, INDICES, OFFSETS, False, 0)[0], POINTS),
    "grid_sample": Call(lambda f, x: f(IMAGE, x, align_corners=False), GRID),
    "grid_sampler": grid_2d,
    "grid_sampler_2d": grid_2d,
    "grid_sampler_3d": grid_3d,
    "aminmax": Call(lambda f, x: torch.stack(list(f(x.sin()))), VECTOR),
    "logcumsumexp": Call(lambda f, x: f(x, 0), VECTOR),
    "segment_reduce": Call(lambda f, x: f(x**2, "sum", lengths=torch.tensor([1, 3])), VECTOR),
    "det": determinant,
    "linalg_det": determinant,
    "eigvalsh": Call(  # on torch 1.8 found by this name
        lambda f, x: torch.linalg.eigvalsh(x), POSITIVE, lambda f, x: f(symmetric(x)), numbers(3, 3, seed=19)
    ),
    "i0": elementwise,
    **dict.fromkeys(("i1", "i0e", "i1e"), Call(lambda f, x: f(x), VECTOR, order=3)),
    "sinc": Call(lambda f, x: f(x), ZERO_INSIDE),
    "vander": Call(lambda f, x: f(x), ZERO_INSIDE),
    "householder_product": Call(lambda f, x: f(x.tril(), VECTOR[:3]), REGULAR),
    "orgqr": Call(lambda f, x: f(x.tril(), VECTOR[:3]), REGULAR),
    "eigh": Call(lambda f, x: f(x)[1] ** 2, POSITIVE, lambda f, x: f(symmetric(x))[1] ** 2, numbers(3, 3, seed=19)),
    "eig": Call(lambda f, x: f(x)[1].abs() ** 2, POSITIVE),
    "cumprod": cumulative,
    "masked_select": selection,
    "logdet": of_regular,
    "slogdet": Call(lambda f, x: f(x)[1], REGULAR),
    "solve": solution,
    "solve_ex": Call(lambda f, x: f(x, REGULAR[:, :1])[0], REGULAR),
    "tensorsolve": solution,
    "cholesky_inverse": Call(lambda f, x: f(x.tril()), REGULAR),
    "scatter_reduce": products,
    "scatter_reduce_": Call(lambda f, x: f(torch.ones_like(x), 0, TARGETS, x.sin(), "prod"), VECTOR),
    "cholesky": cholesky,
    "cholesky_ex": Call(lambda f, x: f(x)[0], POSITIVE, lambda f, x: f(symmetric(x))[0], numbers(3, 3, seed=19)),
    **dict.fromkeys(
        (
            *(f"{prefix}chebyshev_polynomial_{kind}" for prefix in ("", "shifted_") for kind in "tuvw"),
            *("hermite_polynomial_h", "hermite_polynomial_he", "laguerre_polynomial_l", "legendre_polynomial_p"),
        ),
        Call(lambda f, x: f(x, 3), VECTOR),
    ),
    **dict.fromkeys(("spherical_bessel_j0", "modified_bessel_i0", "modified_bessel_i1"), elementwise),
}
WITHOUT_DERIVATIVE = (
    *("airy_ai", "bessel_j0", "bessel_j1", "bessel_y0", "bessel_y1", "modified_bessel_k0", "modified_bessel_k1"),
    *("scaled_modified_bessel_k0", "scaled_modified_bessel_k1"),
)
# Torch has an error behind these names, or another function than later releases or torch.linalg have under that name.
REMOVED = {
    *("solve", "Tensor.solve", "eig", "Tensor.eig", "vander", "ops.aten.vander"),
    *(("orgqr", "Tensor.orgqr") if facts.TORCH < (1, 11) else ()),
    *(("segment_reduce", "ops.aten.segment_reduce") if facts.TORCH < (1, 10) else ()),
    *(("scatter_reduce", "Tensor.scatter_reduce") if facts.TORCH < (1, 12) else ()),
    *(("cholesky", "Tensor.cholesky", "ops.aten.cholesky") if facts.TORCH >= (2, 15) else ()),
}
PLACES = ("", "Tensor.", "nn.functional.", "linalg.", "special.", "_C._nn.", "ops.aten.")


def short(name):
    return re.sub("^(linalg|special)_", "", name.rpartition(".")[2])


def call_of(name):
    return CALLS.get(name) or CALLS.get(short(name))


def names_of(operations):
    """The operations under each name that this torch has for them, whether a table knows it or not."""
    found = [
        place + prefix + operation
        for operation in sorted({short(name) for name in operations})
        for place in PLACES
        for prefix in (("", "linalg_", "special_") if place == "ops.aten." else ("",))
    ]
    return [name for name in found if name not in REMOVED and any(True for _ in functions(name))]


COMPOSED = {name for row in COMPOSITIONS if row.is_needed() for name in row.functions}
HERE, REFUSED = names_of(CALLS), names_of(WITHOUT_DERIVATIVE)


def expected(func, t, highest):
    """The derivatives of a function of a number, by a polynomial through its values around."""
    count, width = 9, 0.02
    nodes = [width * math.cos(math.pi * (k + 0.5) / count) for k in range(count)]
    powers = torch.tensor([[(node / width) ** k for k in range(count)] for node in nodes], dtype=DOUBLE)
    values = torch.stack([func(t + node).detach() for node in nodes])
    coefficients = torch.inverse(powers) @ values
    return [math.factorial(k) * coefficients[k] / width**k for k in range(highest + 1)]


def test_each_name_of_the_tables_is_called():
    of_the_tables = {name for row in COMPOSITIONS for name in row.functions} | WATCHED
    assert {name for name in of_the_tables if any(True for _ in functions(name))} <= {*HERE, *REFUSED, *REMOVED}


def overloads(name):
    """The operation, and where it has overloads, the one that takes the same arguments."""
    of_these_arguments = "n_scalar" if "polynomial" in name else "default"
    return [f for f in functions(name) if getattr(f, "_overloadname", of_these_arguments) == of_these_arguments]


@pytest.fixture
def no_fallback(backend, name):
    """The native backend answers where operations are composed, and where this torch has them right."""
    with warnings.catch_warnings():
        if backend == "torch.func" and (name in COMPOSED or short(name) not in REFUSED_HERE):
            warnings.simplefilter("error", tfc.FallbackWarning)
            warnings.filterwarnings("ignore", ".*Trying to use forward AD", tfc.FallbackWarning)  # torch has no formula
        yield


@pytest.mark.parametrize("name", HERE)
def test_derivatives_under_each_name(backend, name, without_checks, no_fallback):
    call = call_of(name)
    origin = torch.zeros((), dtype=DOUBLE)
    for function in overloads(name):
        func = call.along(function)
        wanted = expected(call.along(function, call.by_hand), origin, call.order)
        for modes in itertools.product((tfc.jacfwd, tfc.jacrev), repeat=call.order):
            derivative = func
            for transform in modes:
                derivative = transform(derivative)
            for found in (derivative(origin), tfc.vmap(derivative)(torch.stack([origin, origin + 0.01]))[0]):
                assert_close(found, wanted[call.order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_derivative_is_refused_under_each_name(backend, name):
    """Newer torches have some of them. An operation that is added to another one leaves no constant output."""
    origin = torch.zeros((), dtype=DOUBLE)
    for function in overloads(name):
        func = lambda t, f=function: f(VECTOR + 2 + t * VECTOR.cos()) + t
        for transform in (tfc.jacrev, tfc.jacfwd):
            try:
                found = transform(func)(origin)
            except RuntimeError as error:
                assert f"torch has no derivative of {name.rpartition('.')[2].replace('special_', '')}" in str(error)
            else:
                assert_close(found, expected(func, origin, 1)[1], rtol=1e-5, atol=1e-6)
