"""Partial derivatives, divergence and curl of fields against closed forms, on every backend."""

import itertools

import pytest
import torch
from support.tolerances import assert_close
from torch.nn import functional as F

import torch_func_compat as tfc
from torch_func_compat._fields import evaluate
from torch_func_compat._fields.plan import Plan
from torch_func_compat._torch import facts
from torch_func_compat.autograd.fields import curl, divergence, partials

Z = torch.tensor([[0.4, -0.7, 1.2], [0.1, 0.5, -0.3], [-1.1, 0.2, 0.6], [0.8, 0.9, -0.2]], dtype=torch.float64)
ALL = ("", "t", "x", "y", "tx", "xx", "xy", "yx", "xxx", "txy")


@pytest.fixture(autouse=True)
def quiet():
    with tfc.use_fallback("silent"):
        yield


def wave(z):
    """(*batch, 3) -> (*batch)"""
    t, x, y = z.unbind(-1)
    return t**2 * x**3 * y + (x * y).sin()


def wave_derivatives(z):
    t, x, y = z.unbind(-1)
    s, c = (x * y).sin(), (x * y).cos()
    return {
        "": t**2 * x**3 * y + s,
        "t": 2 * t * x**3 * y,
        "x": 3 * t**2 * x**2 * y + y * c,
        "y": t**2 * x**3 + x * c,
        "tx": 6 * t * x**2 * y,
        "xx": 6 * t**2 * x * y - y**2 * s,
        "xy": 3 * t**2 * x**2 + c - x * y * s,
        "yx": 3 * t**2 * x**2 + c - x * y * s,
        "xxx": 6 * t**2 * y - y**3 * c,
        "txy": 6 * t * x**2,
    }


def network(outputs=1, dtype=torch.float64):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, outputs)
    ).to(dtype)


def test_closed_forms(backend):
    assert_close(partials(wave, ALL, coordinates="txy")(Z), wave_derivatives(Z))


def test_order_of_what_is_asked_for_is_kept(backend):
    spec = ("xx", "t", "", "x")
    assert list(partials(wave, spec, coordinates="txy")(Z)) == list(spec)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 2, 3), (0, 3)])
def test_any_batch(backend, shape):
    z = Z.reshape(2, 2, 3)[tuple([0] * (3 - len(shape)))] if len(shape) < 3 else Z.reshape(shape)
    z = z[: shape[0]] if len(shape) == 2 else z
    assert z.shape == shape
    assert_close(partials(wave, ALL, coordinates="txy")(z), wave_derivatives(z))


@pytest.mark.parametrize("tail", [(1,), (2,), (2, 3)])
def test_any_value(backend, tail):
    weights = torch.linspace(-1, 1, 6, dtype=torch.float64)[: torch.Size(tail).numel()].reshape(tail)

    def field(z):
        return wave(z).reshape(-1, *[1] * len(tail)) * weights

    expected = {k: v.reshape(-1, *[1] * len(tail)) * weights for k, v in wave_derivatives(Z).items()}
    assert_close(partials(field, ALL, coordinates="txy")(Z), expected)


def test_components_have_derivatives_of_their_own(backend):
    def flow(z):
        return torch.stack([wave(z), z[:, 0] * z[:, 1], z[:, 2] ** 3], -1)

    spec = {"u": ("xx", "t"), "v": ("", "tx"), "p": ("y",)}
    found = partials(flow, spec, coordinates="txy")(Z)
    expected = wave_derivatives(Z)
    assert_close(
        found,
        {
            "u": {"xx": expected["xx"], "t": expected["t"]},
            "v": {"": Z[:, 0] * Z[:, 1], "tx": torch.ones_like(Z[:, 0])},
            "p": {"y": 3 * Z[:, 2] ** 2},
        },
    )
    one = partials(lambda z: wave(z)[:, None], {"u": ("xx",)}, coordinates="txy")(Z)
    assert_close(one, {"u": {"xx": expected["xx"]}})


