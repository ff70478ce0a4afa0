"""Which backend answers: settings, their scope, and transforms of torch.func or functorch around and within."""

from __future__ import annotations

import importlib
import inspect
import threading

import pytest
import torch
from support.processes import run_python
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat._torch import facts
from torch_func_compat.autograd import internals

NAMES = ("torch.func", "functorch", "autograd")
AVAILABLE = tfc.available_backends()
TRANSFORMS = ("vmap", "vjp", "jvp", "grad", "grad_and_value", "jacrev", "jacfwd", "hessian")

native = pytest.mark.skipif(internals.fvmap is None, reason="no torch.func and no functorch")


@pytest.fixture(autouse=True)
def _settings(monkeypatch):
    """No settings, before and after."""
    tfc.set_backend(None)
    yield
    tfc.set_backend(None)


@pytest.fixture
def library():
    """torch.func or functorch."""
    return importlib.import_module(AVAILABLE[0])


def cubes(x):
    return (x**3).sum()


def spy(seen):
    """A function that notes which backend runs it."""

    def square(x):
        seen.append(tfc.get_backend())
        return (x * x).sum()

    return square


def test_available():
    assert AVAILABLE[-1] == "autograd"
    assert list(AVAILABLE) == [name for name in NAMES if name in AVAILABLE]
    assert ("torch.func" in AVAILABLE) == (facts.TORCH >= (2, 0))
    if facts.TORCH[:2] == (1, 13):
        assert "functorch" in AVAILABLE
    if not facts.has("functorch_is_separate"):
        assert "functorch" not in AVAILABLE


def test_unavailable():
    reasons = tfc.unavailable_backends()
    assert set(reasons) == set(NAMES) - set(AVAILABLE)
    for name, reason in reasons.items():
        assert name in reason
        with pytest.raises(ImportError) as error:
            tfc.set_backend(name)
        assert str(error.value) == reason
        with pytest.raises(ImportError), tfc.use_backend(name):
            pass
    reasons.clear()
    assert set(tfc.unavailable_backends()) == set(NAMES) - set(AVAILABLE)  # a copy was cleared
    assert tfc.get_backend() == AVAILABLE[0]


def test_unknown():
    for choose in (tfc.set_backend, lambda name: tfc.use_backend(name).__enter__()):
        with pytest.raises(ValueError, match=r"unknown backend 'jax'.*'torch\.func', 'functorch', 'autograd'"):
            choose("jax")
    assert tfc.get_backend() == AVAILABLE[0]


def test_set_backend():
    for name in AVAILABLE:
        tfc.set_backend(name)
        assert tfc.get_backend() == name
        seen = []
        tfc.grad(spy(seen))(torch.ones(2))
        assert seen == [name]
    tfc.set_backend(None)
    assert tfc.get_backend() == AVAILABLE[0]


def test_use_backend_nests_and_ends():
    for outer in AVAILABLE:
        with tfc.use_backend(outer):
            assert tfc.get_backend() == outer
            for inner in AVAILABLE:
                with pytest.raises(ZeroDivisionError), tfc.use_backend(inner):
                    assert tfc.get_backend() == inner
                    raise ZeroDivisionError
                assert tfc.get_backend() == outer
            tfc.set_backend("autograd")  # of less weight than the block
            assert tfc.get_backend() == outer
            tfc.set_backend(None)
    assert tfc.get_backend() == AVAILABLE[0]


