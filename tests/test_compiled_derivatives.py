"""torch.compile(fullgraph=True) over the transforms that torch.func does not have."""

import pytest
import torch
from support.compiling import compiled
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat._torch import facts

if hasattr(torch, "compile"):
    from torch.utils._python_dispatch import TorchDispatchMode
else:
    TorchDispatchMode = object

pytestmark = pytest.mark.skipif(not hasattr(torch, "compile"), reason="there is no torch.compile")
traced = pytest.mark.skipif(not facts.has("compiled_transforms"), reason="torch.compile traces transforms from 2.6 on")

W = torch.linspace(-1.0, 1.0, 16, dtype=torch.float64).reshape(4, 4)
X = torch.linspace(0.2, 0.8, 4, dtype=torch.float64)
XS = torch.stack([X, X.flip(0), -X])


def scalar(x):
    return (x @ W).tanh().sum()


def vector(x):
    return (x @ W).tanh()


def wide(x):
    return x[:1].repeat(9) * x.sum()


def product(a, b):
    return (a * b).sin()


CASES = {
    "jacobian": lambda x: tfc.jacobian(vector)(x),
    "jacobian forward": lambda x: tfc.jacobian(wide)(x),
    "jacobian aux": lambda x: tfc.jacobian(lambda x: (vector(x), x), has_aux=True)(x),
    "jacfwd negative": lambda x: tfc.jacfwd(lambda a, b: a * b**2, argnums=-1)(X, x),
    "hessian negative": lambda x: tfc.hessian(lambda a, b: (a * b**3).sum(), argnums=-1, mode="forward-reverse")(X, x),
    "vmap out_dims": lambda x: tfc.vmap(vector, in_dims=(1,), out_dims=1)(XS.t() * x[0]),
    "jacrev chunks": lambda x: tfc.jacrev(vector, chunk_size=2)(x),
    "hessian": lambda x: tfc.hessian(scalar)(x),
    "hessian vector": lambda x: tfc.hessian(vector)(x),
    "hessian keywords": lambda x: tfc.hessian(lambda x, *, s: s * scalar(x))(x, s=2.0),
    "vmap hessian": lambda x: tfc.vmap(tfc.hessian(scalar))(XS * x),
    "vmap hessian vector": lambda x: tfc.vmap(tfc.hessian(vector))(XS * x),
    # torch cannot trace forward mode under a vmap where the function has a Python number
    "vmap jacfwd number": lambda x: tfc.vmap(tfc.jacfwd(lambda x: 2 * x * x.sum()))(XS * x),
    "vmap hessian number": lambda x: tfc.vmap(tfc.hessian(lambda x: (x * 2 * x.exp()).sum()))(XS * x),
    "vmap jvp number": lambda x: tfc.vmap(lambda x: tfc.jvp(lambda x: (3 * x).sin() * x[0], (x,), (X,))[1])(XS * x),
    "jacfwd jacfwd number": lambda x: tfc.jacfwd(tfc.jacfwd(lambda x: 2 * x**3))(x),
    "vmap jacfwd aux": lambda x: tfc.vmap(tfc.jacfwd(lambda x: (2 * x, x.sum()), has_aux=True))(XS * x),
    "vmap chunks": lambda x: tfc.vmap(scalar, chunk_size=2)(XS * x),
    "value_and_jacobian": lambda x: tfc.value_and_jacobian(vector)(x),
    "value_grad_and_hessian": lambda x: tfc.value_grad_and_hessian(scalar)(x),
    "hvp": lambda x: tfc.hvp(scalar, (x,), (X,)),
    "vhp": lambda x: tfc.vhp(scalar, (x,), (X,)),
    "vjp": lambda x: tfc.vjp(vector, x)[1](X),
    "jvp": lambda x: tfc.jvp(vector, (x,), (X,)),
    "linearize": lambda x: tfc.linearize(vector, x)[1](X),
    "hessian_diagonal": lambda x: tfc.hessian_diagonal(product, argnums=1)(x, X),
    "laplacian": lambda x: tfc.laplacian(lambda x: (product(x, X), x), has_aux=True)(x),
    "batch_jacobian": lambda x: tfc.batch_jacobian(vector)(XS * x),
    "batch_jacobian forward": lambda x: tfc.batch_jacobian(lambda xs: xs.repeat(1, 2) ** 2, mode="forward")(XS * x),
    "batch_jacobian shared": lambda x: tfc.batch_jacobian(lambda a, b: product(a, b).t(), argnums=1, in_dims=(None, 1))(
        x[:, None], XS.t()
    ),
    "batch_hessian": lambda x: tfc.batch_hessian(lambda xs: vector(xs).sum(1))(XS * x),
    "batch_hessian vector": lambda x: tfc.batch_hessian(vector, chunk_size=2)(XS * x),
    "batch_hessian two": lambda x: tfc.batch_hessian(lambda a, b: product(a, b).sum(1), argnums=(0, 1))(XS * x, XS),
    "batch_hvp": lambda x: tfc.batch_hvp(lambda xs: vector(xs).sum(1), (XS * x,), (XS,)),
    "batch_hessian_diagonal": lambda x: tfc.batch_hessian_diagonal(lambda xs: (vector(xs), xs), has_aux=True)(XS * x),
    "batch_laplacian": lambda x: tfc.batch_laplacian(lambda xs: vector(xs).sum(1))(XS * x),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_compiled_is_eager(case):
    """In one graph where torch.compile traces transforms; before, as the documentation says, around them."""
    function, fullgraph = CASES[case], facts.has("compiled_transforms")
    assert_close(compiled(function, fullgraph=fullgraph, backend="aot_eager")(X), function(X))


@pytest.mark.slow
@pytest.mark.parametrize("operation", (lambda x: torch.quantile(x, 0.3), lambda x: torch.addr(W, x, X)))
def test_the_graph_breaks_around_forward_mode_that_cannot_be_traced(operation):
    function = lambda x: tfc.jacfwd(operation)(x)
    assert_close(compiled(function, backend="aot_eager")(X), tfc.jacrev(operation)(X))


def filled(x):
    made = torch.zeros(2, dtype=x.dtype)
    made[0] = x[0] * x[1]
    return made


def filled_by_a_method(x):
    return torch.ones(4, dtype=x.dtype).mul_(x)


def placed_apart(x):
    made = x.repeat(4, 2, 1).reshape(4, 2, 4).clone()
    where = torch.tensor([0, 1, 2])
    made[where, :, where] = torch.arange(6.0, dtype=x.dtype).reshape(3, 2)
    return made.reshape(-1)[:12] * x[0]


@pytest.mark.slow
@pytest.mark.parametrize("function", (filled, filled_by_a_method, placed_apart))
def test_the_graph_breaks_where_torch_does_not_write_what_is_mapped(function):
    mapped = tfc.vmap(tfc.jacrev(function))
    with tfc.use_fallback("silent"):
        assert_close(
            compiled(lambda x: mapped(x), backend="aot_eager")(XS), torch.stack([tfc.jacrev(function)(x) for x in XS])
        )


@traced
def test_it_does_not_where_they_are_not_mapped():
    function = lambda x: tfc.jacrev(filled)(x)
    assert_close(compiled(function, fullgraph=True, backend="aot_eager")(X), function(X))


@traced
def test_rows_and_aux_are_of_one_evaluation():
    def dropped(x):
        y = torch.nn.functional.dropout(x, 0.5, True) * x
        return y, y

    call = compiled(lambda x: tfc.jacrev(dropped, has_aux=True)(x), backend="aot_eager")
    for _ in range(4):
        jacobian, y = call(X.repeat(4))
        assert torch.equal(jacobian.diagonal() != 0, y != 0)


def multiplications(nodes):
    """In the products of two matrices among operations and the sizes of their operands."""
    return sum(left.numel() * right.shape[-1] for name, left, right in nodes if name == "mm")


class Products(TorchDispatchMode):
    """What is called within."""

    def __init__(self):
        super().__init__()
        self.nodes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._overloadpacket.__name__ == "mm":
            self.nodes.append(("mm", *args))
        return func(*args, **(kwargs or {}))


# Two layers 5 -> 6 -> 7 at 8 samples: the rows' own products are 8 times 7x6x5, and 7x7x6 for all samples together.
LAYERS = torch.ones(6, 5), torch.ones(7, 6)
SAMPLES = torch.linspace(0, 1, 40).reshape(8, 5)
AT_MOST = 8 * (5 * 6 + 6 * 7) + 7 * 7 * 6 + 8 * 7 * 6 * 5


def two_layers(x):
    return (x @ LAYERS[0].t()).tanh() @ LAYERS[1].t()


@pytest.mark.skipif("torch.func" not in tfc.available_backends(), reason="no torch.func")
def test_samples_share_the_unit_vectors_of_their_rows():
    """torch.func.vmap(torch.func.jacrev(f)) makes 4608 multiplications of these 2550."""
    transformed = tfc.vmap(tfc.jacrev(two_layers))
    transformed(SAMPLES)  # the first call multiplies more where its result is tested
    with Products() as products:
        transformed(SAMPLES)
    assert 0 < multiplications(products.nodes) <= AT_MOST


@traced
def test_so_they_do_compiled():
    # here, since each worker of pytest would spend six seconds on it at collection
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    nodes = []

    def counting(graph, inputs):
        for node in graph.graph.nodes:
            if node.op == "call_function" and node.target is torch.ops.aten.mm.default:
                nodes.append(("mm", *(operand.meta["val"] for operand in node.args)))
        return make_boxed_func(graph.forward)

    function = compiled(tfc.vmap(tfc.jacrev(two_layers)), fullgraph=True, backend=aot_autograd(fw_compiler=counting))
    with torch.no_grad():
        function(SAMPLES)
    assert 0 < multiplications(nodes) <= AT_MOST


@pytest.mark.parametrize(
    "call",
    [
        lambda x: tfc.vmap(tfc.grad(scalar))(x),
        lambda x: tfc.vjp(scalar, x[0])[1](x[1, 0])[0],
        lambda x: tfc.batch_hessian(lambda x: (x @ W).tanh().sum(1))(x),
    ],
    ids=["vmap(grad)", "vjp", "batch_hessian"],
)
def test_within_a_compiled_function(call):
    """Where torch.compile cannot trace it, the graph breaks, and the call is as it is."""
    assert_close(compiled(lambda x: call(2 * x) + 1, backend="eager")(XS), call(2 * XS) + 1)
