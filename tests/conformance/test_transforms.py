"""Every operator against closed forms, finite differences and torch.func, on every backend."""

from __future__ import annotations

import pytest
import torch
from support.cases import CASES, TREES, Pair, differences, ids, named, ramp, spread
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat._torch import pytree
from torch_func_compat.testing import check

JACOBIANS = {"jacrev": tfc.jacrev, "jacfwd": tfc.jacfwd}
TRANSFORMS = {**JACOBIANS, "hessian": tfc.hessian}
CHUNKED = [named(name) for name in ("cumprod", "softmax", "matmul", "cube_of_matrix", "sin_0d", "sin_empty")]

every_case = pytest.mark.parametrize("case", CASES, ids=ids)
every_jacobian = pytest.mark.parametrize("jacobian", list(JACOBIANS.values()), ids=list(JACOBIANS))
every_transform = pytest.mark.parametrize("transform", list(TRANSFORMS.values()), ids=list(TRANSFORMS))


def matrix(case, x):
    """The Jacobian in closed form, as a matrix."""
    return case.jacobian(x).reshape(case.func(x).numel(), x.numel())


# --- one tensor: closed forms and finite differences --------------------------------------------------


@every_case
def test_the_oracles_agree(case, device):
    x = case.at(device)
    if case.name != "detached_factor":  # a difference sees through detach()
        assert_close(case.jacobian(x), differences(case.func, x), rtol=1e-8, atol=1e-8)
        assert_close(case.hessian(x), differences(case.jacobian, x), rtol=1e-8, atol=1e-8)


@every_case
def test_operators_equal_the_closed_form(case, backend, device):
    x = case.at(device)
    output = case.func(x)
    tangent, cotangent = ramp(x, *x.shape), ramp(x, *output.shape)

    def pushed(x):
        return case.func(x), (matrix(case, x) @ tangent.reshape(-1)).reshape(output.shape)

    def pulled(x):
        return (cotangent.reshape(-1) @ matrix(case, x)).reshape(x.shape)

    def scalar(x):
        return (cotangent * case.func(x)).sum()

    forms = {
        **dict.fromkeys(("jacrev", "jacfwd", "jacobian"), case.jacobian),
        **dict.fromkeys(("jvp", "linearize"), pushed),
        "hessian": case.hessian,
        "vjp": lambda x: (case.func(x), (pulled(x),)),
    }
    of_scalar = {"grad": pulled, "grad_and_value": lambda x: (pulled(x), scalar(x))}
    options = dict(tolerance=1e-9, differentiate=False, batch=0, name=case.name)
    for operator, form in forms.items():
        vector = {"jvp": (tangent,), "linearize": (tangent,), "vjp": cotangent}.get(operator)
        check(case.func, (x,), operator, backend, form, vector=vector, **options)
    check(scalar, (x,), list(of_scalar), backend, of_scalar, **options)


# --- structures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", TREES, ids=ids)
@every_jacobian
def test_jacobians_have_the_structure_of_output_and_arguments(case, jacobian, backend, device):
    args, kwargs = case.at(device), dict(case.kwargs)
    assert_close(jacobian(case.func, argnums=case.argnums)(*args, **kwargs), case.expected(*args, **kwargs))


@pytest.mark.parametrize("case", TREES, ids=ids)
def test_hessian_has_the_structure_of_output_and_arguments_twice(case, backend, device):
    args, kwargs = case.at(device), dict(case.kwargs)
    jacobian = tfc.jacrev(tfc.jacrev(case.func, argnums=case.argnums), argnums=case.argnums)
    assert_close(tfc.hessian(case.func, argnums=case.argnums)(*args, **kwargs), jacobian(*args, **kwargs))


@pytest.mark.parametrize("argnums", [(0, 1), (1, 0), (-1, -2)], ids=str)
def test_hessian_blocks_follow_argnums(argnums, backend, device):
    x, y = torch.tensor([0.3, 0.7], device=device).double(), torch.tensor([1.0, 2.0, 3.0], device=device).double()

    def func(x, y):
        return (x**3).sum() * (y**2).sum()

    mixed = 3 * x[:, None] ** 2 * 2 * y
    blocks = {
        (0, 0): torch.diag(6 * x) * (y**2).sum(),
        (0, 1): mixed,
        (1, 0): mixed.t(),
        (1, 1): 2 * torch.eye(3, device=device).double() * (x**3).sum(),
    }
    expected = tuple(tuple(blocks[i % 2, j % 2] for j in argnums) for i in argnums)
    assert_close(tfc.hessian(func, argnums=argnums)(x, y), expected)
    for i in (1, -1):
        assert_close(tfc.hessian(func, argnums=i)(x, y), blocks[1, 1])


def _tangled(pair, weights):
    return {"a": pair.left * weights["w"], "b": [pair.right.sin().sum(), (weights["w"] ** 2,)]}


def _tangled_args(device):
    x, y, w = (torch.tensor(v, dtype=torch.float64, device=device) for v in ([0.3, 0.7], [1.0, 2.0], [3.0, 4.0]))
    return x, y, w, (Pair(x, y), {"w": w})


