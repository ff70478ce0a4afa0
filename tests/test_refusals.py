"""Refusals of torch are known by the rows of a table, by where they come from, and by what a loop does."""

from __future__ import annotations

import copy

import pytest
import torch
from support import refused
from support.functions import NumpyBackward
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat._guards.recognition import refusal
from torch_func_compat._guards.refusals import CAPABILITIES
from torch_func_compat.autograd.checks import is_batched

X = torch.linspace(0.1, 1.0, 4, dtype=torch.float64)
BATCH = torch.stack([X, 2 * X, X - 0.05])
NATIVE = tfc.available_backends()[0] != "autograd"
needs_native = pytest.mark.skipif(
    "not NATIVE", reason="there is nothing to fall back from: torch 1.8-1.10 has autograd only"
)


# Every refusal, what provokes it, and the releases on which it does.
def _vmap(func, **options):
    return lambda: tfc.vmap(func, **options)(BATCH)


def _jacfwd(func):
    return lambda: tfc.jacfwd(func)(X)


def _mapped(transformed, *args):
    """Within a vmap, derivatives are those of the library."""
    return lambda: tfc.vmap(transformed)(*(arg[None] for arg in args or (X,)))


def _closes_over_a_batch(a):
    @tfc.custom_vjp
    def scaled(x):
        return a * x.sin()

    scaled.defvjp(lambda x: (scaled(x), x), lambda x, g: (g * a * x.cos(),))
    return scaled(X)


def _gradient_of(make):
    def gradients():
        func = make()
        return tfc.vmap(tfc.jacrev(lambda x: func(x).sum()))(BATCH)

    return gradients


def _maps_a_pullback_through_numpy():
    with tfc.use_fallback("silent"):
        pull = tfc.vjp(NumpyBackward.apply, X.clone().requires_grad_())[1]
    tfc.vmap(lambda v: pull(v))(torch.stack([X, X]))


def _under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return tfc.vmap(torch.sin)(BATCH)


