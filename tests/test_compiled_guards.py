"""Under torch.compile: what torch gets wrong or cannot trace breaks the graph, and is answered as without compile."""

from __future__ import annotations

import logging

import pytest
import torch
from support import compiling, refused
from support.processes import run_python
from support.tolerances import assert_close
from torch.nn import functional as F

import torch_func_compat as tfc
from torch_func_compat._guards.wrong_answers import MistakenRule
from torch_func_compat._torch import facts
from torch_func_compat._torch.compiling import functions_traced

pytestmark = [
    pytest.mark.skipif(not hasattr(torch, "compile"), reason="there is no torch.compile"),
    pytest.mark.skipif(not facts.has("compiled_transforms"), reason="transforms are not traced"),
    pytest.mark.filterwarnings("ignore"),
]

if facts.has("torch_func"):
    from torch_func_compat._guards import while_tracing

X = torch.linspace(0.1, 1.0, 4, dtype=torch.float64)
BATCH = torch.stack([X, 2 * X, X - 0.05])
POINTS, OTHERS = BATCH[:, :2], BATCH[:, 2:].cos()
MATRIX = torch.outer(X[:2], X[:2]) + torch.eye(2, dtype=X.dtype)
SINGULAR = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=X.dtype))


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
    assert torch.is_grad_enabled()


def compiled(func, **options):
    return compiling.compiled(func, backend="aot_eager", **options)


def rows_of_norm(x):
    return F.layer_norm(torch.outer(X, x).cos(), (4,), x).reshape(-1)


def cubes(x):
    return (F.layer_norm(x, (4,)) ** 3).sum()


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(4).double().requires_grad_(False)

    def forward(self, x):
        return (self.norm(x) ** 3).sum()


