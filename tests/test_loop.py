"""vmap on the autograd backend: everything that a Python loop can do, and its errors."""

from __future__ import annotations

import threading

import pytest
import torch
from support.tolerances import assert_close
from torch.autograd import grad as grad_of_torch

import torch_func_compat as tfc
from torch_func_compat._backends.autograd import loop as _loop
from torch_func_compat._backends.autograd import output_stack as _piles
from torch_func_compat._guards.by_graph import nodes
from torch_func_compat._torch import facts

BATCH = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).reshape(3, 4)


@pytest.fixture(autouse=True)
def _autograd():
    with tfc.use_backend("autograd"):
        yield


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("size", [1, 2, 33, 70])
def test_any_structure(size, requires_grad, large, monkeypatch):
    if large:
        monkeypatch.setattr(_piles, "LARGE", 0)
    x = torch.sin(torch.arange(4.0 * size, dtype=torch.float64)).reshape(4, size).requires_grad_(requires_grad)
    y = {"a": torch.cos(torch.arange(2.0 * size)).reshape(size, 2), "b": 3.0}

    def func(x, y, scale, *, shift):
        return {"sum": (x.sum() * scale, [y["a"] * y["b"]])}, (x + shift, x[:0])

    result, pair = tfc.vmap(func, in_dims=(1, {"a": 0, "b": None}, None), out_dims=(0, (-1, 0)))(
        x, y, 2.0, shift=x[0, 0]
    )
    assert_close(result["sum"][0], 2 * x.sum(0))
    assert_close(result["sum"][1][0], 3 * y["a"])
    assert_close(pair[0], x + x[0, 0])
    assert pair[1].shape == (size, 0)
    assert result["sum"][0].requires_grad == requires_grad
    if requires_grad:
        assert_close(torch.autograd.grad(result["sum"][0].pow(2).sum(), x)[0], (8 * x.sum(0)).expand(4, -1))


def test_results_that_begin_to_require_grad_on_the_way(monkeypatch):
    monkeypatch.setattr(_piles, "LARGE", 0)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    x = torch.arange(1.0, 81.0, dtype=torch.float64)
    result = tfc.vmap(lambda x: x * weight if x > 50 else x * 1)(x)
    assert_close(result.detach(), x)
    assert_close(torch.autograd.grad(result.sum(), weight)[0], x[50:].sum())


def test_large_results_take_the_memory_of_one(monkeypatch):
    """What is stacked is not kept: at most a few samples' results exist beside the whole."""
    import weakref

    monkeypatch.setattr(_piles, "LARGE", 0)
    alive, most = [], [0]

    def func(x):
        most[0] = max(most[0], sum(ref() is not None for ref in alive))
        result = x * 2
        alive.append(weakref.ref(result))
        return result

    x = torch.arange(100.0)
    assert_close(tfc.vmap(func)(x), 2 * x)
    assert most[0] <= 2 * _loop.FEW


@pytest.mark.parametrize(
    ("func", "error", "text"),
    [
        (lambda x: x[: 1 + int(x[0] > 0)], RuntimeError, r"sample 0 gave \(1,\).* sample 2 gave \(2,\)"),
        (lambda x: (x, x[: 1 + int(x[0] > 0)]), RuntimeError, r"sample 0 gave \(1,\).* sample 2 gave \(2,\)"),
        (lambda x: x if x[0] < 0 else x.float(), RuntimeError, r"float64, sample 2 gave \(4,\) of torch.float32"),
        (lambda x: x if x[0] < 0 else (x, x), RuntimeError, "structure .* sample 2"),
        (lambda x: (x, x) if x[0] < 0 else (x,), RuntimeError, "structure .* sample 2"),
        (lambda x: (x, x) if x[0] < 0 else (x, [x]), RuntimeError, "structure .* sample 2"),
        (lambda x: x if x[0] < 0 else 1.0, ValueError, "must only return Tensors, got type <class 'float'>"),
        (lambda x: (x, 1.0), ValueError, "must only return Tensors, got type <class 'float'>"),
        (lambda x: (x, x if x[0] < 0 else "a"), ValueError, "must only return Tensors, got type <class 'str'>"),
        (lambda x: None, ValueError, "must only return Tensors, got type <class 'NoneType'>"),
    ],
    ids=[
        "shape",
        "shape in a tuple",
        "dtype",
        "structure",
        "length",
        "nested",
        "number",
        "number first",
        "str",
        "None",
    ],
)
@pytest.mark.parametrize("large", [False, True])
def test_results_that_cannot_be_stacked(func, error, text, large, monkeypatch):
    if large:
        monkeypatch.setattr(_piles, "LARGE", 0)
    with pytest.raises(error, match=text):
        tfc.vmap(func)(BATCH)