def test_names_of_several_letters(backend):
    found = partials(wave, (("x1",), ("x1", "x2"), ()), coordinates=("t", "x1", "x2"))(Z)
    expected = wave_derivatives(Z)
    assert_close(found, {("x1",): expected["x"], ("x1", "x2"): expected["xy"], (): expected[""]})


def test_a_field_that_depends_on_some_coordinates_only(backend):
    found = partials(lambda z: z[:, 1] * 2, ("t", "x", "xx", "tt"), coordinates="txy")(Z)
    zero = torch.zeros(4, dtype=Z.dtype)
    assert_close(found, {"t": zero, "x": zero + 2, "xx": zero, "tt": zero})
    found = partials(lambda z: torch.ones_like(z[:, 0]), ("t", "xx"), coordinates="txy")(Z)
    assert_close(found, {"t": zero, "xx": zero})


def test_other_arguments_are_shared(backend):
    found = partials(lambda z, a, b: a * wave(z) + b, ("", "xx"), coordinates="txy")(Z, 3.0, b=1.0)
    expected = wave_derivatives(Z)
    assert_close(found, {"": 3 * expected[""] + 1, "xx": 3 * expected["xx"]})


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_networks_in_each_precision(backend, dtype):
    field = network(2, dtype)
    z = Z.to(dtype)
    found = partials(field, ("x", "xy", "yy"), coordinates="txy")(z)
    jacobian, hessian = tfc.batch_jacobian(field)(z), tfc.batch_hessian(field)(z)
    expected = {"x": jacobian[..., 1], "xy": hessian[..., 1, 2], "yy": hessian[..., 2, 2]}
    assert_close(found, expected)


def test_complex_fields(backend):
    """A plane wave exp(i (2 x - t)), and its conjugate."""

    def field(z):
        phase = 2 * z[:, 1] - z[:, 0]
        return torch.view_as_complex(torch.stack([phase.cos(), phase.sin()], -1))

    value = field(Z)
    expected = {"": value, "t": -1j * value, "x": 2j * value, "xx": -4 * value, "tx": 2 * value, "y": 0 * value}
    assert_close(partials(field, tuple(expected), coordinates="txy")(Z), expected)

    def both(z):
        value = torch.view_as_real(field(z))
        conjugate = torch.stack([value[:, 0], -value[:, 1]], -1)
        return torch.view_as_complex(torch.stack([value, conjugate], 1))

    found = partials(both, {"a": ("t",), "b": ("xx", "")}, coordinates="txy")(Z)
    assert_close(found, {"a": {"t": expected["t"]}, "b": {"xx": expected["xx"].conj() + 0, "": value.conj() + 0}})


def counted(monkeypatch):
    passes, gradient = [], evaluate._gradient
    monkeypatch.setattr(evaluate, "_gradient", lambda *args: passes.append(1) or gradient(*args))
    return passes


@pytest.mark.parametrize(
    "spec, count",
    [
        (("",), 0),
        (("t", "x", "y"), 1),
        (("t", "xx"), 2),
        (("x", "t", "xxx"), 3),
        (("xx", "xy", "yy"), 3),
        (("xy",), 2),
        (("xx", "xy", "tx"), 2),
        (("txy", "xxy"), 3),
    ],
)
def test_one_evaluation_and_as_few_passes_as_possible(monkeypatch, spec, count):
    evaluations = []

    def field(z):
        evaluations.append(1)
        return wave(z)

    with tfc.use_backend("autograd"):
        found = partials(field, spec, coordinates="txy", check=False)
        passes = counted(monkeypatch)
        derivatives, expected = found(Z), wave_derivatives(Z)
        for entry in spec:
            if entry in expected:
                assert_close(derivatives[entry], expected[entry])
    assert (len(evaluations), len(passes)) == (1, count)


def test_one_evaluation_on_each_backend(backend):
    evaluations = []

    def field(z):
        evaluations.append(1)
        return wave(z)

    # the second one goes by vjp, as everything within a transform
    found = partials(field, ("t", "xxx"), coordinates="txy")
    found(Z)
    assert len(evaluations) == 1
    found = partials(lambda z: F.layer_norm(field(z)[:, None] * z, (3,)), ("t", "xx"), coordinates="txy")
    del evaluations[:]
    found(Z)
    assert len(evaluations) == 2
    found(Z)
    assert len(evaluations) == 3


