"""Every operator in every dtype, at points of every shape and layout."""

from __future__ import annotations

import pytest
import torch
from support.operators import OPERATORS, cube, every, of_cube
from support.tolerances import assert_close

import torch_func_compat as tfc

COMPLEX = tuple(operator for operator in OPERATORS if operator.complex)
REAL = tuple(operator for operator in OPERATORS if not operator.complex and operator.name != "vmap(grad)")

LAYOUTS = {
    "transposed": lambda x: x.reshape(2, 3).t(),
    "strided": lambda x: x[::2],
    "expanded": lambda x: x[:2, None].expand(2, 3),
    "channels_last": lambda x: x.reshape(1, 2, 1, 3).to(memory_format=torch.channels_last),
    "offset": lambda x: x[2:],
    "negative": lambda x: torch.imag(torch.complex(0 * x, x).conj()),  # a view with the negative bit
}
layouts = pytest.mark.parametrize("layout", list(LAYOUTS.values()), ids=list(LAYOUTS))


@every()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_results_have_the_dtype_of_the_point(operator, dtype, backend, device):
    x = torch.tensor([0.5, -0.75, 1.25], dtype=dtype, device=device)
    try:
        result, expected = operator.call(cube, x), of_cube(operator, x)
    except RuntimeError as error:
        if "not implemented for" not in str(error):
            raise
        pytest.skip("this torch does not compute in this dtype on this device")
    assert_close(result, expected)


@every(COMPLEX)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_numbers(operator, dtype, backend, device):
    z = torch.tensor([0.3 + 0.4j, -1.0 + 0.5j], dtype=dtype, device=device)
    derivative = 1 * (3 * z * z).conj() if operator.name == "vjp" else 3 * z * z
    assert_close(operator.call(cube, z), operator.expected(z**3, derivative, 6 * z))


@every(REAL)
def test_others_refuse_complex_numbers(operator, backend, device):
    z = torch.tensor([0.3 + 0.4j, -1.0 + 0.5j], device=device)
    with pytest.raises(RuntimeError, match=r"real|complex|Complex"):
        operator.call(cube, z)


@every()
@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 2), (2, 0), (2, 3)], ids=str)
def test_points_of_any_shape(operator, shape, backend, device):
    size = torch.Size(shape).numel()
    x = (torch.arange(size, device=device).double() * 0.3 + 0.2).reshape(shape)
    assert_close(operator.call(cube, x), of_cube(operator, x))


@every()
@layouts
@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "requires_grad"])
def test_points_that_are_views(operator, layout, requires_grad, backend, device):
    base = torch.tensor([0.3, -0.7, 1.1, 0.2, 0.5, -0.4], dtype=torch.float64, device=device)
    x = layout(base.requires_grad_(requires_grad))
    assert_close(operator.call(cube, x), of_cube(operator, x))


@every()
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
def test_integers_beside_what_is_differentiated(operator, dtype, backend, device):
    x = torch.tensor([0.5, -0.75, 1.25], dtype=torch.float64, device=device)
    n = torch.tensor(1, dtype=dtype, device=device)
    assert_close(operator.call(lambda x, n: (n + 1) * cube(x), x, n), of_cube(operator, x, n.double() + 1))


@every()
def test_arguments_that_are_no_tensors(operator, backend, device):
    x = torch.tensor([0.5, -0.75, 1.25], dtype=torch.float64, device=device)
    func = lambda x, options, name: options["scale"] * cube(x) if name == "cube" else x
    assert_close(operator.call(func, x, {"scale": 2.0, "other": [None]}, "cube"), of_cube(operator, x, 2.0))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8], ids=str)
def test_vmap_maps_integers_too(dtype, backend, device):
    n = torch.tensor([[0, 1], [2, 3]], device=device).to(dtype)
    assert_close(tfc.vmap(lambda n: (n, n.sum()))(n), (n, n.sum(1)))


def test_tensors_without_values(backend):
    """Shapes and dtypes of results, from tensors on the device "meta"."""
    try:
        x = torch.ones(4, 3, dtype=torch.float64, device="meta")
        torch.stack([(x * x).sum()])
    except RuntimeError:
        pytest.skip("this torch does not compute on meta tensors")
    scale = torch.ones(3, device="meta")
    result = tfc.vmap(tfc.grad(lambda a: (a * a * scale).sum()))(x)
    assert (result.shape, result.dtype, result.device.type) == ((4, 3), torch.float64, "meta")
    assert tfc.jacrev(lambda a: a * a)(x).shape == (4, 3, 4, 3)


@pytest.mark.parametrize("outputs", [1, 2])
def test_blocks_of_a_hessian_of_mixed_dtypes_have_the_dtype_of_their_row(outputs, backend):
    """hessian is jacfwd(jacrev(f)): a block is a derivative of the gradient of its first argument."""

    def f(x, y):
        value = (x.double() ** 2 * y**2).sum()
        return value if outputs == 1 else (value, value)

    blocks = tfc.hessian(f, argnums=(0, 1))(torch.ones(2), torch.ones(2, dtype=torch.float64))
    blocks = blocks if outputs == 1 else blocks[0]
    assert [[block.dtype for block in row] for row in blocks] == [[torch.float32] * 2, [torch.float64] * 2]
