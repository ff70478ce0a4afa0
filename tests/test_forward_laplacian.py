"""The forward Laplacian: each rule against the trace of the Hessian, closed forms, and what it refuses."""

import contextlib
import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.laplacian_programs import DTYPE, PROGRAMS, REFERENCES, W, X
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat import _forward_laplacian as forward
from torch_func_compat._forward_laplacian import carried
from torch_func_compat._forward_laplacian.carried import Carried
from torch_func_compat._forward_laplacian.registry import _named


def hessians(func, x):
    """Of each element of the output, by torch.autograd alone: (outputs, N, N), attached."""
    x = x.clone().requires_grad_()
    output = func(x)
    rows = []
    for element in output.reshape(-1):
        (gradient,) = torch.autograd.grad(element, x, create_graph=True, allow_unused=True)
        gradient = torch.zeros_like(x) if gradient is None else gradient
        second = []
        for part in gradient.reshape(-1):
            found = torch.autograd.grad(part, x, create_graph=True, allow_unused=True) if part.requires_grad else [None]
            second.append(torch.zeros_like(x) if found[0] is None else found[0])
        rows.append(torch.stack(second).reshape(x.numel(), x.numel()))
    return x, torch.stack(rows).reshape(*output.shape, x.numel(), x.numel())


def trace(hessian, weight=None):
    weight = torch.eye(hessian.shape[-1], dtype=hessian.dtype) if weight is None else weight
    weight = torch.diag_embed(weight) if weight.dim() == 1 else weight
    return (hessian * weight).sum((-2, -1))


@pytest.mark.parametrize("name", PROGRAMS)
def test_rules(name):
    func = PROGRAMS[name]
    _, hessian = hessians(REFERENCES.get(name, func), X)
    with torch.no_grad():
        (value,), (found,) = forward.laplacian(func, [X])
    assert not (value.requires_grad or found.requires_grad)
    assert_close(value, func(X))
    assert_close(found, trace(hessian))


@pytest.mark.parametrize("name", PROGRAMS)
def test_rules_are_differentiable(name):
    func = PROGRAMS[name]
    x, hessian = hessians(REFERENCES.get(name, func), X)
    weights = torch.linspace(-1, 1, hessian[..., 0, 0].numel(), dtype=DTYPE).reshape(hessian.shape[:-2])
    expected = trace(hessian)
    _, (found,) = forward.laplacian(func, [x])
    assert_close(found, expected)
    if not expected.requires_grad:
        return
    before = torch.autograd.grad((weights * expected).sum(), x, retain_graph=True, allow_unused=True)[0]
    if before is None:
        before = torch.zeros_like(x)
    if not found.requires_grad:
        assert not before.any()
        return
    after = torch.autograd.grad((weights * found).sum(), x, allow_unused=True)[0]
    assert_close(torch.zeros_like(x) if after is None else after, before)


@pytest.mark.parametrize("name", PROGRAMS)
def test_weights_and_chunks(name):
    func = PROGRAMS[name]
    hessian = hessians(REFERENCES.get(name, func), X)[1].detach()
    diagonal = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5, 3.0], dtype=DTYPE)
    matrix = torch.linspace(-1, 1, 36, dtype=DTYPE).reshape(6, 6)
    matrix = matrix @ matrix.t() + 0.1
    for weight in (diagonal, matrix):
        for chunk_size in (None, 4):
            _, (found,) = forward.laplacian(func, [X], weight=weight, chunk_size=chunk_size)
            assert_close(found, trace(hessian, weight))
    _, (found,) = forward.laplacian(func, [X], chunk_size=1)
    assert_close(found, trace(hessian))


@pytest.mark.parametrize("name", PROGRAMS)
def test_batches_of_samples(name):
    """The same functions on a batch of one, whose columns are the same for all samples at first."""
    func = PROGRAMS[name]
    expected = trace(hessians(REFERENCES.get(name, func), X)[1])
    _, (found,) = forward.batch_laplacian(lambda x: func(x[0])[None], [X[None]], [0])
    assert_close(found[0], expected)