def test_plans_differentiate_what_was_asked_for_first():
    """u_xy from u_y where that is asked for anyway, from u_x where that one is."""
    assert Plan("", ("y", "xy"), "xy").orders == [{(): {(1,): 1}}, {(1,): {(0, 1): 0}}]
    assert Plan("", ("x", "xy"), "xy").orders == [{(): {(0,): 0}}, {(0,): {(0, 1): 1}}]


@pytest.mark.parametrize("orders", [1, 2, 3, 4])
def test_plans_give_all_that_is_asked_for(orders):
    """Every derivative has a pass that gives it, and every pass one that gives what it differentiates."""
    entries = ["".join(word) for word in itertools.product("xyz", repeat=orders)]
    for chosen in [entries, entries[::2], entries[1::3], entries[-1:]]:
        plan, known = Plan("", chosen, "xyz"), {()}
        for passes in plan.orders:
            assert set(passes) <= known
            for parent, children in passes.items():
                for child, coordinate in children.items():
                    assert tuple(sorted((*parent, coordinate))) == child
                    known.add(child)
        assert set(plan.names.values()) <= known


def residual(field, z):
    d = partials(field, ("", "t", "x", "xx"), coordinates="txy")(z)
    return d["t"] + d[""] * d["x"] - d["xx"]


def residual_by_hand(field, z):
    z = z if z.requires_grad else z.clone().requires_grad_()
    u = field(z)
    (first,) = torch.autograd.grad(u.sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first[:, 1].sum(), z, create_graph=True)
    return first[:, :1] + u * first[:, 1:2] - second[:, 1:2]


def test_parameters_learn_from_derivatives(backend):
    field = network()
    expected = torch.autograd.grad(residual_by_hand(field, Z).pow(2).sum(), list(field.parameters()), allow_unused=True)
    found = torch.autograd.grad(residual(field, Z).pow(2).sum(), list(field.parameters()), allow_unused=True)
    assert_close([g for g in found if g is not None], [g for g in expected if g is not None])


def test_points_have_derivatives_too(backend):
    field, z = network(), Z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(residual_by_hand(field, z).pow(2).sum(), z)
    (found,) = torch.autograd.grad(residual(field, z).pow(2).sum(), z)
    assert_close(found, expected)
    assert z.grad is None


def test_nothing_is_attached_to_nothing(backend):
    found = partials(wave, ALL, coordinates="txy")(Z)
    assert not any(value.requires_grad for value in found.values())
    field = network()
    with torch.no_grad():
        found = partials(field, ALL, coordinates="txy")(Z)
    assert not any(value.requires_grad for value in found.values())
    assert_close(found, partials(field, ALL, coordinates="txy")(Z))
    field.requires_grad_(False)
    assert not any(value.requires_grad for value in partials(field, ALL, coordinates="txy")(Z).values())
    assert not Z.requires_grad and Z.grad is None


@pytest.mark.skipif(not hasattr(torch, "inference_mode"), reason="inference mode is of torch 1.9")
def test_inference_mode(backend):
    with torch.inference_mode():
        found = partials(wave, ALL, coordinates="txy")(Z.clone())
        expected = wave_derivatives(Z)
    assert_close({k: v.clone() for k, v in found.items()}, {k: v.clone() for k, v in expected.items()})


def test_within_vmap(backend):
    at = partials(wave, ALL, coordinates="txy")
    assert_close(tfc.vmap(at)(Z), wave_derivatives(Z))
    assert_close(tfc.vmap(at)(Z.reshape(2, 2, 3)), {k: v.reshape(2, 2) for k, v in wave_derivatives(Z).items()})