def test_grad_has_the_structure_of_the_arguments(backend, device):
    x, y, w, args = _tangled_args(device)

    def scalar(pair, weights):
        return sum(leaf.sum() for leaf in pytree.flatten(_tangled(pair, weights))[0])

    left, right = Pair(w, y.cos()), {"w": x + 2 * w}
    assert_close(tfc.grad(scalar)(*args), left)
    assert_close(tfc.grad(scalar, argnums=-1)(*args), right)
    assert_close(tfc.grad(scalar, argnums=(1, 0))(*args), (right, left))


def test_vjp_takes_the_structure_of_the_output_and_gives_that_of_the_primals(backend, device):
    x, y, w, args = _tangled_args(device)
    output, pullback = tfc.vjp(_tangled, *args)
    assert_close(output, _tangled(*args))
    cotangents = {"a": torch.full_like(x, 2), "b": [torch.full_like(x[0], 3), (torch.full_like(x, 5),)]}
    assert_close(pullback(cotangents), (Pair(2 * w, 3 * y.cos()), {"w": 2 * x + 10 * w}))


def test_jvp_takes_the_structure_of_the_primals_and_gives_that_of_the_output(backend, device):
    x, y, w, args = _tangled_args(device)
    tangents = (Pair(torch.full_like(x, 2), torch.full_like(y, 3)), {"w": torch.full_like(w, 5)})
    expected = {"a": 2 * w + 5 * x, "b": [3 * y.cos().sum(), (10 * w,)]}
    assert_close(tfc.jvp(_tangled, args, tangents), (_tangled(*args), expected))


# --- has_aux --------------------------------------------------------------------------------------------


def _with_aux(x):
    return (x**3).sum(), {"twice": 2 * x, "pair": (x.sum(), [torch.arange(2, device=x.device)])}


def test_every_operator_hands_aux_through(backend, device):
    x = torch.tensor([0.3, 0.7], dtype=torch.float64, device=device)
    value, aux = _with_aux(x)
    first = 3 * x**2
    assert_close(tfc.grad(_with_aux, has_aux=True)(x), (first, aux))
    assert_close(tfc.grad_and_value(_with_aux, has_aux=True)(x), (first, (value, aux)))
    assert_close(tfc.jacrev(_with_aux, has_aux=True)(x), (first, aux))
    assert_close(tfc.jacfwd(_with_aux, has_aux=True)(x), (first, aux))
    assert_close(tfc.hessian(_with_aux, has_aux=True)(x), (torch.diag(6 * x), aux))
    output, pullback, vjp_aux = tfc.vjp(_with_aux, x, has_aux=True)
    assert_close((output, pullback(torch.ones_like(output)), vjp_aux), (value, (first,), aux))
    assert_close(tfc.jvp(_with_aux, (x,), (torch.ones_like(x),), has_aux=True), (value, first.sum(), aux))


@every_transform
@pytest.mark.parametrize("chunk_size", [1, 2])
def test_aux_with_chunks(transform, chunk_size, backend, device):
    x = torch.tensor([0.3, 0.7, 1.1], dtype=torch.float64, device=device)
    derivative, aux = transform(lambda x: (x**3, x * 2), has_aux=True, chunk_size=chunk_size)(x)
    assert_close(derivative, transform(lambda x: x**3)(x))
    assert_close(aux, 2 * x)


# --- chunk_size -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CHUNKED, ids=ids)
@pytest.mark.parametrize("chunk_size", [1, 2, 100])
@every_transform
def test_chunks_change_nothing(case, transform, chunk_size, backend, device):
    x = case.at(device)
    assert_close(transform(case.func, chunk_size=chunk_size)(x), transform(case.func)(x))


@every_jacobian
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 4])
def test_chunks_run_across_the_leaves_of_a_pytree(jacobian, chunk_size, backend, device):
    *_, w, args = _tangled_args(device)
    whole = jacobian(_tangled, argnums=(0, 1))(*args)
    assert_close(whole["a"][0].left, spread(w))
    assert_close(jacobian(_tangled, argnums=(0, 1), chunk_size=chunk_size)(*args), whole)


# --- inputs and outputs without a derivative ----------------------------------------------------------------


def test_unused_inputs_give_zeros(backend, device):
    x, y = torch.ones(2, device=device).double(), torch.ones(3, device=device)
    func = lambda x, y: x.sin().sum()
    zeros = torch.zeros_like(y)
    assert_close(tfc.grad(func, argnums=1)(x, y), zeros)
    assert_close(tfc.vjp(func, x, y)[1](torch.ones((), device=device).double())[1], zeros)
    assert_close(tfc.jacrev(func, argnums=1)(x, y), zeros)
    for transform in (tfc.jacfwd, tfc.hessian):
        result = transform(func, argnums=1)(x, y)
        assert not result.any() and result.shape == ((3,) if transform is tfc.jacfwd else (3, 3))


