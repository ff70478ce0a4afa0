"""Batched rows through activations, which torch < 2.0 would do one by one: by factors, where these are right."""

import threading

import pytest
import torch
from support.rows import by_rows
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat._backends.autograd import batched_vjp as _rows
from torch_func_compat._backends.autograd.elementwise_vjps import Factors
from torch_func_compat._guards.by_graph import nodes
from torch_func_compat._guards.compositions import order_of
from torch_func_compat._torch import facts

F = torch.nn.functional
X = torch.linspace(-0.8, 0.9, 6, dtype=torch.float64)
Z = torch.linspace(0.5, -0.7, 6, dtype=torch.float64)
W = torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(6, 6).sin()

LOOPED = facts.has("activations_are_looped_over")

ACTIVATIONS = {
    "tanh": torch.tanh,
    "softplus": lambda x: F.softplus(3 * x, beta=1.5, threshold=2.0),
    "gelu": F.gelu,
    "silu": F.silu,
    "elu": F.elu,
    "selu": torch.selu,
    "celu": torch.celu,
    "leaky_relu": F.leaky_relu,
    "logsigmoid": F.logsigmoid,
    "hardswish": lambda x: F.hardswish(5 * x),
    "logit": lambda x: torch.logit(x / 2 + 0.5),
    "mse_loss": lambda x: F.mse_loss(x, Z, reduction="none"),
    "mean mse_loss": lambda x: F.mse_loss(x, Z)[None] * x,
    "smooth_l1_loss": lambda x: F.smooth_l1_loss(x, Z, reduction="none"),
    "hardtanh": lambda x: F.hardtanh(2 * x),
    "relu6": lambda x: F.relu6(8 * x),
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "hardsigmoid": lambda x: F.hardsigmoid(5 * x),
    "sinc": lambda x: torch.sinc(x),
    "clamp": lambda x: x.clamp(-0.5, 0.5) ** 2,
    "where": lambda x: torch.where(x > 0, x.exp(), x**2),
    "masked_fill": lambda x: x.masked_fill(x > 0.5, 2.0) ** 2,
    "maximum": lambda x: torch.maximum(x, Z) * torch.fmax(Z, x),
    "minimum": lambda x: torch.minimum(x, Z) * torch.fmin(Z, x),
    "twice in a row": lambda x: torch.tanh(torch.tanh(x)),
    "for two": lambda x: torch.stack([x.tanh() * y for y in (x.tanh(), x)]) + x.tanh().sin() * x.tanh(),
    "shared": lambda x: (lambda t: (t * t).sin() * t + t)(x.tanh()),
    "inside and out": lambda x: F.gelu(W @ (W @ x).tanh()),
    "layers": lambda x: torch.nn.functional.silu(F.linear(F.linear(x.reshape(2, 3), W[:, :3]).tanh(), W)),
}
UNDIFFERENTIABLE = ("hardsigmoid", "hardswish")  # their backward, on some releases


@pytest.fixture(autouse=True)
def autograd(monkeypatch):
    monkeypatch.setattr(_rows, "FEW", 2)
    with tfc.use_backend("autograd"):
        yield


def operations(call, *args):
    """How many operations of torch a call makes, give or take a few that the profiler loses at times."""
    with torch.autograd.profiler.profile() as profile:
        call(*args)
    return len(profile.function_events)


def takes_loops(func):
    """Whether more rows through a function take more operations."""
    output, pullback = tfc.vjp(func, X)
    units = torch.eye(output.numel(), dtype=X.dtype).reshape(-1, *output.shape)
    rows = tfc.vmap(pullback)
    many = torch.cat([units] * 20)
    rows(units), rows(many)  # what is looked at once
    return operations(rows, many) > operations(rows, units) + len(many) // 2


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_first_and_second_derivatives(monkeypatch, name, dtype):
    for constant in ("Z", "W"):
        monkeypatch.setitem(globals(), constant, globals()[constant].to(dtype))
    func, x = ACTIVATIONS[name], X.to(dtype)
    leaf = x.clone().requires_grad_()
    assert_close(tfc.jacrev(func)(x), by_rows(func)(leaf).detach())
    if name in UNDIFFERENTIABLE:
        return

    def scalar(x):
        output = func(x)
        return (output * torch.arange(1.0, output.numel() + 1).to(output).reshape(output.shape).sin()).sum()

    expected = by_rows(by_rows(scalar))(leaf).detach()
    assert_close(tfc.jacrev(tfc.jacrev(scalar))(x), expected)
    assert_close(tfc.jacfwd(tfc.grad(scalar))(x), expected)
    # rows that somebody differentiates
    (gradient,) = torch.autograd.grad((tfc.jacrev(func)(leaf) ** 2).sum(), leaf)
    (by_hand,) = torch.autograd.grad((by_rows(func)(leaf) ** 2).sum(), leaf)
    assert_close(gradient, by_hand)