PROVOKED = {
    "mapped_indices": (
        lambda: tfc.vmap(lambda i, j: BATCH[i, j])(
            torch.tensor([[[1], [2]], [[0], [1]]]), torch.tensor([[0, 1], [2, 3]])
        ),
        (1, 11),
        (1, 12),
    ),
    "legacy_function": (_mapped(tfc.jacrev(refused.old_function)), (2, 0), None),
    "function_under_functorch": (_mapped(tfc.jacrev(refused.old_function)), (1, 11), (2, 0)),
    "function_without_vmap": (lambda: tfc.vmap(refused.new_function)(BATCH), (2, 0), None),
    "function_without_jvp": (lambda: tfc.jacfwd(refused.ruled_function)(X), (2, 0), None),
    "function_without_transpose": (lambda: tfc.jvp(refused.Once.apply, (X,), (X,)), (2, 0), None),
    "legacy_function_in_place": (_mapped(tfc.jacrev(lambda x: refused.OldExponential.apply(x * 1))), (2, 0), None),
    "no_forward_formula": (_jacfwd(refused.sparse), (1, 13), None),
    "grad_mode": (_jacfwd(lambda x: x * torch.no_grad()(torch.sin)(x)), (1, 11), None),
    "item": (_vmap(refused.branch), (1, 11), None),
    "dynamic_shape": (_vmap(refused.mask), (1, 11), None),
    "data_pointer": (_vmap(refused.numpy), (1, 11), None),
    "no_batching_rule": (_vmap(refused.allclose), (1, 11), None),
    "broadcast_by_vmap": (_vmap(refused.inplace_add), (1, 11), None),
    "sparse": (_mapped(tfc.jacrev(refused.sparse)), (2, 0), None),
    "saved_tensor_hooks": (_mapped(tfc.jacrev(refused.saved_tensor_hooks)), (1, 11), None),
    "mistaken_rows": (_mapped(tfc.jacrev(torch.cdist), BATCH, BATCH.cos()), (1, 11), (2, 0)),
    "mistaken_rows_of_prelu": (
        _mapped(tfc.jacrev(lambda x: torch.nn.functional.prelu(x, X[:1])), BATCH.repeat(1, 2)),
        (2, 0),
        None,
    ),
    "mistaken_nesting": (
        lambda: tfc.jacfwd(tfc.jacfwd(lambda x: x.cumprod(0)))(X),
        (1, 11),
        None,
    ),
    "mistaken_batch": (lambda: tfc.vmap(lambda x: x.roll(1))(X), (2, 1), None),
    "mistaken_tangents": (_jacfwd(lambda x: torch.view_as_real(torch.pow(x, 1 + 1j * X[0]))), (2, 0), None),
    "mistaken_tangent": (lambda: tfc.jvp(refused.library_operator, (X,), (X,)), (2, 4), None),
    "mistaken_formula": (lambda: tfc.jacfwd(torch.cholesky_inverse)(BATCH[:2, :2].tril()), (1, 12), None),
    "functorch_0_1_forward": (
        lambda: tfc.jacfwd(tfc.jacrev(lambda x: torch.conv1d(x[None, None], X[None, None, :2]).pow(2).sum()))(X),
        (1, 11),
        (1, 12),
    ),
    "forward_formula": (_mapped(tfc.jacrev(tfc.jacfwd(torch.nn.functional.glu))), (2, 0), None),
    "overlapping_memory": (lambda: tfc.jvp(torch.sin, (X[:1].expand(4),), (X,)), (1, 11), None),
    "functorch_sizes": (
        lambda: tfc.vmap(tfc.grad(lambda x: (x * x * x).sum()))(X[:1]),
        (1, 11),
        (2, 0),
    ),
    "backward_leaves_torch": (_maps_a_pullback_through_numpy, (1, 11), (2, 0)),
    "foreign_tensor": (_vmap(_closes_over_a_batch), (2, 0), None),
    "optimized_script": (_gradient_of(refused.optimized_script), (1, 11), (2, 1)),
    "script_parameters": (lambda: tfc.vmap(torch.jit.script(torch.nn.Linear(3, 1)))(torch.ones(2, 3)), (1, 11), None),
    "functorch_unique": (_vmap(refused.unique_size), (1, 11), (1, 13)),
    "functorch_complex": (_jacfwd(lambda x: (torch.complex(x, x.sin()) ** 2).imag), (1, 11), (1, 13)),
    "inplace_in_formula": (
        _mapped(tfc.grad(lambda x: tfc.jvp(tfc.grad(lambda x: x.norm()), (x,), (X,))[1].sum())),
        (2, 0),
        None,
    ),
    "data_attribute": (_vmap(refused.data), (1, 11), None),
    "autograd_inside": (_vmap(refused.autograd_inside), (1, 12), None),
    "autograd_inside_functorch_0_1": (_vmap(refused.autograd_inside), (1, 11), (1, 12)),
    "captured_mutation": (_mapped(tfc.jacrev(refused.batch_norm)), (1, 11), None),
    "inplace_into_unbatched": (_vmap(refused.inplace), (1, 11), None),
    "memory_format": (_vmap(refused.channels_last), (1, 11), None),
    "size_by_values": (lambda: tfc.vmap(torch.nn.functional.one_hot)(torch.tensor([[0, 2], [2, 1]])), (1, 11), None),
    "autocast": (_under_autocast, (1, 11), None),
    "tensor_subclass": (lambda: tfc.vmap(lambda x: x.act(X[:2]))(X.as_subclass(refused.Angle)), (1, 11), None),
    "inference_mode": (_mapped(tfc.jacrev(refused.inference_mode)), (1, 11), None),
    "internal_error": (_vmap(refused.scatter_strided), (2, 6), None),
    "random_operation": (lambda: tfc.vmap(torch.bernoulli, randomness="same")(BATCH / 2), (1, 11), None),
}


def test_every_row_of_the_table_is_provoked():
    assert set(PROVOKED) == {row.name for row in CAPABILITIES}


def _provoked_here():
    return [
        pytest.param(name, call, id=name)
        for name, (call, since, until) in PROVOKED.items()
        if since <= refused.TORCH and (until is None or refused.TORCH < until)
    ]


@needs_native
@pytest.mark.parametrize(("name", "call"), _provoked_here())
def test_a_refusal_is_known_by_its_row(name, call):
    with tfc.use_fallback("error"), pytest.raises((RuntimeError, IndexError)) as caught:
        call()
    row = refusal(caught.value)
    assert row is not None and row.name == name
    with tfc.use_fallback("silent"):
        call()