def test_every_rule_is_tested(monkeypatch):
    """Programs reach the rules of all functions, but for those that are named here."""
    seen = set()

    class Watched(dict):
        def get(self, key, default=None):
            found = super().get(key, default)
            if found is not None:
                seen.add(found)
            return found

    watched = Watched(carried.rules())
    monkeypatch.setattr(carried, "rules", lambda: watched)
    for func in PROGRAMS.values():
        forward.laplacian(func, [X])
    missing = {rule.__name__ for rule in _named.values()} - {rule.__name__ for rule in seen}
    there = {rule.__name__ for rule in watched.values()}
    assert (missing & there) <= {
        *("rmatmul", "softmin", "differentiable", "complex_", "parts_of_complex", "iterate"),
    }, missing


def test_the_rest_of_the_rules():
    programs = {
        "rmatmul": lambda x: torch.Tensor.__rmatmul__(x.t(), x**2) if hasattr(torch.Tensor, "__rmatmul__") else x,
        "softmin": lambda x: torch.nn.functional.softmin(x**2, 1),
        "iteration": lambda x: sum(row**2 for row in x),
    }
    for func in programs.values():
        _, (found,) = forward.laplacian(func, [X])
        assert_close(found, trace(hessians(func, X)[1]))
    flags = []
    forward.laplacian(lambda x: flags.append(x.requires_grad) or x**2, [X])
    assert flags == [True]


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_eigenfunctions(dtype):
    """Plane waves, hydrogen's ground state, Gaussians, and harmonic functions."""
    x = X.to(dtype)
    k = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.0, 1.0]], dtype=dtype)
    (value,), (found,) = forward.laplacian(lambda x: torch.cos((k * x).sum()), [x])
    assert_close(found, -(k**2).sum() * value)

    def ground_state(x):  # of each electron
        return torch.exp(-x.norm(dim=-1))

    (value,), (found,) = forward.batch_laplacian(ground_state, [x], [0])
    assert_close(found, (1 - 2 / x.norm(dim=-1)) * value)
    (value,), (found,) = forward.laplacian(lambda x: torch.exp(-(x**2).sum() / 2), [x])
    assert_close(found, ((x**2).sum() - x.numel()) * value)
    _, (found,) = forward.batch_laplacian(lambda x: 1 / x.norm(dim=-1), [x], [0])
    assert_close(found, torch.zeros_like(found), atol=1e-4 if dtype == torch.float32 else 1e-12)
    _, (found,) = forward.laplacian(lambda x: torch.linalg.det(x.reshape(2, 3) @ x.reshape(2, 3).t() + x[:, :2]), [x])
    assert found.dtype == dtype


def test_slater_determinants_of_harmonic_functions():
    """Of a matrix whose rows depend on different points: a determinant is linear in each row."""

    def orbitals(x):  # x, y and xy are harmonic
        return torch.stack([x[:, 0], x[:, 1], x[:, 0] * x[:, 1]], -1)

    points = torch.tensor([[0.3, 0.9], [1.1, -0.4], [-0.7, 0.2]], dtype=DTYPE)
    _, (found,) = forward.laplacian(lambda x: torch.det(orbitals(x)), [points])
    assert_close(found, torch.zeros((), dtype=DTYPE), atol=1e-12)


def test_several_primals_and_outputs():
    a, b = X, X[0] * 2

    def func(a, b):
        return [(a**3 * b).sum(), {"mixed": a * b**2}["mixed"]]

    values, found = forward.laplacian(func, [a, b])
    assert_close(values, func(a, b))
    assert_close(found, [(6 * a * b).sum(), 2 * a])
    values, found = forward.batch_laplacian(lambda a, b: [(a**3).sum(0) * b, b**2], [X, X[1]], [1, 0])
    assert_close(found, [(6 * X).sum(0) * X[1], 2 + 0 * X[1]])


def test_batches_share_weights_and_chunks():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
    x = torch.randn(5, 3, dtype=DTYPE)
    hessian = tfc.batch_hessian(network)(x).detach()
    matrix = W @ W.t()
    for chunk_size in (None, 2):
        for weight in (None, torch.tensor([1.0, -2.0, 0.0], dtype=DTYPE), matrix):
            _, (found,) = forward.batch_laplacian(network, [x], [0], weight=weight, chunk_size=chunk_size)
            assert_close(found, trace(hessian, weight))