@pytest.mark.skipif(not LOOPED, reason="torch.func's vmap has rules for them")
# where the first derivative of sinc is wrong, it is an integral
@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "sinc" or order_of("SincBackward") != 1])
def test_there_are_no_loops(name):
    assert not takes_loops(ACTIVATIONS[name])


@pytest.mark.skipif(not LOOPED, reason="torch.func's vmap has rules for them")
def test_torch_would_loop():
    leaf = X.clone().requires_grad_()
    output = leaf.tanh()
    take = lambda v: _rows._at_once(
        lambda v, _: [torch.autograd.grad(output, leaf, v[0], retain_graph=True)[0]], [v], False
    )
    units = torch.eye(6, dtype=torch.float64)
    assert_close(take(units)[0], torch.diag(1 - X.tanh() ** 2))
    assert operations(take, torch.cat([units] * 20)) > operations(take, units) + 60


def test_what_is_retained_is_no_ones():
    """It is a tensor of the vmap that is over, with or without factors."""
    retained = []

    def func(x):
        y = x.tanh()
        if y.requires_grad:
            y.retain_grad()
            retained.append(y)
        return W @ (y * 3)

    assert_close(tfc.jacrev(func)(X), 3 * W * (1 - X.tanh() ** 2))
    with pytest.raises(RuntimeError):
        retained[0].grad.sum().item()


def test_hooks_change_what_passes():
    """No ones in its place: where hooks were registered there are no factors."""

    def func(x):
        y = x.tanh()
        if y.requires_grad:
            y.register_hook(lambda g: g.clamp(max=0.5))
        return W @ (y * 3)

    assert_close(tfc.jacrev(func)(X), (3 * W).clamp(max=0.5) * (1 - X.tanh() ** 2))


def test_hooks_see_what_passes():
    seen = []

    def func(x):
        y = x.tanh()
        if y.requires_grad:
            y.register_hook(lambda g: seen.append(g.tolist()))  # what is batched has none: row by row, then
        return W @ (y * 3)

    assert_close(tfc.jacrev(func)(X), 3 * W * (1 - X.tanh() ** 2))
    assert_close(torch.tensor(seen, dtype=torch.float64), 3 * W)


def test_hooks_of_modules():
    module = torch.nn.Tanh()
    module.register_full_backward_hook(lambda module, below, above: (above[0].clamp(max=0.5),))
    assert_close(tfc.jacrev(lambda x: W @ (module(x) * 3))(X), (3 * W).clamp(max=0.5))


def test_a_pass_that_is_begun_anew():
    leaf = X.clone().requires_grad_()
    output = torch.tanh(W @ leaf.tanh())
    factors = Factors(list(nodes([output.grad_fn])), [output], [leaf])
    take = lambda given: torch.autograd.grad(output, leaf, given[0], retain_graph=True)[0]
    one = torch.ones((), dtype=torch.float64)
    vector, expected = Z, by_rows(lambda x: torch.tanh(W @ x.tanh()))(leaf).detach()
    for _ in range(2):
        assert_close(factors.run(take, [vector], one), vector @ expected)
    with pytest.raises(RuntimeError):
        factors.run(lambda given: (take(given), take(given)), [vector], one)
    assert_close(take([vector]), vector @ expected)


def in_a_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