class Sevenfold(torch.autograd.Function):
    """x ** 2 with 7 x for its derivative, which is not that of its forward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return 7 * grad * ctx.saved_tensors[0]


class LegacySevenfold(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    backward = Sevenfold.backward


class Reversed(torch.autograd.Function):
    """Without an operation in its forward."""

    @staticmethod
    def forward(x):
        return x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return -grad


class LegacyReversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    backward = Reversed.backward


def of_function(cls):
    name = f"of {cls.__name__}"
    return {
        f"grad {name}": (tfc.grad(lambda x: cls.apply(x).sum()), X),
        f"vmap of jacrev {name}": (tfc.vmap(tfc.jacrev(cls.apply)), BATCH),
        f"vmap of grad {name}": (tfc.vmap(tfc.grad(lambda x: cls.apply(x).sum())), BATCH),
        f"jacfwd {name}": (tfc.jacfwd(cls.apply), X),
        f"hessian {name}": (tfc.hessian(lambda x: cls.apply(x * x).sum()), X),
    }


NET = Net()
WRONG = {
    "jacrev of cdist": (tfc.jacrev(lambda x: torch.cdist(x, OTHERS)), POINTS),
    "jacrev of cdist by its aten name": (
        tfc.jacrev(lambda x: torch.ops.aten._cdist_forward(x, OTHERS, 2.0, None)),
        POINTS,
    ),
    "grad of jacrev of layer_norm": (tfc.grad(lambda x: (tfc.jacrev(rows_of_norm)(x) ** 3).sum()), X),
    "hessian of rows of layer_norm": (tfc.hessian(rows_of_norm), X),
    "jacfwd(jacfwd) of layer_norm": (tfc.jacfwd(tfc.jacfwd(cubes)), X),
    "jacfwd of linearize of layer_norm": (tfc.jacfwd(lambda x: tfc.linearize(cubes, x)[1](x)), X),
    "vmap(jacfwd(jacfwd)) of layer_norm": (tfc.vmap(tfc.jacfwd(tfc.jacfwd(cubes))), BATCH),
    "jacrev(jacfwd) of a module": (tfc.jacrev(tfc.jacfwd(NET)), X),
    "jacfwd of cholesky_inverse": (tfc.jacfwd(lambda x: torch.cholesky_inverse(x.tril())), MATRIX),
    "jacfwd of det": (tfc.jacfwd(torch.det), SINGULAR),
    "vmap of roll": (tfc.vmap(lambda x: x.roll(1)), BATCH),
    **of_function(Sevenfold),
    **of_function(LegacySevenfold),
    **of_function(Reversed),
    **of_function(LegacyReversed),
}
if refused.TORCH >= (2, 5):
    WRONG["jvp of a registered operator"] = (lambda x: tfc.jvp(refused.library_operator, (x,), (x,))[1], X)
UNTRACED = {
    "branch": (tfc.vmap(refused.branch), BATCH),
    "item": (tfc.vmap(refused.item), BATCH),
    "numpy": (tfc.grad(lambda x: refused.numpy(x).sum()), X),
    "gradients of a branch": (tfc.vmap(tfc.grad(lambda x: refused.branch(x).sum())), BATCH),
    "vjp": (lambda x: tfc.vjp(refused.numpy, x)[1](x)[0], X),
}


@pytest.mark.parametrize("where", ["around", "within"])
@pytest.mark.parametrize("name", [*WRONG, *UNTRACED])
def test_the_graph_breaks(name, where):
    func, x = {**WRONG, **UNTRACED}[name]
    expected = func(x)
    if where == "within":
        inner = func
        func, expected = (lambda x: inner(x * 2 / 2) + 1), expected + 1
    run = compiled(func)
    for _ in range(2):
        assert_close(run(x), expected)


@pytest.mark.parametrize("name", WRONG)
def test_without_a_break_it_raises(name):
    func, x = WRONG[name]
    with pytest.raises(Exception, match=r"may get \S+ wrong|Observed exception"):
        compiled(func, fullgraph=True)(x)


def test_the_backward_of_a_function_is_taken():
    """As in eager mode, where the other tests compare with it."""
    for cls in (Sevenfold, LegacySevenfold):
        assert_close(compiled(tfc.grad(lambda x, cls=cls: cls.apply(x).sum()))(X), 7 * X)
        assert_close(compiled(tfc.hessian(lambda x, cls=cls: cls.apply(x).sum()))(X), 7 * torch.eye(4, dtype=X.dtype))
    for cls in (Reversed, LegacyReversed):
        assert_close(compiled(tfc.jacfwd(cls.apply))(X), -torch.eye(4, dtype=X.dtype))


ATEN = torch.ops.aten
REGULAR = MATRIX + 2 * torch.eye(len(MATRIX), dtype=MATRIX.dtype)
# What the guards know by name in a transform of each kind, within as many derivatives.
NAMED = {
    "vmap": {
        "roll": lambda: X.roll(1),
        "resize_": lambda: X.clone().resize_(2, 2),
        "resize_as_": lambda: X.clone().resize_as_(X[:2]),
    },
    "reverse": {
        "cdist": lambda: torch.cdist(BATCH, BATCH),
        "_cdist_forward": lambda: ATEN._cdist_forward(BATCH, BATCH, 2.0, None),
        "prelu": lambda: torch.nn.functional.prelu(X, X[:1]),
        "_prelu_kernel": lambda: ATEN._prelu_kernel(X, X[:1]),
    },
    "forward": {
        "det": lambda: torch.det(REGULAR),
        "logdet": lambda: torch.logdet(REGULAR),
        "slogdet": lambda: torch.slogdet(REGULAR),
        "linalg_det": lambda: torch.linalg.det(REGULAR),
        "linalg_slogdet": lambda: torch.linalg.slogdet(REGULAR),
        "_linalg_det": lambda: ATEN._linalg_det(REGULAR),
        "_linalg_slogdet": lambda: ATEN._linalg_slogdet(REGULAR),
        "linalg_solve": lambda: torch.linalg.solve(REGULAR, REGULAR),
        "linalg_solve_ex": lambda: torch.linalg.solve_ex(REGULAR, REGULAR),
        "linalg_tensorsolve": lambda: torch.linalg.tensorsolve(REGULAR, REGULAR[0]),
        "_linalg_solve_ex": lambda: ATEN._linalg_solve_ex(REGULAR, REGULAR),
        "cholesky_solve": lambda: torch.cholesky_solve(REGULAR, REGULAR),
        "triangular_solve": lambda: torch.triangular_solve(REGULAR, REGULAR),
        "cholesky_inverse": lambda: torch.cholesky_inverse(REGULAR),
        "scatter_reduce": lambda: X.scatter_reduce(0, torch.tensor([0]), X, "prod"),
        "scatter_reduce_": lambda: X.clone().scatter_reduce_(0, torch.tensor([0]), X, "prod"),
        "pow": lambda: X**1j,
        "__rpow__": lambda: X.__rpow__(1j),
        "float_power": lambda: torch.float_power(X, 1j),
        "native_layer_norm": lambda: ATEN.native_layer_norm(X, [4], None, None, 1e-5),
        "native_batch_norm": lambda: ATEN.native_batch_norm(BATCH, None, None, None, None, True, 0.1, 1e-5),
        "_weight_norm_interface": lambda: ATEN._weight_norm_interface(BATCH, X[:3, None]),
    },
    "forward within another derivative": {
        "linalg_householder_product": lambda: torch.linalg.householder_product(REGULAR, REGULAR[0]),
        "linalg_eigh": lambda: torch.linalg.eigh(REGULAR),
        "_linalg_eigh": lambda: ATEN._linalg_eigh(REGULAR),
        "linalg_eig": lambda: torch.linalg.eig(REGULAR),
        "_native_batch_norm_legit": lambda: ATEN._native_batch_norm_legit(
            BATCH, None, None, X.clone(), X.clone(), True, 0.1, 1e-5
        ),
    },
}
if facts.TORCH >= (2, 4):
    NAMED["forward within another derivative"]["_batch_norm_with_update"] = lambda: ATEN._batch_norm_with_update(
        BATCH, None, None, X.clone(), X.clone(), 0.1, 1e-5
    )


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in NAMED for name in NAMED[kind]])
def test_operations_are_known_by_each_of_their_names(kind, name):
    """The names that functions and operators have in a TorchFunctionMode, where nothing is compiled."""

    def watched(x):
        watch = while_tracing.watched(NAMED[kind][name], kind.split()[0])
        with pytest.raises(MistakenRule, match=rf"may get {name} wrong"):
            watch()
        return x

    if kind.endswith("derivative"):
        torch.func.jvp(watched, (X,), (X,))
    else:
        watched(X)


RIGHT = {
    "gradients of samples through layer_norm": (tfc.vmap(tfc.grad(NET)), BATCH),
    "hessian of layer_norm": (tfc.hessian(cubes), X),
    "rows of layer_norm": (tfc.jacrev(rows_of_norm), X),
    "jacfwd of a power": (tfc.jacfwd(lambda x: x**3), X),
    "jacrev": (tfc.jacrev(lambda x: torch.tanh(x) @ BATCH.t()), X),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_stays_in_one_graph(name):
    func, x = RIGHT[name]
    assert_close(compiled(func, fullgraph=True)(x), func(x))


def test_after_a_refused_compile_everything_is_as_before():
    broken = tfc.vmap(tfc.grad(lambda x: refused.branch(x).sum()))
    with pytest.raises(Exception, match=r"."):
        compiled(broken, fullgraph=True)(BATCH)
    assert_close(compiled(tfc.jacfwd(lambda x: x.tril() @ x))(MATRIX), tfc.jacfwd(lambda x: x.tril() @ x)(MATRIX))
    assert torch.is_grad_enabled()


FAILED_TRACE = """
import torch
import torch_func_compat as tfc
x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
hessians = lambda x: tfc.vmap(tfc.hessian(lambda x: torch.nn.functional.layer_norm(x**2, (4,))))(x)
expected = hessians(x)
try:
    found = torch.compile(hessians, backend="eager")(x)
