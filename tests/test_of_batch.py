"""A vmap over a gradient or a Hessian, taken as the derivative of the batch."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat._torch import engine, facts
from torch_func_compat.autograd.checks import is_gradtracking

BATCH = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
WEIGHTS = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, 0.3]], dtype=torch.float64)

# On plain autograd nothing wraps what is differentiated.
by_torch_func = pytest.mark.skipif(not facts.has("torch_func"), reason="no torch.func")


def energy(x, weights=WEIGHTS):
    return (weights @ x.sin()).pow(2).sum()


def by_samples(derivative, *rest):
    return torch.stack([derivative(x, *rest) for x in BATCH])


def is_tracked(transform):
    """Whether the function meets a level of gradients of torch.func when it is first evaluated."""
    seen = []

    def look(x):
        seen.append(is_gradtracking(x))
        return x.sin().sum()

    tfc.vmap(transform(look))(BATCH)
    return seen[0]


@by_torch_func
def test_which_derivatives_are_taken_of_the_batch():
    with tfc.use_backend("torch.func"):
        assert not is_tracked(tfc.grad)
        assert not is_tracked(tfc.grad_and_value)
        assert not is_tracked(tfc.hessian)
        # the unit vectors of its rows are shared by all samples
        assert is_tracked(tfc.jacrev)


def test_gradient(backend):
    assert_close(tfc.vmap(tfc.grad(energy))(BATCH), by_samples(tfc.grad(energy)))


def test_hessian(backend):
    assert_close(tfc.vmap(tfc.hessian(energy))(BATCH), by_samples(tfc.hessian(energy)))


def test_hessian_of_many_inputs(backend):
    wide = torch.linspace(-1, 1, 2 * 130, dtype=torch.float64).reshape(2, 130)
    assert_close(tfc.vmap(tfc.hessian(lambda x: x.pow(3).sum()))(wide), torch.stack([torch.diag(6 * x) for x in wide]))


def test_value_aux_and_shared_arguments(backend):
    def func(tree, weights, *, shift):
        value = energy(tree["x"] + shift, weights)
        return value, {"twice": 2 * value}

    shift = torch.tensor(0.5, dtype=torch.float64)
    mapped = tfc.vmap(tfc.grad_and_value(func, has_aux=True), in_dims=(0, None))
    gradient, (value, aux) = mapped({"x": BATCH}, WEIGHTS, shift=shift)
    moved = BATCH + shift
    assert_close(gradient["x"], torch.stack([tfc.grad(energy)(x) for x in moved]))
    assert_close(value, torch.stack([energy(x) for x in moved]))
    assert_close(aux["twice"], 2 * value)


def test_two_arguments_are_differentiated(backend):
    product = lambda a, b: (a * b * b).sum()
    first, second = tfc.vmap(tfc.grad(product, argnums=(0, 1)))(BATCH, 2 * BATCH)
    assert_close(first, 4 * BATCH**2)
    assert_close(second, 4 * BATCH**2)


@pytest.mark.parametrize("in_dims", [1, -1, (1,)])
def test_samples_along_another_dimension(backend, in_dims):
    assert_close(tfc.vmap(tfc.grad(energy), in_dims=in_dims)(BATCH.t()), by_samples(tfc.grad(energy)))


def test_shared_variable(backend):
    both = tfc.vmap(tfc.grad(lambda x, w: energy(x, w), argnums=1), in_dims=(0, None))(BATCH, WEIGHTS)
    assert_close(both, torch.stack([tfc.grad(energy, argnums=1)(x, WEIGHTS) for x in BATCH]))


def test_results_are_differentiable_by_what_is_outside(backend):
    weights = WEIGHTS.clone().requires_grad_()
    found = tfc.vmap(tfc.grad(energy), in_dims=(0, None))(BATCH, weights)
    (gradient,) = torch.autograd.grad(found.pow(2).sum(), weights)
    alone = sum(tfc.grad(energy)(x, weights).pow(2).sum() for x in BATCH)
    assert_close(gradient, torch.autograd.grad(alone, weights)[0])
    without = tfc.vmap(tfc.grad(lambda x: energy(x, weights), create_graph=False))(BATCH)
    assert_close(without, found.detach())
    assert not without.requires_grad


def test_a_constant_has_zeros(backend):
    assert_close(tfc.vmap(tfc.grad(lambda x: torch.ones((), dtype=x.dtype)))(BATCH), torch.zeros_like(BATCH))
    assert_close(tfc.vmap(tfc.hessian(lambda x: x.sum()))(BATCH), BATCH.new_zeros(4, 3, 3))


def test_an_error_of_the_function_is_raised_as_it_is(backend):
    def func(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        tfc.vmap(tfc.grad(func))(BATCH)
    with pytest.raises(RuntimeError, match="scalar"):
        tfc.vmap(tfc.grad(torch.sin))(BATCH)


def test_what_a_batch_cannot_do_is_done_as_before(backend):
    branch = lambda x: (x**2).sum() if x.sum() > 0 else (x**3).sum()
    with tfc.use_fallback("silent"):
        found = tfc.vmap(tfc.grad(branch))(BATCH)
    assert_close(found, torch.where(BATCH.sum(1, keepdim=True) > 0, 2 * BATCH, 3 * BATCH**2))


@by_torch_func
def test_the_function_is_evaluated_once_for_all_samples():
    count = []

    def func(x):
        count.append(1)
        return energy(x)

    with tfc.use_backend("torch.func"):
        for transform in (tfc.grad, tfc.grad_and_value, tfc.hessian):
            mapped = tfc.vmap(transform(func))
            mapped(BATCH)  # the first call may test
            count.clear()
            mapped(BATCH)
            assert len(count) == 1


class NumpySine(torch.autograd.Function):
    """Its vmap is not differentiable, and need not be: its backward is."""

    @staticmethod
    def forward(x):
        return torch.as_tensor(x.detach().numpy()).sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * ctx.saved_tensors[0].cos()

    @staticmethod
    def vmap(info, in_dims, x):
        return torch.as_tensor(x.detach().numpy()).sin(), in_dims[0]


@by_torch_func
@pytest.mark.parametrize("checks", ["first-call", "always", "off"])
def test_a_vmap_of_a_function_that_is_not_differentiable(backend, checks):
    with tfc.use_checks(checks), tfc.use_fallback("silent"):
        found = tfc.vmap(tfc.grad(lambda x: (NumpySine.apply(x) + x).sum()))(BATCH)
    assert_close(found, BATCH.cos() + 1)


# --- a loop ----------------------------------------------------------------------------------------------------------


def backward_passes(call):
    """How many samples' outputs the engine was asked to differentiate at a time."""
    asked = []
    original = engine.grad

    def counted(outputs, *rest):
        asked.append([len(output) if output.dim() else 1 for output in outputs])
        return original(outputs, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "grad", counted)
        call()
    return asked