def test_weights_are_differentiable():
    weight = torch.eye(6, dtype=DTYPE).requires_grad_()
    _, (found,) = forward.laplacian(lambda x: (x**3).sum() * x[0, 0], [X], weight=weight)
    (by_weight,) = torch.autograd.grad(found, weight)
    hessian = hessians(lambda x: (x**3).sum() * x[0, 0], X)[1]
    assert_close(by_weight, hessian)
    (value,) = forward.laplacian(lambda x: (x**3).sum() * x[0, 0], [X], weight=torch.ones(6, 6, dtype=DTYPE).triu())[1]
    assert_close(value, trace(hessian, torch.ones(6, 6, dtype=DTYPE).triu()))


def test_parameters_learn_from_a_laplacian():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8), torch.nn.Softplus(), torch.nn.Linear(8, 1)
    ).double()
    x = torch.randn(5, 3, dtype=DTYPE)
    _, (found,) = forward.batch_laplacian(network, [x], [0])
    expected = tfc.batch_laplacian(network)(x)
    parameters = list(network.parameters())
    before = torch.autograd.grad(expected.pow(2).sum(), parameters, allow_unused=True)
    after = torch.autograd.grad(found.pow(2).sum(), parameters, allow_unused=True)
    for one, two in zip(after, before):  # None and zero are the same
        assert_close(*[torch.zeros(1) if g is None or not g.any() else g for g in (one, two)])


def sequences():
    """Modules of sequences, with the samples along dimension 1 and no dropout."""
    layer = torch.nn.TransformerEncoderLayer
    return {
        "encoder layer": layer(4, 2, 8, dropout=0.0),
        "encoder": torch.nn.TransformerEncoder(layer(4, 2, 8), 2).eval(),
        "decoder layer": torch.nn.TransformerDecoderLayer(4, 2, 8).eval(),
        "convolutions": torch.nn.Sequential(torch.nn.Conv1d(3, 4, 2), torch.nn.SiLU(), torch.nn.AvgPool1d(2)),
        "normalised": torch.nn.Sequential(torch.nn.BatchNorm1d(3).eval(), torch.nn.Softplus(), torch.nn.LayerNorm(4)),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sequences())
def test_modules(name):
    torch.manual_seed(0)
    module = sequences()[name].double()
    x = torch.randn(3, 2, 4, dtype=DTYPE)

    def func(x):
        if "coder" not in name:
            return module(x.transpose(0, 1))
        return (module(x, x) if name == "decoder layer" else module(x)).transpose(0, 1)

    try:
        # whose backward pass is differentiable
        attention = importlib.import_module("torch.nn.attention")
        around = attention.sdpa_kernel(attention.SDPBackend.MATH)
    except ImportError:
        around = contextlib.nullcontext()
    _, (found,) = forward.batch_laplacian(func, [x], [1])
    try:
        with around:
            expected = tfc.batch_laplacian(func, in_dims=1, mode="rows")(x)
    except RuntimeError as error:  # torch 2.1 and 2.2
        pytest.skip(f"torch: {error}")
    assert_close(found, expected)


def test_nothing_is_attached_to_nothing():
    _, (found,) = forward.laplacian(lambda x: torch.tanh(x @ W).sum(), [X])
    assert not found.requires_grad


