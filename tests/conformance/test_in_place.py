"""Functions that write in place: to what they made, to what they were given, to what they share."""

from __future__ import annotations

import pytest
import torch
from support.operators import DIFFERENTIAL, cube, every, of_cube
from support.tolerances import assert_close

from torch_func_compat import grad, jacfwd, jacrev, use_fallback, vjp, vmap

# the others differentiate by all of their arguments, and vmap shares these among samples
TAKING_ARGUMENTS = tuple(
    operator
    for operator in DIFFERENTIAL
    if operator.name not in ("vjp", "jvp", "linearize", "hvp", "vhp", "vmap(grad)")
)


@pytest.fixture
def x(device):
    return torch.tensor([0.5, -0.75, 1.25], dtype=torch.float64, device=device)


@every()
def test_intermediates(operator, backend, x):
    def func(x):
        y = x.clone()
        y.mul_(x)
        z = y * 1
        z.view(-1)[...] *= x
        return z

    assert_close(operator.call(func, x), of_cube(operator, x))


# --- arguments that are not differentiated ------------------------------------------------------------------


@every(TAKING_ARGUMENTS)
def test_an_argument_may_be_written_to_and_returned(operator, backend, x):
    def func(x, y):
        y.copy_(x)
        y.mul_(x * x)
        return y

    y = torch.zeros_like(x)
    assert_close(operator.call(func, x, y), of_cube(operator, x))
    assert_close(y, cube(x))
    assert not y.requires_grad and y.grad_fn is None and y.is_leaf


@every(TAKING_ARGUMENTS)
def test_that_needs_no_fallback_from_torch_func(operator, backend, x):
    def func(x, y):
        return y.copy_(x) * x * x

    with use_fallback("error"):
        if backend == "functorch" and operator.name == "jacfwd":
            with pytest.raises(RuntimeError, match="would mutate a captured Tensor"):
                operator.call(func, x, torch.zeros_like(x))
        else:
            assert_close(operator.call(func, x, torch.zeros_like(x)), of_cube(operator, x))


@pytest.mark.parametrize("jacobian", [jacrev, jacfwd])
def test_a_slice_of_an_argument_may_be_written_to(jacobian, backend, x):
    def func(buffers, x):
        buffers["b"][1:] = x**2
        return buffers["b"].sin().sum() + (x**3).sum()

    buffer = torch.zeros(4, dtype=x.dtype, device=x.device)
    assert_close(jacobian(func, argnums=1)({"b": buffer}, x), (x**2).cos() * 2 * x + 3 * x**2)
    assert_close(buffer, torch.cat([buffer[:1] * 0, x**2]))
    assert not buffer.requires_grad


def test_an_argument_by_keyword(backend, x):
    y = torch.zeros_like(x)
    assert_close(grad(lambda x, *, out: out.copy_(x * x).sum())(x, out=y), 2 * x)
    assert_close(y, x * x)


def test_the_argument_written_to_survives_a_second_pullback(backend, x):
    y = torch.zeros_like(x)
    _, pullback = vjp(lambda x: y.clone().copy_(x).pow(2), x)
    for _ in range(2):
        assert_close(pullback(torch.ones_like(x)), (2 * x,))


@every(DIFFERENTIAL)
def test_writing_what_is_differentiated_to_a_captured_tensor_is_refused(operator, backend, x):
    captured = torch.zeros_like(x)

    def func(x):
        captured.copy_(x)
        return captured * x * x

    try:
        result = operator.call(func, x)
    except RuntimeError:
        assert not captured.requires_grad
        return
    # forward mode alone can
    assert_close(result, of_cube(operator, x))


# --- what the samples of vmap share -------------------------------------------------------------------------


def test_a_shared_tensor_is_written_to_once(backend, x):
    count = torch.zeros((), dtype=torch.long, device=x.device)
    state = torch.ones_like(x)

    def func(a, state):
        count.add_(1)
        state.mul_(2)
        return a * state

    result = vmap(func, in_dims=(0, None))(torch.stack([x, 2 * x, 3 * x]), state)
    assert_close(result, torch.stack([2 * x, 4 * x, 6 * x]))
    assert count.item() == 1 and state.tolist() == [2, 2, 2]


def test_mapped_values_in_a_shared_tensor_are_refused_and_leave_it_alone(backend, x):
    state = torch.ones_like(x)
    for func in (lambda a: state.copy_(a), lambda a: a * state.add_(a.sum())):
        with pytest.raises(RuntimeError, match=r"in.?place|captured|broadcast shape"):
            vmap(func)(torch.stack([x, 2 * x]))
        assert state.tolist() == [1, 1, 1]


def test_so_they_are_in_a_row_of_a_shared_tensor(backend, x):
    whole, weight = torch.ones(2, 3, dtype=x.dtype, device=x.device), x.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=r"in.?place|captured|broadcast shape"):
        vmap(lambda row, a: row.add_(a) * 1, in_dims=(None, 0))(whole[0], torch.stack([weight, 2 * weight]))
    assert whole.tolist() == [[1, 1, 1], [1, 1, 1]] and not whole.requires_grad


def test_power_iterations_are_shared(backend, device):
    layer = torch.nn.utils.spectral_norm(torch.nn.Linear(3, 2)).to(device).train()
    twin = torch.nn.utils.spectral_norm(torch.nn.Linear(3, 2)).to(device).train()
    twin.load_state_dict(layer.state_dict())
    xs = torch.randn(4, 3, device=device)
    with torch.no_grad():
        assert_close(vmap(layer)(xs), twin(xs))
    assert_close(layer.weight_u, twin.weight_u)


def test_batch_norm_in_training_mode_is_refused(backend, device):
    layer = torch.nn.BatchNorm1d(3).to(device).train()
    before = layer.running_mean.clone()
    with pytest.raises(RuntimeError, match=r"batch norm|running_mean"):
        vmap(layer)(torch.randn(2, 4, 3, device=device))
    assert torch.equal(layer.running_mean, before)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_random_numbers_in_a_shared_tensor(randomness, backend, x):
    state = torch.zeros_like(x)
    xs = torch.stack([x, 2 * x])
    noisy = vmap(lambda a: a * state.uniform_(), randomness=randomness)
    if randomness == "different":
        with pytest.raises(RuntimeError, match="different inplace randomness on an unbatched tensor"):
            noisy(xs)
        return
    torch.manual_seed(0)
    expected = torch.zeros_like(x).uniform_()
    torch.manual_seed(0)
    assert_close(noisy(xs), xs * expected)
    assert_close(state, expected)
