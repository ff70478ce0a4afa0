"""`laplacian` and `batch_laplacian` by both modes, with weights and complex outputs, on every backend."""

import pytest
import torch
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat._torch import facts

DTYPE = torch.float64
W = torch.tensor([[0.4, -0.7, 0.2], [0.9, 0.1, -0.5]], dtype=DTYPE)
X = torch.tensor([[0.4, -0.7, 1.2], [0.1, 0.5, -0.3], [-1.1, 0.2, 0.6], [0.8, 0.9, -0.2]], dtype=DTYPE)
MODES = ("auto", "rows", "forward")
WEIGHTS = {
    "none": None,
    "diagonal": torch.tensor([1.0, -0.5, 2.0], dtype=DTYPE),
    "matrix": torch.tensor([[1.0, 0.5, 0.0], [0.5, -1.0, 0.3], [0.2, 0.3, 2.0]], dtype=DTYPE),
    "each": torch.linspace(-1, 1, 36, dtype=DTYPE).reshape(4, 3, 3),
}


@pytest.fixture(autouse=True)
def quiet():
    with tfc.use_fallback("silent"):
        yield


def network(x):
    return torch.tanh(x @ W.t())


def traces(x, weight):
    """Of the Hessians of each output: (B, 2)"""
    u = network(x)
    factor = -2 * u * (1 - u**2)
    weight = torch.eye(3, dtype=DTYPE) if weight is None else weight
    weight = torch.diag_embed(weight) if weight.dim() == 1 else weight
    return factor * torch.einsum("mi,...ij,mj->...m", W, weight, W).expand_as(factor)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("mode", MODES)
def test_batches(backend, mode, weight):
    weight = WEIGHTS[weight]
    for chunk_size in (None, 1, 2, "auto"):
        found = tfc.batch_laplacian(network, mode=mode, weight=weight, chunk_size=chunk_size)(X)
        assert_close(found, traces(X, weight))


@pytest.mark.parametrize("weight", ("none", "diagonal", "matrix"))
@pytest.mark.parametrize("mode", MODES)
def test_single_samples(backend, mode, weight):
    weight = WEIGHTS[weight]
    for chunk_size in (None, 2):
        found = tfc.laplacian(network, mode=mode, weight=weight, chunk_size=chunk_size)(X[0])
        assert_close(found, traces(X[:1], weight)[0])


@pytest.mark.parametrize("mode", MODES)
def test_within_transforms(backend, mode):
    weight = WEIGHTS["matrix"]
    found = tfc.vmap(tfc.laplacian(network, mode=mode, weight=weight))(X)
    assert_close(found, traces(X, weight))
    found = tfc.vmap(tfc.batch_laplacian(network, mode=mode))(torch.stack([X, X.flip(0)]))
    assert_close(found, torch.stack([traces(X, None), traces(X.flip(0), None)]))
    gradient = tfc.grad(lambda x: tfc.batch_laplacian(lambda x: (x**4).sum(1), mode=mode)(x).sum())(X)
    assert_close(gradient, 24 * X)
    assert not gradient.requires_grad
    twice = tfc.laplacian(tfc.laplacian(lambda x: (x**4).sum(), mode=mode), mode=mode)(X[0])
    assert_close(twice, torch.tensor(72.0, dtype=DTYPE))


@pytest.mark.parametrize("mode", MODES)
def test_pytrees_aux_and_other_arguments(backend, mode):
    def func(p, scale, power=3):
        return {"u": scale * (p["a"] ** power).sum(1) * p["b"], "v": p["b"] ** 2}, (p["a"].sum(), scale)

    a, b, scale = X, X[:, 0] + 2, torch.tensor(3.0, dtype=DTYPE)
    transformed = tfc.batch_laplacian(func, has_aux=True, mode=mode, check=True)
    found, aux = transformed({"a": a, "b": b}, scale, power=3)
    assert_close(found, {"u": 18 * a.sum(1) * b, "v": torch.full_like(b, 2.0)})
    assert_close(aux, (a.sum(), scale))
    by_second = tfc.batch_laplacian(lambda s, x: (x**3).sum(0) * s, argnums=1, in_dims=(None, 1), mode=mode)(2.0, X.t())
    assert_close(by_second, 12 * X.sum(1))
    both = tfc.laplacian(lambda x, y: (x**3 * y**2).sum(), argnums=(0, 1), mode=mode)(X[0], X[1])
    assert_close(both, (6 * X[0] * X[1] ** 2 + 2 * X[0] ** 3).sum())


