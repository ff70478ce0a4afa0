"""Derivatives of functions of whole batches against closed forms, on every backend."""

import pytest
import torch
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat._torch import engine

W = torch.tensor([[0.4, -0.7, 0.2], [0.9, 0.1, -0.5]], dtype=torch.float64)
X = torch.tensor([[0.4, -0.7, 1.2], [0.1, 0.5, -0.3], [-1.1, 0.2, 0.6], [0.8, 0.9, -0.2]], dtype=torch.float64)
T = X.flip(0) * 0.5 + 0.1
HESSIAN_MODES = ("auto", "reverse-reverse", "forward-reverse", "reverse-forward", "forward-forward")
CURRIED = (tfc.batch_jacobian, tfc.batch_hessian, tfc.batch_hessian_diagonal, tfc.batch_laplacian)


@pytest.fixture(autouse=True)
def quiet():
    # functorch nests forward mode only with help
    with tfc.use_fallback("silent"):
        yield


def network(x):
    """(B, 3) -> (B, 2)"""
    return torch.tanh(x @ W.t())


def network_jacobian(x):
    return (1 - network(x) ** 2)[:, :, None] * W


def network_hessian(x):
    u = network(x)
    return (-2 * u * (1 - u**2))[:, :, None, None] * (W[:, :, None] * W[:, None, :])


def energy(x):
    """(B, 3) -> (B,)"""
    return (x**4).sum(1) + x[:, 0] * x[:, 1] ** 2


def energy_gradient(x):
    g = 4 * x**3
    return g + torch.stack([x[:, 1] ** 2, 2 * x[:, 0] * x[:, 1], 0 * x[:, 2]], 1)


def energy_hessian(x):
    h = torch.diag_embed(12 * x**2)
    h[:, 0, 1] += 2 * x[:, 1]
    h[:, 1, 0] += 2 * x[:, 1]
    h[:, 1, 1] += 2 * x[:, 0]
    return h


@pytest.mark.parametrize("chunk_size", (None, 1, 2, "auto"))
@pytest.mark.parametrize("mode", ("auto", "forward", "reverse"))
def test_jacobian(backend, mode, chunk_size):
    for func, expected in ((network, network_jacobian), (energy, energy_gradient)):
        jacobian = tfc.batch_jacobian(func, mode=mode, chunk_size=chunk_size)
        for _ in range(2):  # what the first call found is used by the second
            assert_close(jacobian(X), expected(X))


@pytest.mark.parametrize("mode", HESSIAN_MODES)
@pytest.mark.parametrize("chunk_size", (None, 2, "auto"))
def test_hessian(backend, mode, chunk_size):
    for func, expected in ((network, network_hessian), (energy, energy_hessian)):
        assert_close(tfc.batch_hessian(func, mode=mode, chunk_size=chunk_size)(X), expected(X))


@pytest.mark.parametrize("chunk_size", (None, 1, 2, "auto"))
def test_diagonal_and_trace(backend, chunk_size):
    for func, expected in ((network, network_hessian), (energy, energy_hessian)):
        diagonal = expected(X).diagonal(0, -2, -1)
        assert_close(tfc.batch_hessian_diagonal(func, chunk_size=chunk_size)(X), diagonal)
        assert_close(tfc.batch_laplacian(func, chunk_size=chunk_size)(X), diagonal.sum(-1))


def test_hvp(backend):
    value, (product,) = tfc.batch_hvp(energy, (X,), (T,))
    assert_close((value, product), (energy(X), (energy_hessian(X) @ T[:, :, None])[:, :, 0]))
    value, (product,) = tfc.batch_hvp(network, (X,), (T,))
    assert_close((value, product), (network(X), torch.einsum("bmij,bj->bmi", network_hessian(X), T)))
    value, (a, b), aux = tfc.batch_hvp(
        lambda a, b: ((a**2 * b).sum(1), a.sum()), (X, T), (T, X), has_aux=True, check=True
    )
    assert_close((value, aux), ((X**2 * T).sum(1), X.sum()))
    assert_close((a, b), (2 * T * T + 2 * X * X, 2 * X * T))
    with pytest.raises(RuntimeError, match="to be a tuple"):
        tfc.batch_hvp(energy, X, T)
    with pytest.raises(RuntimeError, match="same shape"):
        tfc.batch_hvp(energy, (X,), (T[:, :2],))


def test_one_evaluation_for_all_rows(backend):
    calls = []

    def counted(x):
        calls.append(x.shape)
        return network(x)

    tfc.batch_jacobian(counted, mode="reverse")(X)
    tfc.batch_hessian(counted, mode="reverse-reverse")(X)
    assert calls == [X.shape] * 2


