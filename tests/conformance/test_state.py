"""What is outside a transform: it stays differentiable through it, and nothing of it is changed."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.utils.checkpoint
from support.cases import ramp, spread
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat import grad, grad_and_value, hessian, jacfwd, jacrev, jvp, vjp, vmap


def _of(gradient):
    return gradient if isinstance(gradient, torch.Tensor) else gradient[0]


# Each computes d/dx of sum(scale * x³), 3 * scale * x², and is given func(x) = scale * x³ and the point x.
DERIVATIVES = {
    "grad": lambda func, x: grad(lambda x: func(x).sum())(x),
    "grad_and_value": lambda func, x: grad_and_value(lambda x: func(x).sum())(x)[0],
    "vjp": lambda func, x: vjp(func, x)[1](torch.ones_like(x))[0],
    "jvp": lambda func, x: jvp(func, (x,), (torch.ones_like(x),))[1],
    "jacrev": lambda func, x: jacrev(lambda x: func(x).sum())(x),
    "jacfwd": lambda func, x: jacfwd(lambda x: func(x).sum())(x),
    "vmap(grad)": lambda func, x: vmap(grad(lambda x: func(x).sum()))(x[None])[0],
    "jacrev(vmap)": lambda func, x: jacrev(lambda x: vmap(lambda x: func(x).sum())(x[None])[0])(x),
    "jvp(vjp)": lambda func, x: jvp(lambda v: vjp(func, x)[1](v)[0], (x,), (torch.ones_like(x),))[1],
}
every_derivative = pytest.mark.parametrize("derivative", list(DERIVATIVES.values()), ids=list(DERIVATIVES))


@pytest.fixture
def x(device):
    return torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64, device=device)


@pytest.fixture
def scale(device):
    return torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64, device=device)


# --- what is closed over stays differentiable ---------------------------------------------------------------


@every_derivative
def test_closures_that_require_grad_stay_differentiable(derivative, backend, x, scale):
    scale.requires_grad_()
    result = derivative(lambda x: scale * x**3, x)
    assert_close(result, 3 * scale * x**2)
    (gradient,) = torch.autograd.grad((result * ramp(x, 3)).sum(), scale)
    assert_close(gradient, 3 * x**2 * ramp(x, 3))


@every_derivative
def test_inputs_that_require_grad_stay_differentiable_twice(derivative, backend, x, scale):
    x.requires_grad_()
    scale.requires_grad_()
    result = derivative(lambda x: scale * x**3, x)
    first, mixed = torch.autograd.grad(result.sum(), (x, scale), create_graph=True)
    assert_close((first, mixed), (6 * scale * x, 3 * x**2))
    assert_close(torch.autograd.grad(first.sum(), (x, scale)), (6 * scale, 6 * x))


def test_backward_through_a_hessian_reaches_outside(backend, x, scale):
    x.requires_grad_()
    scale.requires_grad_()
    result = hessian(lambda x: (scale * x**3).sum())(x)
    assert_close(result, torch.diag(6 * scale * x))
    result.sum().backward()
    assert_close((x.grad, scale.grad), (6 * scale, 6 * x))


def test_values_and_aux_stay_differentiable(backend, x, scale):
    scale.requires_grad_()
    func = lambda x: ((scale * x).sum(), scale * x**2)
    _, (value, aux) = grad_and_value(func, has_aux=True)(x)
    assert_close(torch.autograd.grad(value, scale)[0], x)
    assert_close(torch.autograd.grad(aux.sum(), scale)[0], x**2)
    output, pullback = vjp(lambda x: scale * x, x)
    assert_close(torch.autograd.grad(output.sum(), scale, retain_graph=True)[0], x)
    assert_close(torch.autograd.grad(pullback(x)[0].sum(), scale)[0], x)


def test_a_backward_through_the_output_leaves_the_pullback_its_graph(backend, x, scale):
    output, pullback = vjp(lambda x: scale * x, x.requires_grad_())
    output.sum().backward()
    assert_close(x.grad, scale)
    assert_close(pullback(scale)[0], scale**2)


def test_cotangents_and_tangents_stay_differentiable(backend, x, scale):
    scale.requires_grad_()
    assert_close(torch.autograd.grad(vjp(torch.sin, x)[1](scale)[0].sum(), scale)[0], x.cos())
    assert_close(torch.autograd.grad(jvp(torch.sin, (x,), (scale,))[1].sum(), scale)[0], x.cos())


def test_parameters_of_a_module_stay_differentiable(backend, device):
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).to(device).double()
    (w, _), (v, _) = [(layer.weight, layer.bias) for layer in (net[0], net[2])]
    batch = ramp(w.detach(), 2, 3)
    per_sample = vmap(jacrev(lambda x: net(x).sum()))(batch)
    expected = ((1 - torch.tanh(net[0](batch)) ** 2) * v) @ w
    assert_close(per_sample, expected)
    found = torch.autograd.grad((per_sample**2).sum(), (w, v))
    assert_close(found, torch.autograd.grad((expected**2).sum(), (w, v)))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


# --- a result requires grad if and only if something outside did ------------------------------------------------


@every_derivative
def test_results_require_grad_only_where_something_outside_did(derivative, backend, x, scale):
    assert not derivative(lambda x: scale * x**3, x).requires_grad
    unused = scale.clone().requires_grad_()
    assert not derivative(lambda x: scale * x**3 + 0 * unused.detach(), x).requires_grad
    assert derivative(lambda x: scale.clone().requires_grad_() * 0 + unused * x**3, x).requires_grad
    assert derivative(lambda x: scale * x**3, x.clone().requires_grad_()).requires_grad


def test_values_and_aux_require_grad_only_where_something_outside_did(backend, x):
    func = lambda x: ((x**2).sum(), x * 2)
    assert not any(t.requires_grad for t in grad_and_value(func, has_aux=True)(x)[1])
    output, pullback, aux = vjp(func, x, has_aux=True)
    assert not any(t.requires_grad for t in (output, aux, *pullback(torch.ones_like(output))))
    assert not any(t.requires_grad for t in jvp(func, (x,), (x,), has_aux=True))
    assert not any(t.requires_grad for t in hessian(func, has_aux=True)(x))


# --- grad mode ------------------------------------------------------------------------------------------------


@every_derivative
def test_no_grad_outside_changes_nothing_but_the_graph(derivative, backend, x, scale):
    scale.requires_grad_()
    with torch.no_grad():
        result = derivative(lambda x: scale * x**3, x)
        assert not torch.is_grad_enabled()
    assert_close(result, 3 * scale.detach() * x**2)
    assert not result.requires_grad
    assert torch.is_grad_enabled()


@every_derivative
def test_no_grad_inside_is_respected(derivative, backend, x, scale):
    def func(x):
        with torch.no_grad():
            factor = scale * x**2
        return factor * x

    assert_close(derivative(func, x), scale * x**2)

    def constant(x):
        with torch.no_grad():
            return scale * x**3

    assert_close(derivative(constant, x), torch.zeros_like(x))


@every_derivative
def test_detach_inside_is_respected(derivative, backend, x, scale):
    assert_close(derivative(lambda x: scale * x.detach() ** 2 * x, x), scale * x**2)
    assert_close(derivative(lambda x: x.detach() * scale, x), torch.zeros_like(x))


def test_grad_mode_inside_is_on(backend, x):
    seen = []
    with torch.no_grad():
        grad(lambda x: (seen.append(torch.is_grad_enabled()), x.sum())[1])(x)
    assert seen == [True]


def test_a_pullback_can_be_called_again_and_under_no_grad(backend, x):
    output, pullback = vjp(torch.sin, x.requires_grad_())
    first, second = pullback(torch.ones_like(output)), pullback(2 * torch.ones_like(output))
    assert_close(second[0], 2 * first[0])
    with torch.no_grad():
        (plain,) = pullback(torch.ones_like(output))
    assert not plain.requires_grad
    assert_close(plain, x.detach().cos())
    assert pullback(torch.ones_like(output))[0].requires_grad
    assert_close(torch.autograd.grad(pullback(torch.ones_like(output))[0].sum(), x)[0], -x.detach().sin())


def test_a_pullback_made_under_no_grad_and_called_outside(backend, x):
    x.requires_grad_()
    with torch.no_grad():
        output, pullback = vjp(lambda x: x**3, x)
    (first,) = pullback(torch.ones_like(output))
    assert not output.requires_grad
    assert first.requires_grad
    assert_close(torch.autograd.grad(first.sum(), x)[0], 6 * x.detach())


# --- nothing of the caller's is changed -----------------------------------------------------------------------


class Stop(Exception):
    """Raised by a function half-way."""


def _state(*tensors):
    return [(t.grad, t.requires_grad, t.is_leaf, t._version, t.grad_fn, t.detach().clone()) for t in tensors]


def _same(before, after):
    return all(a[:5] == b[:5] and torch.equal(a[5], b[5]) for a, b in zip(before, after))


@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "requires_grad"])
@pytest.mark.parametrize("grad_mode", [False, True], ids=["no_grad", "grad"])
@every_derivative
def test_nothing_of_the_callers_is_changed(derivative, grad_mode, requires_grad, backend, x, scale):
    x.requires_grad_(requires_grad)
    scale.requires_grad_(requires_grad)

    def stop(x):
        _ = (scale * x**3).sum()
        raise Stop

    before, random_state = _state(x, scale), torch.get_rng_state()
    with torch.set_grad_enabled(grad_mode):
        derivative(lambda x: scale * x**3, x)
        with pytest.raises(Stop):
            derivative(stop, x)
        # a transform within the function that stops
        with pytest.raises(Stop):
            derivative(lambda x: derivative(stop, x) * x, x)
        assert torch.is_grad_enabled() == grad_mode
    assert _same(before, _state(x, scale))
    assert torch.equal(random_state, torch.get_rng_state())
    # and the next call is as good as the first
    assert_close(derivative(lambda x: scale * x**3, x), 3 * scale.detach() * x.detach() ** 2)


def test_no_level_is_left_when_a_function_stops_at_any_depth(backend, x):
    for depth in range(1, 4):
        calls = []

        def func(x, calls=calls, depth=depth):
            calls.append(1)
            if len(calls) == depth:
                raise Stop
            return grad(func)(x).sum() if len(calls) < depth else x.sum()

        with pytest.raises(Stop):
            vmap(jacfwd(func))(x[None])
        assert_close(jacrev(jacfwd(torch.sin))(x), spread(-x.sin(), 2))


@pytest.mark.parametrize("transform", [grad, jacrev, jacfwd, hessian])
@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "requires_grad"])
def test_in_place_on_a_differentiated_input_is_right_or_raised(requires_grad, transform, backend, x):
    first, rest = torch.eye(3, dtype=x.dtype, device=x.device)[0], x * 0
    swap = torch.stack([2 * x[1] + rest[0], 2 * x[0], rest[0]])
    mixed = 2 * (first[:, None] * first.roll(1) + first.roll(1)[:, None] * first)
    table = (
        (lambda x: (x.mul_(2) ** 2).sum(), 8 * x, 8 * torch.diag(x**0)),
        (lambda x: (x * x + x.mul_(3)).sum(), 2 * x + 3, 2 * torch.diag(x**0)),
        (lambda x: x[0].mul_(2) * x[1], swap, mixed),
        (lambda x: (x.view(-1)[:1].zero_() * 5 + x**2).sum(), 2 * x * (1 - first), 2 * torch.diag(1 - first)),
    )
    for func, gradient, second in table:
        value = x.clone().requires_grad_(requires_grad)
        try:
            result = transform(func)(value)
        except RuntimeError:
            continue
        assert_close(result, second if transform is hessian else gradient)


def test_in_place_on_a_clone_of_the_input_leaves_the_input_alone(backend, x):
    func = lambda x: x.clone().mul_(2).pow(2).sum()
    before = x.clone()
    assert_close((grad(func)(x), hessian(func)(x)), (8 * x, 8 * torch.eye(3, dtype=x.dtype, device=x.device)))
    assert torch.equal(before, x) and x._version == 0


def test_hooks_of_the_user_are_respected(backend, x):
    seen = []

    def func(x):
        y = x * x
        y.register_hook(lambda g: (seen.append(1), 10 * g)[1])
        return y.sum()

    assert_close(grad(func)(x), 20 * x)
    assert seen


# --- threads ----------------------------------------------------------------------------------------------------

REVERSE = lambda x: (grad(lambda x: x.sin().sum())(x), jacrev(jacrev(lambda x: (x**3).sum()))(x))
FORWARD = lambda x: (jvp(torch.sin, (x,), (torch.ones_like(x),))[1], hessian(lambda x: (x**3).sum())(x))


@pytest.mark.parametrize("work", [REVERSE, FORWARD], ids=["reverse", "forward"])
def test_threads_use_their_own_backends(work, x):
    names = [*tfc.available_backends(), "autograd"] * 2
    barrier = threading.Barrier(len(names))
    results, errors = {i: [] for i in range(len(names))}, []

    def stop(x):
        raise Stop

    def run(i, name):
        try:
            with tfc.use_backend(name):
                for _ in range(20):
                    barrier.wait(30)
                    results[i].append((tfc.get_backend(), work(x)))
                    if i % 2:  # an exception in one thread is no other's business
                        with pytest.raises(Stop):
                            grad(stop)(x)
        except threading.BrokenBarrierError:
            pass
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)
            barrier.abort()

    before = tfc.get_backend()
    threads = [threading.Thread(target=run, args=item) for item in enumerate(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    assert tfc.get_backend() == before
    for i, name in enumerate(names):
        assert [used for used, _ in results[i]] == [name] * 20
        for _, values in results[i]:
            assert_close(values, (x.cos(), torch.diag(6 * x)))


@pytest.mark.skipif(not hasattr(torch.utils.checkpoint, "set_checkpoint_early_stop"), reason="needs torch 2.1")
@pytest.mark.parametrize(
    "transformed",
    [
        lambda f, x: vmap(f)(x),
        lambda f, x: jvp(f, (x,), (x,))[1],
        lambda f, x: vmap(grad(lambda row: f(row).sum()))(x),
    ],
    ids=["vmap", "jvp", "vmap(grad)"],
)
def test_transforms_are_recomputed_by_a_checkpoint(transformed, backend):
    """A checkpoint ends its recomputation by an exception from a saved-tensor hook, which is no refusal."""
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2).requires_grad_()

    def total(x):
        return transformed(lambda y: y.sin().exp(), x).sum()

    (expected,) = torch.autograd.grad(total(x), x)
    with tfc.use_fallback("silent"):
        torch.utils.checkpoint.checkpoint(total, x, use_reentrant=False).backward()
    assert_close(x.grad, expected)


@pytest.mark.skipif(not hasattr(torch, "inference_mode"), reason="needs torch 1.9")
def test_derivatives_in_inference_mode_are_normal_tensors(backend):
    x, w = torch.tensor([0.5, 1.5]), torch.ones(2, requires_grad=True)
    with torch.inference_mode():
        gradient = grad(lambda x: x.sin().sum())(x)
    (w * gradient).sum().backward()
    assert_close(w.grad, x.cos())