def test_within_derivatives(backend):
    spec = ("", "t", "xx")

    def total(z):
        return sum(value.sum() for value in partials(wave, spec, coordinates="txy")(z).values())

    t, x, y = Z.unbind(-1)
    s, c = (x * y).sin(), (x * y).cos()
    found = tfc.grad(total)(Z)
    assert not found.requires_grad
    by_t = 2 * t * x**3 * y + 2 * x**3 * y + 12 * t * x * y
    assert_close(found[:, 0], by_t)
    by_x = 3 * t**2 * x**2 * y + y * c + 6 * t * x**2 * y + 6 * t**2 * y - y**3 * c
    assert_close(found[:, 1], by_x)
    by_y = t**2 * x**3 + x * c + 2 * t * x**3 + 6 * t**2 * x - 2 * y * s - x * y**2 * c
    assert_close(found[:, 2], by_y)
    tangent = tfc.jvp(total, (Z,), (torch.ones_like(Z),))[1]
    assert_close(tangent, (by_t + by_x + by_y).sum())


def test_derivatives_by_parameters_within_transforms(backend):
    def loss(a, z):
        d = partials(lambda z: a[0] * wave(z) + a[1] ** 2 * z[:, 1] ** 2, ("t", "xx"), coordinates="txy")(z)
        return (d["t"] + d["xx"]).sum()

    a = torch.tensor([0.5, 2.0], dtype=torch.float64)
    expected = wave_derivatives(Z)
    first = (expected["t"] + expected["xx"]).sum()
    found = tfc.grad(loss)(a, Z)
    assert_close(found, torch.stack([first, 4 * a[1] * 4]))
    assert not found.requires_grad
    assert_close(tfc.hessian(loss)(a, Z), torch.tensor([[0.0, 0.0], [0.0, 16.0]], dtype=torch.float64))
    many = torch.stack([a, 2 * a])
    assert_close(tfc.vmap(tfc.grad(loss), (0, None))(many, Z), torch.stack([found, torch.stack([first, 32 * a[1]])]))


def test_fields_made_of_derivatives(backend):
    """The biharmonic operator as the Laplacian of a Laplacian."""

    def laplacian(field):
        def at(z):
            d = partials(field, ("xx", "yy"), coordinates="xy")(z)
            return d["xx"] + d["yy"]

        return at

    z = Z[:, :2]
    found = laplacian(laplacian(lambda z: z[:, 0] ** 4 * z[:, 1] ** 2))(z)
    assert_close(found, 24 * z[:, 1] ** 2 + 48 * z[:, 0] ** 2)


def test_fields_of_single_points_that_are_mapped(backend):
    found = partials(lambda z: tfc.vmap(wave)(z), ("t", "xx", "xy"), coordinates="txy")(Z)
    expected = wave_derivatives(Z)
    assert_close(found, {entry: expected[entry] for entry in found})


def test_fields_that_are_gradients(backend):
    """Of forces, by a transform within the field: one derivative more."""
    forces = lambda z: tfc.vmap(tfc.grad(wave))(z)
    found = partials(forces, {"t": ("", "x"), "x": ("x",), "y": ("x", "tx")}, coordinates="txy")(Z)
    expected = wave_derivatives(Z)
    assert_close(found["t"], {"": expected["t"], "x": expected["tx"]})
    assert_close(found["x"], {"x": expected["xx"]})
    assert_close(found["y"], {"x": expected["xy"], "tx": expected["txy"]})
    assert not found["y"]["tx"].requires_grad
    # and three levels: a transform around it, it, and the one within
    outer = tfc.grad(
        lambda z: partials(forces, {"t": ("x",), "x": ("",), "y": ("",)}, coordinates="txy")(z)["t"]["x"].sum()
    )
    third = 12 * Z[:, 0] * Z[:, 1] * Z[:, 2]
    assert_close(outer(Z)[:, 1], third)


def test_what_else_is_made_of_the_points_is_constant(backend):
    """u(x; c) with c = x: only the first one counts."""
    z = Z.clone().requires_grad_()
    found = partials(lambda inner: (inner * z**2).sum(-1), ("x",), coordinates="txy")(z)["x"]
    assert_close(found, Z[:, 1] ** 2)
    (by_z,) = torch.autograd.grad(found.sum(), z)
    assert_close(by_z[:, 1], 2 * Z[:, 1])


