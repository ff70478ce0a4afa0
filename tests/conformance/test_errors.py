"""Bad input: torch.func's error type under torch.func's condition, on every backend, with a message that helps."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import pytest
import torch

import torch_func_compat as tfc


class Bad(NamedTuple):
    """A wrong call of `api` (this library, or torch.func) at x = (1, 2) and y = (3, 4)."""

    name: str
    call: Callable[[Any, torch.Tensor, torch.Tensor], Any]
    error: Any  # an exception type, or a tuple of them
    message: str
    upstream: bool = True  # whether the newest torch.func raises the same type


JACOBIANS = ("jacrev", "jacfwd", "hessian")
GRADIENTS = ("grad", "grad_and_value")


def _scalar(x, *rest):
    return (x * x).sum() + sum((y * y).sum() for y in rest)


def _each(names, title, call, error, message, upstream=True):
    """The same mistake with several transforms; call(transform) gives the wrong call."""

    def of(name):
        return lambda api, x, y: call(getattr(api, name))(x, y)

    return [Bad(f"{name}-{title}", of(name), error, message, upstream) for name in names]


def _one_input(value):
    """Differentiate with respect to a pytree that holds `value`."""
    return lambda t: (
        lambda x, y: t(lambda tree: (y * tree[0]).sum())((value.to(x.device) if torch.is_tensor(value) else value,))
    )


ALL = (*GRADIENTS, *JACOBIANS)
REVERSE = (*GRADIENTS, "jacrev")
FORWARD = ("jacfwd", "hessian")
ARGNUMS = (
    ("argnums_out_of_range", 2, "argnum"),
    ("argnums_negative_out_of_range", -3, "argnum"),
    ("argnums_in_a_tuple_out_of_range", (0, 2), "argnum"),
    ("argnums_empty", (), "non-empty"),
    ("argnums_twice", (0, 0), "unique"),
    ("argnums_twice_by_sign", (1, -1), "unique"),
    ("argnums_list", [0], "int"),
    ("argnums_float", 1.0, "int"),
    ("argnums_float_in_a_tuple", (0, 1.0), "int"),
)

CALLS = [
    # --- outputs
    *_each(ALL, "output_is_no_tensor", lambda t: t(lambda x, y: 1.0), RuntimeError, "ensor"),
    *_each(ALL, "output_is_none", lambda t: t(lambda x, y: None), RuntimeError, "ensor|None"),
    *_each(JACOBIANS, "output_holds_no_tensor", lambda t: t(lambda x, y: {"a": x, "b": "b"}), RuntimeError, "ensor"),
    *_each(JACOBIANS, "output_is_empty", lambda t: t(lambda x, y: ()), RuntimeError, "non-empty|at least one"),
    *_each(GRADIENTS, "output_is_a_vector", lambda t: t(lambda x, y: x * y), RuntimeError, "scalar"),
    *_each(GRADIENTS, "output_is_a_vector_of_one", lambda t: t(lambda x, y: (x * y)[:1]), RuntimeError, "scalar"),
    *_each(GRADIENTS, "output_is_a_tuple", lambda t: t(lambda x, y: (x.sum(),)), RuntimeError, "Tensor"),
    *_each(JACOBIANS, "output_is_complex", lambda t: t(lambda x, y: x * 1j), RuntimeError, "complex|real"),
    *_each(("jacrev", "hessian"), "output_is_integer", lambda t: t(lambda x, y: x.long()), RuntimeError, "float"),
    Bad("vjp-output_is_no_tensor", lambda api, x, y: api.vjp(lambda x: 1.0, x), RuntimeError, "ensor"),
    Bad("vjp-output_is_empty", lambda api, x, y: api.vjp(lambda x: [], x), RuntimeError, "non-empty"),
    Bad("vjp-output_is_integer", lambda api, x, y: api.vjp(lambda x: x.long(), x), RuntimeError, "float"),
    Bad("jvp-output_is_no_tensor", lambda api, x, y: api.jvp(lambda x: 1.0, (x,), (y,)), RuntimeError, "ensor"),
    Bad("jvp-output_is_empty", lambda api, x, y: api.jvp(lambda x: (), (x,), (y,)), RuntimeError, "non-empty"),
    # --- aux
    *_each(ALL[:-1], "no_aux", lambda t: t(_scalar, has_aux=True), RuntimeError, "aux"),
    *_each(ALL[:-1], "three_for_aux", lambda t: t(lambda x, y: (x.sum(), x, y), has_aux=True), RuntimeError, "aux"),
    *_each(ALL[:-1], "list_for_aux", lambda t: t(lambda x, y: [x.sum(), x], has_aux=True), RuntimeError, "aux"),
    *_each(ALL[:-1], "aux_is_no_tensor", lambda t: t(lambda x, y: (x.sum(), 1), has_aux=True), RuntimeError, "ensor"),
    *_each(("hessian",), "no_aux", lambda t: t(_scalar, has_aux=True), RuntimeError, "aux", False),
    Bad("vjp-no_aux", lambda api, x, y: api.vjp(_scalar, x, has_aux=True), RuntimeError, "aux"),
    Bad("jvp-no_aux", lambda api, x, y: api.jvp(_scalar, (x,), (y,), has_aux=True), RuntimeError, "aux"),
    # --- argnums
    *(
        bad
        for title, argnums, message in ARGNUMS
        for bad in _each(ALL, title, lambda t, argnums=argnums: t(_scalar, argnums=argnums), RuntimeError, message)
    ),
    *(
        Bad(f"{name}-no_arguments", lambda api, x, y, name=name: getattr(api, name)(_scalar)(), RuntimeError, "argnum")
        for name in ALL
    ),
    # --- inputs
    *_each(REVERSE, "input_is_a_float", _one_input(1.0), ValueError, "Tensor"),
    *_each(REVERSE, "input_holds_a_string", _one_input("x"), ValueError, "Tensor"),
    *_each(REVERSE, "input_is_integer", _one_input(torch.ones(2).long()), RuntimeError, "float|point"),
    *_each(REVERSE, "input_is_boolean", _one_input(torch.ones(2).bool()), RuntimeError, "float|point"),
    # torch.func meets what is no tensor with an AttributeError in forward mode, by accident
    *_each(FORWARD, "input_is_a_float", _one_input(1.0), (ValueError, AttributeError), ""),
    *_each(FORWARD, "input_holds_a_string", _one_input("x"), (ValueError, AttributeError), ""),
    *_each(FORWARD, "input_is_integer", _one_input(torch.ones(2).long()), ValueError, "float|point"),
    *_each(FORWARD, "input_is_boolean", _one_input(torch.ones(2).bool()), ValueError, "float|point"),
    *_each(
        JACOBIANS,
        "input_is_complex",
        lambda t: lambda x, y: t(lambda x: x.abs().sum())(x * 1j),
        RuntimeError,
        "complex",
    ),
    Bad("vjp-input_is_a_float", lambda api, x, y: api.vjp(torch.sin, 1.0), ValueError, "Tensor"),
    Bad("vjp-input_is_integer", lambda api, x, y: api.vjp(lambda x: x * y, x.long()), RuntimeError, "float|point"),
    # --- cotangents and tangents
    Bad("vjp-cotangents_too_many", lambda api, x, y: api.vjp(torch.sin, x)[1]((x, y)), RuntimeError, "structure"),
    Bad("vjp-cotangents_too_few", lambda api, x, y: api.vjp(lambda x: (x, x), x)[1](x), RuntimeError, "structure"),
    Bad("vjp-cotangents_list", lambda api, x, y: api.vjp(lambda x: (x, x), x)[1]([x, x]), RuntimeError, "structure"),
    Bad("vjp-cotangent_shape", lambda api, x, y: api.vjp(torch.sin, x)[1](x[:1]), RuntimeError, "hape"),
    Bad("jvp-primals_are_no_tuple", lambda api, x, y: api.jvp(torch.sin, x, y), RuntimeError, "tuple"),
    Bad("jvp-primals_are_a_list", lambda api, x, y: api.jvp(torch.sin, [x], [y]), RuntimeError, "tuple"),
    Bad("jvp-no_primals", lambda api, x, y: api.jvp(lambda: x, (), ()), RuntimeError, "at least one"),
    Bad("jvp-tangents_too_many", lambda api, x, y: api.jvp(torch.sin, (x,), (y, y)), RuntimeError, "structure"),
    Bad("jvp-tangents_list", lambda api, x, y: api.jvp(torch.sin, (x,), [y]), RuntimeError, "structure"),
    Bad("jvp-tangent_shape", lambda api, x, y: api.jvp(torch.sin, (x,), (y[:1],)), RuntimeError, "shape|size"),
    Bad("jvp-primal_is_a_float", lambda api, x, y: api.jvp(torch.sin, (1.0,), (y,)), RuntimeError, "Tensor"),
    Bad("jvp-tangent_is_a_float", lambda api, x, y: api.jvp(torch.sin, (x,), (1.0,)), RuntimeError, "Tensor"),
    Bad(
        "jvp-strict_and_independent",
        lambda api, x, y: api.jvp(lambda x: y, (x,), (x,), strict=True),
        RuntimeError,
        "strict",
    ),
    # --- what newcomers write
    *_each(ALL, "function_is_a_value", lambda t: lambda x, y: t(x.sum())(x), TypeError, "takes a function"),
    *_each(ALL, "point_beside_the_function", lambda t: lambda x, y: t(_scalar, x)(x), RuntimeError, r"grad\(f\)\(x\)"),
    *_each(ALL, "array_beside_the_function", lambda t: t(_scalar, [1.0]), RuntimeError, r"grad\(f\)\(x\)"),
    *_each(
        GRADIENTS, "point_by_keyword", lambda t: lambda x, y: t(lambda p: p.sum())(p=x), RuntimeError, "by position"
    ),
    *_each(
        JACOBIANS,
        "point_by_keyword",
        lambda t: lambda x, y: t(lambda p: p.sum())(p=x),
        RuntimeError,
        "by position",
        False,
    ),
    *_each(REVERSE, "input_is_a_module", _one_input(torch.nn.ReLU()), ValueError, "functional_call"),
    *_each(REVERSE, "input_is_an_iterator", _one_input(iter(())), ValueError, "list, tuple or dict"),
    *_each(REVERSE, "input_is_an_integer", _one_input(torch.arange(2)), RuntimeError, r"x\.double\(\)"),
    *_each(FORWARD, "input_is_an_integer", _one_input(torch.arange(2)), ValueError, r"x\.double\(\)"),
    *_each(GRADIENTS, "output_and_aux", lambda t: t(lambda x, y: (x.sum(), y)), RuntimeError, "has_aux=True"),
    *_each(GRADIENTS, "no_return", lambda t: t(lambda x, y: None), RuntimeError, "no return statement"),
    *_each(GRADIENTS, "output_is_a_number", lambda t: t(lambda x, y: float(y[0])), RuntimeError, "torch operations"),
    *_each(GRADIENTS, "output_is_no_sum", lambda t: t(lambda x, y: x * y), RuntimeError, r"output\.sum\(\)"),
    *(
        Bad(f"{name}-function_is_a_value", call, TypeError, f"{name} takes a function")
        for name, call in {
            "vmap": lambda api, x, y: api.vmap(x.sum())(x),
            "vjp": lambda api, x, y: api.vjp(x, x),
            "jvp": lambda api, x, y: api.jvp(x, (x,), (y,)),
        }.items()
    ),
    Bad("vjp-cotangents_apart", lambda api, x, y: api.vjp(torch.sin, x)[1](x, y), TypeError, "a tuple of cot"),
    Bad("vmap-sizes", lambda api, x, y: api.vmap(torch.add)(x, y[:1]), ValueError, r"in_dims=\(0, None\)"),
    Bad("vmap-number", lambda api, x, y: api.vmap(torch.add)(x, y[0]), ValueError, "all samples share is None"),
    Bad(
        "vmap-out_dims", lambda api, x, y: api.vmap(torch.sin, out_dims=3)(x), IndexError, r"out_dims=3.* shape \(2,\)"
    ),
    # --- options
    *(
        Bad(
            f"{name}-chunk_size_{size}",
            lambda api, x, y, n=name, s=size: getattr(api, n)(_scalar, chunk_size=s)(x),
            ValueError,
            "chunk_size",
            False,
        )
        for name in (*JACOBIANS, "vmap")
        for size in (0, -1, 1.5)
    ),
    Bad("jacrev-chunk_size_zero", lambda api, x, y: api.jacrev(_scalar, chunk_size=0)(x), ValueError, "chunk_size"),
    Bad("jacfwd-randomness", lambda api, x, y: api.jacfwd(_scalar, randomness="bogus")(x), RuntimeError, "andomness"),
    Bad("vmap-randomness", lambda api, x, y: api.vmap(_scalar, randomness="bogus")(x), RuntimeError, "andomness"),
    # --- the user's own errors
    *_each(ALL, "key_error", lambda t: t(lambda x, y: {}["missing"]), KeyError, "missing"),
    *_each(ALL, "zero_division", lambda t: t(lambda x, y: x.sum() * (1 // 0)), ZeroDivisionError, "division"),
]


@pytest.fixture
def x(device):
    return torch.tensor([1.0, 2.0], device=device)


@pytest.fixture
def y(device):
    return torch.tensor([3.0, 4.0], device=device)


every_bad_call = pytest.mark.parametrize("bad", CALLS, ids=lambda bad: bad.name)


@every_bad_call
def test_a_bad_call_raises_the_same_on_every_backend(bad, backend, x, y):
    with pytest.raises(bad.error, match=bad.message) as caught:
        bad.call(tfc, x, y)
    allowed = bad.error if isinstance(bad.error, tuple) else (bad.error,)
    assert caught.type in allowed, "a subclass would be another type than torch.func's"
    assert not x.requires_grad and x.grad is None


@pytest.mark.skipif(not hasattr(torch, "func"), reason="this torch has no torch.func")
@pytest.mark.parametrize("bad", [bad for bad in CALLS if bad.upstream], ids=lambda bad: bad.name)
def test_torch_func_raises_the_same(bad, x, y):
    with pytest.raises(bad.error):
        bad.call(torch.func, x, y)


# --- choosing a backend -------------------------------------------------------------------------------------


@pytest.mark.parametrize("choose", [tfc.set_backend, lambda name: tfc.use_backend(name).__enter__()])
def test_an_unknown_backend_is_a_value_error_that_names_the_known_ones(choose):
    before = tfc.get_backend()
    with pytest.raises(ValueError, match=r"torch\.func.*functorch.*autograd"):
        choose("jax")
    assert tfc.get_backend() == before


@pytest.mark.parametrize("choose", [tfc.set_backend, lambda name: tfc.use_backend(name).__enter__()])
@pytest.mark.parametrize("name", ["torch.func", "functorch"])
def test_an_unavailable_backend_is_an_import_error_that_says_what_to_install(name, choose):
    if name in tfc.available_backends():
        pytest.skip("it is available here")
    before = tfc.get_backend()
    with pytest.raises(ImportError, match=r"(upgrade torch|install functorch|torch\.func|needs torch)"):
        choose(name)
    assert tfc.get_backend() == before
    assert str(torch.__version__) in tfc.unavailable_backends()[name]


@pytest.mark.parametrize(("cotangent", "kind"), [(1.0, TypeError), (None, RuntimeError)])
def test_cotangents_that_are_no_tensors_raise_as_in_torch(cotangent, kind, backend):
    _, pull = tfc.vjp(lambda x: x * 2, torch.ones(2))
    with pytest.raises(kind):
        pull(cotangent)