def test_shared_arguments_and_other_batch_dimensions(backend):
    def func(w, x, power, scale=1.0):  # samples in the columns of x
        return scale * (w @ x).t() ** power

    found = tfc.batch_jacobian(func, argnums=1, in_dims=(None, 1, None))(W, X.t(), 2, scale=3.0)
    assert_close(found, 6 * (X @ W.t())[:, :, None] * W)
    assert_close(tfc.batch_jacobian(func, argnums=-2, in_dims=-1)(W, X.t(), 2), 2 * (X @ W.t())[:, :, None] * W)
    found = tfc.batch_hessian(func, argnums=1, in_dims=(None, 1, None))(W, X.t(), 2)
    assert_close(found, 2 * (W[:, :, None] * W[:, None, :]).expand(4, 2, 3, 3))
    found = tfc.batch_hessian_diagonal(func, argnums=1, in_dims=1)(W, X.t(), 2)
    assert_close(found, 2 * (W**2).expand(4, 2, 3))
    with pytest.raises(ValueError, match="shared by all samples"):
        tfc.batch_jacobian(func, argnums=0, in_dims=(None, 1, None))(W, X.t(), 2)


@pytest.mark.parametrize("mode", ("auto", "forward", "reverse"))
def test_pytrees(backend, mode):
    def func(p, c):
        return {"u": p["a"] * p["b"][:, :, None], "v": (p["a"] ** 2).sum((1, 2)) * c}

    a = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 3, 2)
    b = torch.linspace(0, 2, 6, dtype=torch.float64).reshape(2, 3)
    c = torch.tensor([2.0, 3.0], dtype=torch.float64)
    found = tfc.batch_jacobian(func, mode=mode)({"a": a, "b": b}, c)
    eye = torch.eye(3, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    assert_close(found["u"]["a"], torch.einsum("bi,ij,kl->bikjl", b, *eye))
    assert_close(found["u"]["b"], torch.einsum("bik,ij->bikj", a, eye[0]))
    assert_close(found["v"]["a"], 2 * a * c[:, None, None])
    assert_close(found["v"]["b"], torch.zeros_like(b))
    both = tfc.batch_jacobian(func, argnums=(1, 0), mode=mode)({"a": a, "b": b}, c)
    assert_close(both["v"][0], (a**2).sum((1, 2)))
    assert_close(both["v"][1]["a"], found["v"]["a"])
    hessian = tfc.batch_hessian(func)({"a": a, "b": b}, c)
    assert_close(hessian["u"]["a"]["b"], torch.einsum("im,ij,kl->ikjlm", eye[0], *eye).expand(2, 3, 2, 3, 2, 3))
    diagonal = tfc.batch_hessian_diagonal(func, argnums=(1, 0))({"a": a, "b": b}, c)
    assert_close(diagonal["v"][1]["a"], (2 * c[:, None, None]).expand(2, 3, 2))
    assert_close(diagonal["v"][0], torch.zeros_like(c))
    trace, aux = tfc.batch_laplacian(lambda p, c: (func(p, c), c), has_aux=True)({"a": a, "b": b}, c)
    assert_close((trace["u"], trace["v"], aux), (torch.zeros_like(a), 12 * c, c))


@pytest.mark.parametrize("mode", ("auto", "forward", "reverse"))
def test_outputs_of_any_rank_and_aux(backend, mode):
    found, aux = tfc.batch_jacobian(lambda x: (x[:, None, :, None] * W[0, 1], {"x": x}), has_aux=True, mode=mode)(X)
    assert_close(found, W[0, 1] * torch.eye(3, dtype=X.dtype).reshape(1, 1, 3, 1, 3).expand(4, 1, 3, 1, 3))
    assert_close(aux["x"], X)


def test_results_are_differentiable(backend):
    x = X.clone().requires_grad_()
    total = (
        tfc.batch_jacobian(network)(x).sum() + tfc.batch_hessian(energy)(x).sum() + tfc.batch_laplacian(energy)(x).sum()
    )
    (found,) = torch.autograd.grad(total, x)
    # sums of Jacobians and Hessians along the sums of rows
    expected = network_hessian(X).sum((1, 2)) + 48 * X
    expected = expected + torch.tensor([4.0, 4.0, 0.0], dtype=X.dtype)
    assert_close(found, expected)
    assert not tfc.batch_jacobian(network)(X).requires_grad
    gradient = tfc.grad(lambda x: tfc.batch_laplacian(energy)(x).sum())(X)
    assert_close(gradient, 24 * X + torch.tensor([2.0, 0.0, 0.0], dtype=X.dtype))


def test_parameters_learn_from_derivatives(backend):
    w = W.clone().requires_grad_()
    loss = tfc.batch_laplacian(lambda x: ((x @ w.t()) ** 2).sum(1))(X).sum()
    (found,) = torch.autograd.grad(loss, w)
    assert_close(found, 4 * len(X) * W)


@pytest.mark.parametrize("transform", CURRIED)
def test_within_vmap(backend, transform):
    many = torch.stack([X, T])
    for func in (network, energy):
        assert_close(tfc.vmap(transform(func))(many), torch.stack([transform(func)(x) for x in many]))


@pytest.mark.parametrize("transform", CURRIED)
def test_empty_batches(backend, transform):
    full, empty = transform(network)(X), transform(network)(X[:0])
    assert empty.shape == (0, *full.shape[1:])
    assert transform(network, check=True)(X[:0]).shape == empty.shape


@pytest.mark.parametrize("transform", CURRIED)
def test_inputs_without_elements(backend, transform):
    def func(x):
        return torch.einsum("bij,jk->bki", x, W[:, : x.shape[2]].t()) ** 2

    sample = (2, 0) * {tfc.batch_hessian: 2, tfc.batch_laplacian: 0}.get(transform, 1)
    assert transform(func)(X.new_zeros(4, 2, 0)).shape == (4, 2, 2, *sample)


def test_custom_functions_and_eval_mode(backend):
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):
            return 3 * ctx.saved_tensors[0] ** 2 * grad

    assert_close(tfc.batch_jacobian(Cube.apply)(X), torch.diag_embed(3 * X**2))
    assert_close(tfc.batch_hessian(lambda x: Cube.apply(x).sum(1))(X), torch.diag_embed(6 * X))
    norm = torch.nn.BatchNorm1d(3).double().eval()
    expected = torch.diag_embed(torch.full_like(X, (1 + norm.eps) ** -0.5))
    assert_close(tfc.batch_jacobian(norm, check=True)(X), expected)