@pytest.mark.parametrize("elsewhere", (in_a_thread, lambda call: call()), ids=("another thread", "the same thread"))
def test_another_pass_within_a_pass(elsewhere):
    """It takes a vector through the same graph, and neither of the two sees anything of the other one."""
    found, inside = [], []

    class Meanwhile(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            if not inside:
                inside.append(True)
                try:
                    elsewhere(lambda: found.append(pullback(vector)[0]))
                finally:
                    inside.clear()
            return grad

    pullback = tfc.vjp(lambda x: torch.tanh(Meanwhile.apply(x.tanh())), X)[1]
    vector = torch.linspace(1.0, 2.0, 6, dtype=torch.float64)
    derivative = (1 - X.tanh().tanh() ** 2) * (1 - X.tanh() ** 2)
    assert_close(tfc.vmap(pullback)(torch.eye(6, dtype=torch.float64))[0], torch.diag(derivative))
    assert found
    for result in found:
        assert_close(result, vector * derivative)


def test_threads_that_take_rows_through_a_graph():
    func = lambda x: torch.tanh(W @ x.tanh()).tanh()
    pullback = tfc.vjp(func, X)[1]
    units, rows = torch.eye(6, dtype=torch.float64), tfc.jacrev(func, chunk_size=1)(X)
    wrong = []

    def take():
        with tfc.use_backend("autograd"):
            wrong.extend(not torch.allclose(tfc.vmap(pullback)(units)[0], rows) for _ in range(300))

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 900
    assert not any(wrong)


def test_custom_functions_around():
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, factor, x, name):
            ctx.factor = factor
            return factor * x

        @staticmethod
        def backward(ctx, grad):
            return None, ctx.factor * grad, None

    func = lambda x: Scale.apply(3, torch.tanh(Scale.apply(2, x.tanh(), "below")), "above")
    assert not (LOOPED and takes_loops(func))
    assert_close(tfc.jacrev(func)(X), torch.diag(6 * (1 - (2 * X.tanh()).tanh() ** 2) * (1 - X.tanh() ** 2)))


@pytest.mark.parametrize(
    "select", (lambda x: x.clamp(min=0.0), lambda x: torch.where(x > 0, x, 0 * x), lambda x: F.hardtanh(x, 0.0, 9.0))
)
def test_zero_times_infinity(select):
    """At zero sqrt has an infinite derivative, of which a selection takes nothing."""
    func = lambda x: select(x).sqrt()
    leaf = X.clone().requires_grad_()
    found, expected = tfc.jacrev(func)(X), by_rows(func)(leaf).detach()
    assert torch.equal(found.isnan(), expected.isnan())
    assert_close(torch.nan_to_num(found), torch.nan_to_num(expected))


def test_where_that_broadcasts():
    func = lambda x: torch.where(X > 0, x.mean(), x * x[0])
    leaf = X.clone().requires_grad_()
    assert_close(tfc.jacrev(func)(X), by_rows(func)(leaf).detach())


def test_what_is_captured_keeps_its_graph_and_has_no_hooks():
    weight = W.clone().requires_grad_()
    around = weight.tanh()
    func = lambda x: (around @ x).tanh() @ around
    leaf = X.clone().requires_grad_()
    assert_close(tfc.jacrev(func)(X), by_rows(func)(leaf))
    expected = torch.autograd.grad(by_rows(func)(leaf).sum(), weight)[0]
    around = weight.tanh()
    assert_close(torch.autograd.grad(tfc.jacrev(func)(X).sum(), weight, retain_graph=True)[0], expected)
    assert_close(torch.autograd.grad(around.sum(), weight)[0], 1 - weight.tanh() ** 2)


def test_several_inputs_and_outputs():
    func = lambda a, b: (torch.tanh(a * b), b.tanh(), torch.tanh(a * b) @ W)
    found = tfc.jacrev(func, argnums=(0, 1))(X, Z)
    product = 1 - (X * Z).tanh() ** 2
    zero, by_a, by_b = torch.zeros(6, 6, dtype=torch.float64), torch.diag(product * Z), torch.diag(product * X)
    expected = ((by_a, by_b), (zero, torch.diag(1 - Z.tanh() ** 2)), (W.t() @ by_a, W.t() @ by_b))
    for blocks, by_hand in zip(found, expected):
        assert_close(blocks[0], by_hand[0])
        assert_close(blocks[1], by_hand[1])


def test_chunks_and_pullbacks_called_again():
    func = lambda x: F.gelu(W @ x.tanh())
    expected = tfc.jacrev(func, chunk_size=1)(X)
    assert_close(tfc.jacrev(func, chunk_size=4)(X), expected)
    _, pullback = tfc.vjp(func, X)
    for _ in range(2):
        assert_close(tfc.vmap(pullback)(torch.eye(6, dtype=torch.float64))[0], expected)
        assert_close(pullback(torch.ones(6, dtype=torch.float64))[0], expected.sum(0))