def _assigned_data(x):
    changed = torch.zeros(4, dtype=x.dtype)
    changed.data = x
    return changed * x


# A row may know a refusal by several texts of torch: the part of the text that the row knows, and what provokes it.
TEXTS = [
    ("dynamic_shape", "Attempted to vmap over `mask`", _vmap(lambda x: x.masked_select(x > x.mean())), (1, 11), None),
    ("data_pointer", "Cannot access storage", _vmap(lambda x: copy.deepcopy(x) * 2), (1, 11), None),
    (
        "no_batching_rule",
        "we do not yet support",
        _vmap(lambda x: torch.nn.functional.rrelu(x, training=True), randomness="different"),
        (1, 11),
        None,
    ),
    (
        "no_batching_rule",
        "fallback path does not support vmap over dims of size 0",
        lambda: tfc.vmap(refused.Once.apply)(BATCH[:0]),
        (2, 0),
        None,
    ),
    (
        "no_batching_rule",
        "Calling Tensor.as_strided is not supported",
        _vmap(lambda x: x.as_strided((2,), (1,)), in_dims=1),
        (1, 11),
        (1, 13),
    ),
    ("no_batching_rule", "Could not run 'aten::", _mapped(tfc.jacrev(refused.sparse)), (1, 13), (2, 0)),
    ("sparse", "from the 'Sparse", _vmap(lambda x: torch.diag(x).to_sparse().to_dense()), (1, 11), None),
    ("sparse", "TensorImpl do not have strides", _jacfwd(refused.sparse), (1, 12), (1, 13)),
    ("data_attribute", "mutating directly with `.data`", _vmap(_assigned_data), (2, 0), None),
    ("data_attribute", "batched == nullptr", _vmap(refused.data), (1, 11), (2, 0)),
    ("autograd_inside", "backward() called", _vmap(refused.backward_inside), (1, 11), (1, 12)),
    (
        "random_operation",
        "out variants of random operations",
        _vmap(lambda x: torch.rand(4, out=torch.empty(4)) + x, randomness="different"),
        (1, 11),
        None,
    ),
    ("internal_error", "INTERNAL ASSERT FAILED", _mapped(tfc.jacrev(_assigned_data)), (1, 11), (2, 1)),
]


@needs_native
@pytest.mark.parametrize(
    ("name", "text", "call"),
    [
        pytest.param(name, text, call, id=f"{name}-{text}")
        for name, text, call, since, until in TEXTS
        if since <= refused.TORCH and (until is None or refused.TORCH < until)
    ],
)
def test_a_row_knows_each_of_its_texts(name, text, call):
    with tfc.use_fallback("error"), pytest.raises(RuntimeError) as caught:
        call()
    row = refusal(caught.value)
    assert row is not None and row.name == name and text in str(caught.value)
    with tfc.use_fallback("silent"):
        call()


@needs_native
@pytest.mark.skipif(refused.TORCH < (2, 6), reason="torch has no Function in C++ that can be called from here")
def test_a_function_in_cpp_is_refused_as_one_in_python():
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        group = distributed.group.WORLD.group_name
        exchange = torch.ops._c10d_functional_autograd.all_to_all_single
        with tfc.use_fallback("error"), pytest.raises(RuntimeError) as caught:
            tfc.vmap(tfc.jacrev(lambda x: exchange(x, [4], [4], group)))(X[None])
    finally:
        distributed.destroy_process_group()
    row = refusal(caught.value)
    assert row is not None and row.name == "legacy_function"


# --- the other ways by which an error is known ---------------------------------------------------------------------


class NotPositive(Exception):
    """An error of the user's."""


def _raise(error):
    raise error


def _answers(func, catch=RuntimeError):
    """`func`, which answers torch's error with one of its own."""

    def wrapper(x):
        try:
            return func(x)
        except catch:
            raise NotPositive("not positive") from None

    return wrapper


@needs_native
@pytest.mark.parametrize("func", [refused.branch, refused.item, refused.numpy], ids=lambda f: f.__name__)
def test_a_refusal_that_the_function_answered_with_its_own_error(func):
    with tfc.use_fallback("silent"):
        assert_close(tfc.vmap(_answers(func))(BATCH), torch.stack([func(x) for x in BATCH]))


