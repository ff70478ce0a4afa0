"""Rows, columns and samples that processes share: groups of two and of four, and no group at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.distributed_cases import CASES, elementwise, energy, raises, same, trees
from support.processes import run_python
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat import distributed
from torch_func_compat._arguments.partition import bounds
from torch_func_compat.distributed import _collectives

SCRIPT = Path(__file__).resolve().parent / "support" / "distributed_cases.py"
SIZES = (2, 4)
X = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64)

needs_distributed = pytest.mark.skipif(not dist.is_available(), reason="this build has no torch.distributed")


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What came of each case, by size of the group and rank."""
    folder = tmp_path_factory.mktemp("distributed")
    process = run_python(
        str(SCRIPT), str(folder), ",".join(map(str, SIZES)), path=[SCRIPT.parents[1]], OMP_NUM_THREADS="1"
    )
    assert process.returncode == 0, process.stdout + process.stderr
    places = [(size, rank) for size in SIZES for rank in range(size)]
    return {place: json.loads((folder / "report{}.{}.json".format(*place)).read_text()) for place in places}


@pytest.mark.slow
@needs_distributed
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_processes(reports, name, size):
    for rank in range(size):
        assert reports[size, rank][name] == "ok", f"rank {rank}:\n{reports[size, rank][name]}"


def test_shares_are_balanced():
    for size in (1, 2, 3, 4, 7):
        for total in range(20):
            shares = [bounds(rank, size, total) for rank in range(size)]
            assert [start for start, _ in shares] == [0, *(stop for _, stop in shares)][:size]
            assert shares[-1][1] == total
            lengths = [stop - start for start, stop in shares]
            assert max(lengths) - min(lengths) <= 1 and lengths == sorted(lengths, reverse=True)


@pytest.mark.filterwarnings("ignore::torch_func_compat.FallbackWarning")
def test_one_process(backend):
    """Without a group it is the function of the same name."""
    for name in ("jacobian", "jacrev", "jacfwd"):
        same(getattr(distributed, name)(elementwise)(X), getattr(tfc, name)(elementwise)(X))
    same(distributed.hessian(energy)(X), tfc.hessian(energy)(X))
    a = {"u": X[:2], "v": X[2:3]}
    for argnums in (0, (1, 0)):
        shared = distributed.jacobian(trees, argnums, has_aux=True, dst=0, check_inputs=True)(a, X[:3], scale=2.0)
        assert_close(shared, tfc.jacobian(trees, argnums, has_aux=True)(a, X[:3], scale=2.0))
    x = X.repeat(3, 1)
    cubes = lambda x, t=0: x.pow(3).sum(1) + t
    same(distributed.batch_hessian(cubes)(x, t=X[:3]), tfc.batch_hessian(cubes)(x))
    same(distributed.batch_jacobian(torch.sin, gather=False)(x).value, tfc.batch_jacobian(torch.sin)(x))
    shard = distributed.jacfwd(elementwise, gather=False)(X)
    assert shard[1:] == (0, 5, 5, "columns")
    same(shard.value, tfc.jacfwd(elementwise)(X).t())
    # also within another transform, and differentiated
    assert_close(tfc.vmap(distributed.hessian(energy))(X.repeat(2, 1)), tfc.vmap(tfc.hessian(energy))(X.repeat(2, 1)))
    third = tfc.jacrev(tfc.hessian(energy))(X)
    assert_close(tfc.jacrev(distributed.hessian(energy))(X), third)
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distributed.hessian(energy)(x).sum(), x)
    assert_close(gradient, third.sum((0, 1)))
    raises(ZeroDivisionError, "", lambda: distributed.jacrev(lambda x: x / (1 // 0))(X))


def test_no_group_to_be_in():
    with pytest.raises(RuntimeError, match="not initialised"):
        distributed.jacrev(torch.sin, group=object())(X)


def test_a_build_without_torch_distributed(monkeypatch):
    monkeypatch.setattr(dist, "is_available", lambda: False)
    monkeypatch.delattr(dist, "is_initialized", raising=False)
    same(distributed.jacrev(torch.sin)(X), tfc.jacrev(torch.sin)(X))


def test_explain(backend):
    jacobian = distributed.jacobian(lambda x: x.repeat(4), chunk_size=2)
    assert tfc.explain(jacobian) == "It was not called yet."
    jacobian(X)
    mode = "reverse" if backend == "autograd" else "forward"  # which is the dearer one there
    assert f"is {backend}. It took {mode} mode" in tfc.explain(jacobian)


@pytest.mark.parametrize(
    ("options", "error"),
    (
        (dict(dst=-1), "dst= to be the rank"),
        (dict(dst="cpu"), "dst= to be the rank"),
        (dict(dst=0, gather=False), "gather=False leaves"),
        (dict(chunk_size=0), "greater than 0"),
    ),
)
def test_options(options, error):
    for name in ("jacobian", "hessian", "jacrev", "jacfwd", "batch_jacobian", "batch_hessian"):
        with pytest.raises(ValueError, match=error):
            getattr(distributed, name)(torch.sin, **options)
    with pytest.raises(ValueError, match="unknown mode"):
        distributed.hessian(torch.sin, mode="forward")


def test_checksum():
    """Each bit of each element counts, and where it is."""
    seen = set()
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.cfloat, torch.int32, torch.bool):
        x = torch.tensor([0, 1, 1, 0, 1]).to(dtype)
        assert _collectives.checksum(x) == _collectives.checksum(x.clone())
        seen |= {_collectives.checksum(x), _collectives.checksum(x.flip(0)), _collectives.checksum(x[:4])}
    # (int32 and bool have the same bits here)
    assert len(seen) == 3 * 6
    x = torch.arange(64.0, dtype=torch.float64).reshape(8, 8)
    assert _collectives.checksum(x) != _collectives.checksum(x.t())
    assert _collectives.checksum(x.t()) == _collectives.checksum(x.t().contiguous())
    y = x.clone()
    y[3, 3] = y[3, 3] * (1 + 2**-52)
    assert _collectives.checksum(x) != _collectives.checksum(y)
    assert _collectives.checksum(torch.zeros(0)) == 0


@pytest.mark.skipif(not hasattr(torch, "compiler"), reason="this torch has no torch.compiler")
def test_torch_compile_goes_around_it():
    try:
        torch.compile(lambda x: x + 1, backend="eager")(X)
    except Exception as error:  # noqa: BLE001 - of many types
        pytest.skip(f"this torch does not compile on this Python: {type(error).__name__}")
    hessian = distributed.hessian(energy)
    compiled = torch.compile(lambda x: 2 * hessian(x * 1), backend="eager")
    same(compiled(X), 2 * tfc.hessian(energy)(X))