def branch(x):
    return x.sin().sum() if x.sum() > 0 else x.pow(3).sum()


def test_a_loop_over_gradients_takes_one_backward_pass():
    with tfc.use_backend("autograd"):
        assert backward_passes(lambda: tfc.vmap(tfc.grad(branch))(BATCH)) == [[4]]


@pytest.mark.parametrize("size", [1, 64, 65, 130])
@pytest.mark.parametrize("transform", [tfc.grad, tfc.hessian])
def test_blocks_of_a_loop(transform, size):
    batch = torch.linspace(-1, 1, 2 * size, dtype=torch.float64).reshape(size, 2)
    with tfc.use_backend("autograd"):
        assert_close(tfc.vmap(transform(branch))(batch), torch.stack([transform(branch)(x) for x in batch]))


def test_parts_of_a_result_in_blocks():
    batch = torch.linspace(-1, 1, 2 * 65, dtype=torch.float64).reshape(65, 2)
    shared = torch.tensor([1.0, 2.0], dtype=torch.float64)
    func = lambda tree, a, k: ((branch(tree["x"] * a) * k), {"double": 2 * a})
    mapped = tfc.vmap(tfc.grad_and_value(func, has_aux=True), in_dims=(0, None, 0))
    with tfc.use_backend("autograd"):
        gradient, (value, aux) = mapped({"x": batch}, shared, torch.arange(65))
    for k, x in enumerate(batch):
        one = tfc.grad(lambda y, k=k: branch(y * shared) * k)(x)
        assert_close(gradient["x"][k], one)
        assert_close(value[k], branch(x * shared) * k)
    assert_close(aux["double"], (2 * shared).expand(65, 2))


class Measured(torch.Tensor):
    pass


def test_samples_in_blocks_keep_attributes():
    batch = torch.linspace(-1, 1, 2 * 65, dtype=torch.float64).reshape(65, 2)
    batch = batch.as_subclass(Measured)
    batch.unit = 3.0
    with tfc.use_backend("autograd"):
        found = tfc.vmap(tfc.grad(lambda x: branch(x) * x.unit))(batch)
    assert_close(found, torch.stack([3 * tfc.grad(branch)(x) for x in batch]))


def test_a_cache_between_samples_is_constant():
    """What an earlier sample has left is a number for the next one, as in a loop that is written by hand."""
    kept = []

    def func(x):
        kept.append(x.sin().sum())
        return x.pow(2).sum() * (kept[-2].detach() + kept[-2] if len(kept) % 4 != 1 else 1.0)

    def by_hand():
        rows = []
        for x in BATCH:
            x = x.clone().requires_grad_()
            rows.append(torch.autograd.grad(func(x), x)[0])
        return torch.stack(rows)

    expected = by_hand()
    with tfc.use_backend("autograd"):
        for _ in range(2):
            del kept[:]
            assert_close(tfc.vmap(tfc.grad(func))(BATCH), expected)


def test_a_sample_whose_output_left_torch_is_noticed():
    numpy = pytest.importorskip("numpy")

    def func(x):
        return x.sin().sum() if x.sum() > 0 else torch.as_tensor(numpy.sin(x.detach().numpy())).sum()

    with tfc.use_backend("autograd"), pytest.raises((RuntimeError, UserWarning)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tfc.vmap(tfc.grad(func))(BATCH)


def test_what_samples_write_is_written_once():
    count = torch.zeros(1, dtype=torch.float64)

    def func(x):
        count.add_(1)
        return x.pow(2).sum() if x.sum() > 0 else x.new_tensor(3.0)

    with tfc.use_backend("autograd"):
        assert_close(tfc.vmap(tfc.grad(func))(BATCH), 2 * BATCH * (BATCH.sum(1, keepdim=True) > 0))
        assert count == 1  # as in a vmap that evaluates the function once
        tfc.vmap(tfc.grad(func))(BATCH)
    assert count == 2