COMPLEX = {
    "plane wave": lambda x: torch.exp(torch.complex(torch.zeros_like(x), x @ W)),
    "product": lambda x: torch.complex(x, x**2) * torch.complex(x.exp(), x),
    "quotient": lambda x: torch.complex(x, x**2) / torch.complex(x.exp(), x),
    "logarithm": lambda x: torch.log(torch.complex(x + 2, x**2)),
    "tanh": lambda x: torch.tanh(torch.complex(x, x**2)),
    "parts": lambda x: torch.view_as_real(torch.complex(x, x**3) * torch.complex(x, x))[..., 1] * x,
    "real": lambda x: torch.real(torch.complex(x, x**3) ** 2) * torch.imag(torch.complex(x**2, x**3)),
    "conj": lambda x: torch.complex(x, x**3).conj() * torch.complex(x, x**2),
    "matmul": lambda x: torch.complex(x, x**3) @ torch.complex(x, x**2).transpose(0, 1),
    "sum": lambda x: torch.complex(x, x**3).sum(1) * 1j,
    "a real number to a complex power": lambda x: x.exp() ** (1 + 2j) * (2 - 1j),
    "a complex number to a real power": lambda x: (1 + 2j) ** x * (2 - 1j),
    "a complex power of the same number": lambda x: torch.complex(x + 2, x**2) ** x,
}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_numbers(name):
    func = COMPLEX[name]

    def parts(x):
        value = func(x)
        value = getattr(value, "resolve_conj", lambda: value)()
        return torch.view_as_real(value) if value.is_complex() else torch.stack([value, 0 * value], -1)

    try:
        expected = trace(hessians(parts, X)[1])
    except RuntimeError as error:
        pytest.skip(f"torch: {error}")
    _, (found,) = forward.laplacian(func, [X])
    found = getattr(found, "resolve_conj", lambda: found)()
    assert_close(torch.view_as_real(found) if found.is_complex() else torch.stack([found, 0 * found], -1), expected)


# Steps of random programs, all of which take and return (2, 3) and stay bounded
STEPS = [
    torch.sin,
    torch.tanh,
    lambda x: x * x / (1 + x * x),
    lambda x: torch.softmax(x, 1),
    lambda x: torch.sigmoid(x) @ W,
    lambda x: x - x.mean(1, keepdim=True),
    lambda x: x.flip(0) * 0.5 + x,
    lambda x: torch.cat([x[:, 1:], x[:, :1]], 1),
    lambda x: torch.where(x > 0.3, x, 2 * x - 0.3),
    lambda x: x[[1, 0]] * 0.3 + torch.cos(x),
    lambda x: torch.einsum("ij,kj->ik", x, x).exp().reciprocal() @ x,
    lambda x: x / (1 + x.norm(dim=1, keepdim=True)),
    lambda x: torch.logsumexp(torch.stack([x, -x]), 0),
    lambda x: x * torch.slogdet(torch.eye(3, dtype=x.dtype) + 0.1 * x.t() @ x)[1],
    lambda x: x.t().reshape(2, 3).atan(),
    lambda x: torch.nn.functional.layer_norm(x + W[:2], (3,)) * 0.5,
    lambda x: torch.softmax(x @ x.t(), -1) @ x,
    lambda x: x.exp().clamp_max(2.0) * 0.5,
]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(STEPS) - 1), min_size=1, max_size=6), st.booleans(), st.integers(0, 1000))
def test_random_programs(steps, residual, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2, 3, generator=generator, dtype=DTYPE) + 0.2

    def func(x):
        for step in steps:
            x = STEPS[step](x) + (0.5 * x if residual else 0)
        return x

    expected = tfc.laplacian(func)(x)
    with torch.no_grad():
        (value,), (found,) = forward.laplacian(func, [x])
    assert_close(value, func(x))
    scale = float(expected.abs().max()) + 1
    assert_close(found / scale, expected / scale, rtol=1e-7, atol=1e-8)