def test_use_backend_after_an_error_in_a_transform(backend):
    with pytest.raises(ZeroDivisionError):
        tfc.jacrev(lambda x: x / (1 // 0))(torch.ones(2))
    assert tfc.get_backend() == backend
    assert_close(tfc.grad(cubes)(torch.ones(2)), torch.full((2,), 3.0))


def in_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    (result,) = found
    return result


def test_threads():
    with tfc.use_backend("autograd"):
        assert in_thread(tfc.get_backend) == AVAILABLE[0]
        tfc.set_backend(AVAILABLE[0])
        assert tfc.get_backend() == "autograd"
    tfc.set_backend("autograd")
    assert in_thread(tfc.get_backend) == "autograd"


def test_threads_side_by_side():
    """Each keeps its own backend while the other one runs."""
    barrier = threading.Barrier(2, timeout=30)
    failures = []

    def work(name):
        try:
            with tfc.use_backend(name):
                for _ in range(20):
                    barrier.wait()
                    seen = []
                    assert_close(tfc.hessian(spy(seen))(torch.ones(2)), 2 * torch.eye(2))
                    assert set(seen) == {name}
        except BaseException as error:  # noqa: BLE001 - it is raised where it can be seen
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(name,)) for name in (AVAILABLE[0], "autograd")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@native
def test_transform_that_runs_in_another_thread(library):
    """It answers there and not here."""
    inside, done = threading.Event(), threading.Event()

    def wait(x):
        inside.set()
        assert done.wait(30)
        return cubes(x)

    thread = threading.Thread(target=lambda: library.grad(wait)(torch.ones(2)))
    thread.start()
    try:
        assert inside.wait(30)
        with tfc.use_backend("autograd"):
            assert tfc.get_backend() == "autograd"
            assert_close(tfc.grad(cubes)(torch.ones(2)), torch.full((2,), 3.0))
    finally:
        done.set()
        thread.join()


def test_looked_up_when_called():
    seen = []
    made = tfc.grad(spy(seen))
    for name in (*AVAILABLE, *AVAILABLE):
        with tfc.use_backend(name):
            made(torch.ones(2))
    assert seen == [*AVAILABLE, *AVAILABLE]
    seen.clear()
    with tfc.use_backend("autograd"):
        made = tfc.vmap(spy(seen))
    made(torch.ones(2, 2))
    assert set(seen) == {AVAILABLE[0]}


@pytest.mark.any_torch
@pytest.mark.slow
def test_environment_variable():
    """Read at the first use and not at the import; a wrong value is an error that names the variable."""
    missing = next(name for name in NAMES if name not in AVAILABLE)
    script = (
        "import os, torch_func_compat as tfc\n"
        f"for value in 'jax', {missing!r}, 'autograd':\n"
        "    os.environ['TORCH_FUNC_COMPAT_BACKEND'] = value\n"
        "    try: print(tfc.get_backend())\n"
        "    except (ValueError, ImportError) as error: print(isinstance(error, ImportError), error)\n"
        f"tfc.set_backend({AVAILABLE[0]!r})\n"
        "print(tfc.get_backend())"
    )
    process = run_python("-c", script, TORCH_FUNC_COMPAT_BACKEND="jax")
    assert process.returncode == 0, process.stderr
    unknown, unavailable, right, set_by_code = process.stdout.splitlines()
    assert unknown.startswith("False TORCH_FUNC_COMPAT_BACKEND=jax: unknown backend 'jax'")
    assert unavailable.startswith(f"True TORCH_FUNC_COMPAT_BACKEND={missing}: ")
    assert tfc.unavailable_backends()[missing] in unavailable
    assert right == "autograd"
    assert set_by_code == AVAILABLE[0]


@native
def test_within_a_transform_of_the_library(backend, library):
    """Its tensors are its own: it answers, whatever is set."""
    x = torch.tensor([[0.5, 2.0], [1.0, -1.0]], dtype=torch.float64)
    seen = []

    def f(x):
        seen.append(tfc.get_backend())
        return cubes(x)

    assert_close(library.vmap(lambda x: tfc.grad(f)(x))(x), 3 * x**2)
    assert_close(library.grad(lambda x: tfc.vmap(f)(x).sum())(x), 3 * x**2)
    assert_close(library.jacrev(lambda x: tfc.jacrev(f)(x))(x[0]), torch.diag(6 * x[0]))
    output, pull = library.vjp(lambda x: tfc.jacfwd(torch.sin)(x).sum(), x[0])
    assert_close((output, pull(torch.ones_like(output))[0]), (x[0].cos().sum(), -x[0].sin()))
    assert_close(library.vmap(lambda x: tfc.vjp(f, x)[1](x.sum())[0])(x), 3 * x**2 * x.sum(1, keepdim=True))
    assert set(seen) == {AVAILABLE[0]}
    assert tfc.get_backend() == backend


@native
def test_transform_of_the_library_within(backend, library):
    x = torch.tensor([0.5, 2.0], dtype=torch.float64)
    assert_close(tfc.jacrev(lambda x: library.grad(cubes)(x))(x), torch.diag(6 * x))
    assert_close(tfc.grad(lambda x: library.vmap(torch.sin)(x).sum())(x), x.cos())
    assert_close(tfc.vmap(lambda x: library.grad(torch.sin)(x))(x), x.cos())


@native
def test_error_within_a_transform_of_the_library_ends_it(library):
    with pytest.raises(ZeroDivisionError):
        library.vmap(lambda x: tfc.grad(lambda x: x / (1 // 0))(x))(torch.ones(2))
    with tfc.use_backend("autograd"):
        assert tfc.get_backend() == "autograd"


@pytest.mark.parametrize("name", ["vmap", "grad", "grad_and_value", "jacrev", "jacfwd", "hessian"])
def test_evaluations(backend, name):
    """The function runs once, but for the loop that the autograd backend's vmap is."""
    seen = []
    with tfc.use_checks("off"):
        getattr(tfc, name)(spy(seen))(torch.ones(4, 2) if name == "vmap" else torch.ones(4))
    assert len(seen) == (4 if (name, backend) == ("vmap", "autograd") else 1)


def test_native_transforms():
    if AVAILABLE[0] == "autograd":
        assert internals.fjacrev is None and internals.fvmap is None
        return
    namespace = importlib.import_module(AVAILABLE[0])
    assert internals.fjacrev is namespace.jacrev
    assert internals.fvmap is namespace.vmap
    with pytest.raises(AttributeError, match="no attribute 'fgrad'"):
        internals.fgrad  # noqa: B018


def test_settings_do_not_reach_the_native_transforms():
    with tfc.use_backend("autograd"):
        assert (internals.fvmap is None) == (AVAILABLE[0] == "autograd")


@pytest.mark.skipif(
    facts.TORCH[:2] < tuple(map(int, tfc.__api_version__.split("."))),
    reason="an older torch.func than the one mirrored",
)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_signature(name):
    """That of torch.func, to which ours may add parameters that are keywords only."""
    theirs, ours = (
        {n: p for n, p in inspect.signature(getattr(lib, name)).parameters.items() if not n.startswith("_")}
        for lib in (torch.func, tfc)
    )
    assert [n for n in ours if n in theirs] == list(theirs)
    for n, parameter in theirs.items():
        assert (ours[n].kind, ours[n].default) == (parameter.kind, parameter.default), n
    for n in set(ours) - set(theirs):
        assert ours[n].kind is inspect.Parameter.KEYWORD_ONLY, n
        assert ours[n].default is not inspect.Parameter.empty, n


def scalar(x):
    return (x.sin() * x).sum()


def vector(x):
    return x.sin() * x.sum()


COMPILED = {
    "grad": scalar,
    "grad_and_value": scalar,
    "jacrev": vector,
    "jacfwd": vector,
    "hessian": scalar,
    "vmap": vector,
}


@pytest.mark.slow
@pytest.mark.skipif(not facts.has("compiled_transforms"), reason="torch.compile traces transforms from 2.6 on")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", ["outside", "inside"])
@pytest.mark.parametrize("name", COMPILED)
def test_compile(name, where):
    """Where torch compiles a transform of torch.func, it compiles ours; where it was made does not matter."""
    dynamo = pytest.importorskip("torch._dynamo")
    x = torch.tensor([[0.3, -0.7, 1.1], [0.2, 0.4, 0.1]], dtype=torch.float64)
    x = x if name == "vmap" else x[0]

    def compiled(lib):
        transform, func = getattr(lib, name), COMPILED[name]
        dynamo.reset()
        target = (lambda x: transform(func)(x)) if where == "inside" else transform(func)
        return torch.compile(target, fullgraph=True, backend="eager")(x)

    try:
        compiled(torch.func)
    except Exception as error:  # noqa: BLE001 - of many types
        pytest.skip(f"torch {facts.VERSION} does not compile its own: {type(error).__name__}")
    assert_close(compiled(tfc), getattr(tfc, name)(COMPILED[name])(x))


REPLACED = """
import torch, torch_func_compat as tfc

for name in ("vmap", "vjp", "jvp", "grad", "grad_and_value", "jacrev", "jacfwd", "hessian"):
    if hasattr(torch, "func"):
        setattr(torch.func, name, getattr(tfc, name))
torch.vmap = tfc.vmap

x = torch.rand(4, 3, dtype=torch.float64)
cubes = lambda x: (x**3).sum()
for backend in tfc.available_backends():
    with tfc.use_backend(backend):
        for hessian in (tfc.hessian(cubes), tfc.jacrev(tfc.jacrev(cubes)), tfc.jacfwd(tfc.grad(cubes), argnums=-1)):
            assert torch.allclose(tfc.vmap(hessian)(x), torch.diag_embed(6 * x)), backend
        assert torch.allclose(tfc.jvp(cubes, (x,), (x,))[1], (3 * x**3).sum()), backend
"""


@pytest.mark.slow
def test_in_the_place_of_torch_func():
    """As a test suite may put it: it must not come to call itself."""
    process = run_python("-c", REPLACED)
    assert process.returncode == 0, process.stderr


@pytest.mark.skipif("torch.func" not in AVAILABLE, reason="no torch.func")
def test_without_what_torch_keeps_private(monkeypatch):
    """On a torch that has its levels under other names, torch.func's own transforms are what all else is made of."""
    module = importlib.import_module("torch_func_compat._backends.torch_func")
    x, f = torch.tensor([0.5, 1.5], dtype=torch.float64), lambda x: torch.stack([x.prod(), x.sin().sum(), x[0]])

    def all_of_them():
        linear = tfc.linearize(f, x)[1]
        found = [
            tfc.vjp(f, x)[1](torch.ones(3, dtype=x.dtype)),
            tfc.jvp(f, (x,), (x,)),
            tfc.vmap(linear)(torch.eye(2).to(x)),
        ]
        found += [transform(f)(x) for transform in (tfc.jacrev, tfc.jacfwd, tfc.hessian)]
        return [*found, tfc.grad(cubes)(x), tfc.batch_hessian(lambda x: x.prod(1), mode="forward-reverse")(x[None])]

    expected = all_of_them()
    monkeypatch.setattr(module, "_LEVELS", False)
    monkeypatch.setattr(module._levels, "record", None)
    assert_close(all_of_them(), expected)


@pytest.mark.skipif("torch.func" not in AVAILABLE, reason="no torch.func")
def test_saved_tensor_hooks_around_jvp():
    """torch.func's jvp takes them, its other transforms do not."""
    x = torch.tensor([0.5, 1.5], dtype=torch.float64)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t), tfc.use_fallback("error"):
        assert_close(tfc.jvp(torch.sin, (x,), (x,)), (x.sin(), x * x.cos()))
        assert_close(tfc.jacrev(torch.sin)(x), torch.diag(x.cos()))
        with pytest.raises(RuntimeError, match="don't yet support saved tensor hooks"):
            tfc.vmap(tfc.jacrev(torch.sin))(x)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):  # they are not refused from then on
        assert_close(tfc.jacrev(torch.sin)(x), torch.diag(x.cos()))


@pytest.mark.skipif(facts.TORCH < (2, 1), reason="torch refuses hooks in all of its transforms")
def test_saved_tensor_hooks_within_forward_mode_and_batches():
    """They see what plain autograd records. Where that is nothing, they are not refused."""
    x, weight = torch.tensor([0.5, 1.5], dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)

    def saved(x):
        with torch.autograd.graph.save_on_cpu():
            return (weight * x).sin()

    transforms = {
        "jvp": lambda: tfc.jvp(saved, (x,), (x,))[1],
        "jacfwd": lambda: tfc.jacfwd(saved)(x).diagonal() * x,
        "chunks": lambda: tfc.jacfwd(saved, chunk_size=1)(x).diagonal() * x,
        "vmap": lambda: tfc.vmap(lambda x: tfc.jvp(saved, (x,), (x,))[1])(x),
    }
    expected = 2 * x * (2 * x).cos()
    for no_grad in (False, True):
        with torch.set_grad_enabled(not no_grad), tfc.use_fallback("error"):
            for transform in transforms.values():
                assert_close(transform(), expected)
            assert_close(tfc.vmap(saved)(x), (2 * x).sin())
    weight.requires_grad_()
    for transform in transforms.values():
        with tfc.use_fallback("silent"):
            found = transform()
        assert_close(found.detach(), expected)
        (gradient,) = torch.autograd.grad(found.sum(), weight)
        assert_close(gradient, (x * (2 * x).cos() - 2 * x**2 * (2 * x).sin()).sum())


def test_argnums_may_be_bools(backend):
    """They are integers of Python, and torch.func takes them for such."""
    x, y = torch.tensor([0.5, 1.5]), torch.tensor([2.0, 3.0])
    func = lambda x, y: (x * x * y).sum()
    for transform in (tfc.grad, tfc.jacrev, tfc.jacfwd, tfc.hessian):
        assert_close(transform(func, argnums=True)(x, y), transform(func, argnums=1)(x, y))
        assert_close(transform(func, argnums=(False, True))(x, y), transform(func, argnums=(0, 1))(x, y))
    with pytest.raises(RuntimeError, match="must be unique"):
        tfc.grad(func, argnums=(True, 1))(x, y)


class Array:
    """Something that is no tensor, as an array of numpy."""

    def __array__(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    "call",
    [
        lambda f, x: tfc.vmap(f)(x),
        lambda f, x: tfc.vmap(lambda d: f(d["x"]))({"x": x}),
        lambda f, x: tfc.vmap(f, in_dims=((0,),))((x,)),
        lambda f, x: tfc.grad(f)(x),
        lambda f, x: tfc.jvp(f, (x,), (x,)),
        lambda f, x: tfc.jvp(f, (torch.ones(2),), (x,)),
        lambda f, x: tfc.vjp(lambda x: x, torch.ones(2))[1](x),
    ],
)
def test_errors_name_the_conversion_of_arrays(backend, call):
    with pytest.raises((ValueError, RuntimeError, TypeError), match=r"torch\.as_tensor"):
        call(lambda x: x * 2, Array())