@pytest.mark.parametrize("error", [StopIteration, ZeroDivisionError])
def test_an_error_of_a_later_sample_passes_through(error):
    def func(x):
        if x[0] > 0:
            raise error("mine")
        return x

    with pytest.raises(error, match="mine"):
        tfc.vmap(func)(BATCH)


def test_writing_to_the_slices_reaches_the_batch():
    x = BATCH.clone()
    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)

    def func(x, y):
        return x.mul_(2) + y

    assert_close(tfc.vmap(func)(x, BATCH), 3 * BATCH)
    assert_close(x, 2 * BATCH)
    y = BATCH * weight
    result = tfc.vmap(lambda y: y.mul_(weight).sum())(y)
    assert_close(torch.autograd.grad(result.sum(), weight)[0], 2 * BATCH.sum(0))


def test_a_container_of_the_caller_is_not_shared_between_samples():
    def func(x, options):
        return x * options.pop("scale")

    options = {"scale": 2.0}
    assert_close(tfc.vmap(func, in_dims=(0, None))(BATCH, options), 2 * BATCH)
    assert options == {"scale": 2.0}


@pytest.mark.parametrize("write", [False, True])
def test_the_backward_is_linear_in_the_batch(write):
    """Whoever is directly below the batch gives a gradient of the size of all: that must not be every sample."""
    x = torch.ones(4 * _loop.AHEAD, 2, requires_grad=True)
    batch = x * 1
    total = tfc.vmap(lambda y: (y.mul_(2) if write else y * 2).sum())(batch).sum()
    below = [node for node in nodes([total.grad_fn]) if any(child is batch.grad_fn for child, _ in node.next_functions)]
    assert 0 < len(below) <= 4 * _loop.AHEAD / 16
    assert_close(torch.autograd.grad(total, x)[0], torch.full_like(x, 2.0))


def test_chunks_are_samples():
    seen = []

    def func(x):
        seen.append(x.dim())
        return x.sin()

    assert_close(tfc.vmap(func, chunk_size=2)(BATCH), BATCH.sin())
    assert seen == [1] * 3


@pytest.mark.parametrize("offset", [0, 1])
def test_an_offset_counts_from_the_beginning_of_a_sample(backend, offset):
    samples = torch.arange(12.0, dtype=torch.float64).reshape(3, 4).sin()
    mapped = tfc.vmap(lambda x: x.as_strided((2,), (1,), offset))
    expected = torch.zeros_like(samples)
    expected[:, offset : offset + 2] = 1
    with tfc.use_fallback("silent"):
        assert_close(mapped(samples), samples[:, offset : offset + 2])
        assert_close(tfc.batch_jacobian(mapped)(samples).sum(1), expected)
        recorded = samples.clone().requires_grad_()
        assert_close(torch.autograd.grad(mapped(recorded).sum(), recorded)[0], expected)


def test_a_sample_that_is_read_from_memory_and_modified_is_refused():
    with tfc.use_backend("autograd"), pytest.raises(RuntimeError, match="clone"):
        tfc.vmap(lambda x: x.mul_(2).as_strided((2,), (1,), 0))(torch.ones(3, 4))


