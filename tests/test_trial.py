"""Tests on the spot: the first call notices what torch gets wrong without an error, and later calls pay nothing."""

from __future__ import annotations

import functools
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.tolerances import assert_close
from torch.nn import functional as F

import torch_func_compat as tfc
from torch_func_compat._guards import trial
from torch_func_compat._guards.verdicts import identity
from torch_func_compat._torch import closures, facts
from torch_func_compat.autograd import checks

X = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
BATCH = torch.stack([X, 2 * X, X.cos(), X.exp()])
NATIVE = tfc.available_backends()[0]
needs_modes = pytest.mark.skipif(not facts.has("torch_function_modes"), reason="no modes, which see the operations")
needs_native = pytest.mark.skipif(NATIVE == "autograd", reason="there is no library to be tested")


@pytest.fixture
def unproven(monkeypatch):
    """Nothing is proven on this torch."""
    monkeypatch.setattr(trial, "unproven", lambda pairs: {"sin"})


def differences(func, x, step=1e-5):
    """The Jacobian by central differences of fourth order."""
    columns = []
    for k in range(x.numel()):

        def at(distance, k=k):
            moved = x.clone()
            moved.view(-1)[k] += distance
            return func(moved)

        near, far = at(step) - at(-step), at(2 * step) - at(-2 * step)
        columns.append((8 * near - far) / (12 * step))
    return torch.stack(columns, -1).reshape(*columns[0].shape, *x.shape)


# --- a batch ---------------------------------------------------------------------------------------------------------


def wrong_in_a_batch(x):
    return x.sin() * (2 if checks.is_batched(x) else 1)


@needs_native
def test_a_wrong_batch_is_computed_sample_by_sample(unproven):
    with pytest.warns(tfc.FallbackWarning, match="than that sample alone"):
        assert_close(tfc.vmap(lambda x: wrong_in_a_batch(x))(BATCH), BATCH.sin())
    with pytest.warns(tfc.FallbackWarning, match="than that sample alone"):
        found = tfc.vmap(tfc.grad(lambda x: wrong_in_a_batch(x).sum()), chunk_size=2)(BATCH)
    assert_close(found, BATCH.cos())


@needs_native
def test_a_wrong_batch_raises_where_nothing_may_fall_back(unproven):
    with tfc.use_fallback("error"):
        with pytest.raises(RuntimeError, match="differs from that sample alone"):
            tfc.vmap(lambda x: wrong_in_a_batch(x))(BATCH)
        with tfc.use_checks("off"):
            assert_close(tfc.vmap(lambda x: wrong_in_a_batch(x))(BATCH), 2 * BATCH.sin())


def written_apart(x):
    """At four places, as many as there are samples."""
    found = torch.outer(x, x)[:, None].repeat(1, 2, 1)
    found[torch.tensor([0, 1, 2, 0]), :, torch.tensor([0, 1, 2, 1])] = torch.arange(8.0).to(x).reshape(4, 2)
    return found


def added_apart(x):
    found = torch.outer(x, x)[:, None].repeat(1, 2, 1)
    found[[0, 1, 2, 0], None, :, [0, 1, 2, 1]] += x[:2]
    return found


IN_A_BATCH = {
    "writes apart": written_apart,
    "writes apart, and a random number": lambda x: written_apart(x) + torch.rand(()),
    "adds apart": added_apart,
    "jacfwd(adds apart)": tfc.jacfwd(added_apart),
    "roll": lambda x: x.roll(1),
    "index_fill": lambda x: torch.zeros(2, dtype=x.dtype).index_fill(0, torch.tensor([0]), x.sum()),
    "index_fill, and a random number": lambda x: torch.index_fill(torch.rand(2).to(x), 0, torch.tensor([0]), x.sum()),
    "roll, and a random number": lambda x: x.roll(1) + torch.rand(()),
    "roll of a number, and a random number": lambda x: x.sum().roll(1) + torch.rand(()),
    "roll of a number": lambda x: torch.stack([x.sum().roll(1), x.prod().roll(2)]),
    "roll of a matrix": lambda x: torch.outer(x, x).roll(2),
    "roll, twice": lambda x: tfc.vmap(lambda y: (x * y).roll(1))(x),
    "jacfwd(solve)": tfc.jacfwd(lambda x: torch.linalg.solve(torch.diag(x) + torch.outer(x, x), x.exp())),
    "jacrev(roll)": tfc.jacrev(lambda x: (x * x.sum()).roll(1)),
    "jacfwd(roll)": tfc.jacfwd(lambda x: (x * x.sum()).roll(1)),
    "hessian(logdet)": tfc.hessian(lambda x: torch.logdet(torch.diag(x.exp()) + 0.1 * torch.outer(x, x))),
}


@pytest.mark.parametrize("name", IN_A_BATCH)
def test_each_sample_of_a_batch_is_what_it_is_alone(backend, name):
    if "solve" in name and not hasattr(torch.linalg, "solve"):
        pytest.skip("torch has no such operation here")
    func = IN_A_BATCH[name]

    def alone(x):
        torch.manual_seed(0)
        return func(x)

    torch.manual_seed(0)
    with tfc.use_fallback("silent"):
        found = tfc.vmap(func, randomness="same")(BATCH)
    with tfc.use_backend("autograd"):
        expected = torch.stack([alone(x) for x in BATCH])
    assert_close(found, expected)