@pytest.mark.parametrize("mode", MODES)
def test_complex_outputs(backend, mode):
    def wave(x):  # log psi of a plane wave in a Gaussian
        return torch.view_as_complex(torch.stack([-(x**2).sum(1) / 2, (x**3).sum(1)], -1))

    expected = torch.view_as_complex(torch.stack([torch.full((4,), -3.0, dtype=DTYPE), 6 * X.sum(1)], -1))
    assert_close(tfc.batch_laplacian(wave, mode=mode)(X), expected)
    assert_close(tfc.batch_laplacian(wave, mode=mode, weight=2 * torch.ones(3, dtype=DTYPE))(X), 2 * expected)
    found, aux = tfc.batch_laplacian(lambda x: ((wave(x), x[:, 0] ** 2), x), mode=mode, has_aux=True)(X)
    assert_close((found, aux), ((expected, torch.full((4,), 2.0, dtype=DTYPE)), X))
    assert_close(tfc.laplacian(lambda x: wave(x[None])[0], mode=mode)(X[0]), expected[0])


@pytest.mark.parametrize("mode", MODES)
def test_samples_that_depend_on_each_other(backend, mode):
    with pytest.raises(RuntimeError, match="not independent"):
        tfc.batch_laplacian(lambda x: (x - x.mean(0)) ** 3, mode=mode, check=True)(X)


@pytest.mark.parametrize("mode", MODES)
def test_results_can_be_written_to(backend, mode):
    found = tfc.batch_laplacian(lambda x: x * x, mode=mode)(X)
    found[0, 0] += 1
    expected = torch.full_like(X, 2.0)
    expected[0, 0] = 3.0
    assert_close(found, expected)


def test_it_tells_which_it_was(backend):
    forward = tfc.batch_laplacian(network)
    forward(X)
    assert "It took the forward Laplacian" in tfc.explain(forward)
    rows = tfc.batch_laplacian(network, mode="rows", chunk_size=1)
    rows(X)
    assert "It took rows of the Hessian, since mode='rows' was asked for." in tfc.explain(rows)
    refused = tfc.laplacian(lambda x: torch.cumprod(x, 0).sum(), mode="forward")
    refused(X[0])
    assert "It took rows of the Hessian, since there is no rule for cumprod." in tfc.explain(refused)
    each = tfc.batch_laplacian(network, weight=WEIGHTS["each"])
    each(X)
    assert "each sample has weights of its own" in tfc.explain(each)


def test_evaluations(backend):
    """One by the forward pass; what is refused once is not tried again at arguments of these shapes."""
    calls = []

    def counted(x):
        calls.append(type(x).__name__)
        return torch.cumprod(x, 1) if refuse else x**2

    refuse = False
    transformed = tfc.batch_laplacian(counted)
    transformed(X)
    transformed(X)
    assert calls == ["Carried", "Tensor", "Carried"]  # the first call tests the samples
    refuse = True
    transformed(X)
    assert calls[3] == "Carried" and "Carried" not in calls[4:]
    count = len(calls)
    transformed(X)
    assert "Carried" not in calls[count:]
    transformed(X[:2])
    assert "Carried" in calls[count:]


def test_random_numbers_are_drawn_once(backend):
    """Also where columns come in chunks, and where rows begin anew."""

    def noisy(x):
        return (x**3 * torch.rand(3, dtype=DTYPE)).sum()

    torch.manual_seed(1)
    expected = (6 * X[0] * torch.rand(3, dtype=DTYPE)).sum()
    for func in (noisy, lambda x: noisy(x) + 0 * torch.cumprod(x, 0).sum()):
        for chunk_size in (None, 1):
            torch.manual_seed(1)
            with tfc.use_backend("autograd"):
                found = tfc.laplacian(func, mode="forward", chunk_size=chunk_size)(X[0])
            assert_close(found, expected)


