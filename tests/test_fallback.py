"""What the native backend refuses is computed by the autograd backend; everything else passes through."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
import torch.utils.checkpoint
from support import refused
from support.processes import run_python
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat._dispatch.cost import cost
from torch_func_compat._torch import facts

X = torch.linspace(0.1, 1.0, 4, dtype=torch.float64)
BATCH = torch.stack([X, 2 * X, X - 0.05])
NATIVE = tfc.available_backends()[0] != "autograd"
needs_native = pytest.mark.skipif(
    "not NATIVE", reason="there is nothing to fall back from: torch 1.8-1.10 has autograd only"
)


def rows(func, x):
    """The Jacobian by a loop of torch.autograd.grad."""
    x = x.clone().requires_grad_()
    output = func(x)
    if not output.requires_grad:
        return torch.zeros(*output.shape, 4, dtype=x.dtype)
    found = [torch.autograd.grad(y, x, retain_graph=True)[0] for y in output.reshape(-1)]
    return torch.stack(found).reshape(*output.shape, 4)


TRANSFORMS = {
    "vmap": (lambda f: tfc.vmap(f)(BATCH), lambda f: torch.stack([f(x) for x in BATCH])),
    "jacrev": (lambda f: tfc.jacrev(f)(X), lambda f: rows(f, X)),
    "jacfwd": (lambda f: tfc.jacfwd(f)(X), lambda f: rows(f, X)),
    "vmap of jacrev": (lambda f: tfc.vmap(tfc.jacrev(f))(BATCH), lambda f: torch.stack([rows(f, x) for x in BATCH])),
    "grad": (lambda f: tfc.grad(lambda x: f(x).sum())(X), lambda f: rows(lambda x: f(x).sum(), X)),
    "vjp": (lambda f: tfc.vjp(lambda x: f(x).sum(), X)[1](torch.ones((), dtype=X.dtype))[0],
            lambda f: rows(lambda x: f(x).sum(), X)),
    "jvp": (lambda f: tfc.jvp(f, (X,), (X,))[1], lambda f: rows(f, X) @ X),
}  # fmt: skip


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("func", refused.FUNCTIONS, ids=lambda f: f.__name__)
def test_whatever_is_refused_equals_a_plain_loop(func, transform):
    ours, plain = TRANSFORMS[transform]
    with tfc.use_fallback("silent"):
        result = ours(func)
    expected = plain(func)
    assert result.requires_grad == expected.requires_grad
    assert_close(result, expected)


SINES = {"old_function", "new_function", "ruled_function", "saved_tensor_hooks", "traced", "functional_within"}


@pytest.mark.parametrize("func", [f for f in refused.FUNCTIONS if f.__name__ in SINES], ids=lambda f: f.__name__)
def test_second_derivatives_of_what_is_refused(func):
    once, twice = (torch.cos, -X.sin()) if func is not refused.functional_within else (lambda x: -x.sin(), -X.cos())
    with tfc.use_fallback("silent"):
        assert_close(tfc.grad(lambda x: func(x).sum())(X), once(X))
        assert_close(tfc.hessian(lambda x: func(x).sum())(X), torch.diag(twice))
        assert_close(tfc.jacfwd(tfc.jacfwd(func))(X).sum(0), torch.diag(twice))
        assert_close(tfc.vmap(tfc.hessian(lambda x: func(x).sum()))(X[None])[0], torch.diag(twice))


@needs_native
def test_one_warning_per_function_says_why_and_what_to_do():
    def reads_a_value(x):
        return x * x.sum().item()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            tfc.vmap(reads_a_value)(BATCH)
            tfc.vmap(tfc.grad(lambda x: reads_a_value(x).sum()))(BATCH[:1])
    texts = [str(w.message) for w in caught if issubclass(w.category, tfc.FallbackWarning)]
    assert len(texts) == 2  # two functions: the named one and the lambda around it
    assert "vmap of `reads_a_value` is computed by the autograd backend, 3 samples one by one, because" in texts[0]
    assert ".item()" in texts[0] and "To stay native: use torch.where()" in texts[0]
    assert "1 sample by itself" in texts[1]
    assert caught[0].filename == __file__


@needs_native
def test_the_warning_names_the_columns():
    def refuses(x):
        return refused.old_function(x)

    with pytest.warns(tfc.FallbackWarning, match="jacfwd of `refuses` is .*, 4 columns by backward passes, because"):
        tfc.jacfwd(refuses)(X)


@pytest.mark.parametrize(
    ("transform", "options", "args", "expected"),
    [
        ("vmap", {"in_dims": -1}, (BATCH,), "4 samples one by one"),
        ("vmap", {"in_dims": (None, {"x": 0, "n": None})}, (X, {"x": BATCH, "n": 2}), "3 samples one by one"),
        ("vmap", {"in_dims": 0}, (BATCH[:0],), "0 samples one by one"),
        ("jvp", {}, (torch.sin, (X,), (X,)), "one product by backward passes"),
        ("jacfwd", {"argnums": 0}, (X[:1], X), "1 column by backward passes"),
        ("jacfwd", {"argnums": (0, -1)}, ({"a": X, "b": X}, 2, BATCH), "20 columns by backward passes"),
        ("jacfwd", {"argnums": 0, "partition": object()}, (X,), "rows or columns by backward passes"),
        ("hessian", {"argnums": 0}, (X, X), "4 rows of each output's Hessian by backward passes"),
        ("batch_hessian", {"argnums": 0, "in_dims": 0}, (BATCH,), "4 rows of each sample's Hessian by backward passes"),
        ("batch_laplacian", {"argnums": 1, "in_dims": (0, 1)}, (BATCH, BATCH.t()),
         "4 rows of each sample's Hessian by backward passes"),
        ("jacobian", {"argnums": 0}, (X,), "rows or columns by backward passes"),
        ("batch_jacobian", {"argnums": 0, "in_dims": 0}, (BATCH,), "rows or columns by backward passes"),
    ],
)  # fmt: skip
def test_work_that_a_warning_names(transform, options, args, expected):
    assert cost(transform, options, args) == expected


@needs_native
def test_a_transform_that_was_refused_goes_straight_to_autograd():
    calls = []

    def counted(x):
        calls.append(None)
        return refused.item(x)

    mapped = tfc.vmap(counted)
    assert tfc.explain(mapped) == "It was not called yet."
    with tfc.use_fallback("silent"):
        mapped(BATCH)
        assert len(calls) == 1 + 3  # refused once, then one call per sample
        mapped(BATCH)
        assert len(calls) == 1 + 3 + 3
    assert "autograd" in tfc.explain(mapped) and ".item()" in tfc.explain(mapped)


def test_explain_names_the_backend(backend):
    gradient = tfc.grad(torch.sin)
    gradient(X.sum())
    assert backend in tfc.explain(gradient)
    with pytest.raises(TypeError, match="transformed by this library"):
        tfc.explain(torch.sin)


@needs_native
def test_the_random_state_is_as_if_the_function_had_run_once():
    def draws(x):
        noise = torch.rand(4, dtype=x.dtype)
        return refused.OldSine.apply(x) * noise

    torch.manual_seed(3)
    expected = torch.diag(X.cos() * torch.rand(4, dtype=X.dtype))
    after = torch.rand(3)
    torch.manual_seed(3)
    with tfc.use_fallback("silent"):
        assert_close(tfc.jacrev(draws)(X), expected)
    assert torch.equal(torch.rand(3), after)


@needs_native
def test_a_function_that_changed_its_input_finds_it_as_it_was():
    def changes(x, buffer):
        buffer.add_(1)
        return refused.item(x) + buffer.sum()

    buffer = torch.zeros(4, dtype=torch.float64)
    with tfc.use_fallback("silent"):
        found = tfc.vmap(changes, in_dims=(0, None))(BATCH, buffer)
    assert torch.equal(buffer, torch.ones_like(buffer))
    assert_close(found, torch.stack([refused.item(x) + 4 for x in BATCH]))
    large = torch.zeros(1 << 17, dtype=torch.float64)  # is not kept
    with pytest.raises(RuntimeError):
        tfc.vmap(changes, in_dims=(0, None))(BATCH, large)
    assert torch.equal(large, torch.ones_like(large))


@pytest.mark.parametrize("transform", [tfc.vmap, tfc.jacfwd, lambda f: tfc.jacfwd(tfc.vmap(f))])
def test_what_was_answered_once_can_still_fall_back(backend, transform):
    """Also where an optimizer has changed an argument in place."""
    reads = [False]
    func = lambda x: refused.item(x) if reads[0] else x.sin()
    x = BATCH.clone()
    mapped = transform(func)
    mapped(x)
    with torch.no_grad():
        x.add_(0.5)
    reads[0] = True
    with tfc.use_fallback("silent"):
        assert_close(mapped(x), transform(lambda x: func(x))(x))


def test_what_was_answered_once_falls_back_with_the_same_random_numbers(backend):
    reads = [False]
    func = lambda x: refused.item(x) * torch.rand((), dtype=x.dtype) if reads[0] else x.sin()
    mapped = tfc.vmap(func, randomness="same")
    mapped(BATCH)
    reads[0] = True
    state = torch.get_rng_state()
    with tfc.use_fallback("silent"):
        found, after = mapped(BATCH), torch.get_rng_state()
    torch.set_rng_state(state)
    number = torch.rand((), dtype=BATCH.dtype)
    assert_close(found, number * torch.stack([refused.item(x) for x in BATCH]))
    assert torch.equal(torch.get_rng_state(), after)


class Mine(RuntimeError):
    pass


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("func", "error"),
    [
        (lambda x: _raise(Mine("mine")), Mine),
        (lambda x: _raise(KeyboardInterrupt()), KeyboardInterrupt),
        (lambda x: _raise(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")), RuntimeError),
        (lambda x: x @ torch.ones(7, dtype=x.dtype), RuntimeError),
        (lambda x: torch.rand(4) * x, RuntimeError),
    ],
    ids=["own error", "interrupt", "memory", "shape", "randomness"],
)
def test_errors_that_are_no_refusals_pass_through(func, error):
    calls = []

    def counted(x):
        calls.append(None)
        return func(x)

    with pytest.raises(error) as caught:
        tfc.vmap(counted)(BATCH)
    assert len(calls) == 1
    assert caught.value.__context__ is None


def _behind_a_warning(func):
    """`func`, of whose errors Python makes a SystemError, as where C++ warns while an exception is on its way."""

    def disguised(x):
        try:
            return func(x)
        except RuntimeError as error:
            raise SystemError("<class 'UserWarning'> returned a result with an exception set") from error

    return disguised


def test_an_error_behind_a_warning_of_torch():
    assert_close(tfc.vmap(_behind_a_warning(lambda x: x.sin() if x.sum().item() < 99 else x))(BATCH), BATCH.sin())
    if tfc.get_backend() != "autograd":
        with pytest.raises(Mine):
            tfc.vmap(_behind_a_warning(lambda x: _raise(Mine("mine"))))(BATCH)


def test_modes():
    assert tfc.get_fallback() == "warn"
    tfc.set_fallback("silent")
    try:
        assert tfc.get_fallback() == "silent"
        with tfc.use_fallback("error"):
            assert tfc.get_fallback() == "error"
        assert tfc.get_fallback() == "silent"
    finally:
        tfc.set_fallback(None)
    with pytest.raises(ValueError, match="'warn', 'silent', 'error'"):
        tfc.set_fallback("maybe")


@pytest.mark.any_torch
@pytest.mark.slow
def test_the_mode_comes_from_the_environment():
    script = (
        "import os, torch_func_compat as tfc\n"
        "try: print(tfc.get_fallback())\n"
        "except ValueError as error: print(error)\n"
        "os.environ['TORCH_FUNC_COMPAT_FALLBACK'] = 'silent'\n"
        "print(tfc.get_fallback())"
    )
    process = run_python("-c", script, TORCH_FUNC_COMPAT_FALLBACK="maybe")
    wrong, right = process.stdout.splitlines()
    assert wrong.startswith("TORCH_FUNC_COMPAT_FALLBACK=maybe: unknown fallback")
    assert right == "silent"


# --- only what must be slow is slow ------------------------------------------------------------------------------


def gradient_of_branch(x):
    return rows(lambda x: refused.branch(x).sum(), x)


@needs_native
def test_a_loop_over_samples_differentiates_each_natively():
    seen = []

    def func(x):
        seen.append(tfc.get_backend())
        return refused.branch(x).sum()

    with tfc.use_fallback("silent"):
        result = tfc.vmap(tfc.grad(func))(BATCH)
    assert_close(result, torch.stack([gradient_of_branch(x) for x in BATCH]))
    assert seen[-3:] == [tfc.available_backends()[0]] * 3


@needs_native
def test_within_a_derivative_that_fell_back_everything_is_on_autograd():
    seen = []

    def func(x):
        seen.append(tfc.get_backend())
        return refused.old_function(x).sum()

    with tfc.use_fallback("silent"):
        result = tfc.jacfwd(lambda x: tfc.vmap(tfc.grad(func))(x[None])[0])(X)
    assert_close(result, torch.diag(-X.sin()))
    assert seen[-1] == "autograd"


@needs_native
@pytest.mark.parametrize("func", [refused.branch, refused.item, refused.mask], ids=lambda f: f.__name__)
@pytest.mark.parametrize("transform", ["grad", "jacrev", "jacfwd", "vjp", "jvp"])
def test_control_flow_on_values_is_differentiated_natively(func, transform):
    # torch.func.jacfwd maps over tangents, of which nothing is asked
    if transform in ("jacfwd", "jvp") and func is refused.mask:
        pytest.skip("masks have wrong nested derivatives in forward mode")
    ours, plain = TRANSFORMS[transform]
    with tfc.use_fallback("error"):
        result = ours(func)
    assert_close(result, plain(func))


@needs_native
@pytest.mark.parametrize("made", ["once", "for each sample"])
def test_within_a_loop_a_function_is_refused_once(made):
    calls = []

    def func(x):
        calls.append(None)
        return refused.inplace_add(x.sin()) + refused.old_function(x)

    inner = tfc.jacrev(func)
    mapped = tfc.vmap(inner if made == "once" else lambda x: tfc.jacrev(func)(x))
    with tfc.use_fallback("silent"):
        assert_close(mapped(BATCH), torch.stack([torch.diag(3 * x.cos()) for x in BATCH]))
    # by the mapped Jacobian, and by those of the three samples, which plain autograd computes
    assert len(calls) == 1 + 3


@needs_native
def test_an_inner_vmap_stays_native_where_the_outer_one_is_a_loop():
    seen = []

    def inner(x, y):
        seen.append(tuple(y.shape))
        return x * y

    def outer(x):
        return tfc.vmap(inner, in_dims=(None, 0))(x, x) if x.sum() > 0 else x

    with tfc.use_fallback("silent"), tfc.use_checks("off"):
        result = tfc.vmap(outer)(BATCH)
    assert_close(result, BATCH[:, None, :] * BATCH[:, :, None])
    assert len(seen) == 3


def _squared_in_place(x):
    return x.clone().mul_(x).add_(x)


# Forward mode twice is refused on functorch.
_PUSHED = [tfc.jacfwd, tfc.hessian] + [tfc.laplacian, tfc.hessian_diagonal] * facts.has("torch_func")


@needs_native
@pytest.mark.parametrize("transform", _PUSHED)
def test_in_place_operations_are_pushed_forward_in_a_batch(transform):
    with tfc.use_fallback("error"), tfc.use_checks("off"):
        result = tfc.vmap(transform(_squared_in_place))(BATCH)
    assert_close(result, torch.stack([transform(lambda x: x * x + x)(x) for x in BATCH]))


@needs_native
def test_one_tangent_is_pushed_through_in_place_operations_of_a_batch():
    with tfc.use_fallback("error"), tfc.use_checks("off"):
        result = tfc.vmap(lambda x: tfc.jvp(_squared_in_place, (x,), (X,))[1])(BATCH)
    assert_close(result, (2 * BATCH + 1) * X)


@needs_native
def test_in_place_operations_in_a_batch_draw_once():
    def func(x):
        return torch.rand(4, dtype=x.dtype) * x.clone().mul_(x)

    def drawn(transform):
        torch.manual_seed(0)
        with tfc.use_fallback("error"), tfc.use_checks("off"):
            transform()
        return torch.get_rng_state()

    pushed = drawn(lambda: tfc.vmap(lambda x: tfc.jvp(func, (x,), (X,))[1], randomness="same")(BATCH))
    assert_close(pushed, drawn(lambda: func(X)))


def test_results_of_a_loop_stay_differentiable():
    x = BATCH.clone().requires_grad_()
    weight = X.clone().requires_grad_()
    with tfc.use_fallback("silent"):
        result = tfc.vmap(tfc.jacrev(lambda x: refused.branch(weight * x)))(x)
    expected = torch.stack([torch.diag(w.cos() * weight if w.sum() > 1 else -w.sin() * weight) for w in weight * x])
    assert_close(result.detach(), expected.detach())
    cotangent = torch.sin(torch.arange(48.0, dtype=X.dtype)).reshape(3, 4, 4)
    found = torch.autograd.grad((result * cotangent).sum(), (x, weight))
    assert_close(found, torch.autograd.grad((expected * cotangent).sum(), (x, weight)))


def test_a_loop_within_a_derivative_confuses_no_perturbations():
    """d/dy of y * d/dx (x + y) at x = y, with a branch on values in between."""

    def func(y):
        inner = tfc.vmap(tfc.grad(lambda x: (refused.branch(x) * y).sum()))
        return (y * inner(torch.stack([y, y]))).sum()

    with tfc.use_fallback("silent"):
        assert X.sum() > 1
        assert_close(tfc.grad(func)(X), 2 * (2 * X * X.cos() - X**2 * X.sin()))


@needs_native
def test_a_pullback_of_autograd_is_mapped_at_once(backend):
    V = torch.sin(torch.arange(12.0, dtype=X.dtype)).reshape(3, 4)
    with tfc.use_fallback("silent"):
        _, pullback = tfc.vjp(refused.old_function, X)
        for result in (
            tfc.vmap(pullback)(V)[0],
            tfc.vmap(pullback, in_dims=1, out_dims=1)(V.t())[0].t(),
            tfc.vmap(lambda v: pullback(v)[0])(V),
        ):
            assert not result.requires_grad
            assert_close(result, V * X.cos())


@needs_native
def test_within_a_transform_of_the_library_its_error_passes():
    library = tfc.autograd.internals.fvmap
    with pytest.raises(RuntimeError):
        library(lambda x: tfc.grad(lambda y: refused.branch(y).sum())(x))(BATCH)


@pytest.mark.skipif(facts.TORCH < (1, 11), reason="checkpoint has no use_reentrant")
def test_plain_autograd_differentiates_what_a_transform_of_a_checkpoint_gives(backend):
    func = lambda x: torch.utils.checkpoint.checkpoint(lambda x: x.sin() * x, x * x, use_reentrant=False)
    by_hand = lambda x: (x * x).sin() * x * x
    transforms = (
        lambda f: tfc.vmap(f)(x),
        lambda f: tfc.jvp(f, (x,), (BATCH.cos(),))[1],
        lambda f: tfc.vmap(lambda row: tfc.jvp(f, (row,), (X,))[1])(x),
        lambda f: tfc.vmap(tfc.grad(lambda row: f(row).sum()))(x),
        lambda f: tfc.jacfwd(f)(x),
    )
    with tfc.use_fallback("silent"):
        for transform in transforms:
            x = BATCH.clone().requires_grad_()
            found, expected = (torch.autograd.grad(transform(f).pow(2).sum(), x)[0] for f in (func, by_hand))
            assert_close(found, expected)


def test_a_reentrant_checkpoint_can_be_mapped_but_not_differentiated():
    with tfc.use_fallback("silent"):
        assert_close(tfc.vmap(refused.reentrant_checkpoint)(BATCH), BATCH.sin())
        # torch lets only Tensor.backward() pass it, which would fill .grad
        with pytest.raises(RuntimeError, match=r"Checkpointing is not compatible with|use_reentrant"):
            tfc.grad(lambda x: refused.reentrant_checkpoint(x).sum())(X)


@needs_native
def test_threads_have_their_own_policies():
    barrier, found = threading.Barrier(3), {}
    expected = torch.stack([rows(refused.branch, x) for x in BATCH])

    def run(mode):
        with tfc.use_fallback(mode):
            for _ in range(10):
                barrier.wait(30)
                try:
                    result = tfc.vmap(tfc.jacrev(refused.branch))(BATCH)
                    found.setdefault(mode, []).append(torch.equal(result, expected) and tfc.get_fallback() == mode)
                except RuntimeError:
                    found.setdefault(mode, []).append("refused")

    modes = ("silent", "error", "warn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tfc.FallbackWarning)
        threads = [threading.Thread(target=run, args=(mode,)) for mode in modes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {"silent": [True] * 10, "warn": [True] * 10, "error": ["refused"] * 10}


@pytest.mark.skipif("not NATIVE", reason="no transform of a library to be within")
def test_a_library_around_and_within():
    library = tfc.autograd.internals.fvmap
    with tfc.use_fallback("silent"):
        # within: the function given to ours maps by the library, and is refused, so that a loop must call it
        mapped = tfc.vmap(lambda x: refused.branch(library(torch.sin)(x)))
        expected = torch.stack([refused.branch(x.sin()) for x in BATCH])
        assert_close(mapped(BATCH), expected)
        assert_close(
            tfc.jacrev(lambda x: library(torch.sin)(refused.old_function(x)))(X), torch.diag(X.sin().cos() * X.cos())
        )
    for name in tfc.available_backends():  # around: the library answers, whatever is set
        with tfc.use_backend(name):
            assert_close(library(tfc.jacrev(torch.sin))(BATCH), torch.diag_embed(BATCH.cos()))
            with pytest.raises(RuntimeError):
                library(tfc.jacrev(refused.branch))(BATCH)


TRACED = {
    "jacfwd": lambda x: tfc.jacfwd(lambda y: y.sin() * y[0])(x),
    "jvp": lambda x: tfc.jvp(lambda y: (y.sin() * y).sum(), (x,), (x,))[1],
    "hessian": lambda x: tfc.hessian(lambda y: (y.sin() * y).sum())(x),
    "gradients of samples": lambda x: tfc.vmap(tfc.grad(lambda y: y.sin() * y))(x),
}


@pytest.mark.skipif(refused.TORCH >= (2, 0), reason="torch.jit is deprecated, and traces torch.func or refuses it")
@pytest.mark.parametrize("name", TRACED)
def test_traced_by_jit(name):
    func = TRACED[name]
    if refused.TORCH < (1, 11):
        with pytest.raises(RuntimeError, match=r"torch\.jit\.trace of a derivative"):
            torch.jit.trace(func, (X,), check_trace=False)
        return
    traced = torch.jit.trace(func, (X,), check_trace=False)
    assert_close(traced(2 * X), func(2 * X))