def coupled_by_the_sum(x):
    return (x**2).sum(1) + 1e-9 * (x**3).sum()


COUPLED = {
    "batch normalisation in train mode": lambda x: torch.nn.functional.batch_norm(x, None, None, training=True),
    "softmax": lambda x: x.softmax(0),
    "mean": lambda x: x - x.mean(0),
    "roll": lambda x: x.roll(1, 0),
    "sum over the batch": coupled_by_the_sum,
}


@pytest.mark.parametrize("symptom", COUPLED)
@pytest.mark.parametrize("transform", CURRIED)
def test_check_finds_samples_that_depend_on_each_other(backend, transform, symptom):
    with pytest.raises(RuntimeError, match=f"are not independent: its output(.|\n)*{symptom}(.|\n)*take jacobian"):
        transform(COUPLED[symptom], check=True)(X)


def test_check_passes_what_is_independent(backend):
    layers = torch.nn.Sequential(torch.nn.Linear(3, 40), torch.nn.Tanh(), torch.nn.LayerNorm(40), torch.nn.Softmax(-1))
    state = torch.get_rng_state()
    for size in (1, 2, 33, 200):
        x = torch.linspace(-2, 3, 3 * size).reshape(size, 3)
        for check in (False, True):
            tfc.batch_hessian_diagonal(lambda x: (layers(x) ** 2).sum(1), check=check)(x)
            found = tfc.batch_jacobian(layers, check=check)(x)
        assert found.shape == (size, 40, 3)
    assert torch.equal(state, torch.get_rng_state())
    # one sample depends on nobody
    tfc.batch_jacobian(lambda x: x.softmax(0), check=True)(X[:1])


def test_check_looks_at_the_first_derivative(backend):
    point = X.clone()
    shifted = lambda x: (x**2).sum(1) + ((x - point) ** 2).sum() ** 2 / 2 + ((x - point).sum() ** 2)
    # at this point the output's derivative by other samples is zero, that of its gradient is not
    tfc.batch_jacobian(shifted, check=True)(X)
    with pytest.raises(RuntimeError, match="its first derivative for one sample"):
        tfc.batch_hessian(shifted, check=True)(X)


# --- by default, the first call looks -------------------------------------------------------------------------------


def fresh(func):
    """A function that was never called before: it closes over an object of its own."""
    own = torch.nn.Module()
    return lambda x: func(x) if own is not None else x


def product(func, **options):
    return lambda x: tfc.batch_hvp(func, (x,), (torch.ones_like(x),), **options)


def estimated(func, **options):
    return tfc.batch_laplacian(func, estimator="hutchinson", samples=2, **options)