def test_a_refusal_that_was_handled_around_the_call_is_not_of_the_call():
    calls = []

    def fails(x):
        calls.append(None)
        raise NotPositive("not positive")

    def refusal_of_torch():
        with tfc.use_fallback("error"):
            tfc.vmap(refused.branch)(BATCH)

    try:
        refusal_of_torch() if NATIVE else _raise(RuntimeError("data-dependent control flow"))
    except RuntimeError:
        with pytest.raises(NotPositive):
            tfc.vmap(fails)(BATCH)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "text", ["vmap: NYI", "this is not implemented", "x INTERNAL ASSERT FAILED, please report a bug", "calling .item()"]
)
def test_the_words_of_torch_in_the_users_mouth_are_the_users(text):
    calls = []

    def func(x):
        calls.append(None)
        raise RuntimeError(text)

    with pytest.raises(RuntimeError, match="^" + text.replace(".", "[.]").replace("()", "[(][)]")):
        tfc.vmap(func)(BATCH)
    assert len(calls) == 1


def _fails_when_mapped(kind):
    """A function on which compiled code raises an error of any type under vmap, and none for a sample."""

    def func(x):
        if type(x.detach()) is torch.Tensor and repr(x).startswith("BatchedTensor"):
            {IndexError: lambda: [][0], TypeError: lambda: len(None), KeyError: lambda: {}[0]}[kind]()
        return x * 2

    return func


@needs_native
@pytest.mark.parametrize("kind", [IndexError, TypeError, KeyError])
def test_what_no_sample_raises_is_a_refusal(kind):
    mapped = tfc.vmap(_fails_when_mapped(kind))
    if refused.TORCH < (2, 0):
        pytest.skip("tensors do not tell that they are batched")
    with tfc.use_fallback("silent"):
        assert_close(mapped(BATCH), 2 * BATCH)
    assert "no sample raises by itself" in tfc.explain(mapped)


def test_what_a_sample_raises_too_is_raised_as_it_was():
    def func(x):
        return x.reshape(3, 3)

    for transformed in (tfc.vmap(func), tfc.vmap(tfc.jacrev(func)), tfc.jacfwd(func)):
        with pytest.raises(RuntimeError, match=r"invalid for input of size \d+") as caught:
            transformed(BATCH)
        assert caught.value.__context__ is None


MATRICES = BATCH[:, :3, None] * BATCH[:, None, :3] + 3 * torch.eye(3, dtype=X.dtype)
SIDES = BATCH[:, :3].t().contiguous()


def _symmetric(x):
    """A matrix by its six numbers, two of which belong to each entry beside the diagonal."""
    matrix = torch.zeros(3, 3, dtype=x.dtype)
    rows, columns = torch.tensor([[0, 0, 1], [1, 2, 2]])
    matrix[rows, columns] = x[:3]
    return (matrix + matrix.t()) @ x[1:]


KINDS = {
    # writes into what was made inside
    "index_put": (_symmetric, BATCH),
    "index_add": (lambda x: torch.zeros(3, dtype=x.dtype).index_add_(0, torch.tensor([0, 2, 0, 1]), x) ** 3, BATCH),
    "index_copy": (lambda x: torch.zeros(5, dtype=x.dtype).index_copy_(0, torch.tensor([4, 2, 0, 1]), x) ** 3, BATCH),
    "scatter_add": (
        lambda x: torch.zeros(3, dtype=x.dtype).scatter_add_(0, torch.tensor([0, 2, 0, 1]), x) ** 3,
        BATCH,
    ),
    "masked_scatter": (
        lambda x: torch.zeros(5, dtype=x.dtype).masked_scatter_(torch.tensor([1, 0, 1, 1, 1]).bool(), x) ** 3,
        BATCH,
    ),
    "addcmul": (lambda x: torch.ones(4, dtype=x.dtype).addcmul_(x, x), BATCH),
    "baddbmm": (
        lambda x: torch.ones(2, 2, 2, dtype=x.dtype).baddbmm_(
            x.reshape(1, 2, 2).expand(2, 2, 2), torch.ones(2, 2, 2).to(x)
        ),
        BATCH,
    ),
    "copy of a part": (lambda x: torch.zeros(2, 4, dtype=x.dtype).select(0, 1).copy_(x) ** 2, BATCH),
    # memory formats
    "channels_last": (refused.channels_last, BATCH),
    "to channels_last": (lambda x: x.reshape(1, 1, 2, 2).to(memory_format=torch.channels_last).sin(), BATCH),
    "is_contiguous": (
        lambda x: x.sin() if x.reshape(1, 1, 2, 2).is_contiguous(memory_format=torch.channels_last) else x.cos(),
        BATCH,
    ),
    # sizes by values
    "repeat_interleave": (lambda x: x.repeat_interleave((2 * x).round().detach().long()).sum(), BATCH),
    # others
    "inference_mode": (refused.inference_mode, BATCH),
    "new_tensor": (lambda x: x * x.new_tensor([1.0, 2.0, 3.0, 4.0]), BATCH),
    "index_select": (lambda x: x.reshape(2, 2).index_select(-1, torch.tensor([0, 0, 1])) ** 2, BATCH),
    "searchsorted": (lambda x: torch.searchsorted(x.sort()[0], x.detach().mean()) * x, BATCH),
    "cholesky_solve": (lambda a: torch.cholesky_solve(SIDES, a.tril()), MATRICES),
    "real into complex": (lambda x: _into_complex(x).abs(), BATCH),
}
if refused.TORCH >= (1, 13):
    KINDS["scatter_strided"] = (refused.scatter_strided, BATCH)