def test_points_that_depend_on_each_other(backend):
    norm = torch.nn.BatchNorm1d(3).double()
    mixed = [norm, lambda z: z - z.mean(0), lambda z: torch.softmax(z, 0), lambda z: z * z.flip(0)]
    for field in mixed:
        for check in (None, True):
            with pytest.raises(RuntimeError, match="points are not independent: its value"):
                partials(field, ("x",), coordinates="txy", check=check)(Z)
        with pytest.raises(RuntimeError, match="not independent"):
            divergence(field)(Z)
    partials(norm.eval(), ("x", "xx"), coordinates="txy", check=True)(Z)
    # a derivative that depends on other points where the value does not
    hidden = partials(lambda z: z[:, 1] ** 3 + (z - Z).sum() ** 2, ("xx",), coordinates="txy")
    with pytest.raises(RuntimeError, match="its derivative of order 1"):
        hidden(Z)


def test_the_first_call_is_checked(backend):
    at = partials(lambda z, mix: wave(z) + mix * z.sum(), ("x", "xx"), coordinates="txy")
    at(Z, 0.0)
    at(Z, 1.0)
    strict = partials(lambda z, mix: wave(z) + mix * z.sum(), ("x", "xx"), coordinates="txy", check=True)
    strict(Z, 0.0)
    with pytest.raises(RuntimeError, match="not independent"):
        strict(Z, 1.0)
    partials(lambda z: z - z.mean(0), ("x",), coordinates="txy", check=False)(Z)


def test_points_are_not_modified(backend):
    def field(z):
        z = z.mul_(2)
        return z.sum(-1)

    before = Z.clone()
    for z in (Z.clone(), Z.clone().requires_grad_() * 1):
        with pytest.raises(RuntimeError):
            partials(field, ("x",), coordinates="txy")(z)
    assert torch.equal(Z, before)


# Element by element, of what nodes.py knows to be right as often as one likes
KNOWN = {
    "add": lambda x: x + x,
    "sub": lambda x: 1 - x,
    "mul": lambda x: x * x * x,
    "div": lambda x: (x + 1) / (x * x + 2),
    "neg": lambda x: -x,
    "reciprocal": lambda x: torch.reciprocal(x + 2),
    "pow": lambda x: x**5,
    "fractional pow": lambda x: (x + 2) ** 2.5,
    "tensor pow": lambda x: (x + 2) ** (x * 0.5),
    "scalar pow": lambda x: 2.0**x,
    "sqrt": lambda x: (x + 2).sqrt(),
    "rsqrt": lambda x: (x + 2).rsqrt(),
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": lambda x: (x + 2).log(),
    "log1p": lambda x: (x + 1).log1p(),
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "atan": torch.atan,
    "erf": torch.erf,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "softplus beta": lambda x: F.softplus(x, beta=3.0),
    "relu": F.relu,
    "silu": F.silu,
    "abs": torch.abs,
    "square": torch.square,
    "mm": lambda x: torch.tanh(x @ torch.linspace(-1, 1, 9, dtype=x.dtype).reshape(3, 3)),
    "addmm": lambda x: torch.sin(
        F.linear(x, torch.linspace(-1, 1, 9, dtype=x.dtype).reshape(3, 3), torch.arange(3).to(x))
    ),
    "bmm": lambda x: torch.bmm(x[:, None, :], (x**3)[:, :, None])[:, :, 0] * x,
    "cat": lambda x: torch.cat([x.sin(), x.cos()], 1) ** 3,
    "stack": lambda x: torch.stack([x.sin(), x.cos()], 1).sum(1) * x,
    "index": lambda x: x[:, [2, 0, 1]] ** 4,
    "mean": lambda x: x.exp().mean(1, keepdim=True) * x.sin(),
}
POINTS = torch.tensor([[0.3, -0.4, 0.55], [0.2, 0.75, -0.6]], dtype=torch.float64)


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known_is_right_to_the_fourth_order(monkeypatch, name):
    """Each order against central differences of the one below."""
    monkeypatch.setattr(evaluate.Evaluation, "_nested", None)  # it does not go that way
    at = partials(KNOWN[name], ("", "x", "xx", "xxx", "xxxx"), coordinates="txy", check=True)
    found = at(POINTS)
    step = torch.tensor([0.0, 1e-4, 0.0], dtype=torch.float64)
    above, below = at(POINTS + step), at(POINTS - step)
    for lower, higher in zip(("", "x", "xx", "xxx"), ("x", "xx", "xxx", "xxxx")):
        assert_close(found[higher], (above[lower] - below[lower]) / 2e-4, rtol=1e-5, atol=1e-5)