def cubes(func):
    return lambda x: func(x).reshape(len(x), -1).pow(3).sum(1)


def with_options(transform, **chosen):
    return lambda func, **options: transform(func, **chosen, **options)


TESTED = {
    "jacobian": tfc.batch_jacobian,
    "jacobian in chunks": with_options(tfc.batch_jacobian, chunk_size=1),
    "jacobian, forward": with_options(tfc.batch_jacobian, mode="forward"),
    "hessian": tfc.batch_hessian,
    "hessian, forward-reverse": with_options(tfc.batch_hessian, mode="forward-reverse"),
    "hessian, reverse-forward": with_options(tfc.batch_hessian, mode="reverse-forward"),
    "diagonal": tfc.batch_hessian_diagonal,
    "diagonal of one output": lambda f, **o: tfc.batch_hessian_diagonal(
        lambda x: f(x).reshape(len(x), -1).pow(3).sum(1), **o
    ),
    "laplacian": tfc.batch_laplacian,
    "laplacian, rows": with_options(tfc.batch_laplacian, mode="rows"),
    "laplacian, estimated": estimated,
    "hvp": product,
}


@pytest.mark.parametrize("symptom", COUPLED)
@pytest.mark.parametrize("name", TESTED)
def test_the_first_call_finds_samples_that_depend_on_each_other(backend, name, symptom):
    transform, mixed = TESTED[name], fresh(COUPLED[symptom])
    for _ in range(2):  # an error is not forgotten
        with pytest.raises(RuntimeError, match=r"are not independent: its (output|first derivative) for one sample"):
            transform(mixed)(X)
    transform(mixed, check=False)(X)
    with tfc.use_checks("off"):
        transform(mixed)(X)


def attention(x):
    """Within each sample, of 3 numbers."""
    weights = torch.softmax(x[:, :, None] * x[:, None, :], -1)
    return (weights * x[:, None, :]).sum(-1)


INDEPENDENT = {
    "a network": lambda x: network(x),
    "attention": attention,
    "broadcast": lambda x: (x[:, None, :] * W).sum(2) + X[0].sum(),
    "dropout": lambda x: torch.nn.functional.dropout(x * x, 0.5),
    "a softmax of each sample": lambda x: x.softmax(-1),
    "scaled by all, as a constant": lambda x: x**3 / x.detach().norm(),
    "sorted": lambda x: x.sort(1)[0] ** 2,
    "a loop": lambda x: torch.stack([row.roll(1, 0) * row.sum() for row in x]),
    "gathered": lambda x: x.gather(1, x.detach().argsort(1)) * x,
    "huge and tiny": lambda x: torch.cat([x * 1e150, x * 1e-150], 1) ** 2,
    "not a number": lambda x: x.sqrt(),
    "cancelling": lambda x: ((x + 1e8) - 1e8) * 1e6 - x * 1e6,
    "constant": lambda x: x.detach() * 2,
    "group norm": lambda x: torch.nn.functional.group_norm(x[:, :, None], 3 if x.shape[1] == 1 else 1)[:, :, 0],
}


@pytest.mark.parametrize("kind", INDEPENDENT)
@pytest.mark.parametrize("name", TESTED)
def test_the_first_call_passes_what_is_independent(backend, name, kind):
    transform, func = TESTED[name], fresh(INDEPENDENT[kind])
    torch.manual_seed(0)
    tested = transform(func)(X)
    after = torch.rand(1)
    torch.manual_seed(0)
    untested = transform(func, check=False)(X)
    assert_close(tested, untested)
    assert torch.equal(after, torch.rand(1))  # also the random state


def test_the_first_call_in_single_precision(backend):
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Linear(3, 64), torch.nn.Tanh(), torch.nn.LayerNorm(64), torch.nn.Linear(64, 5)
    )
    for size in (1, 2, 33, 500):
        x = torch.linspace(-2, 3, 3 * size).reshape(size, 3)
        tfc.batch_hessian_diagonal(lambda x: layers(x).pow(2).sum(1))(x)
        assert tfc.batch_jacobian(layers)(x).shape == (size, 5, 3)


def test_kernels_that_add_up_in_any_order(backend):
    """Their rounding changes from pass to pass, and is no dependence."""

    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad * (1 + 1e-12 * torch.rand_like(grad))

    for check in (None, True):
        found = tfc.batch_jacobian(fresh(lambda x: Rounded.apply(x) ** 2), check=check)(X)
        assert_close(found, torch.diag_embed(8 * X))
        with pytest.raises(RuntimeError, match="not independent"):
            tfc.batch_jacobian(fresh(lambda x: Rounded.apply(x) ** 2 + x.sum()), check=check)(X)