@pytest.mark.parametrize("transform", (tfc.laplacian, tfc.batch_laplacian))
def test_errors(backend, transform):
    with pytest.raises(ValueError, match="unknown mode 'columns'"):
        transform(network, mode="columns")
    with pytest.raises(TypeError, match="expected weight to be a tensor, got <class 'float'>"):
        transform(network, weight=2.0)
    for mode in MODES:
        with pytest.raises(ValueError, match="expected weight to be of shape"):
            transform(network, mode=mode, weight=torch.ones(2, 2))(X)
        with pytest.raises(ValueError, match="chunk_size"):
            transform(network, mode=mode, chunk_size=0)
        with pytest.raises(RuntimeError, match="real"):
            transform(network, mode=mode)(X.to(torch.complex128))
    with pytest.raises(ValueError, match="function of the whole batch"):
        tfc.batch_laplacian(lambda x: x.sum())(X)
    with pytest.raises(ZeroDivisionError):  # the function's own
        transform(lambda x: x / (1 // 0))(X)


def test_a_function_that_keeps_what_a_forward_laplacian_gave_it(backend):
    kept = {}

    def func(x):
        kept["square"] = x * x
        return (kept["square"].sin() * torch.tensor([1.0, 2.0], dtype=x.dtype)[:, None]).sum(1).roll(1)

    x = torch.tensor([0.3, -0.8], dtype=torch.float64)
    expected = (2 * (x * x).cos() - 4 * x * x * (x * x).sin()).sum() * torch.tensor([2.0, 1.0], dtype=x.dtype)
    batched = lambda xs: torch.stack([func(x) for x in xs])
    for _ in range(2):
        assert_close(tfc.laplacian(func)(x), expected)
        assert_close(tfc.batch_laplacian(batched)(x[None])[0], expected)
        assert_close(tfc.hessian(func)(x).diagonal(0, 1, 2).sum(-1), expected)


class Doubled(torch.Tensor):
    """Its products are twice those of a tensor."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        return 2 * result.as_subclass(torch.Tensor) if func in (torch.Tensor.mul, torch.Tensor.__mul__) else result


@pytest.mark.parametrize("mode", MODES)
def test_of_a_subclass_with_operations_of_its_own(backend, mode):
    x, batch = X[0].as_subclass(Doubled), X.as_subclass(Doubled)
    found = tfc.laplacian(lambda x: (x * x * x).sum(), mode=mode)(x)
    assert_close(torch.as_tensor(found), 4 * 6 * X[0].sum())
    found = tfc.batch_laplacian(lambda x: (x * x).sum(-1), mode=mode)(batch)
    assert_close(torch.as_tensor(found), torch.full((4,), 12.0, dtype=DTYPE))
    for estimate in (tfc.laplacian, tfc.hessian_diagonal):
        found, _ = estimate(lambda x: (x * x).sum(), estimator="hutchinson", samples=2)(x)
        assert_close(found.sum(), torch.tensor(12.0, dtype=DTYPE))


def test_in_inference_mode(backend):
    if not hasattr(torch, "inference_mode"):
        pytest.skip("inference mode is of torch 1.9")
    transformed = tfc.batch_laplacian(network)
    with torch.inference_mode():
        found = transformed(X)
    assert_close(found.clone(), traces(X, None))
    transformed(X)
    assert "forward Laplacian" in tfc.explain(transformed)


@pytest.mark.slow
@pytest.mark.skipif(not facts.has("compiled_transforms"), reason="torch.compile traces transforms from 2.6 on")
@pytest.mark.parametrize("weight", ("none", "matrix", "each"))
def test_compiled(weight):
    from support.compiling import compiled

    weight = WEIGHTS[weight]
    found = compiled(lambda x: tfc.batch_laplacian(network, weight=weight)(x), fullgraph=True)(X)
    assert_close(found, traces(X, weight))
    outside = tfc.batch_laplacian(network, weight=weight)
    assert_close(compiled(lambda x: outside(x), fullgraph=True)(X), traces(X, weight))


@pytest.mark.skipif(not facts.has("compiled_transforms"), reason="torch.compile traces transforms from 2.6 on")
def test_compiled_training():
    from support.compiling import compiled

    w = W.clone().requires_grad_()
    laplacian = tfc.batch_laplacian(lambda x: torch.tanh(x @ w.t()).sum(1))
    loss = lambda x: (laplacian(x) ** 2).sum()
    (expected,) = torch.autograd.grad(loss(X), w)
    (found,) = torch.autograd.grad(compiled(loss, fullgraph=True)(X), w)
    assert_close(found, expected)


class Keeping:
    """A function that makes something in its first evaluation and keeps it."""

    def __init__(self, make, take):
        self.make, self.take, self.kept = make, take, []

    def __call__(self, x):
        if not self.kept:
            self.kept.append(self.make(x))
        return self.take(self.kept[0], x)


KEPT = {
    "mask": (lambda x: x > 0, lambda kept, x: torch.where(kept, x**3, x**2)),
    "order": (lambda x: x.argsort(), lambda kept, x: x[..., kept.reshape(-1)[:3]] ** 3),
    "detached": (lambda x: x.detach(), lambda kept, x: (kept * x) ** 2),
    "sign": (torch.sign, lambda kept, x: kept * x**3),
    "largest": (lambda x: x.max(-1, keepdim=True)[1], lambda kept, x: (x * (kept + 1)) ** 2),
    "pair": (lambda x: (x.detach(), [x < 1]), lambda kept, x: torch.where(kept[1][0], x**3, kept[0] * x**2)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", KEPT)
def test_constants_that_a_function_keeps(backend, name, mode):
    func, other = Keeping(*KEPT[name]), Keeping(*KEPT[name])
    expected = tfc.laplacian(other, mode="rows")(X[0])
    assert_close(tfc.laplacian(func, mode=mode)(X[0]), expected)
    assert_close(func(X[0]), other(X[0]))
    assert_close(tfc.laplacian(func, mode=mode)(X[0]), expected)
    assert_close(tfc.laplacian(Keeping(*KEPT[name]), mode=mode, chunk_size=1)(X[0]), expected)


@pytest.mark.parametrize("mode", MODES)
def test_constants_that_a_function_of_a_batch_keeps(backend, mode):
    make, take = (lambda x: x[0] > 0, lambda kept, x: torch.where(kept, x**3, x**2).sum(-1))
    expected = torch.where(X[0] > 0, 6 * X, torch.full_like(X, 2.0)).sum(-1)
    func = Keeping(make, take)
    for _ in range(2):
        assert_close(tfc.batch_laplacian(func, mode=mode)(X), expected)
        assert_close(func(X), take(X[0] > 0, X))


def test_a_feature_that_is_kept_acts_as_its_value_afterwards(backend):
    func = Keeping(lambda x: x**2, lambda kept, x: (kept * x).sum())
    assert_close(tfc.laplacian(func)(X[0]), 6 * X[0].sum())
    assert_close(func(X[1]), (X[0] ** 2 * X[1]).sum())


def test_a_feature_of_another_evaluation_is_no_constant(backend):
    """The evaluation by rows, and that of other columns, would take what depends on the argument for a constant."""
    func = Keeping(lambda x: x**2, lambda kept, x: torch.cumprod(kept * x, 0).sum())
    with pytest.raises(RuntimeError, match="keeps a tensor that depends on its argument"):
        tfc.laplacian(func)(X[0])
    assert_close(func(X[0]), torch.cumprod(X[0] ** 3, 0).sum())
    func = Keeping(lambda x: x**2, lambda kept, x: (kept * x).sum())
    with pytest.raises(RuntimeError, match="keeps a tensor that depends on its argument"):
        tfc.laplacian(func, chunk_size=1)(X[0])
    assert_close(func(X[0]), (X[0] ** 3).sum())


POSITIVE = torch.tensor([2.0, 3.0, 0.5])
SCALED = {
    "sqrt": lambda x, b: (b * x).sqrt().sum() / b**0.5,
    "square root by a power": lambda x, b: ((b * x) ** 0.5).sum() / b**0.5,
    "log": lambda x, b: (b * x).log().sum(),
    "reciprocal": lambda x, b: (b * torch.reciprocal(b * x)).sum(),
    "weights": lambda x, b: (b * x / (b * x).sum()).prod(),
    "norm": lambda x, b: (b * x * x).norm() / b,
    "logsumexp": lambda x, b: torch.logsumexp((b * x).log() * 1.0, 0),
    "softmax": lambda x, b: torch.softmax((b * x).log(), 0)[0],
    "hypot": lambda x, b: torch.hypot(b * x[0], b * x[1]) / b,
    "variance": lambda x, b: (b * x * x).std() / b,
}


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("scale", (1e10, 1e15, 1e-10, 1e-15))
def test_squares_that_leave_the_range_of_float32(name, scale):
    func = SCALED[name]
    expected = tfc.laplacian(lambda x: func(x, 1.0), mode="rows")(POSITIVE.double())
    for size in (scale, scale * (1e5 if scale > 1 and name != "variance" else 1)):
        found = tfc.laplacian(lambda x, size=size: func(x, size))(POSITIVE)
        assert_close(found.double(), expected, rtol=2e-3, atol=1e-5)
        samples = torch.stack([POSITIVE, POSITIVE + 1])
        batch = lambda x, size=size: torch.stack([func(row, size) for row in x])
        assert_close(tfc.batch_laplacian(batch)(samples)[0].double(), expected, rtol=2e-3, atol=1e-5)


def test_squares_that_leave_the_range_behind_a_mask():
    """The derivative by a factor outside, of a distance that is padded."""
    mask, far = torch.tensor([True, False]), torch.tensor(1e30, dtype=DTYPE)
    scale = torch.tensor(1.0, dtype=DTYPE, requires_grad=True)
    x = torch.tensor([0.5, 2.0], dtype=DTYPE)

    def func(x):
        d = torch.where(mask, x * scale, far)
        return torch.where(mask, 1 / (1 + d**6 * x), torch.zeros_like(x)).sum()

    found, expected = (torch.autograd.grad(tfc.laplacian(func, mode=mode)(x), scale)[0] for mode in ("forward", "rows"))
    assert bool(torch.isfinite(expected))
    assert_close(found, expected)