def test_the_random_state_after_a_test_is_that_of_the_call(backend, unproven):
    for call in (lambda: tfc.vmap(lambda x: x + torch.rand(3), randomness="same")(BATCH), lambda: tangent_of_drawn(X)):
        states = []
        for when in ("always", "off"):
            torch.manual_seed(0)
            with tfc.use_checks(when):
                call()
            states.append(torch.get_rng_state())
        assert torch.equal(*states)


@needs_native
def test_a_batch_with_a_random_number_for_each_sample_is_not_compared_but_known_mistakes_are():
    for func in (lambda x: x.sum().roll(1) + 0 * torch.rand(()), lambda x: x.sum() + 0 * torch.rand(())):
        with tfc.use_fallback("silent"):
            assert_close(tfc.vmap(func, randomness="different")(BATCH), BATCH.sum(1))
    if facts.has("torch_function_modes"):
        with tfc.use_fallback("silent"):
            found = tfc.vmap(lambda x: written_apart(x) + 0 * torch.rand(()), randomness="different")(BATCH)
        assert_close(found, torch.stack([written_apart(x) for x in BATCH]))


def test_a_smaller_size_where_samples_are_equal(backend):
    """By torch's batch, a sample gets the numbers that lie before its own in memory, which are equal ones here."""
    samples = torch.stack([BATCH, BATCH.cos(), BATCH.cos()])
    with tfc.use_fallback("silent"):
        assert_close(tfc.vmap(lambda x: x.sin().resize_(2, 3))(samples), samples.sin()[:, :2])


@pytest.mark.parametrize("padding", [1, -2])
@needs_modes
def test_rows_of_padding_of_each_sample_get_no_gradient(backend, padding):
    """The first and the last sample have no padding."""
    indices = torch.tensor([[0, 2], [1, 2], [0, 0], [1, 1], [2, 0]])
    ensemble = torch.arange(30.0, dtype=X.dtype).sin().reshape(5, 3, 2).requires_grad_()
    embed = lambda i, w: F.embedding(i, w, padding_idx=padding).sin()
    loss = lambda rows: (rows * torch.arange(20.0).to(rows).reshape(5, 2, 2).cos()).sum()
    with tfc.use_fallback("silent"):
        (found,) = torch.autograd.grad(loss(tfc.vmap(embed)(indices, ensemble)), ensemble)
    (expected,) = torch.autograd.grad(loss(torch.stack([embed(i, w) for i, w in zip(indices, ensemble)])), ensemble)
    assert not found[:, 1].any()
    assert_close(found, expected)


def test_a_batch_that_is_empty_in_each_sample_keeps_its_samples(backend):
    if not hasattr(getattr(torch, "linalg", None), "pinv"):
        pytest.skip("this torch does not have it")
    matrices = torch.ones(0, 5, 5, dtype=X.dtype)
    with tfc.use_fallback("silent"):
        assert tfc.vmap(lambda x: torch.linalg.pinv(matrices, x.abs()))(X).shape == (3, 0, 5, 5)


# --- tangents --------------------------------------------------------------------------------------------------------


def tangent_of_drawn(x):
    return tfc.jvp(lambda x: x * torch.rand(3), (x,), (x,))


def triangle(x):
    return torch.outer(x, x).tril() + 3 * torch.eye(3, dtype=x.dtype)


def triangular(x):
    return torch.triangular_solve(x[:, None], triangle(x), upper=False)[0][:, 0]


def by_distance(x):
    """A function of torch that calls one of the user's, which no mode sees."""
    distance = lambda p, q: F.layer_norm(p - q, (3,)).cos().sum(-1)
    return F.triplet_margin_with_distance_loss(
        x[None], X.sin()[None], X.cos()[None], distance_function=distance, margin=5, reduction="none"
    )


TANGENTS = {
    "cholesky_solve": lambda x: torch.cholesky_solve(x[:, None], triangle(x))[:, 0],
    "cholesky_solve, upper": lambda x: torch.cholesky_solve(x[:, None], triangle(x).t(), True)[:, 0],
    "triangular_solve": triangular,
    "a real number to a complex power": lambda x: torch.view_as_real(torch.pow(x.exp(), 1 + 1j)),
    "a complex number to a real power": lambda x: torch.view_as_real(
        torch.pow(torch.tensor(1 + 1j, dtype=torch.complex128), x)
    ),
    "cholesky_inverse": lambda x: torch.cholesky_inverse(triangle(x)),
    "a loss with a distance of the user": by_distance,
}