class Doubled(torch.autograd.Function):
    """Twice its input, with the derivative of something else."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient


class Numpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(np.sin(x.numpy()))

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@torch.jit.script
def scripted(x):
    return x * 2 + x.sin()


def swallowed(x):
    try:
        return torch.special_function_that_is_not_there(x)
    except AttributeError:
        pass
    try:
        x.item()
    except forward.Refused:
        return x**2
    return x


def in_place(x):
    y = x * 2
    y += 1
    return y


def assigned(x):
    y = torch.zeros(2, 3, dtype=x.dtype)
    y[0] = x[0]
    return y


def by_item(x):
    x[0, 0] = 1.0
    return x


REFUSED = {
    "an in-place operation": (in_place, "writes in place"),
    "an in-place method": (lambda x: (x * 2).add_(1), "writes in place"),
    "an in-place activation": (lambda x: torch.nn.functional.relu(x * 2, inplace=True), "writes in place"),
    "an in-place activation by position": (lambda x: torch.nn.functional.leaky_relu(x * 2, 0.1, True), "in place"),
    "assignment to a constant": (assigned, "writes in place"),
    "assignment to an element": (by_item, "writes in place"),
    "out=": (lambda x: torch.sin(x, out=torch.zeros(2, 3, dtype=x.dtype)), "out="),
    "item": (lambda x: x * x.sum().item(), "takes numbers out of torch"),
    "float": (lambda x: x * float(x[0, 0]), "takes numbers out of torch"),
    "tolist": (lambda x: x * x[0].tolist()[0], "takes numbers out of torch"),
    "numpy": (lambda x: x * torch.as_tensor(x.numpy()), "takes numbers out of torch"),
    "numpy.asarray": (lambda x: x * torch.as_tensor(np.asarray(x)), "takes numbers out of torch"),
    "numpy of detached": (lambda x: x * torch.as_tensor(x.detach().numpy()), "takes numbers out of torch"),
    "control flow": (lambda x: x**2 if x.sum() > 0 else x, "takes numbers out of torch"),
    "control flow on comparisons": (lambda x: x**2 if (x > 0).all() else x, "takes numbers out of torch"),
    "an operation without a rule": (lambda x: torch.cumprod(x, 1), "no rule for cumprod"),
    "an option without a rule": (lambda x: x.norm(p=1), "no rule for norms"),
    "a custom Function": (Doubled.apply, "without grad mode"),
    "numpy in a custom Function": (Numpy.apply, "takes numbers out of torch|without grad mode"),
    "no_grad": (lambda x: x * torch.no_grad()(torch.sin)(x), "without grad mode"),
    "a script": (scripted, "fails on carried|does not go through|does not depend"),
    "a tensor made of it": (lambda x: x * torch.tensor(x), "does not go through|fails on carried|NaN"),
    "a derivative": (lambda x: x * torch.autograd.grad((x**2).sum(), x)[0], ""),
    "a derivative by a transform": (lambda x: x * tfc.grad(lambda x: (x**2).sum())(x), ""),
    "vmap": (lambda x: tfc.vmap(torch.sin)(x), ""),
    "random numbers": (lambda x: torch.nn.functional.dropout(x), "random numbers"),
    "random numbers like it": (lambda x: x + torch.randn_like(x), "no rule for randn_like"),
    "batch normalisation": (lambda x: torch.nn.BatchNorm1d(3).double()(x), "train mode"),
    "a constant": (lambda x: torch.ones(3), "does not depend"),
    "a constant of it": (lambda x: x.detach(), "does not depend"),
    "a refusal that it catches": (swallowed, "takes numbers out of torch"),
    "its own error": (lambda x: x @ x, "fails on carried"),
    "a singular matrix": (lambda x: torch.inverse(x[0, 0] * torch.ones(3, 3, dtype=x.dtype)), "inverse"),
    "complex powers of real parts": (lambda x: torch.abs(torch.complex(x, x)), "complex numbers"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    func, message = REFUSED[name]
    with tfc.use_fallback("silent"), pytest.raises(forward.Refused, match=message):
        forward.laplacian(func, [X.clone()])


@pytest.mark.filterwarnings("ignore")
def test_refusals_leave_everything_as_it_was():
    x = X.clone()
    for func, _ in REFUSED.values():
        with pytest.raises(forward.Refused), tfc.use_fallback("silent"):
            forward.laplacian(func, [x])
        assert torch.is_grad_enabled()
    assert torch.equal(x, X)


def test_nested_forward_laplacians_are_refused():
    def inner(x):
        return forward.laplacian(lambda y: (y**4).sum(), [x])[1][0]

    with pytest.raises(forward.Refused, match="nested"):
        forward.laplacian(inner, [X])


def test_placeholders_are_not_numbers():
    """What gets around the rules meets no number, in a shape that fits nothing."""
    seen = []

    def func(x):
        seen.append(x)
        return x**2

    forward.laplacian(func, [X])
    assert isinstance(seen[0], Carried)
    memory = carried.placeholder()
    assert memory.device.type == "meta" or bool(torch.isnan(memory).all())
    assert memory.dim() == 6