def test_normalisations(backend):
    """torch's own second derivatives of layer_norm and group_norm, and no wrong third ones."""

    def plain(z):
        z = torch.stack([wave(z), z[:, 1] ** 2, z[:, 2] * z[:, 1], z[:, 0]], 1)
        return (z - z.mean(1, keepdim=True)) / (z.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    def fused(z):
        return F.layer_norm(torch.stack([wave(z), z[:, 1] ** 2, z[:, 2] * z[:, 1], z[:, 0]], 1), (4,))

    spec = ("t", "xx", "xy")
    assert_close(
        partials(fused, spec, coordinates="txy")(Z), partials(plain, spec, coordinates="txy")(Z), rtol=1e-8, atol=1e-8
    )
    try:
        third = partials(fused, ("xxx",), coordinates="txy")(Z)
    except RuntimeError:
        return
    assert_close(third, partials(plain, ("xxx",), coordinates="txy")(Z), rtol=1e-6, atol=1e-6)


def test_custom_functions(backend):
    """One that cannot be differentiated twice raises, and gives its first derivative."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * gradient

    assert_close(partials(Cube.apply, ("x",), coordinates="txy")(Z)["x"][:, 1], 3 * Z[:, 1] ** 2)
    with pytest.raises(RuntimeError):
        partials(Cube.apply, ("xx",), coordinates="txy")(Z)


def test_divergence(backend):
    def field(x):
        a, b, c = x.unbind(-1)
        return torch.stack([a**2 * b, b * c, c**3 * a], -1)

    a, b, c = Z.unbind(-1)
    expected = 2 * a * b + c + 3 * c**2 * a
    assert_close(divergence(field)(Z), expected)
    assert_close(divergence(field, coordinates="abc")(Z), expected)
    assert_close(divergence(field, chunk_size=3)(Z), expected)
    assert_close(tfc.vmap(divergence(field))(Z), expected)
    two = divergence(lambda z: field(z)[:, :2], along="bc", coordinates="abc")(Z)
    assert_close(two, a**2 + b)


def test_curl(backend):
    def field(x):
        a, b, c = x.unbind(-1)
        return torch.stack([a**2 * b, b * c, c**3 * a], -1)

    a, b, c = Z.unbind(-1)
    expected = torch.stack([-b, -(c**3), -(a**2)], -1)
    assert_close(curl(field)(Z), expected)
    assert_close(curl(field)(Z[0]), expected[0])
    plane = curl(lambda z: field(z)[:, 1:], along="cb", coordinates="abc")(Z)
    assert_close(plane, 3 * c**2 * a - c)
    with pytest.raises(ValueError, match="two or three coordinates"):
        curl(lambda x: x)(torch.ones(2, 4))
    for points in (Z.numpy(), Z[0, 0]):
        with pytest.raises(ValueError, match=r"curl: expected points of shape \(\*batch, coordinates\), got"):
            curl(lambda x: x)(points)


def test_identities_of_vector_calculus(backend):
    """The curl of a gradient and the divergence of a curl are zero."""
    potential, vector = network(1), network(3)

    def gradient(x):
        d = partials(potential, ("x", "y", "z"), coordinates="xyz")(x)
        return torch.cat([d["x"], d["y"], d["z"]], 1)

    zero = torch.zeros_like(Z)
    assert_close(curl(gradient)(Z), zero, atol=1e-12)
    assert_close(divergence(curl(vector))(Z), zero[:, 0], atol=1e-12)


def test_complex_vector_fields(backend):
    def field(x):
        return torch.view_as_complex(torch.stack([x**2, x.flip(-1)], -1))

    expected = 2 * Z.sum(1)
    found = divergence(field)(Z)
    assert_close(torch.view_as_real(found), torch.stack([expected, torch.ones_like(expected)], 1))


@pytest.mark.parametrize("chunk_size", (1, 3, 4, 100))
def test_chunks(backend, chunk_size):
    seen = []

    def field(z):
        seen.append(len(z))
        return wave(z)

    found = partials(field, ALL, coordinates="txy", chunk_size=chunk_size)(Z)
    assert_close(found, wave_derivatives(Z))
    assert max(seen) <= chunk_size and sum(seen) == len(Z)
    spec = {"u": ("xx",), "v": ("t",)}
    flow = lambda z: torch.stack([wave(z), z[:, 0]], -1)
    assert_close(
        partials(flow, spec, coordinates="txy", chunk_size=chunk_size)(Z), partials(flow, spec, coordinates="txy")(Z)
    )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: partials(wave, "xx", coordinates="txy"), "as a sequence like"),
        (lambda: partials(wave, (), coordinates="txy"), "as a sequence like"),
        (lambda: partials(wave, {}, coordinates="txy"), "at least one component"),
        (lambda: partials(wave, ("xz",), coordinates="txy"), "none of the coordinates"),
        (lambda: partials(wave, (1,), coordinates="txy"), "to be a string"),
        (lambda: partials(wave, ("x",), coordinates="txx"), "different names"),
        (lambda: partials(wave, ("x",), coordinates="txy", chunk_size=0), "chunk_size"),
        (lambda: partials(wave, ("x",), coordinates="txy")(Z[:, :2]), "expected points of shape"),
        (lambda: partials(wave, ("x",), coordinates="txy")(Z.long()), "real floating-point"),
        (lambda: partials(wave, ("x",), coordinates="txy")(3.0), "expected points of shape"),
        (lambda: partials(lambda z: z.sum(), ("x",), coordinates="txy")(Z), "with a value for each point"),
        (lambda: partials(lambda z: [z], ("x",), coordinates="txy")(Z), "to return a tensor"),
        (lambda: partials(lambda z: z[:, 0] > 0, ("x",), coordinates="txy")(Z), "floating-point numbers"),
        (lambda: partials(wave, {"u": ("x",)}, coordinates="txy")(Z), "1 components along its last dimension"),
        (lambda: partials(lambda z: z, {"u": ("x",)}, coordinates="txy")(Z), "1 components along its last dimension"),
        (lambda: divergence(lambda z: z[:, :2])(Z), "3 components along its last dimension"),
        (lambda: divergence(lambda z: z, along="x")(Z), "needs coordinates="),
        (lambda: divergence(lambda z: z, along="q", coordinates="txy")(Z), "none of the coordinates"),
    ],
)
def test_errors(backend, make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
@pytest.mark.skipif(not facts.has("compiled_transforms"), reason="torch.compile traces transforms from 2.6 on")
def test_compiled():
    from support.compiling import compiled

    field = network().requires_grad_(False)
    at = partials(field, ("", "t", "xx", "xy"), coordinates="txy")
    assert_close(compiled(lambda z: at(z), fullgraph=True)(Z), at(Z))


@pytest.mark.skipif(not facts.has("compiled_transforms"), reason="torch.compile traces transforms from 2.6 on")
def test_compiled_training():
    """The recipe of the documentation."""
    from support.compiling import compiled

    field = network()
    derivatives = partials(field, ("", "t", "x", "xxx"), coordinates="txy")

    def loss(z):
        d = derivatives(z)
        return (d["t"] + 6 * d[""] * d["x"] + d["xxx"]).pow(2).mean()

    weights = [parameter for name, parameter in field.named_parameters()]
    expected = torch.autograd.grad(loss(Z), weights, allow_unused=True)
    found = torch.autograd.grad(compiled(loss, fullgraph=True)(Z), weights, allow_unused=True)
    assert_close(found, expected)


def test_a_field_without_components(backend):
    found = partials(lambda z: z[:, :0] ** 2, ("", "t", "tx"), coordinates="tx")(torch.rand(5, 2))
    assert {key: part.shape for key, part in found.items()} == dict.fromkeys(("", "t", "tx"), (5, 0))
