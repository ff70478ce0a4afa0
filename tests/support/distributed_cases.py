"""What each process of a group runs for `test_distributed`.

``python distributed_cases.py FOLDER 2,4`` runs a group of two processes and one of four. A case is a function of the
rank and the number of processes; it raises where something is wrong. The processes run all of them in the same order
and write what came of each to FOLDER.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

import torch_func_compat as tfc
from support.tolerances import assert_close
from torch_func_compat import distributed
from torch_func_compat._arguments.partition import bounds
from torch_func_compat._torch import facts, pytree
from torch_func_compat.distributed._collectives import Parcel, Team

CASES = {}
X = torch.tensor([0.3, -0.7, 1.1, 0.4, 0.9], dtype=torch.float64)
W = torch.linspace(-1.0, 1.0, 35, dtype=torch.float64).reshape(7, 5)


def case(function):
    """Run it on each backend."""

    def on_all(rank, size):
        for backend in tfc.available_backends():
            with tfc.use_backend(backend):
                torch.manual_seed(0)
                function(rank, size)

    CASES[function.__name__] = on_all
    return function


def once(function):
    """Run it on the default backend."""
    CASES[function.__name__] = function
    return function


def raises(kind, text, call):
    try:
        call()
    except kind as error:
        assert text in str(error), str(error)
        return error
    raise AssertionError(f"no {kind.__name__} ({text})")


def same(found, expected):
    """To the last bit."""
    a, spec = pytree.flatten(found)
    b, other = pytree.flatten(expected)
    assert spec == other, (spec, other)
    for x, y in zip(a, b):
        assert x.dtype == y.dtype and x.shape == y.shape, (x.dtype, y.dtype, x.shape, y.shape)
        assert torch.equal(x, y), (x - y).abs().max()


def elementwise(x):
    return (x.sin() * x.exp()).cumsum(0)


def energy(x):
    return ((x[1:] - x[:-1]).pow(4) + x[1:].cos() * x[:-1].exp()).sum()


def layer(x):
    return (W @ x).tanh()


def trees(a, b, scale=1.0):
    output = {"p": a["u"].exp() * b[:2].sum() * scale, "q": [b.pow(3), a["v"].sin()]}
    return output, b.sum()


@case
def jacobians_to_the_last_bit(rank, size):
    for mode in ("auto", "forward", "reverse"):
        for chunk_size in (None, 1, 2):
            single = tfc.jacobian(elementwise, mode=mode, chunk_size=chunk_size)(X)
            same(distributed.jacobian(elementwise, mode=mode, chunk_size=chunk_size)(X), single)
    same(distributed.jacrev(elementwise)(X), tfc.jacrev(elementwise)(X))
    same(distributed.jacfwd(elementwise)(X), tfc.jacfwd(elementwise)(X))
    # row by row, the order of any arithmetic is the same
    same(distributed.jacrev(layer, chunk_size=1)(X), tfc.jacrev(layer, chunk_size=1)(X))
    assert_close(distributed.jacrev(layer)(X), tfc.jacrev(layer)(X), rtol=1e-12, atol=1e-12)
    assert_close(distributed.jacfwd(layer)(X), tfc.jacfwd(layer)(X), rtol=1e-12, atol=1e-12)


@case
def hessians_to_the_last_bit(rank, size):
    for mode in ("auto", "reverse-reverse", "forward-reverse", "reverse-forward", "forward-forward"):
        same(distributed.hessian(energy, mode=mode)(X), tfc.hessian(energy, mode=mode)(X))
        whole = distributed.hessian(layer, mode=mode, chunk_size=3)(X)
        assert_close(whole, tfc.hessian(layer, mode=mode)(X), rtol=1e-12, atol=1e-12)


@case
def structures(rank, size):
    a = {"u": X[:2], "v": X[2:3].reshape(1, 1)}
    for argnums in (0, 1, (1, 0), (-1,)):
        for name in ("jacrev", "jacfwd", "jacobian", "hessian"):
            shared = getattr(distributed, name)(trees, argnums, has_aux=True)(a, X[:3], scale=2.0)
            single = getattr(tfc, name)(trees, argnums, has_aux=True)(a, X[:3], scale=2.0)
            assert_close(shared, single, rtol=1e-12, atol=1e-12)


@case
def fewer_rows_than_processes(rank, size):
    for count in (0, 1, 2, 3):
        x = X[:count].clone()
        for name in ("jacrev", "jacfwd", "jacobian"):
            same(getattr(distributed, name)(torch.sin)(x), getattr(tfc, name)(torch.sin)(x))
            found = getattr(distributed, name)(lambda x: (x.sin(), x.sum()), has_aux=True)(x)
            assert found[1].item() == x.sum().item() and found[0].shape == (count, count)
        if count:
            same(distributed.hessian(torch.Tensor.prod)(x), tfc.hessian(torch.Tensor.prod)(x))
    same(distributed.jacrev(lambda x: x.new_zeros(0) * x.sum())(X), X.new_zeros(0, 5))


@case
def dtypes(rank, size):
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        x = X.to(dtype)
        same(distributed.jacrev(lambda x: x * x)(x), tfc.jacrev(lambda x: x * x)(x))

    def through_complex(x):
        return torch.view_as_real(torch.complex(x, x * x) * torch.complex(x, -x))

    same(distributed.jacrev(through_complex)(X), tfc.jacrev(through_complex)(X))
    raises(RuntimeError, "to be real but received complex", lambda: distributed.jacrev(torch.abs)(X.to(torch.cdouble)))


@once
def whatever_dtype_is_sent(rank, size):
    team = Team(None)
    for dtype in (torch.bool, torch.uint8, torch.int16, torch.int64, torch.bfloat16, torch.cfloat, torch.cdouble):
        whole = torch.arange(14).reshape(7, 2).remainder(5).to(dtype)
        if whole.is_complex():
            whole = (whole * (1 - 2j)).conj()
        start, stop = bounds(rank, size, 7)
        same(Parcel(team, whole[start:stop], 7, None).send(), whole)


@case
def samples(rank, size):
    def energies(x, t=None):
        return (x.pow(3) * x.roll(1, 1).exp()).sum(1) * (1 if t is None else t.sin())

    for count in (0, 1, 2, 3, 7):
        x = torch.linspace(-1, 1, 3 * count, dtype=torch.float64).reshape(count, 3)
        for name, func in (("batch_jacobian", lambda x: x.sin().cumsum(1)), ("batch_hessian", energies)):
            same(getattr(distributed, name)(func)(x), getattr(tfc, name)(func)(x))
            shard = getattr(distributed, name)(func, gather=False)(x)
            assert (shard.axis, shard.total, len(shard.value)) == ("samples", count, shard.stop - shard.start)
            same(shard.value, getattr(tfc, name)(func)(x)[shard.start : shard.stop])
            found = getattr(distributed, name)(func, dst=0)(x)
            assert (found is None) == (rank > 0)
    # the last ones are those of the case of 7 samples
    t = torch.linspace(0, 2, 7, dtype=torch.float64)
    for in_dims in ((0, 0), (1, 0)):
        y = x if in_dims[0] == 0 else x.t()
        func = energies if in_dims[0] == 0 else lambda x, t: energies(x.t(), t)
        shared = distributed.batch_hessian(func, in_dims=in_dims)(y, t)
        assert_close(shared, tfc.batch_hessian(energies, in_dims=(0, 0))(x, t), rtol=1e-12, atol=1e-12)
    both = lambda a, b, w: ({"u": a["x"] * b.unsqueeze(1) * w}, a["x"].sum(1))
    for argnums in (0, (1, 0)):
        shared = distributed.batch_jacobian(both, argnums, in_dims=(0, 0, None), has_aux=True, check=True)(
            {"x": x}, t, X[:3]
        )
        single = tfc.batch_jacobian(both, argnums, in_dims=(0, 0, None), has_aux=True)({"x": x}, t, X[:3])
        assert_close(shared[0], single[0], rtol=1e-12, atol=1e-12)
        start, stop = bounds(rank, size, 7)
        same(shared[1], x.sum(1)[start:stop])
    # what belongs to the samples has to be told
    raises(ValueError, "could belong to the 7 samples", lambda: distributed.batch_hessian(energies)(x, t))
    raises(ValueError, "could belong to the 7 samples", lambda: distributed.batch_hessian(energies)(x, t=t))


@case
def gathered_to_one(rank, size):
    for dst in range(size):
        found, aux = distributed.jacrev(lambda x: (x.exp(), x.sum()), has_aux=True, dst=dst)(X)
        assert aux.item() == X.sum().item()
        if rank == dst:
            same(found, tfc.jacrev(torch.exp)(X))
        else:
            assert found is None
    raises(ValueError, f"dst={size} is not among the ranks", lambda: distributed.jacrev(torch.exp, dst=size)(X))
    # each has to name the same one
    raises(RuntimeError, "do not compute parts of one result", lambda: distributed.jacrev(torch.exp, dst=rank)(X))


@case
def not_gathered(rank, size):
    rows = distributed.jacrev(elementwise, gather=False)(X)
    assert (rows.axis, rows.total) == ("rows", 5)
    assert rows.stop - rows.start in (5 // size, 5 // size + 1)
    same(rows.value, tfc.jacrev(elementwise)(X)[rows.start : rows.stop])
    columns, _ = distributed.jacfwd(lambda x: (elementwise(x), x.sum()), has_aux=True, gather=False)(X)
    assert (columns.axis, columns.start, columns.stop) == ("columns", rows.start, rows.stop)
    same(columns.value, tfc.jacfwd(elementwise)(X).t()[columns.start : columns.stop])
    # rows of a pytree: all elements of the output, in the structure of the arguments
    both = distributed.jacrev(lambda a, b: (a * b, a.sum()), (0, 1), gather=False)(X, X + 1)
    assert both.total == 6 and isinstance(both.value, tuple)
    first = tfc.jacrev(lambda a, b: torch.cat([a * b, a.sum().reshape(1)]), (0, 1))(X, X + 1)
    same(both.value, tuple(block[both.start : both.stop] for block in first))


@case
def one_raises(rank, size):
    def breaks(x):
        if rank == size - 1:
            raise KeyError("no such orbital")
        return x.sin()

    for name in ("jacrev", "jacfwd", "jacobian", "hessian"):
        call = getattr(distributed, name)(breaks)
        if rank == size - 1:
            assert not isinstance(raises(KeyError, "no such orbital", lambda call=call: call(X)), RuntimeError)
        else:
            error = raises(
                distributed.RemoteError, f"rank {size - 1} raised KeyError: 'no such", lambda call=call: call(X)
            )
            assert error.rank == size - 1 and "in breaks" in error.remote_traceback
    # and all of them: each has its own error, and nobody waits
    raises(IndexError, "Dimension", lambda: distributed.jacrev(lambda x: x.sum(3))(X))
    raises(RuntimeError, "argnum", lambda: distributed.jacrev(torch.sin, 7)(X))
    same(distributed.jacrev(torch.sin)(X), tfc.jacrev(torch.sin)(X))


@case
def functions_that_torch_refuses(rank, size):
    def branches(x):
        return x.sin() if float(x.detach().sum()) > 0 else x.cos()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tfc.FallbackWarning)
        for count in (1, 2, 5):
            for name in ("jacobian", "jacfwd", "hessian"):
                same(getattr(distributed, name)(branches)(X[:count]), getattr(tfc, name)(branches)(X[:count]))
        # in one process only: it ends on another backend, yet in the same mode
        picky = lambda x: branches(x).repeat(2) if rank == 0 else x.sin().repeat(2)
        assert_close(distributed.jacobian(picky)(X.abs()), tfc.jacrev(lambda x: x.sin().repeat(2))(X.abs()))
        wide = lambda x: (branches(x) if rank == 0 else x.sin()).prod().repeat(2)
        assert_close(distributed.hessian(wide)(X.abs()), tfc.hessian(lambda x: x.sin().prod().repeat(2))(X.abs()))


@case
def different_inputs(rank, size):
    check = distributed.jacrev(lambda x, *rest, **more: x.sin(), check_inputs=True)
    same(check(X, X.half(), None, 3, key=[X.to(torch.cfloat)]), tfc.jacrev(torch.sin)(X))
    last = size - 1
    other = X.clone()
    other[3] += 1e-15
    unlike = lambda a, b: b if rank == last else a
    text = f"on rank {last}, argument 0 differ from rank 0"
    raises(ValueError, text, lambda: check(unlike(X, other)))
    raises(ValueError, text, lambda: check(unlike(X, X.flip(0))))
    raises(ValueError, text, lambda: check(unlike(X, X.float())))
    raises(ValueError, "argument 1 differ", lambda: check(X, unlike(2, 3)))
    raises(ValueError, "the structure of argument 1", lambda: check(X, unlike([X], (X,))))
    raises(ValueError, "argument 'key' differ", lambda: check(X, key=unlike(X, other)))
    w = torch.nn.Linear(5, 5).double()
    torch.nn.init.constant_(w.bias, float(unlike(1, 2)))
    torch.nn.init.constant_(w.weight, 0.5)
    raises(ValueError, "the function captures differ", lambda: distributed.jacrev(w, check_inputs=True)(X))
    raises(ValueError, "captures differ", lambda: distributed.jacrev(closure(unlike(X, other)), check_inputs=True)(X))
    # unasked for, what cannot be put together is still noticed
    raises(RuntimeError, "do not compute parts of one result", lambda: distributed.jacrev(torch.sin)(unlike(X, X[:4])))
    raises(RuntimeError, "out of step", lambda: unlike(distributed.jacrev, distributed.jacfwd)(torch.sin)(X))
    raises(RuntimeError, "", lambda: distributed.jacrev(torch.sin, check_inputs=unlike(True, False))(X))


def closure(w):
    return lambda x: x * w


@once
def groups(rank, size):
    members = [0, size - 1]
    group = dist.new_group(members)
    inside = distributed.hessian(energy, group=group, dst=size - 1)
    if rank in members:
        found = inside(X)
        assert (found is None) == (rank == 0)
        shard = distributed.hessian(energy, group=group, gather=False)(X)
        assert shard.start == (0 if rank == 0 else 3)
        same(distributed.hessian(energy, group=group)(X), tfc.hessian(energy)(X))
        if size > 2:
            raises(ValueError, "dst=1 is not among", lambda: distributed.hessian(energy, group=group, dst=1)(X))
    else:
        raises(RuntimeError, "not in the group", lambda: inside(X))


@case
def derivatives(rank, size):
    w = torch.linspace(0.5, 1.5, 5, dtype=torch.float64, requires_grad=True)
    model = lambda x: (w * x).sin() * x
    (expected,) = torch.autograd.grad(tfc.jacrev(model)(X).pow(2).sum(), w)
    shard = distributed.jacrev(model, gather=False)(X)
    (gradient,) = torch.autograd.grad(shard.value.pow(2).sum(), w)
    dist.all_reduce(gradient)
    assert_close(gradient, expected)
    # of the whole, the parts of the others are constants
    whole = distributed.jacrev(model)(X)
    same(whole.detach(), tfc.jacrev(model)(X).detach())
    assert whole.requires_grad
    text = "sum the gradients over the processes"
    raises(RuntimeError, text, lambda: whole.sum().backward(retain_graph=True))
    raises(RuntimeError, text, lambda: torch.autograd.grad(whole.sum(), w))
    # also where no row of this process depends on it, or it has none
    weights = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(2)]
    apart = lambda x: torch.stack([weights[0] * x[0] ** 2, weights[1] * x[1] ** 2])
    for x in weights:
        raises(RuntimeError, text, lambda x=x: torch.autograd.grad(distributed.jacrev(apart, chunk_size=1)(X).sum(), x))
    with torch.no_grad():
        assert not distributed.jacrev(model)(X).requires_grad
    assert not distributed.jacrev(torch.sin)(X).requires_grad
    assert w.grad is None


@case
def within_a_transform(rank, size):
    inner = lambda x: distributed.hessian(energy)(x).pow(2).sum()
    # within a library's transform at once; on plain autograd when the derivative is taken
    raises(RuntimeError, "sum the gradients", lambda: tfc.grad(inner)(X))
    if tfc.get_backend() != "autograd":
        raises(RuntimeError, "called within another transform", lambda: tfc.jvp(inner, (X,), (X,)))


@once
def cpu_tensors_and_nccl(rank, size):
    real = dist.get_backend
    dist.get_backend = lambda group=None: "nccl"
    tell, Team._message_device = Team._message_device, lambda self: torch.device("cpu")
    try:
        raises(ValueError, "nccl, which moves tensors on GPUs only", lambda: distributed.jacrev(torch.sin)(X))
    finally:
        dist.get_backend, Team._message_device = real, tell


@once
def the_example(rank, size):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "examples"))
    import distributed_hessian

    assert distributed_hessian.main(["--atoms", "13", "--steps", "30"]) == 0


@once
def an_engine_that_cannot_gather(rank, size):
    """As NCCL on torch < 1.11: all get the whole, and those that did not ask for it drop it."""
    team, fact = Team(None), facts.has("nccl_cannot_gather")
    team.backend = "nccl"
    engine, team.engine = team.engine, Refusing(team.engine)
    facts._answers["nccl_cannot_gather"] = True
    try:
        same(Parcel(team, X[slice(*bounds(rank, size, 5))], 5, size - 1).send(), X)
        facts._answers["nccl_cannot_gather"] = False
        team.backend = "gloo"
        raises(RuntimeError, "does not support gather", Parcel(team, X, 5 * size, size - 1).send)
    finally:
        facts._answers["nccl_cannot_gather"], team.engine = fact, engine


class Refusing:
    def __init__(self, engine):
        self.all_gather = engine.all_gather

    def gather(self, *args, **kwargs):
        raise RuntimeError("it does not support gather")


@once
def a_process_that_does_not_come(rank, size):
    group = dist.new_group(list(range(size)), timeout=datetime.timedelta(seconds=2))
    same(distributed.jacrev(torch.sin, group=group)(X), tfc.jacrev(torch.sin)(X))
    if rank == 0:
        raises(RuntimeError, "", lambda: distributed.jacrev(torch.sin, group=group)(X))
        # what went wrong here is not hidden by that nobody could be told
        raises(KeyError, "mine", lambda: distributed.jacrev(lambda x: {}["mine"], group=group)(X))
    dist.barrier()


def member(folder, rank, size):
    """One process of a group."""
    dist.init_process_group(
        "gloo",
        init_method=(Path(folder) / f"meet{size}").resolve().as_uri(),
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=60),
    )
    reports = {}
    for name, run in CASES.items():
        try:
            run(rank, size)
            reports[name] = "ok"
        except Exception:  # noqa: BLE001 - it goes into the report
            reports[name] = traceback.format_exc()
    (Path(folder) / f"report{size}.{rank}.json").write_text(json.dumps(reports))


def groups_of(sizes, folder):
    """All groups at once; the exit status is 0 if each process came to an end."""
    places = [(rank, size) for size in sizes for rank in range(size)]
    if sys.platform != "linux":
        again = [sys.executable, __file__, folder]
        return max([p.wait() for p in [subprocess.Popen([*again, str(rank), str(size)]) for rank, size in places]])
    # What torch imports and compiles when a transform is first used takes longer than all cases: once is enough.
    if hasattr(torch, "func") and not torch.cuda.is_available():  # the threads of autograd do not survive a fork
        tfc.jacfwd(tfc.jacrev(torch.sin))(X)
    children = []
    for rank, size in places:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                member(folder, rank, size)
                status = 0
            finally:
                sys.stdout.flush()
                os._exit(status)
        children.append(child)
    return max([os.waitpid(child, 0)[1] for child in children]) and 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 3:
        member(sys.argv[1], *map(int, sys.argv[2:]))
    else:
        sys.exit(groups_of(map(int, sys.argv[2].split(",")), sys.argv[1]))