def test_constant_outputs_give_zeros(backend, device):
    x = torch.ones(2, dtype=torch.float64, device=device)
    constant = torch.ones(3, dtype=torch.float64, device=device)
    for transform in (tfc.jacrev, tfc.jacfwd):
        assert_close(transform(lambda x: constant)(x), constant.new_zeros(3, 2))
    assert_close(tfc.hessian(lambda x: constant)(x), constant.new_zeros(3, 2, 2))
    assert_close(tfc.grad(lambda x: constant[0])(x), torch.zeros_like(x))
    assert_close(tfc.jvp(lambda x: constant, (x,), (x,)), (constant, torch.zeros_like(constant)))
    assert_close(tfc.vjp(lambda x: constant, x)[1](constant), (torch.zeros_like(x),))


def test_strict_jvp_refuses_what_does_not_depend(backend, device):
    x = torch.ones(2, device=device)
    with pytest.raises(RuntimeError, match="strict"):
        tfc.jvp(lambda x: (x.sin(), torch.ones(1, device=device)), (x,), (x,), strict=True)
    assert_close(tfc.jvp(torch.sin, (x,), (x,), strict=True), (x.sin(), x.cos()))


def test_an_integer_output_beside_a_differentiable_one_has_no_tangent(backend, device):
    x = torch.tensor([0.3, 1.7], dtype=torch.float64, device=device)
    (_, floor), (tangent, _) = tfc.jvp(lambda x: (x.sin(), x.long()), (x,), (torch.ones_like(x),))
    assert_close((floor, tangent), (x.long(), x.cos()))


# --- dtypes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sin", "softmax", "norm", "matmul", "inverse", "conv1d", "tanh_mlp"])
def test_float32_stays_float32(name, backend, device):
    case = named(name)
    x, exact = case.at(device, torch.float32), case.at(device)
    for jacobian in JACOBIANS.values():
        assert_close(jacobian(case.func)(x), case.jacobian(exact).float())
    assert_close(tfc.hessian(case.func)(x), case.hessian(exact).float(), atol=1e-4)


def test_gradients_have_the_dtype_of_their_argument(backend, device):
    x, y = torch.tensor([0.3, 0.7], device=device), torch.tensor([1.0, 2.0], device=device).double()
    result = tfc.jacrev(lambda x, y: x.double() * y, argnums=(0, 1))(x, y)
    assert_close(result, (torch.diag(y).float(), torch.diag(x.double())))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_vjp_and_jvp_of_complex_functions_follow_torchs_convention(dtype, backend, device):
    z = torch.tensor([0.3 + 0.4j, -1.0 + 2.0j], dtype=dtype, device=device)
    v = torch.tensor([1.0 - 1.0j, 0.5 + 2.0j], dtype=dtype, device=device)
    output, pullback = tfc.vjp(lambda z: z * z, z)
    assert_close((output, pullback(v)), (z * z, (v * (2 * z).conj(),)))
    assert_close(tfc.jvp(lambda z: z * z, (z,), (v,)), (z * z, 2 * z * v))


def test_a_real_function_of_complex_input_has_a_complex_gradient(backend, device):
    z = torch.tensor([0.3 + 0.4j, -1.0 + 2.0j], dtype=torch.complex128, device=device)
    squared = lambda z: (z * z.conj()).real.sum()
    output, pullback = tfc.vjp(squared, z)
    assert_close(pullback(torch.ones_like(output)), (2 * z,))
    assert_close(tfc.grad(squared)(z), 2 * z)


def test_complex_numbers_inside_a_real_function(backend, device):
    x = torch.tensor([0.3, 0.7], dtype=torch.float64, device=device)
    func = lambda x: (torch.complex(x, x.sin()) ** 2).imag
    first = 2 * (x.sin() + x * x.cos())
    second = 2 * (2 * x.cos() - x * x.sin())
    for jacobian in JACOBIANS.values():
        assert_close(jacobian(func)(x), torch.diag(first))
    assert_close(tfc.hessian(func)(x), spread(second, 2))


# --- against torch.func ---------------------------------------------------------------------------------------


@every_case
@pytest.mark.skipif(not hasattr(torch, "func"), reason="this torch has no torch.func")
def test_every_backend_equals_torch_func(case, backend, device):
    x = case.at(device)
    if case.name in ("fill_a_buffer", "sum_of_empty"):
        pytest.skip("torch.func refuses to differentiate it in forward mode")
    for name, transform in TRANSFORMS.items():
        assert_close(transform(case.func)(x), getattr(torch.func, name)(case.func)(x))


def test_attributes_and_annotations_of_a_function_are_those_of_its_transform():
    def f(x: torch.Tensor) -> torch.Tensor:
        return x.sum()

    f.cost = 3
    transformed = tfc.grad(f)
    assert transformed.cost == 3
    assert transformed.__annotations__ == f.__annotations__


def test_complex_functions_are_pushed_forward_along_real_tangents(backend):
    z, direction = torch.tensor([1 + 2j]), torch.tensor([1.0])
    _, tangent = tfc.jvp(lambda z: z * z, (z,), (direction,))
    assert tangent.tolist() == [2 + 4j]