@pytest.mark.parametrize("name", TANGENTS)
def test_tangents_are_differences(backend, name):
    func = TANGENTS[name]
    if "complex" in name and facts.TORCH < (1, 9):
        pytest.skip("powers of real and complex numbers are not differentiable")
    expected = differences(func, X)
    with tfc.use_fallback("silent"):
        assert_close(tfc.jacfwd(func)(X), expected, rtol=1e-6, atol=1e-6)
        assert_close(tfc.jvp(func, (X,), (X,))[1], expected @ X, rtol=1e-6, atol=1e-6)
        assert_close(tfc.vmap(tfc.jacfwd(func))(BATCH)[0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(facts.TORCH < (1, 9), reason="powers of real and complex numbers are not differentiable")
@pytest.mark.parametrize("power", [1 + 1j, 2j], ids=str)
def test_imaginary_parts_of_tangents_are_differences(backend, power):
    """The wrong formula is right in the real part, which a real cotangent would look at alone."""
    for func in (
        lambda x: torch.pow(x.exp(), power),
        lambda x: torch.pow(torch.tensor(power, dtype=torch.complex128), x),
    ):
        expected = differences(lambda x, func=func: torch.view_as_real(func(x)), X)
        pushed = torch.einsum("ijk,k->ij", expected, X)
        with tfc.use_fallback("silent"):
            tangent = tfc.jvp(func, (X,), (X,))[1]
            batch = tfc.vmap(lambda x, func=func: tfc.jvp(func, (x,), (x,))[1])(BATCH)
        assert_close(torch.view_as_real(tangent), pushed, rtol=1e-6, atol=1e-6)
        assert_close(torch.view_as_real(batch[0]), pushed, rtol=1e-6, atol=1e-6)


def test_tangents_of_a_function_that_draws_are_differences(backend):
    def func(x):
        return torch.cholesky_solve(x[:, None], triangle(x))[:, 0] * torch.rand(3).to(x)

    def drawn(call):
        torch.manual_seed(0)
        return call()

    expected = differences(lambda x: drawn(lambda: func(x)), X)
    with tfc.use_fallback("silent"):
        assert_close(drawn(lambda: tfc.jacfwd(func, randomness="same")(X)), expected, rtol=1e-6, atol=1e-6)
        assert_close(drawn(lambda: tfc.jvp(func, (X,), (X,))[1]), expected @ X, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["reverse-reverse", "forward-reverse", "reverse-forward", "forward-forward"])
@pytest.mark.parametrize("name", TANGENTS)
def test_second_derivatives_are_differences(backend, name, mode):
    if "complex" in name and facts.TORCH < (1, 9):
        pytest.skip("powers of real and complex numbers are not differentiable")
    func = lambda x: (TANGENTS[name](x) ** 2).sum()
    with tfc.use_fallback("silent"):
        assert_close(tfc.hessian(func, mode=mode)(X), differences(tfc.grad(func), X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TANGENTS)
def test_modes_have_verdicts_of_their_own(backend, name):
    """That a reverse-mode Hessian of a function is right says nothing of its forward mode."""
    if "complex" in name and facts.TORCH < (1, 9):
        pytest.skip("powers of real and complex numbers are not differentiable")
    func = lambda x: (TANGENTS[name](x) ** 2).sum()
    expected = torch.stack([differences(tfc.grad(func), x) for x in BATCH])
    with tfc.use_fallback("silent"):
        for mode in ("reverse-reverse", "forward-reverse", "reverse-forward", "forward-forward"):
            assert_close(tfc.vmap(tfc.hessian(func, mode=mode))(BATCH), expected, rtol=1e-5, atol=1e-5)


def test_options_tell_transforms_apart():
    def func(x):
        return x

    def known(transform, **options):
        return identity(transform(func, **options))

    assert known(tfc.hessian) == known(tfc.hessian)
    assert known(tfc.hessian, mode="forward-reverse") != known(tfc.hessian, mode="reverse-reverse")
    assert known(tfc.vmap, in_dims=[0]) != known(tfc.vmap, in_dims=[1])
    assert known(tfc.vmap, in_dims=({"a": 0},)) != known(tfc.vmap, in_dims=({"a": 1},))
    assert known(tfc.jacrev, argnums=0) != known(tfc.jacrev, argnums=1)
    assert known(tfc.grad) != known(tfc.jacrev)
    by_keyword = [functools.partial(func, mode=mode) for mode in ("a", "a", "b")]
    assert identity(by_keyword[0]) == identity(by_keyword[1]) != identity(by_keyword[2])


def test_defaults_tell_functions_apart():
    def make(mode):
        return lambda x, *, how=mode: x

    assert identity(make("a")) == identity(make("a")) != identity(make("b"))


def test_pullbacks_of_two_functions_have_verdicts_of_their_own(backend):
    """What is found for rows of the first one says nothing of the second one, which torch gets wrong."""
    cotangents = torch.stack([BATCH, BATCH.cos()])
    tangents = [BATCH.sin().expand(2, -1, -1) * torch.ones(2, 1, 1).to(X), torch.stack([X, -X])]

    def plain(x, weight):
        return F.layer_norm(x, (3,)) + 0 * weight

    def affine(x, weight):
        return F.layer_norm(x, (3,), weight)

    for func in (plain, affine):

        def rows(x, weight, func=func):
            pull = tfc.vjp(func, x, weight)[1]
            return tfc.vmap(lambda u: pull(u))(cotangents)

        def reference(x, weight, func=func):
            x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
            y = func(x, weight)
            found = [torch.autograd.grad(y, (x, weight), u, retain_graph=True) for u in cotangents]
            return tuple(map(torch.stack, zip(*found)))

        with tfc.use_fallback("silent"):
            found = tfc.vmap(lambda s, t, rows=rows: tfc.jvp(rows, (BATCH, X), (s, t))[1])(*tangents)
        for k in range(2):
            step = [1e-5 * tangent[k] for tangent in tangents]
            above, below = reference(BATCH + step[0], X + step[1]), reference(BATCH - step[0], X - step[1])
            for tangent, there, here in zip(found, above, below):
                assert_close(tangent[k], (there - here) / 2e-5, rtol=1e-6, atol=1e-6)


class Doubled(tfc.Function):
    """A sine whose rule for forward mode is wrong, and whose backward is right."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * tangent * ctx.saved_tensors[0].cos()


class StraightThrough(Doubled):
    """A sine whose backward is another function's on purpose."""

    @staticmethod
    def backward(ctx, grad):
        return grad

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * ctx.saved_tensors[0].cos()


@pytest.mark.skipif(not facts.has("torch_func"), reason="forward mode takes no rules of Functions")
def test_differences_decide_where_both_modes_differ():
    with pytest.warns(tfc.FallbackWarning, match="finite differences"):
        assert_close(tfc.jacfwd(Doubled.apply)(X), torch.diag(X.cos()))
    assert_close(tfc.jacfwd(StraightThrough.apply)(X), torch.diag(X.cos()))
    assert_close(tfc.jacrev(StraightThrough.apply)(X), torch.eye(3, dtype=X.dtype))


def test_what_torch_does_not_differentiate_raises_in_every_transform(backend):
    airy = getattr(getattr(torch, "special", None), "airy_ai", None)
    if airy is None:
        pytest.skip("torch has no such operation here")
    # the second term has a derivative
    for func in (lambda x: airy(x).sum(), lambda x: airy(x).sum() + x.sum()):
        for derivative in (tfc.grad, tfc.jacfwd, lambda f: tfc.vmap(tfc.grad(f)), lambda f: tfc.vmap(tfc.jacfwd(f))):
            with pytest.raises(RuntimeError, match="no derivative of"):
                derivative(func)(BATCH)


# --- the price -------------------------------------------------------------------------------------------------------


class Counted:
    """A function that counts its evaluations."""

    def __init__(self, func=torch.sin):
        self.count = 0
        self.func = func

    def __call__(self, x):
        self.count += 1
        return self.func(x)

    def since(self):
        count, self.count = self.count, 0
        return count


# How often a first call evaluates the function, and a later one.
PRICES = {
    "vmap": (lambda f: tfc.vmap(f)(BATCH), 3, 1),
    "vmap of one": (lambda f: tfc.vmap(f)(BATCH[:1]), 2, 1),
    "vmap in chunks": (lambda f: tfc.vmap(f, chunk_size=2)(BATCH), 4, 2),
    "vmap(grad)": (lambda f: tfc.vmap(tfc.grad(lambda x: f(x).sum()))(BATCH), 3, 1),
    "jvp": (lambda f: tfc.jvp(f, (X,), (X,)), 2, 1),
    "jacfwd": (lambda f: tfc.jacfwd(f)(X), 2, 1),
    "jacfwd in chunks": (lambda f: tfc.jacfwd(f, chunk_size=2)(X), 3, 2),
}


@needs_native
@pytest.mark.parametrize("name", PRICES)
def test_the_first_call_evaluates_more_often(unproven, name):
    call, first, later = PRICES[name]
    func = Counted()
    call(func)
    assert func.since() == first
    call(func)
    assert func.since() == later
    with tfc.use_checks("always"):
        call(func)
        assert func.since() >= first
    with tfc.use_checks("off"):
        call(Counted())
        call(func)
    assert func.since() == later


@needs_native
def test_what_is_proven_is_evaluated_once(monkeypatch):
    if not facts.has("torch_function_modes"):
        pytest.skip("no operations are recorded")
    monkeypatch.setattr(trial, "unproven", lambda pairs: set())
    for call, _, later in PRICES.values():
        func = Counted()
        call(func)
        assert func.count == later


@needs_native
def test_other_shapes_are_tested_anew(unproven):
    func = Counted()
    mapped = tfc.vmap(func)
    counts = []
    for batch in (BATCH, BATCH[:2], BATCH, BATCH.float(), BATCH[:, :2], BATCH):
        mapped(batch)
        counts.append(func.since())
    assert counts == [3, 3, 1, 3, 3, 1]


@needs_native
def test_a_function_made_anew_is_known_by_its_code(unproven):
    counted = Counted()
    counts = []
    for scale in (1.0, 2.0, 3.0):
        tfc.vmap(lambda x: scale * counted(x))(BATCH)  # noqa: B023
        counts.append(counted.since())
    assert counts == [3, 1, 1]
    for _ in range(2):
        tfc.vmap(functools.partial(lambda scale, x: scale * counted(x), 2.0))(BATCH)
        counts.append(counted.since())
    assert counts[3:] == [3, 1]


@needs_native
def test_closures_over_other_functions_are_other_functions(unproven):
    def composed(inner):
        return lambda x: inner(x)

    with tfc.use_fallback("silent"):
        assert_close(tfc.vmap(composed(torch.sin))(BATCH), BATCH.sin())
        assert_close(tfc.vmap(composed(wrong_in_a_batch))(BATCH), BATCH.sin())
        assert_close(tfc.vmap(composed(tfc.grad(lambda x: x.sin().sum())))(BATCH), BATCH.cos())
        assert_close(tfc.vmap(composed(tfc.grad(lambda x: wrong_in_a_batch(x).sum())))(BATCH), BATCH.cos())


@needs_native
def test_effects_do_not_happen_twice(unproven):
    total = torch.zeros(3, dtype=torch.float64)
    count = []

    def adds(x):
        count.append(0)
        total.add_(1)
        return x.sin()

    assert_close(tfc.vmap(adds)(BATCH), BATCH.sin())
    assert total[0] == 1
    count.clear()

    def draws(x):
        count.append(0)
        return x + torch.rand((), dtype=x.dtype)

    tfc.vmap(draws, randomness="different")(BATCH)
    assert len(count) == 1
    written = BATCH.clone()
    assert_close(tfc.vmap(lambda x: x.mul_(2))(written), 2 * BATCH)
    assert_close(written, 2 * BATCH)


@needs_native
def test_an_error_of_the_test_is_none_of_the_call(unproven):
    def only_in_a_batch(x):
        if not checks.is_batched(x):
            raise ValueError("alone")
        return x.sin()

    assert_close(tfc.vmap(only_in_a_batch)(BATCH), BATCH.sin())


def test_the_setting():
    assert tfc.get_checks() == "first-call"
    with tfc.use_checks("off"):
        assert tfc.get_checks() == "off"
    with pytest.raises(ValueError, match="unknown checks 'never'"):
        tfc.set_checks("never")


# --- gradients through a batch, or through forward mode -----------------------------------------------------------


def test_gradients_through_a_batch_are_those_of_its_samples(backend):
    if not hasattr(torch, "select_scatter"):
        pytest.skip("torch has no such operation here")
    base, values = torch.zeros(4, 2, 3, dtype=torch.float64), BATCH.clone().requires_grad_()
    with tfc.use_fallback("silent"):
        output = tfc.vmap(lambda a, b: torch.select_scatter(a, b, 0, 1))(base, values)
    output.pow(2).sum().backward()
    assert_close(values.grad, 2 * values.detach())


def test_gradients_through_tangents_are_second_derivatives(backend):
    a, t = BATCH[:, :2].clone().requires_grad_(), BATCH[:, 1:]
    with tfc.use_fallback("silent"):
        tangent = tfc.jvp(lambda a: torch.cdist(a, a), (a,), (t,))[1]
    found = torch.autograd.grad((tangent**2).sum(), a)[0]

    def by_hand(a):
        apart = a[:, None] - a + torch.eye(4, dtype=a.dtype)[..., None]
        off = 1 - torch.eye(4, dtype=a.dtype)
        return off * (apart * (t[:, None] - t)).sum(-1) / apart.norm(dim=-1)

    assert_close(found, torch.autograd.grad((by_hand(a) ** 2).sum(), a)[0])


def test_data_is_constant_in_nested_forward_mode(backend):
    u, x = torch.tensor(2.0), torch.tensor(3.0)
    with tfc.use_fallback("silent"):
        found = tfc.jvp(lambda x: tfc.jvp(lambda y: y.data * y, (x,), (u,))[1], (x,), (u,))
    assert_close(found, (x * u, torch.zeros(())))


@pytest.mark.parametrize("constant", [lambda x: x.data, lambda x: x.detach()], ids=["data", "detach"])
def test_data_is_constant_in_forward_mode_over_reverse_mode(backend, constant):
    func = lambda x: (constant(x) * x**2).sum()
    second = torch.diag(2 * X)
    with tfc.use_fallback("silent"):
        assert_close(tfc.jvp(tfc.grad(func), (X,), (X,))[1], second @ X)
        assert_close(tfc.jacfwd(tfc.grad(func))(X), second)
        assert_close(tfc.hessian(func)(X), second)
        mapped = tfc.vmap(lambda x: tfc.jvp(tfc.grad(func), (x,), (X,))[1])(BATCH)
        assert_close(mapped, 2 * BATCH * X)


def _squared(x):
    return x.mul_(x)


def _multiplied(x):
    x *= x
    return x


def _later(x):
    y = 2 * x
    z = y.sin()
    y.add_(1)
    return z * y


def _products(x):
    y = x.clone()
    for k in range(1, len(y)):
        y[k] = y[k - 1] * y[k]
    return y


def _with_view(write):
    """Of a copy and of a view of that."""

    def func(x):
        y = x.clone()
        return write(y, y[:])

    return func


OVERWRITTEN = {
    "itself": (_squared, lambda x: x**2),
    "itself by an operator": (lambda x: _multiplied(x + 0).clone(), lambda x: x**2),
    "the argument by an operator": (_multiplied, lambda x: x**2),
    "a view of itself": (_with_view(lambda y, view: y.mul_(view)), lambda x: x**2),
    "a view of itself by name": (_with_view(lambda y, view: y.mul_(other=view)), lambda x: x**2),
    "a view of itself in third place": (_with_view(lambda y, view: y.addcmul_(X, view)), lambda x: x + X * x),
    "a view of itself by division": (_with_view(lambda y, view: y.div_(view) * X), lambda x: X + 0 * x),
    "another part of itself": (lambda x: _products(x), lambda x: x.cumprod(0)),
    "later": (_later, lambda x: (2 * x).sin() * (2 * x + 1)),
    "output": (lambda x: x.exp().mul_(3), lambda x: 3 * x.exp()),
}


@pytest.mark.parametrize("name", OVERWRITTEN)
def test_tangents_of_what_is_overwritten(backend, name):
    """The derivative of each operation is taken before that."""
    if facts.TORCH < (1, 10):
        pytest.skip("autograd takes no hooks")
    func, by_hand = OVERWRITTEN[name]
    expected = torch.autograd.functional.jacobian(by_hand, X)
    tangent, kept = X.cos(), X.cos()
    with tfc.use_fallback("silent"):
        for _ in range(2):
            assert_close(tfc.jvp(func, (X.clone(),), (tangent,))[1], expected @ kept)
            assert_close(tangent, kept)
            assert_close(tfc.jacfwd(func)(X.clone()), expected)
            assert_close(tfc.linearize(func, X.clone())[1](tangent), expected @ kept)
            assert_close(tfc.vmap(tfc.jacfwd(lambda x: func(x.clone())))(BATCH)[0], expected)


@pytest.mark.skipif(facts.TORCH < (1, 10), reason="autograd takes no hooks")
@pytest.mark.parametrize("checks", ("first-call", "off"))
def test_tangents_of_complex_numbers_that_their_real_parts_overwrite(backend, checks):
    """The memory is the same, and the sizes of its elements differ."""
    if backend == "functorch" and checks == "off":
        pytest.skip("no mode sees the operation: only the test of a first call finds it")

    def func(x):
        z = torch.complex(x, x.sin()).clone()
        z[5:].mul_(z[5:].real)
        return z.real + z.imag

    x = torch.linspace(0.2, 1.5, 8, dtype=torch.float64)
    by_hand = lambda x: torch.cat([(x + x.sin())[:5], ((x + x.sin()) * x)[5:]])
    with tfc.use_fallback("silent"), tfc.use_checks(checks):
        assert_close(tfc.jacfwd(func)(x), torch.autograd.functional.jacobian(by_hand, x))


@pytest.mark.skipif(not facts.has("torch_func"), reason="no operations are proven")
def test_a_proven_operation_in_place_is_not_tested():
    """What is asked of its memory is no operation of the function."""
    evaluations = []

    def func(x):
        evaluations.append(x)
        return x.clone().mul_(x.sin())

    tfc.jvp(func, (X,), (X,))
    assert len(evaluations) == 1


@pytest.mark.parametrize("write", [lambda x: x.mul_(2), lambda x: _multiplied(x), lambda x: x.view(-1)[:1].fill_(0)])
def test_tangents_of_the_caller_stay_what_they_are(backend, write):
    """Torch writes to them where the function writes to its argument."""
    tangent = X.cos()
    with tfc.use_fallback("silent"):
        for _ in range(2):
            try:
                tfc.jvp(write, (X.clone(),), (tangent,))
            except RuntimeError:
                assert facts.TORCH < (1, 10)
            assert_close(tangent, X.cos())


def test_second_derivatives_through_what_is_overwritten(backend):
    if facts.TORCH < (1, 10):
        pytest.skip("autograd takes no hooks")

    def func(x):
        y = x.clone()
        y *= y[:]
        return y * x

    with tfc.use_fallback("silent"):
        push = lambda x: tfc.jvp(func, (x,), (X,))[1]
        assert_close(tfc.grad(lambda x: push(x).sum())(X), 6 * X * X)
        assert_close(tfc.jvp(push, (X,), (X,))[1], 6 * X**3)
        assert_close(tfc.grad(lambda x: tfc.linearize(func, x)[1](X).sum())(X), 6 * X * X)


class SavesAnIntermediate(torch.autograd.Function):
    """A softplus of squares whose backward uses an intermediate result of its forward."""

    @staticmethod
    def forward(ctx, x):
        squares = x * x
        ctx.save_for_backward(x, squares)
        return torch.nn.functional.softplus(squares)

    @staticmethod
    def backward(ctx, grad):
        x, squares = ctx.saved_tensors
        return grad * torch.sigmoid(squares) * 2 * x


class KeepsASlope(SavesAnIntermediate):
    """The same by an attribute of ctx; its gradient depends on nothing, as far as autograd can see."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = torch.sigmoid(x * x) * 2 * x
        return torch.nn.functional.softplus(x * x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.slope


@pytest.mark.parametrize("function", [SavesAnIntermediate, KeepsASlope])
def test_a_second_derivative_that_lacks_terms_raises(backend, function):
    func = lambda x: function.apply(x).sum()
    with tfc.use_fallback("silent"):
        assert_close(tfc.grad(func)(X), torch.sigmoid(X * X) * 2 * X)
        for derivative in (tfc.hessian(func), tfc.jacrev(tfc.grad(func)), tfc.jacfwd(tfc.grad(func))):
            with pytest.raises(RuntimeError, match="finite differences"):
                derivative(X)
        with pytest.raises(RuntimeError, match="finite differences"):
            tfc.vmap(tfc.hessian(func))(BATCH)


@pytest.mark.skipif(not facts.has("torch_func"), reason="no torch.func")
def test_forward_mode_within_transforms_of_the_library():
    """There is no falling back, and the transpose of reverse mode answers."""
    matrix = lambda x: torch.diag(x.exp()) + 0.1 * torch.outer(x, x)
    solve = lambda x: torch.linalg.solve(matrix(x), x.sin())
    expected = torch.stack([differences(solve, x) for x in BATCH])
    for func in (
        tfc.jacfwd(solve),
        lambda x: tfc.vmap(lambda t: tfc.jvp(solve, (x,), (t,))[1])(torch.eye(3).double()).t(),
    ):
        assert_close(torch.func.vmap(func)(BATCH), expected, rtol=1e-7, atol=1e-9)
    with pytest.raises(RuntimeError, match="forward mode is wrong"):  # a Function's backward may have no transpose
        torch.func.vmap(tfc.jacfwd(Doubled.apply))(BATCH)


# --- calls that prove nothing, or something else ----------------------------------------------------------------------


@needs_native
def test_a_first_call_at_zero_proves_nothing(unproven):
    """Where all samples are equal, or all numbers zero, a wrong batch and wrong tangents look right."""
    mapped, cubes = tfc.vmap(lambda x: wrong_in_a_batch(x)), tfc.jacfwd(WrongCube.apply) if RULES else None
    with tfc.use_fallback("silent"):
        assert not mapped(0 * BATCH).any()
        assert_close(mapped(BATCH), BATCH.sin())
        if RULES:
            assert not cubes(0 * X).any()
            assert_close(cubes(X), torch.diag(3 * X**2))


RULES = facts.has("torch_func")


class WrongCube(tfc.Function):
    """A cube whose rule for forward mode is wrong, but not at zero."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return 3 * grad * ctx.saved_tensors[0] ** 2

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * tangent * ctx.saved_tensors[0] ** 2


class DetachedCube(torch.autograd.Function):
    """A cube whose backward uses an intermediate result of its forward, of which nothing is missed at zero."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = 3 * x * x
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.slope


def test_a_second_derivative_at_zero_proves_nothing(backend):
    second = tfc.hessian(lambda x: DetachedCube.apply(x).sum())
    assert not second(0 * X).any()
    with pytest.raises(RuntimeError, match="finite differences"):
        second(X)


@needs_native
def test_batches_that_are_equal_prove_nothing(unproven):
    """Numbers of one sample in the place of another are seen only where samples differ."""
    taken = lambda x: x.roll(1)
    same = torch.full((3,), 2.0, dtype=torch.float64)
    with tfc.use_fallback("silent"):
        assert_close(tfc.vmap(taken)(same), same)
        assert_close(tfc.vmap(taken)(X), X)


def test_parameters_that_are_unfrozen_later(backend):
    """What was tested without a graph is tested again when plain autograd records it."""
    if not hasattr(torch, "select_scatter"):
        pytest.skip("torch has no such operation here")
    weight = X.clone()
    mapped = tfc.vmap(lambda a, b: torch.select_scatter(a, b * weight, 0, 1))
    base = torch.zeros(4, 2, 3, dtype=torch.float64)
    with tfc.use_fallback("silent"):
        first = mapped(base, BATCH)
        weight.requires_grad_()
        second = mapped(base, BATCH)
    assert_close(second.detach(), first)
    second.pow(2).sum().backward()
    assert_close(weight.grad, (2 * BATCH**2 * weight.detach()).sum(0))


@needs_native
def test_a_function_that_also_reaches_its_input_is_no_mistake(unproven):
    x, b = X.clone().requires_grad_(), BATCH.clone().requires_grad_()
    with tfc.use_fallback("error"):
        found = tfc.jvp(lambda y: (y**3).sum() + 0 * x.sum(), (x,), (X,))[1]
        assert_close(torch.autograd.grad(found, x)[0], 6 * X**2)
        mapped = tfc.vmap(lambda y: (y**2).sum() + 0 * b.sum())(b * 1)
        assert_close(torch.autograd.grad(mapped.sum(), b)[0], 2 * BATCH)


@needs_native
def test_integer_arguments_are_told_apart(unproven):
    counted = Counted(lambda x: x)
    mapped = tfc.vmap(lambda x, k: counted(x).roll(k, 0), in_dims=(0, None))
    counts = []
    for k in (1, 1, 2, 1):
        mapped(BATCH, k)
        counts.append(counted.since())
    assert counts == [3, 1, 3, 1]


# --- what no mode sees -----------------------------------------------------------------------------------------------


def test_parts_that_other_threads_evaluate(backend):
    with ThreadPoolExecutor(2) as pool:

        def side_by_side(x):
            return sum(pool.map(lambda part: (part**3).sum(), x.unbind(0)))

        with tfc.use_fallback("silent"):
            assert_close(tfc.jvp(side_by_side, (X,), (X,))[1], (3 * X**3).sum())
            assert_close(tfc.jacfwd(side_by_side)(X), 3 * X**2)
            assert_close(tfc.jacfwd(tfc.grad(side_by_side))(X), torch.diag(6 * X))


def test_a_function_that_another_thread_evaluates(backend):
    """Torch.func gives zeros without an error, and no mode sees an operation that could be doubted."""

    def elsewhere(x):
        found = []
        thread = threading.Thread(target=lambda: found.append(x**3))
        thread.start()
        thread.join()
        return found[0]

    with tfc.use_fallback("silent"):
        assert_close(tfc.jvp(elsewhere, (X,), (X,))[1], 3 * X**3)
        assert_close(tfc.jacfwd(elsewhere)(X), torch.diag(3 * X**2))
        assert_close(tfc.jacfwd(lambda x: elsewhere(x) + x.sin())(X), torch.diag(3 * X**2 + X.cos()))
        assert_close(tfc.hessian(lambda x: elsewhere(x).sum())(X), torch.diag(6 * X))
        assert_close(tfc.vmap(tfc.jacfwd(elsewhere))(BATCH)[0], torch.diag(3 * X**2))


@pytest.mark.parametrize(
    "transformed",
    [
        lambda: tfc.jacfwd(lambda s: (X + s).exp() / (X + s).exp().sum())(X[0]),
        lambda: tfc.vmap(tfc.grad(lambda b, x: (x + b - (x + b).mean()).pow(3).sum()), (None, 0))(X[0], BATCH),
        lambda: tfc.jvp(lambda s: tfc.laplacian(lambda x: (x * s).softmax(0))(X).sum(), (X[0],), (X[1],))[1],
        lambda: tfc.grad(lambda s: tfc.hessian(lambda x: 2 * x * s, mode="forward-forward")(X).sum())(X[0]),
    ],
    ids=["jacfwd", "vmap(grad)", "jvp", "grad(hessian)"],
)
def test_rounding_errors_of_a_derivative_that_is_zero_are_no_mistake(backend, transformed):
    with tfc.use_checks("always"), warnings.catch_warnings():
        warnings.filterwarnings("error", ".*(derivative|value for a sample) than ", tfc.FallbackWarning)
        assert_close(transformed(), torch.zeros_like(transformed()))


def _first(x):
    return x.cumsum(0)


def _second(x):
    return x.roll(1, 0)


_called = _first


def test_functions_that_inner_functions_name_tell_functions_apart(backend, monkeypatch):
    """A lambda within the mapped function calls a global, in whose place another function was put."""
    made = lambda: lambda x: (lambda part: _called(part) + _called(part.cos()))(x)
    with tfc.use_fallback("silent"):
        assert_close(tfc.vmap(made())(BATCH), torch.stack([_first(x) + _first(x.cos()) for x in BATCH]))
        monkeypatch.setitem(globals(), "_called", _second)
        assert_close(tfc.vmap(made())(BATCH), torch.stack([_second(x) + _second(x.cos()) for x in BATCH]))


def test_a_builtin_function_in_a_global_tells_functions_apart(backend, monkeypatch):
    made = lambda: lambda x: _called(x, 0)
    with tfc.use_fallback("silent"):
        for function in (torch.cumsum, torch.flip):
            monkeypatch.setitem(globals(), "_called", function if function is torch.cumsum else lambda x, _: x.roll(1))
            expected = torch.stack([_called(x, 0) for x in BATCH])
            assert_close(tfc.vmap(made())(BATCH), expected)


def test_a_class_in_a_global_tells_functions_apart(backend, monkeypatch):
    made = lambda: lambda x: _called.apply(x).sum()
    with tfc.use_fallback("silent"):
        for function in (Reversed, KeepsASlope):
            monkeypatch.setitem(globals(), "_called", function)
            if function is Reversed:
                assert_close(tfc.hessian(made())(X), torch.zeros(3, 3).double())
            else:
                with pytest.raises(RuntimeError, match="finite differences"):
                    tfc.hessian(made())(X)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.weight = 1.0
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -ctx.weight * grad


def test_small_numbers_are_no_rounding_errors(backend):
    """A wrong batch of numbers that are far below the inputs, beside others that are right."""
    with tfc.use_fallback("silent"):
        found = tfc.vmap(lambda x: (x.sin(), (1e-20 * x).roll(1, 0)))(BATCH)
        assert_close(found[1] * 1e20, BATCH.roll(1, 1))


# --- watching ---------------------------------------------------------------------------------------------------------


def test_a_tested_function_is_not_watched_by_a_profile_function(backend):
    profiles = set()  # a list would count as a flag, whose change calls for another test

    def func(x):
        profiles.add(sys.getprofile())
        return x.sin()

    outside = sys.getprofile()
    made = tfc.jacfwd(func), tfc.vmap(func), tfc.vmap(tfc.jacfwd(func))
    for transformed in made:
        transformed(BATCH)
        profiles.clear()
        transformed(BATCH)
        assert profiles == {outside}


def test_a_later_branch_that_switches_grad_mode_is_still_watched(backend):
    def func(x):
        if x.sum() > 3:
            with torch.no_grad():
                shift = x.max()
            return (x - shift).exp()
        return x.sin()

    forward = tfc.jacfwd(func)
    assert_close(forward(X), torch.diag(X.cos()))
    assert_close(forward(X), torch.diag(X.cos()))
    with tfc.use_fallback("silent"):
        assert_close(forward(X + 2), torch.diag((X - X.max()).exp()))


def test_transforms_that_are_made_for_a_call_reach_what_the_function_reaches(backend):
    many = [torch.ones(1) * k for k in range(150)]

    def func(x):
        return (x * many[-1]).sum()

    nested = tfc.vmap(tfc.jacrev(tfc.grad(tfc.vmap(func))))
    assert {id(x) for x in closures.captured_tensors(nested)} == {id(x) for x in many}
    assert closures.names_in(nested) == closures.names_in(func)


def test_what_is_overwritten_in_nested_forward_mode(backend):
    """Torch 1.10 takes one pair of hooks of saved tensors at a time, and some contexts take none."""
    if facts.TORCH < (1, 10):
        pytest.skip("autograd takes no hooks")
    twice = tfc.jacfwd(tfc.jacfwd(lambda x: (x * x).mul_(x).sum()))
    with tfc.use_fallback("silent"):
        assert_close(twice(X), torch.diag(6 * X))
        with torch.autograd.graph.save_on_cpu():
            assert_close(twice(X), torch.diag(6 * X))
        if hasattr(torch.autograd.graph, "disable_saved_tensors_hooks"):
            with torch.autograd.graph.disable_saved_tensors_hooks("none here"):
                assert_close(twice(X), torch.diag(6 * X))