def test_the_first_call_is_that_of_each_mode_and_shape(backend):
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).double().eval()
    of_layers = lambda x: layers(x)
    for func in (layers, of_layers):
        layers.eval()
        tfc.batch_jacobian(func)(X)
        layers.train()
        with pytest.raises(RuntimeError, match="the module BatchNorm1d '1' in train mode"):
            tfc.batch_jacobian(func)(X)
    for dim in (-1, 0):
        along = lambda x, dim=dim: x.softmax(dim)
        if dim:
            tfc.batch_jacobian(along)(X)
        else:
            with pytest.raises(RuntimeError, match="a softmax"):
                tfc.batch_jacobian(along)(X)


FIRST_CALLS = {  # passes without a test, and those that it takes in the first call
    "jacobian": (tfc.batch_jacobian, 1, 1),
    "hessian": (lambda f: tfc.batch_hessian(lambda x: f(x).sum(1)), 2, 2),
    "diagonal": (lambda f: tfc.batch_hessian_diagonal(lambda x: f(x).sum(1)), 2, 3),
}


@pytest.mark.parametrize("name", FIRST_CALLS)
def test_what_the_first_call_costs(backend, name, monkeypatch):
    transform, passes, more = FIRST_CALLS[name]
    pull, seen = engine.grad, {"passes": 0, "evaluations": 0}

    def counted(*args):
        seen["passes"] += 1
        return pull(*args)

    def func(x):
        seen["evaluations"] += 1
        return x.sin() * x

    monkeypatch.setattr(engine, "grad", counted)
    func = fresh(func)
    for extra in (more, 0, 0):
        seen.update(passes=0, evaluations=0)
        transform(func)(X)  # made anew, as in a loop
        assert seen == {"passes": passes + extra, "evaluations": 1}


def test_draws_are_the_same_for_all_rows_and_columns(backend):
    def noisy(x):
        return x * torch.rand_like(x)

    torch.manual_seed(0)
    draw = torch.rand_like(X)
    for mode in ("reverse", "forward"):
        for chunk_size in (None, 1, 2):
            torch.manual_seed(0)
            found = tfc.batch_jacobian(noisy, mode=mode, chunk_size=chunk_size)(X)
            assert_close(found, torch.diag_embed(draw))


def test_bjacrev(backend):
    assert_close(tfc.bjacrev(lambda x: W @ x**2)(X), 2 * W * X[:, None, :])
    found = tfc.bjacrev(lambda w, x: w @ x, argnums=(0, 1), in_dims=(None, 1), chunk_size=1)(W, X.t())
    assert_close(found[1], W.expand(4, 2, 3))
    assert_close(found[0][:, 0, 0], X)


def test_explain(backend):
    jacobian = tfc.batch_jacobian(network, chunk_size="auto")
    jacobian(X)
    assert "reverse mode, since 2 outputs <= " in tfc.explain(jacobian)
    assert "It took chunks of " in tfc.explain(jacobian)
    hessian = tfc.batch_hessian(energy)
    hessian(X)
    assert "reverse over reverse mode, since the function has one output" in tfc.explain(hessian)
    wide = tfc.batch_jacobian(lambda x: x.repeat(1, 2))
    wide(X[:, :1])
    assert "reverse mode, since 2 outputs <= 3.0 x 1" in tfc.explain(wide) or backend != "autograd"


@pytest.mark.parametrize("transform", CURRIED)
def test_errors(backend, transform):
    with pytest.raises(ValueError, match=r"function of the whole batch, which returns 4 samples(.|\n)*shape \(\)"):
        transform(lambda x: x.sum())(X)
    with pytest.raises(ValueError, match=r"shape \(3, 4\)"):
        transform(lambda x: x.t())(X)
    with pytest.raises(ValueError, match="batch dimension 0 of a tensor of shape"):
        transform(energy)(X[0, 0])
    with pytest.raises(ValueError, match="as many samples"):
        transform(lambda x, y: x * y, in_dims=(0, 0))(X, X[:2])
    with pytest.raises(ValueError, match="in_dims"):
        transform(energy, in_dims=(0, 0))(X)
    with pytest.raises(RuntimeError, match="argnum"):
        transform(energy, argnums=1)(X)
    with pytest.raises(RuntimeError, match="real"):
        transform(energy)(X.to(torch.complex128))
    for wrong in (0, -1, "all", 2.5, True):
        with pytest.raises(ValueError, match="chunk_size"):
            transform(energy, chunk_size=wrong)
    with pytest.raises(ValueError, match="budget of chunk_size='auto'"):
        transform(energy, memory="1GB")