except torch._dynamo.exc.TorchRuntimeError:  # torch 2.6 to 2.13 at least
    found = expected
assert torch.allclose(found, expected)
"""


def test_a_trace_that_fails_within_an_operation():
    """Torch then runs the code in place of the graph with its dispatcher as the error left it.

    In a process of its own: once torch's error is collected as garbage, nothing requires grad any more there.
    """
    process = run_python("-W", "ignore", "-c", FAILED_TRACE)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    "transform", [tfc.vmap(tfc.grad(NET)), tfc.vmap(tfc.jacfwd(cubes)), tfc.vmap(tfc.hessian(NET)), tfc.vmap(NET)]
)
def test_where_the_levels_of_torch_func_are_hidden(transform):
    expected = transform(BATCH)
    keys = torch._C.DispatchKey
    hidden = torch._C._dispatch_tls_local_exclude_set()
    for name in [*(key for key in dir(keys) if key.startswith("FuncTorch")), "AutogradFunctionality"]:
        hidden |= torch._C.DispatchKeySet(getattr(keys, name))
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), hidden):
        found = transform(BATCH)
        product = tfc.vmap(lambda x: x @ x)(torch.ones(2, 2, 2))
    assert_close(found, expected)
    assert product.dtype == torch.float32  # autocast stays off


def test_a_tracer_that_is_not_known_breaks_the_graph():
    """It could have traced a Function."""
    scope = {"__name__": "torch._dynamo.symbolic_convert", "ask": functions_traced}
    exec("def traced(): return ask()", scope)
    assert scope["traced"]() is None
    assert functions_traced() == 0