sees_operations = pytest.mark.skipif(
    not facts.has("torch_function_modes"), reason="nothing shows the operations, and so the generators, of a function"
)


def _seeded(x):
    generator = torch.Generator()
    generator.manual_seed(3)
    return x + torch.rand(2, generator=generator).to(x)


@pytest.mark.parametrize(
    "func",
    [
        lambda x: x + torch.rand(2, generator=torch.Generator()).to(x),
        lambda x: x + torch.empty(2).normal_(generator=torch.Generator()).to(x),
        _seeded,
        lambda x: x + torch.rand(2).to(x),
    ],
    ids=["drawn", "in place", "seeded", "default"],
)
@pytest.mark.parametrize("size", [0, 1, 3])
@sees_operations
def test_randomness_is_an_error_wherever_it_comes_from(backend, func, size):
    """Also from a generator that the function makes, and for a batch of no samples."""
    x = torch.zeros(size, 2)
    state = torch.get_rng_state()
    with tfc.use_fallback("silent"):
        with pytest.raises(RuntimeError, match="randomness error mode"):
            tfc.vmap(func)(x)
        assert torch.equal(torch.get_rng_state(), state)
        assert tfc.vmap(func, randomness="same")(x).shape == (size, 2)
    if backend == "autograd":
        with pytest.raises(RuntimeError, match="randomness error mode"):
            tfc.jacfwd(func, randomness="error")(torch.zeros(2))


def test_generators_that_nothing_is_drawn_from_are_no_error(backend):
    def func(x):
        generator = torch.Generator()
        generator.manual_seed(3)
        assert isinstance(generator, torch.Generator) and isinstance(torch.default_generator, torch.Generator)
        return x.sin()

    with tfc.use_fallback("silent"):
        assert_close(tfc.vmap(func)(torch.ones(2)), torch.ones(2).sin())


@sees_operations
def test_a_generator_of_each_sample_draws_the_same(backend):
    """So a loop cannot give different numbers, and says so."""
    with tfc.use_fallback("silent"):
        try:
            found = tfc.vmap(_seeded, randomness="different")(torch.zeros(3, 2))
        except RuntimeError as error:
            assert backend == "autograd" and "Make it outside" in str(error)
        else:
            assert backend != "autograd" and not torch.equal(found[0], found[1])


@sees_operations
@pytest.mark.parametrize(
    "rows",
    [
        lambda y, p: lambda v: torch.autograd.grad(y, p, v)[0],
        lambda y, p: lambda v: grad_of_torch(y, p, v)[0],
        lambda y, p: lambda v: torch.autograd.grad(y, p, v)[0] * (1 if v.sum() > -9 else 2),
        lambda y, p: lambda v: (lambda g: g if g.sum() > -9 else 2 * g)(torch.autograd.grad(y, p, v)[0]),
        lambda y, p: lambda v: tfc.vmap(lambda v: torch.autograd.grad(y, p, v)[0])(torch.stack([v, v]))[1],
    ],
    ids=["batched", "by another name", "branch before", "branch after", "nested"],
)
def test_one_graph_from_outside_is_differentiated_for_each_sample(backend, rows):
    """Without retain_graph, as in the documentation of torch.vmap, where a batch takes one backward pass."""
    p = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64, requires_grad=True)
    with tfc.use_fallback("silent"):
        found = tfc.vmap(rows(p.sin() * p, p))(torch.eye(3, dtype=torch.float64))
    assert_close(found, torch.diag(p.cos() * p + p.sin()).detach())


@sees_operations
def test_graphs_that_another_thread_differentiates_are_freed():
    p = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    y, other = p.sin() * p, p.exp()

    def func(v):
        if v[0] == 1:
            thread = threading.Thread(target=lambda: torch.autograd.grad(other, p))
            thread.start()
            thread.join()
        return torch.autograd.grad(y, p, v)[0]

    with tfc.use_backend("autograd"):
        tfc.vmap(func)(torch.tensor([[1.0], [2.0]], dtype=torch.float64))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(other, p)