if refused.TORCH >= (1, 11):
    KINDS["householder_product"] = (lambda a: torch.linalg.householder_product(a.tril(), SIDES[0]), MATRICES)
if refused.TORCH >= (1, 11):  # torch 1.10 has no backward of a product with one
    CSR = torch.diag(X).to_sparse_csr()
    KINDS["sparse CSR"] = (lambda x: (CSR @ x[:, None])[:, 0] ** 2, BATCH)
if refused.TORCH >= (2, 0):
    CSC = torch.diag(X).to_sparse_csc()
    KINDS["sparse CSC"] = (lambda x: (CSC @ x[:, None])[:, 0] ** 2, BATCH)
if refused.TORCH >= (2, 15):
    KINDS["singular"] = (lambda a: torch.det(a * torch.tensor([1.0, 1.0, 0.0], dtype=a.dtype)) + a.sum(), MATRICES)
if refused.TORCH >= (2, 6):
    KINDS["cond"] = (lambda x: torch.cond(x.sum() > 3, lambda y: y.sin(), lambda y: y.cos(), (x,)), BATCH)


def _into_complex(x):
    z = torch.ones(4, dtype=torch.complex128)
    z[1:3] = x[1:3]
    return z * (1 + 2j)


def _rows(func, x):
    """The Jacobian by differences of the fourth order."""

    def at(k, step):
        moved = x.clone().reshape(-1)
        moved[k] += step
        return func(moved.reshape(x.shape)).detach().reshape(-1)

    columns = [(8 * (at(k, 1e-4) - at(k, -1e-4)) - at(k, 2e-4) + at(k, -2e-4)) / 12e-4 for k in range(x.numel())]
    return torch.stack(columns, -1)


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_refusals(backend, name):
    func, batch = KINDS[name]
    values = torch.stack([func(x) for x in batch])
    slopes = torch.stack([_rows(func, x) for x in batch])
    with tfc.use_fallback("silent"):
        assert_close(tfc.vmap(func)(batch), values)
        for derivative in (tfc.jacrev, tfc.jacfwd):
            found = [derivative(func)(x) for x in batch]
            for rows in (torch.stack(found), tfc.vmap(derivative(func))(batch)):
                assert torch.allclose(rows.reshape(slopes.shape), slopes, rtol=1e-6, atol=1e-8), derivative


# --- what is around a call -----------------------------------------------------------------------------------------


