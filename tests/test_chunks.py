"""How large chunks get, where their results go, and who is told."""

import sys
import types
import warnings

import pytest
import torch
from support.processes import run_python

import torch_func_compat as tfc
from torch_func_compat._arguments import memory as _memory
from torch_func_compat._arguments.chunks import Chunks, Gathered
from torch_func_compat._torch import facts

W = [torch.full((50, 50), 0.02), torch.full((50, 50), -0.01)]


def network(x):
    for w in W:
        x = (x @ w).tanh()
    return x


def test_memory_is_measured():
    x = torch.ones(400, 50, requires_grad=True)

    def run():
        y = network(x)
        return list(torch.autograd.grad(y, x, torch.ones_like(y)))

    results, usage = _memory.measured(run)
    unit = x.numel() * x.element_size()
    # two products and two tanh on the way there, and about as much on the way back
    assert 4 * unit <= usage.peak <= 14 * unit
    assert usage.kept == 0 or not facts.has("dispatch_mode")  # old profilers do not say what was freed
    assert torch.equal(results[0], run()[0])


def test_what_a_graph_keeps_is_measured():
    x = torch.ones(400, 50, requires_grad=True)
    results, usage = _memory.measured(lambda: [network(x)])
    unit = x.numel() * x.element_size()
    assert unit <= usage.kept <= 4 * unit  # the first tanh, and the products where nothing is known of their end
    assert results[0].requires_grad


@pytest.mark.slow
def test_nothing_of_the_compiler_is_imported():
    script = (
        "import sys, torch, torch_func_compat as tfc\n"
        "from torch_func_compat._arguments.memory import measured\n"
        "measured(lambda: [torch.ones(3).sin()])\n"
        "print('torch._dynamo' in sys.modules)"
    )
    process = run_python("-c", script)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["False"]


def energy_of_parameters():
    """Of a network whose parameters require grad; a function of its own name each time, since it warns once."""
    weights = [w.clone().requires_grad_() for w in W]

    def energy(x):
        for w in weights:
            x = (x @ w).tanh()
        return (x**2).sum()

    energy.__name__ = f"energy_{id(weights)}"
    return energy, weights


def test_graphs_that_burst_the_budget_are_told(backend):
    energy, _ = energy_of_parameters()
    x = torch.ones(20, 50)
    for times in (1, 0):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            found = tfc.hessian(energy, chunk_size="auto", memory="1MB")(x)
        told = [w for w in seen if "all chunks keep their graphs" in str(w.message)]
        assert len(told) == times
    assert found.requires_grad
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        tfc.hessian(energy_of_parameters()[0], chunk_size="auto", memory="1MB")(x)
    (warned,) = [w for w in seen if "all chunks keep their graphs" in str(w.message)]
    assert warned.filename == __file__
    assert "more than the budget of 1 MB" in str(warned.message)
    assert str(warned.message).endswith("If the result is not to be differentiated, call it within torch.no_grad()")


def test_ways_out_of_graphs_that_burst_the_budget(backend):
    x = torch.ones(20, 50)
    options = dict(chunk_size="auto", memory="1MB")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not tfc.hessian(energy_of_parameters()[0], create_graph=False, **options)(x).requires_grad
        with torch.no_grad():
            assert not tfc.hessian(energy_of_parameters()[0], **options)(x).requires_grad
        frozen, weights = energy_of_parameters()
        for w in weights:
            w.requires_grad_(False)
        assert not tfc.hessian(frozen, **options)(x).requires_grad
        # within the budget
        assert tfc.hessian(energy_of_parameters()[0], chunk_size="auto", memory="20GB")(x[:2]).requires_grad


