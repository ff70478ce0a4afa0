"""Functions with derivatives known in closed form: the oracle of the tests, on every torch and device."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Callable, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Case(NamedTuple):
    """A function of one tensor, its Jacobian (out.shape + x.shape) and its Hessian (out.shape + 2 * x.shape)."""

    name: str
    func: Callable[[Tensor], Tensor]
    point: Tensor
    jacobian: Callable[[Tensor], Tensor]
    hessian: Callable[[Tensor], Tensor]

    def at(self, device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
        """The point to evaluate at, as a tensor of its own."""
        return self.point.to(device=device, dtype=dtype, copy=True)


class Tree(NamedTuple):
    """A call with pytrees: `expected` is its Jacobian for these argnums, a function of the same arguments."""

    name: str
    func: Callable[..., Any]
    args: Callable[[Callable[..., Tensor]], tuple]  # of a function that makes a tensor of its arguments
    argnums: Any
    expected: Callable[..., Any]
    kwargs: tuple = ()  # pairs of name and value

    def at(self, device: torch.device) -> tuple:
        """The positional arguments."""
        return self.args(lambda *values: torch.tensor(values, dtype=torch.float64, device=device))


class Pair(NamedTuple):
    left: Any
    right: Any


def ids(case: Any) -> str:
    """What pytest calls a case."""
    return case.name


def ramp(like: Tensor, *shape: int) -> Tensor:
    """Constants without symmetry: 0.3, 0.7, 1.2, ... in dtype and on the device of `like`."""
    size = 1
    for n in shape:
        size *= n
    i = torch.arange(1, size + 1, dtype=like.dtype, device=like.device)
    return (0.25 * i + 0.05 * i * i).reshape(shape)


def eye(like: Tensor, n: int) -> Tensor:
    """The identity matrix in dtype and on the device of `like`."""
    return torch.eye(n, dtype=like.dtype, device=like.device)


def spread(values: Tensor, times: int = 1) -> Tensor:
    """The `times`-th derivative of an elementwise function, from its values: they lie on the diagonal."""
    n = values.numel()
    result = values.new_zeros((n,) * (times + 1))
    for i, value in enumerate(values.reshape(-1)):
        result[(i,) * (times + 1)] = value
    return result.reshape(values.shape * (times + 1))


def differences(func: Callable[[Tensor], Any], x: Tensor, step: float = 1e-3) -> Tensor:
    """Central finite differences of fourth order: the Jacobian, out.shape + x.shape, to about 1e-10."""
    columns = []
    for i in range(x.numel()):
        offset = torch.zeros_like(x)
        offset.reshape(-1)[i] = step
        near = func(x + offset).detach() - func(x - offset).detach()
        far = func(x + 2 * offset).detach() - func(x - 2 * offset).detach()
        columns.append((8 * near - far) / (12 * step))
    shape = func(x).shape
    return torch.stack(columns, -1).reshape(shape + x.shape) if columns else x.new_zeros(shape + x.shape)


def _elementwise(name: str, func: Any, first: Any, second: Any, point: Any) -> Case:
    return Case(name, func, point, lambda x: spread(first(x)), lambda x: spread(second(x), 2))


def _by_matrix(name: str, matrix: Callable[[Tensor], Tensor], func: Any, point: Tensor) -> Case:
    """The elementwise square of a linear function, whose matrix is given with the shape out.shape + x.shape."""

    def flat(x: Tensor) -> tuple[Tensor, Tensor]:
        m = matrix(x)
        shape = func(x).shape
        return m.reshape(shape.numel(), x.numel()), shape

    def jacobian(x: Tensor) -> Tensor:
        m, shape = flat(x)
        return (2 * (m @ x.reshape(-1))[:, None] * m).reshape(shape + x.shape)

    def second(x: Tensor) -> Tensor:
        m, shape = flat(x)
        return (2 * m[:, :, None] * m[:, None, :]).reshape(shape + x.shape + x.shape)

    return Case(name, func, point, jacobian, second)


def _rows(like: Tensor, *indices: int) -> Tensor:
    return eye(like, like.numel())[list(indices)]


def _conv(x: Tensor) -> Tensor:
    return F.conv1d(x.reshape(1, 1, -1), ramp(x, 1, 1, 2)).reshape(-1)


def _conv_matrix(x: Tensor) -> Tensor:
    (a, b), n = ramp(x, 2), x.numel()
    return a * eye(x, n)[:-1] + b * eye(x, n)[1:]


def _quadratic(x: Tensor) -> Tensor:
    return x @ ramp(x, 3, 3) @ x


def _softmax_jacobian(x: Tensor) -> Tensor:
    s = x.softmax(0)
    return torch.diag(s) - s[:, None] * s


def _softmax_hessian(x: Tensor) -> Tensor:
    s, j = x.softmax(0), _softmax_jacobian(x)
    return eye(x, len(x))[:, :, None] * j[:, None, :] - j[:, None, :] * s[None, :, None] - s[:, None, None] * j[None]


def _cumprod_derivative(x: Tensor, order: int) -> Tensor:
    n = x.numel()
    result = x.new_zeros((n,) * (order + 1))
    for i in range(n):
        for j in range(i + 1):
            if order == 1:
                result[i, j] = x[: i + 1].prod() / x[j]
            else:
                for k in set(range(i + 1)) - {j}:
                    result[i, j, k] = x[: i + 1].prod() / x[j] / x[k]
    return result


def _overwrite(x: Tensor) -> Tensor:
    y = x * x
    y.mul_(x)
    y[1:] += x[:-1] ** 3
    return y


def _overwrite_matrix(x: Tensor) -> Tensor:
    return eye(x, len(x)) + torch.diag(x.new_ones(len(x) - 1), -1)


def _fill(x: Tensor) -> Tensor:
    y = x.new_zeros(2)
    y[0] = x[0] * x[0]
    y[1] = (x[1] + x[2]) ** 2
    return y


def _branch(x: Tensor) -> Tensor:
    return x.sin() if x.sum() > 0 else x.cos()


def _mlp(x: Tensor) -> Tensor:
    return (ramp(x, 4) * torch.tanh(ramp(x, 4, 3) @ x * 0.1)).sum()


def _mlp_gradient(x: Tensor) -> Tensor:
    w = ramp(x, 4, 3) * 0.1
    return w.t() @ (ramp(x, 4) * (1 - torch.tanh(w @ x) ** 2))


def _mlp_hessian(x: Tensor) -> Tensor:
    w = ramp(x, 4, 3) * 0.1
    t = torch.tanh(w @ x)
    return w.t() @ torch.diag(-2 * ramp(x, 4) * t * (1 - t * t)) @ w


def _squared_matrix_jacobian(x: Tensor) -> Tensor:
    one = eye(x, len(x))
    return torch.einsum("ik,lj->ijkl", one, x) + torch.einsum("ik,jl->ijkl", x, one)


def _squared_matrix_hessian(x: Tensor) -> Tensor:
    one = eye(x, len(x))
    return torch.einsum("ik,lm,jn->ijklmn", one, one, one) + torch.einsum("im,kn,jl->ijklmn", one, one, one)


def _inverse_hessian(x: Tensor) -> Tensor:
    v = x.inverse()
    return torch.einsum("im,nk,lj->ijklmn", v, v, v) + torch.einsum("ik,lm,nj->ijklmn", v, v, v)


VECTOR = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
POSITIVE = torch.tensor([0.4, 0.9, 1.3], dtype=torch.float64)
MATRIX = torch.tensor([[1.2, 0.3], [-0.4, 0.9]], dtype=torch.float64)
SCALAR = torch.tensor(0.6, dtype=torch.float64)
EMPTY = torch.zeros(0, dtype=torch.float64)

CASES = (
    _elementwise("sin", torch.sin, torch.cos, lambda x: -x.sin(), VECTOR),
    _elementwise("log", torch.log, lambda x: 1 / x, lambda x: -1 / x**2, POSITIVE),
    _elementwise("cube_of_matrix", lambda x: x**3, lambda x: 3 * x**2, lambda x: 6 * x, MATRIX),
    _elementwise("sin_0d", torch.sin, torch.cos, lambda x: -x.sin(), SCALAR),
    _elementwise("sin_empty", torch.sin, torch.cos, torch.sin, EMPTY),
    _elementwise("sin_empty_matrix", torch.sin, torch.cos, torch.sin, EMPTY.reshape(0, 2)),
    _elementwise("triple", lambda x: 3 * x, lambda x: 0 * x + 3, torch.zeros_like, VECTOR),
    _elementwise("identity", lambda x: x, torch.ones_like, torch.zeros_like, VECTOR),
    _elementwise("constant", torch.ones_like, torch.zeros_like, torch.zeros_like, VECTOR),
    _elementwise("detached_factor", lambda x: x.detach() * x, lambda x: x, torch.zeros_like, VECTOR),
    _elementwise(
        "where",
        lambda x: torch.where(x > 0, x * x, -(x**3)),
        lambda x: torch.where(x > 0, 2 * x, -3 * x**2),
        lambda x: torch.where(x > 0, 2 + 0 * x, -6 * x),
        VECTOR,
    ),
    _elementwise("branch", _branch, torch.cos, lambda x: -x.sin(), VECTOR),
    _elementwise(
        "clamp", lambda x: x.clamp(min=0.0) ** 2, lambda x: 2 * x.clamp(min=0), lambda x: 2 * (x > 0).to(x), VECTOR
    ),
    _by_matrix("indexing", lambda x: _rows(x, 0, 2, 2), lambda x: x[[0, 2, 2]] ** 2, VECTOR),
    _by_matrix("slicing", lambda x: _rows(x, 2, 0), lambda x: torch.cat([x[2:], x[:1]]) ** 2, VECTOR),
    _by_matrix("views", lambda x: _rows(x, 0, 2, 1, 3), lambda x: x.view(-1).view(2, 2).t().reshape(-1) ** 2, MATRIX),
    _by_matrix("sort", lambda x: _rows(x, 1, 0, 2), lambda x: x.sort()[0] ** 2, VECTOR),
    _by_matrix("max", lambda x: _rows(x, 2)[0], lambda x: x.max() ** 2, VECTOR),
    _by_matrix("expand_0d", lambda x: ramp(x, 3), lambda x: (x * ramp(x, 3)) ** 2, SCALAR),
    _by_matrix("sum_of_empty", lambda x: torch.zeros_like(x), lambda x: x.sum() ** 2, EMPTY),
    _by_matrix("matmul", lambda x: ramp(x, 2, 3), lambda x: (ramp(x, 2, 3) @ x) ** 2, VECTOR),
    _by_matrix("conv1d", _conv_matrix, lambda x: _conv(x) ** 2, VECTOR),
    _by_matrix("fill_a_buffer", lambda x: torch.stack([eye(x, 3)[0], eye(x, 3)[1] + eye(x, 3)[2]]), _fill, VECTOR),
    Case(
        "in_place_on_an_intermediate",
        _overwrite,
        VECTOR,
        lambda x: _overwrite_matrix(x) * 3 * x**2,
        lambda x: torch.einsum("ij,jk->ijk", _overwrite_matrix(x), torch.diag(6 * x)),
    ),
    Case(
        "quadratic",
        _quadratic,
        VECTOR,
        lambda x: (ramp(x, 3, 3) + ramp(x, 3, 3).t()) @ x,
        lambda x: ramp(x, 3, 3) + ramp(x, 3, 3).t(),
    ),
    Case("matrix_squared", lambda x: x @ x, MATRIX, _squared_matrix_jacobian, _squared_matrix_hessian),
    Case("softmax", lambda x: x.softmax(0), VECTOR, _softmax_jacobian, _softmax_hessian),
    Case(
        "norm",
        torch.norm,
        VECTOR,
        lambda x: x / x.norm(),
        lambda x: eye(x, 3) / x.norm() - x[:, None] * x / x.norm() ** 3,
    ),
    Case(
        "cumprod",
        lambda x: x.cumprod(0),
        VECTOR,
        lambda x: _cumprod_derivative(x, 1),
        lambda x: _cumprod_derivative(x, 2),
    ),
    Case(
        "logdet",
        torch.logdet,
        MATRIX,
        lambda x: x.inverse().t(),
        lambda x: -torch.einsum("jk,li->ijkl", x.inverse(), x.inverse()),
    ),
    Case(
        "inverse",
        torch.inverse,
        MATRIX,
        lambda x: -torch.einsum("ik,lj->ijkl", x.inverse(), x.inverse()),
        _inverse_hessian,
    ),
    Case("tanh_mlp", _mlp, VECTOR, _mlp_gradient, _mlp_hessian),
)


def named(name: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)


def _product(x: Tensor, y: Tensor) -> Tensor:
    return x.sin() * y


TREES = (
    Tree(
        "dict_out",
        lambda x: {"sin": x.sin(), "sum": x.sum()},
        lambda t: (t(0.3, 0.7),),
        0,
        lambda x: {"sin": spread(x.cos()), "sum": torch.ones_like(x)},
    ),
    Tree(
        "dict_in",
        lambda p, x: p["w"] * x + p["b"],
        lambda t: ({"w": t(0.3, 0.7), "b": t(1.0)}, t(2.0, 3.0)),
        0,
        lambda p, x: {"w": spread(x), "b": torch.ones_like(x)[:, None]},
    ),
    Tree(
        "namedtuple_in_and_out",
        lambda p: Pair(p.left * p.right, p.right.sin()),
        lambda t: (Pair(t(0.3, 0.7), t(1.0, 2.0)),),
        0,
        lambda p: Pair(
            Pair(spread(p.right), spread(p.left)), Pair(torch.zeros_like(spread(p.left)), spread(p.right.cos()))
        ),
    ),
    Tree(
        "ordered_dict_in_and_out",
        lambda d: OrderedDict([("z", d["b"] ** 2), ("a", d["a"].sum())]),
        lambda t: (OrderedDict([("b", t(0.3, 0.7)), ("a", t(1.0))]),),
        0,
        lambda d: OrderedDict(
            [
                ("z", OrderedDict([("b", spread(2 * d["b"])), ("a", d["a"].new_zeros(2, 1))])),
                ("a", OrderedDict([("b", d["a"].new_zeros(2)), ("a", torch.ones_like(d["a"]))])),
            ]
        ),
    ),
    Tree(
        "nested_lists",
        lambda x: [[x * x], (x.sum(), {"x": x})],
        lambda t: (t(0.3, 0.7),),
        0,
        lambda x: [[spread(2 * x)], (torch.ones_like(x), {"x": eye(x, 2)})],
    ),
    Tree("tuple_of_one", lambda x: (x * x,), lambda t: (t(0.3, 0.7),), 0, lambda x: (spread(2 * x),)),
    Tree("list_of_one", lambda x: [x * x], lambda t: (t(0.3, 0.7),), 0, lambda x: [spread(2 * x)]),
    Tree(
        "argnums_all",
        _product,
        lambda t: (t(0.3, 0.7), t(1.0, 2.0)),
        (0, 1),
        lambda x, y: (spread(x.cos() * y), spread(x.sin())),
    ),
    Tree("argnums_one", _product, lambda t: (t(0.3, 0.7), t(1.0, 2.0)), 1, lambda x, y: spread(x.sin())),
    Tree("argnums_negative", _product, lambda t: (t(0.3, 0.7), t(1.0, 2.0)), -1, lambda x, y: spread(x.sin())),
    Tree("argnums_in_a_tuple", _product, lambda t: (t(0.3, 0.7), t(1.0, 2.0)), (1,), lambda x, y: (spread(x.sin()),)),
    Tree(
        "argnums_negative_and_reordered",
        _product,
        lambda t: (t(0.3, 0.7), t(1.0, 2.0)),
        (-1, 0),
        lambda x, y: (spread(x.sin()), spread(x.cos() * y)),
    ),
    Tree(
        "argnums_with_unused_input",
        lambda x, y: x * x,
        lambda t: (t(0.3, 0.7), t(1.0, 2.0, 3.0)),
        (0, 1),
        lambda x, y: (spread(2 * x), x.new_zeros(2, 3)),
    ),
    Tree(
        "keyword_arguments",
        lambda x, *, scale, power: scale * x**power,
        lambda t: (t(0.3, 0.7),),
        0,
        lambda x, scale, power: spread(scale * power * x ** (power - 1)),
        (("scale", 2.0), ("power", 3)),
    ),
    Tree(
        "arguments_that_are_no_tensors",
        lambda x, mode, flags: x.sin() if mode == "sin" and flags["on"] else x,
        lambda t: (t(0.3, 0.7), "sin", {"on": True, "none": None}),
        0,
        lambda x, mode, flags: spread(x.cos()),
    ),
    Tree(
        "integer_and_boolean_arguments",
        lambda x, index, mask: x[index] * mask,
        lambda t: (t(0.3, 0.7), t(1, 0, 1).long(), t(1, 0, 1).bool()),
        0,
        lambda x, index, mask: eye(x, 2)[index] * mask[:, None],
    ),
)
