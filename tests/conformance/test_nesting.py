"""Transforms within transforms: any mix, to any depth, and no perturbation confused with another."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from support.cases import differences, ramp, spread
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat import grad, grad_and_value, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch_func_compat._torch import facts


@pytest.fixture
def x(device):
    return torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64, device=device)


@pytest.fixture
def t(device):
    return torch.tensor(0.6, dtype=torch.float64, device=device)


def by_jvp(func):
    """The derivative of a function of one number, by forward mode."""
    return lambda t: jvp(func, (t,), (torch.ones_like(t),))[1]


def by_vjp(func):
    """The derivative of a function of one number, by reverse mode."""

    def derivative(t):
        output, pullback = vjp(func, t)
        return pullback(torch.ones_like(output))[0]

    return derivative


def by_value(func):
    return lambda t: grad_and_value(func)(t)[0]


def by_hidden_vmap(func):
    """The derivative, taken in a batch of two of which the second is dropped."""
    return lambda t: vmap(grad(func))(torch.stack([t, t * 2]))[0]


def by_summed_vmap(func):
    """The derivative of a sum over a batch."""
    return lambda t: grad(lambda t: vmap(func)(torch.stack([t, t.detach()])).sum())(t)


DERIVATIVES = {
    "grad": grad,
    "grad_and_value": by_value,
    "jvp": by_jvp,
    "vjp": by_vjp,
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "vmap(grad)": by_hidden_vmap,
    "grad(sum(vmap))": by_summed_vmap,
}
# How a third derivative is composed, the outermost operator first
TRIPLES = list(itertools.product([name for name in DERIVATIVES if name not in ("grad_and_value", "vjp")], repeat=3))


# --- perturbation confusion -----------------------------------------------------------------------------


@pytest.mark.parametrize("inner", list(DERIVATIVES))
@pytest.mark.parametrize("outer", list(DERIVATIVES))
def test_inner_perturbations_are_not_confused_with_outer_ones(outer, inner, backend, t):
    # d/dx [x d/dy (x + y)] = 1, and 2 for who confuses x with y (Siskind & Pearlmutter 2005)
    d_outer, d_inner = DERIVATIVES[outer], DERIVATIVES[inner]
    assert_close(d_outer(lambda x: x * d_inner(lambda y: x + y)(t * 0 + 1))(t), torch.ones_like(t))
    # the same at one and the same tensor: d/dx [x d/dy (x y)|y=x] = d/dx x² = 2 x
    assert_close(d_outer(lambda x: x * d_inner(lambda y: x * y)(x))(t), 2 * t)
    # d/dx [d/dy (x y²)|y=x] = d/dx 2x² = 4 x
    assert_close(d_outer(lambda x: d_inner(lambda y: x * y * y)(x))(t), 4 * t)


def test_a_derivative_of_a_shifted_function_is_not_confused(backend, t):
    # the bug of Manzyuk et al. (2019): an operator that returns functions, applied twice
    def shift_derivative(offset):
        return lambda f: lambda z: f(z + offset)

    def derivative_by_offset(f):
        return lambda z: grad(lambda offset: shift_derivative(offset)(f)(z))(torch.zeros_like(z))

    assert_close(derivative_by_offset(derivative_by_offset(torch.exp))(t), t.exp())


def test_levels_see_only_their_own_input(backend, t):
    f = lambda a, b, c: a**2 * b**3 * c**4
    mixed = grad(lambda a: grad(lambda b: grad(lambda c: f(a, b, c))(t))(t))(t)
    assert_close(mixed, 2 * t * 3 * t**2 * 4 * t**3)


# --- three deep -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", TRIPLES, ids="-".join)
def test_any_mix_to_depth_three(names, backend, t):
    func = lambda t: t.sin() * t**3
    for name in reversed(names):
        func = DERIVATIVES[name](func)
    expected = (6 - 9 * t**2) * t.sin() + (18 * t - t**3) * t.cos()
    assert_close(func(t), expected)


@pytest.mark.parametrize("names", list(itertools.product(["jacrev", "jacfwd"], repeat=3)), ids="-".join)
def test_third_jacobians_of_vectors(names, backend, x):
    func = lambda x: x.sin().sum() * x
    # d³/dx_j dx_k dx_l of x_i sum_m sin(x_m)
    c, one = torch.diag(-x.sin()), torch.eye(3, dtype=x.dtype, device=x.device)
    expected = (
        torch.einsum("i,jkl->ijkl", x, spread(-x.cos(), 2))
        + torch.einsum("ij,kl->ijkl", one, c)
        + torch.einsum("ik,jl->ijkl", one, c)
        + torch.einsum("il,jk->ijkl", one, c)
    )
    for name in reversed(names):
        func = getattr(tfc, name)(func)
    assert_close(func(x), expected)


def test_fourth_derivatives(backend, t):
    assert_close(grad(by_jvp(jacfwd(jacrev(torch.sin))))(t), t.sin())
    assert_close(hessian(hessian(torch.sin))(t), t.sin())


# --- with vmap ----------------------------------------------------------------------------------------------


def _cubes(x):
    return (x**3).sum()


def test_vmap_of_derivatives(backend, x):
    batch = torch.stack([x, 2 * x])
    assert_close(vmap(grad(_cubes))(batch), 3 * batch**2)
    assert_close(vmap(hessian(_cubes))(batch), torch.diag_embed(6 * batch))
    for jacobian in (jacrev, jacfwd):
        assert_close(vmap(jacobian(torch.sin))(batch), torch.diag_embed(batch.cos()))
    assert_close(vmap(lambda x, v: jvp(torch.sin, (x,), (v,))[1])(batch, batch + 1), batch.cos() * (batch + 1))


def test_vmap_of_vmap(backend, x):
    y = x + 1
    outer = vmap(lambda a: vmap(lambda b: a * b.sin())(y))(x)
    assert_close(outer, x[:, None] * y.sin())
    assert_close(vmap(vmap(grad(torch.sin)))(x[:, None] * y), (x[:, None] * y).cos())
    assert_close(vmap(vmap(torch.mul, in_dims=(None, 0)), in_dims=(0, None))(x, y), x[:, None] * y)


def test_derivatives_of_vmap(backend, x):
    batch = torch.stack([x, 2 * x])
    assert_close(grad(lambda b: vmap(_cubes)(b).sum())(batch), 3 * batch**2)
    per_sample = torch.einsum("ij,ik->ijk", torch.eye(2, dtype=x.dtype, device=x.device), torch.ones_like(batch))
    for jacobian in (jacrev, jacfwd):
        assert_close(jacobian(vmap(_cubes))(batch), per_sample * 3 * batch**2)
        assert_close(jacobian(vmap(grad(_cubes)))(batch), spread(6 * batch))
    assert_close(hessian(lambda b: vmap(_cubes)(b).sum())(batch), spread(6 * batch))
    assert_close(jvp(vmap(grad(_cubes)), (batch,), (batch,))[1], 6 * batch**2)


def test_a_batch_may_be_closed_over_by_a_derivative_within(backend, x):
    # per-sample gradients with shared weights, and the derivative of these by the weights
    weights = ramp(x, 3)
    loss = lambda w, sample: ((w * sample).sum()) ** 2
    per_sample = vmap(grad(loss), in_dims=(None, 0))
    samples = torch.stack([x, 2 * x])
    inner = (samples * weights).sum(1)
    assert_close(per_sample(weights, samples), 2 * inner[:, None] * samples)
    assert_close(jacrev(per_sample)(weights, samples), 2 * samples[:, :, None] * samples[:, None, :])
    assert_close(jacfwd(per_sample)(weights, samples), 2 * samples[:, :, None] * samples[:, None, :])


# --- a vjp_fn in other hands ----------------------------------------------------------------------------------


def test_a_pullback_is_linear_under_every_transform(backend, x):
    _, pullback = vjp(lambda x: x.sin() * x.sum(), x)
    one = torch.eye(3, dtype=x.dtype, device=x.device)
    jacobian = torch.diag(x.cos() * x.sum()) + x.sin()[:, None]
    apply = lambda v: pullback(v)[0]
    assert_close(apply(x), x @ jacobian)
    assert_close(vmap(apply)(one), jacobian)
    for transform in (jacrev, jacfwd):
        assert_close(transform(apply)(x), jacobian.t())
    assert_close(jvp(apply, (x,), (one[0],)), (x @ jacobian, jacobian[0]))
    assert_close(grad(lambda v: (apply(v) ** 2).sum())(x), 2 * jacobian @ (x @ jacobian))
    assert_close(vjp(apply, x)[1](one[1]), (jacobian[:, 1],))


def test_a_pullback_made_within_a_transform(backend, x):
    def hessian_product(x, v):
        _, pullback = vjp(grad(_cubes), x)
        return pullback(v)[0]

    assert_close(
        vmap(hessian_product)(torch.stack([x, 2 * x]), torch.stack([x, x])), torch.stack([6 * x * x, 12 * x * x])
    )
    assert_close(jacrev(hessian_product, argnums=(0, 1))(x, x), (torch.diag(6 * x), torch.diag(6 * x)))
    assert_close(jacfwd(hessian_product, argnums=(0, 1))(x, x), (torch.diag(6 * x), torch.diag(6 * x)))


def test_forward_over_reverse_products(backend, x):
    assert_close(jvp(grad(_cubes), (x,), (x + 1,)), (3 * x**2, 6 * x * (x + 1)))
    assert_close(jvp(lambda x: vjp(torch.sin, x)[1](x)[0], (x,), (x,))[1], (x.cos() - x * x.sin()) * x)


# --- where some torch is wrong without an error -----------------------------------------------------------------


def _mixing(output):
    return (output * ramp(output, *output.shape).sin()).pow(2).sum()


def _features(x):
    return x.reshape(*x.shape[:2], -1)


def _identity(x):
    return torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)


EPS = 0.1  # differences need a smooth function
FUNCTIONS = {
    "layer_norm": lambda x: F.layer_norm(x, x.shape[1:], eps=EPS),
    "layer_norm_affine": lambda x: F.layer_norm(x, x.shape[1:], ramp(x, *x.shape[1:]), ramp(x, *x.shape[1:]), EPS),
    "group_norm": lambda x: F.group_norm(x, 1, eps=EPS),
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True, eps=EPS),
    "instance_norm": lambda x: F.instance_norm(x[:, None], eps=EPS),
    "weight_norm": lambda x: torch._weight_norm(x, x[:, :1] + 2, 0),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "std": lambda x: x.std(-1),
    "logdet": lambda x: torch.logdet(x @ x.t() + _identity(x)),
    "inverse": lambda x: torch.inverse(x + 3 * _identity(x)),
    "prod": lambda x: x.prod(-1),
    "cumprod": lambda x: x.cumprod(-1),
    "softmax": lambda x: x.softmax(-1),
    "logsumexp": lambda x: torch.logsumexp(x, -1),
}
if hasattr(torch, "linalg") and hasattr(torch.linalg, "solve"):
    FUNCTIONS["solve"] = lambda x: torch.linalg.solve(x + 3 * _identity(x), x.sin())


def right_or_refused(derivative, x, expected):
    """A known wrong answer of a torch is computed right or raised; it is never returned."""
    try:
        result = derivative(x)
    except RuntimeError:
        return
    assert_close(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 4), (2, 4)], ids=str)
@pytest.mark.parametrize("name", ["layer_norm", "layer_norm_affine", "group_norm", "batch_norm", "instance_norm"])
def test_hessians_of_normalisations_are_right(name, shape, backend, device):
    x = ramp(torch.zeros(1, dtype=torch.float64, device=device), *shape).sin()
    func = lambda x: _mixing(FUNCTIONS[name](x))
    expected = differences(lambda x: grad(func)(x), x)
    assert_close(grad(func)(x), differences(func, x), rtol=1e-7, atol=1e-7)
    for second in (hessian(func), jacrev(jacrev(func))):
        assert_close(second(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("outer", [jacrev, jacfwd], ids=["jacrev", "jacfwd"])
@pytest.mark.parametrize("inner", [jacrev, jacfwd], ids=["jacrev", "jacfwd"])
@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_second_derivatives_are_never_silently_wrong(name, inner, outer, backend, device):
    x = ramp(torch.zeros(1, dtype=torch.float64, device=device), 3, 3).sin()
    func = lambda x: _mixing(FUNCTIONS[name](x))
    right_or_refused(outer(inner(func)), x, differences(grad(func), x))


@pytest.mark.parametrize("outer", [jacrev, jacfwd], ids=["jacrev", "jacfwd"])
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "weight_norm"])  # its second may raise
def test_third_derivatives_are_never_silently_wrong(name, outer, backend, device):
    x = ramp(torch.zeros(1, dtype=torch.float64, device=device), 3, 3).sin()
    func = lambda x: _mixing(FUNCTIONS[name](x))
    # the Hessian times a vector, whose own derivative is right by the tests above
    direction = (2 * x).cos()
    product = grad(lambda x: (grad(func)(x) * direction).sum())
    right_or_refused(outer(product), x, differences(product, x))


IN_A_DUAL_LEVEL = {
    "grad": lambda x: tfc.grad(lambda x: (x**3).sum())(x),
    "grad_and_value": lambda x: tfc.grad_and_value(lambda x: (x**3).sum())(x)[1] * x,
    "vjp": lambda x: tfc.vjp(lambda x: x**3, x)[1](torch.ones_like(x))[0],
    "jvp": lambda x: tfc.jvp(lambda x: x**3, (x,), (torch.ones_like(x),))[1][0],
    "jacrev": lambda x: tfc.jacrev(lambda x: x**3)(x),
    "jacfwd": lambda x: tfc.jacfwd(lambda x: x**3)(x),
    "hessian": lambda x: tfc.hessian(lambda x: (x**3).sum() * x[0])(x),
    "hvp": lambda x: tfc.hvp(lambda x: (x**4).sum(), (x,), (torch.ones_like(x),))[1][0],
    "linearize": lambda x: tfc.linearize(lambda x: x**3, x)[1](torch.ones_like(x)),
    "vmap(grad)": lambda x: tfc.vmap(tfc.grad(lambda x: x**3))(x),
    "batch_jacobian": lambda x: tfc.batch_jacobian(lambda x: x**3)(x[:, None]),
}


@pytest.mark.skipif(facts.TORCH < (1, 11), reason="torch has no forward mode")
@pytest.mark.parametrize("name", IN_A_DUAL_LEVEL)
def test_within_a_level_of_plain_forward_mode(backend, name):
    """That of torch.autograd.forward_ad, which torch.func.linearize uses, too."""
    import torch.autograd.forward_ad as forward_ad

    func = IN_A_DUAL_LEVEL[name]
    x = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
    tangent = x.cos()
    step = 1e-5
    with tfc.use_fallback("silent"):
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(func(forward_ad.make_dual(x, tangent))).tangent
        expected = (func(x + step * tangent) - func(x - step * tangent)) / (2 * step)
    assert found is not None
    assert_close(found, expected, atol=1e-8)