def test_automatic_chunks_keep_to_the_budget(backend):
    x = torch.ones(400, 50)
    sizes = []
    for memory in ("16MB", "64MB"):
        jacobian = tfc.jacrev(lambda x: network(x).sum(1), chunk_size="auto", memory=memory)
        found = jacobian(x)
        sizes.append(int(tfc.explain(jacobian).rpartition("chunks of ")[2].rstrip(".")))
        assert torch.allclose(found, tfc.jacrev(lambda x: network(x).sum(1))(x))
    row = 400 * 50 * 4
    assert 1 <= sizes[0] < sizes[1]
    assert sizes[1] * row <= 64e6  # a row of the result alone needs as much


def test_numbers_in_forward_mode(backend):
    # which multiplied to no tensor under the watch of torch 1.13 to 2.2
    x = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    for func, slope in ((lambda x: x * 2, 2.0), (lambda x: x / 4, 0.25), (lambda x: torch.where(x > 0, x * 3, x), 3.0)):
        found = tfc.jacfwd(func, chunk_size="auto")(x)
        assert torch.allclose(found, slope * torch.eye(5, dtype=x.dtype))


def test_a_profile_of_the_user_does_not_matter(backend):
    with torch.autograd.profiler.profile(profile_memory=True):
        found = tfc.jacrev(network, chunk_size="auto")(torch.ones(50))
    assert torch.allclose(found, tfc.jacrev(network)(torch.ones(50)))


@pytest.mark.parametrize(
    ("text", "expected"), (("2GB", 2 * 10**9), ("1.5 MiB", 3 * 2**19), ("100", 100), (7, 7), ("3kb", 3000))
)
def test_bytes(text, expected):
    assert Chunks.checked("f", "auto", text).memory == expected


def test_results_are_written_where_they_belong():
    gathered = Gathered(5, in_place=True)
    first = torch.arange(2.0)
    gathered.add([first])
    gathered.add([torch.arange(2.0, 5.0)])
    (whole,) = gathered.results()
    assert whole.tolist() == [0, 1, 2, 3, 4]
    assert gathered._parts == []  # nothing was concatenated


@pytest.mark.parametrize("late", (torch.arange(2.0, 5.0, requires_grad=True), torch.arange(2, 5)))
def test_what_does_not_fit_is_concatenated(late):
    gathered = Gathered(5, in_place=True)
    gathered.add([torch.arange(2.0)])
    gathered.add([late])
    (whole,) = gathered.results()
    assert whole.tolist() == [0, 1, 2, 3, 4]
    assert whole.requires_grad == late.requires_grad


def test_chunks_are_differentiable(backend):
    x = torch.linspace(0.1, 0.5, 50, dtype=torch.float64).requires_grad_()
    w = [v.double() for v in W]

    def f(x):
        for v in w:
            x = (x @ v).tanh()
        return x

    (expected,) = torch.autograd.grad(tfc.jacrev(f)(x).pow(2).sum(), x)
    for chunk_size in (7, "auto"):
        (found,) = torch.autograd.grad(tfc.jacrev(f, chunk_size=chunk_size)(x).pow(2).sum(), x)
        assert torch.allclose(found, expected)
    nested = tfc.grad(lambda x: tfc.jacrev(f, chunk_size=7)(x).pow(2).sum())(x.detach())
    assert torch.allclose(nested, expected)


def test_progress_on_stderr(backend, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)  # import tqdm raises
    assert torch.equal(tfc.vmap(torch.neg, chunk_size=2, progress=True)(torch.arange(5.0)), -torch.arange(5.0))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2 of 5" in captured.err
    assert captured.err.endswith("5 of 5\n")


def test_progress_by_tqdm(backend, monkeypatch):
    told = []

    class Bar:
        def __init__(self, total, desc):
            told.append((total, desc))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            told.append("closed")

        def update(self, n):
            told.append(n)

    module = types.ModuleType("tqdm")
    module.tqdm = Bar
    monkeypatch.setitem(sys.modules, "tqdm", module)
    tfc.jacrev(network, chunk_size=20, progress=True)(torch.ones(50))
    assert told == [(50, "jacrev(network)"), 20, 20, 10, "closed"]