@pytest.mark.skipif("refused.TORCH < (1, 10)", reason="there is no autocast on CPUs")
def test_autocast_casts_as_for_a_sample(backend):
    weight, bias = torch.full((2, 4), 0.3), torch.ones(2)
    batch = BATCH.float()
    programs = {
        "linear": lambda x: torch.nn.functional.linear(x, weight, bias),
        "convolution": lambda x: torch.conv1d(x[None, None], weight[:1, None, :2])[0, 0],
        "dot": lambda x: torch.dot(x, x),
        "matmul": lambda x: weight @ x,
    }

    def inside(func):
        def wrapper(x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return func(x)

        return wrapper

    for name, func in programs.items():
        one = inside(func)
        expected = torch.stack([one(x) for x in batch])
        mapped = tfc.vmap(func)
        with tfc.use_fallback("silent"):
            found = tfc.vmap(one)(batch)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                around = mapped(batch)
        assert found.dtype == around.dtype == expected.dtype, name
        # The sums of a batch and of a sample may differ in their last bits.
        assert torch.allclose(found, expected, rtol=1e-5) and torch.equal(around, expected), name
        # autocast is no property of the function
        assert "refused" not in tfc.explain(mapped)
        assert mapped(batch).dtype == torch.float32
        with tfc.use_fallback("silent"):
            slope = tfc.vmap(tfc.grad(lambda x, one=one: one(x).float().sum()))(batch)
        rows = torch.stack([tfc.grad(lambda x, one=one: one(x).float().sum())(x) for x in batch])
        assert torch.allclose(slope, rows, rtol=1e-5), name


@pytest.mark.skipif("refused.TORCH < (1, 10)", reason="there is no autocast on CPUs")
def test_autocast_that_is_switched_off_is_no_refusal(backend):
    def func(x):
        with torch.autocast("cpu", enabled=False):
            return x.sin()

    with tfc.use_fallback("error"):
        assert_close(tfc.vmap(func)(BATCH), BATCH.sin())


ANGLES = X[:3].clone()
PLANE = X[1:3]


def _turned(angle):
    return torch.stack(
        [angle.cos() * PLANE[0] - angle.sin() * PLANE[1], angle.sin() * PLANE[0] + angle.cos() * PLANE[1]]
    )


def _as(x, y):
    return y.as_subclass(type(x))


SUBCLASSED = {
    "vmap": lambda f, x: tfc.vmap(f)(x),
    "vmap of jacrev": lambda f, x: tfc.vmap(tfc.jacrev(f))(x),
    "vmap of jacfwd": lambda f, x: tfc.vmap(tfc.jacfwd(f))(x),
    "vmap of hessian": lambda f, x: tfc.vmap(tfc.hessian(f))(x),
    "vmap of a tuple": lambda f, x: tfc.vmap(lambda pair: f(pair[0]))((x, ANGLES)),
    "grad": lambda f, x: tfc.grad(lambda y: f(y).sum())(x[1]),
    "jacrev": lambda f, x: tfc.jacrev(f)(x[1]),
    "jacfwd": lambda f, x: tfc.jacfwd(f)(x[1]),
    "jvp": lambda f, x: tfc.jvp(f, (x[1],), (x[1],))[1],
    "vjp": lambda f, x: tfc.vjp(f, x[1])[1](torch.ones_like(f(x[1])))[0],
    "hessian": lambda f, x: tfc.hessian(f)(x[1]),
    "made within a map": lambda f, x: tfc.vmap(lambda y: tfc.grad(lambda z: f(z).sum())(y.as_subclass(type(x))))(
        ANGLES
    ),
}


@pytest.mark.parametrize("name", SUBCLASSED)
def test_subclasses_reach_the_function_as_they_came(backend, name):
    seen = []

    def act(angle):
        seen.append(type(angle))
        return angle.act(PLANE)

    with tfc.use_fallback("silent"):
        found = SUBCLASSED[name](act, ANGLES.as_subclass(refused.Angle))
    assert_close(found.as_subclass(torch.Tensor), SUBCLASSED[name](_turned, ANGLES))
    assert seen[-1] is refused.Angle


@pytest.mark.parametrize("name", [name for name in SUBCLASSED if name != "made within a map"])
def test_attributes_of_subclasses_reach_the_function(backend, name):
    """A plain tensor, or one without its attribute, would give another result or an error."""

    class Indexed(refused.Scaled):
        def __getitem__(self, index):  # in the programs above; torch keeps the class and not the attribute
            return refused.scaled(self.as_subclass(torch.Tensor)[index])

    indexed = ANGLES.as_subclass(Indexed)
    indexed.scale = 3.0
    with tfc.use_fallback("silent"):
        found = SUBCLASSED[name](torch.sin, indexed)
    assert_close(found.as_subclass(torch.Tensor), SUBCLASSED[name](lambda x: 3 * torch.sin(x), ANGLES))


HOOKS = ["full", "legacy"] + (["before"] if refused.TORCH >= (2, 0) else [])


@pytest.mark.parametrize("kind", HOOKS)
def test_backward_hooks_of_modules_run(backend, kind):
    layer = torch.nn.Linear(4, 2).double()

    def twice(gradients):
        return tuple(None if gradient is None else 2 * gradient for gradient in gradients)

    if kind == "full":
        layer.register_full_backward_hook(lambda module, inputs, outputs: twice(inputs))
    elif kind == "before":
        layer.register_full_backward_pre_hook(lambda module, outputs: twice(outputs))
    else:
        layer.register_backward_hook(lambda module, inputs, outputs: twice(inputs))

    def gradient(func):
        x = BATCH.clone().requires_grad_()
        return torch.autograd.grad(func(x).sin().sum(), x)[0]

    expected = gradient(lambda x: torch.stack([layer(one) for one in x]))
    with tfc.use_fallback("silent"):
        assert_close(gradient(lambda x: tfc.vmap(layer)(x)), expected)
        if kind != "legacy":  # of which torch says that it may see any part of a gradient
            assert_close(tfc.vmap(tfc.grad(lambda x: layer(x).sin().sum()))(BATCH), expected)
    with torch.no_grad(), tfc.use_fallback("error"):  # there is no backward pass
        assert_close(tfc.vmap(layer)(BATCH), layer(BATCH))


@needs_native
@pytest.mark.parametrize("name", ["layer_norm", "group_norm"])
def test_hessians_of_normalisations_within_the_librarys_own_vmap(name):
    normalised = {
        "layer_norm": lambda x: torch.nn.functional.layer_norm(x, (4,)),
        "group_norm": lambda x: torch.nn.functional.group_norm(x[None], 2)[0],
    }[name]
    func = lambda x: (normalised(x) ** 3).sum()
    expected = torch.stack([_rows(lambda y: tfc.grad(func)(y), x) for x in BATCH])
    found = tfc.autograd.internals.fvmap(tfc.hessian(func))(BATCH)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


class Branch(torch.nn.Sequential):
    def forward(self, x):
        return super().forward(x) if x.sum() > -9 else x


@needs_native
@pytest.mark.filterwarnings("always")
def test_warnings_name_what_happened(recwarn):
    def said(call):
        recwarn.clear()
        call()
        return [str(w.message) for w in recwarn if issubclass(w.category, tfc.FallbackWarning)]

    network = Branch(*[torch.nn.Linear(4, 4).double() for _ in range(30)])
    (text,) = said(_vmap(network))
    assert "vmap of `Branch` is computed" in text and "\n" not in text
    layer = torch.nn.PReLU(4).double()
    texts = said(lambda: tfc.vmap(tfc.grad(lambda x: layer(x[None]).pow(2).sum()))(BATCH))
    assert not any("cdist" in text for text in texts)
    points = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    assert said(lambda: tfc.batch_laplacian(lambda x: points(x))(BATCH)) == []


def test_an_error_of_the_library_is_no_refusal_whatever_led_to_it():
    """It answers a refusal of torch's by itself, and says what to do."""
    try:
        try:
            raise RuntimeError("Batching rule not implemented for aten::sin")
        except RuntimeError:
            tfc.use_fallback("never").__enter__()
    except ValueError as error:
        assert error.__context__ is not None and refusal(error) is None


@needs_native
def test_functions_of_one_code_are_told_of_apart():
    """The ``apply`` of all Functions is one method, and a memory of refusals must not take one for another."""
    with tfc.use_fallback("warn"):
        for function in (type(name, (refused.Once,), {}) for name in ("One", "Other")):
            with pytest.warns(tfc.FallbackWarning):
                tfc.jacfwd(function.apply)(X)


@needs_native
@pytest.mark.parametrize(
    "text",
    [
        *("NYI: this part", "Please file a bug", "please report a bug", "please file a github issue"),
        *("Feel free to file a github issue", "this is not implemented", "it is not yet implemented"),
    ],
)
def test_words_of_torchs_internals_are_refusals_that_a_function_may_answer(text):
    def func(x):
        try:
            torch._assert(not is_batched(x), text)
        except AssertionError as error:
            raise ValueError("this part failed") from error
        return x.sin()

    with tfc.use_fallback("silent"):
        assert_close(tfc.vmap(func)(X[None]), X[None].sin())
