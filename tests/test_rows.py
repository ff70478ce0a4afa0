"""Rows that the autograd backend batches without a look at what comes out: each operation, on every torch."""

import pytest
import torch
from support.rows import by_rows
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat._backends.autograd import batched_vjp as _rows
from torch_func_compat._backends.autograd import graph as _graph
from torch_func_compat._guards.by_graph import nodes

F = torch.nn.functional
X = torch.linspace(0.2, 0.9, 6, dtype=torch.float64)
A = torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(6, 6)
B = torch.linspace(-1, 1, 72, dtype=torch.float64).reshape(2, 6, 6)
C = torch.tensor(0.7, dtype=torch.float64)

FUNCTIONS = {
    "Add": lambda x: (torch.add(x.reshape(2, 1, 3), x[:3], alpha=2) + x.sum() + C) ** 2,
    "Sub": lambda x: (1 - x.reshape(6, 1) - x) ** 2,
    "Mul": lambda x: x * x.reshape(6, 1) * x[0] * C,
    "Div": lambda x: x / x.sum() / x.reshape(6, 1) / C,
    "Neg": lambda x: -x * x,
    "Reciprocal": torch.reciprocal,
    "Pow": lambda x: x**3 + x**2.5 + x ** x.reshape(6, 1) + 2**x,
    "Sqrt": torch.sqrt,
    "Rsqrt": torch.rsqrt,
    "Exp": torch.exp,
    "Expm1": torch.expm1,
    "Log": torch.log,
    "Log1P": torch.log1p,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Atan": torch.atan,
    "Erf": torch.erf,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
    "Softplus": lambda x: F.softplus(4 * x, beta=1.5, threshold=3.0),
    "Relu": lambda x: F.relu(x - 0.5) ** 2,
    "Threshold": lambda x: F.threshold(x, 0.5, 0.1) ** 2,
    "Gelu": lambda x: F.gelu(3 * x - 1),
    "Silu": lambda x: F.silu(3 * x - 1),
    "Elu": lambda x: F.elu(x - 0.5, alpha=1.5),
    "LeakyRelu": lambda x: F.leaky_relu(x - 0.5) ** 2,
    "LogSigmoid": lambda x: F.logsigmoid(3 * x - 1),
    "Hardtanh": lambda x: F.hardtanh(2 * x) ** 2,
    "Clamp": lambda x: x.clamp(0.3, 0.7) ** 2 * x.clamp(min=0.3) * x.clamp(max=0.7),
    "Where": lambda x: torch.where(x > 0.5, x**2, x[:1].exp()),
    "MaskedFill": lambda x: (x * x).masked_fill(x > 0.5, 2.0) ** 2,
    "Maximum": lambda x: torch.maximum(x, A[0]) ** 2 * torch.minimum(x, 1 - x),
    "Mm": lambda x: A @ x.reshape(6, 1) @ x.reshape(1, 6) @ A.t(),
    "Mv": lambda x: A @ (A @ x) * x,
    "Dot": lambda x: x @ A @ x,
    "Bmm": lambda x: torch.bmm(B, x.reshape(2, 3, 1).expand(2, 3, 2).reshape(2, 6, 1)) ** 2,
    "matmul": lambda x: (B @ x) ** 2 + x @ B @ A,
    "Addmm": lambda x: F.linear(x.reshape(2, 3), A[:4, :3], x[:4]) ** 2,
    "linear": lambda x: F.linear(x.reshape(1, 2, 3), A[:4, :3], x[:4]) ** 2,
    "Sum": lambda x: (x.reshape(2, 3) ** 2).sum(1) * (x.reshape(2, 3) ** 3).sum((0, 1), keepdim=True),
    "Mean": lambda x: (x.reshape(2, 3) ** 2).mean(0) * (x**3).mean(),
    "T": lambda x: x.reshape(2, 3).t() * x.reshape(3, 2) ** 2,
    "Permute": lambda x: x.reshape(1, 2, 3).permute(2, 0, 1) ** 2,
    "Transpose": lambda x: x.reshape(1, 2, 3).transpose(0, -1) ** 2,
    "View": lambda x: x.view(3, 2).view(2, 1, 3) ** 2,
    "reshape": lambda x: x.reshape(2, 3).t().reshape(2, 3) ** 2,
    "Expand": lambda x: x.reshape(2, 1, 3).expand(4, 2, 5, 3) ** 2 * x[:1].expand(3),
    "Squeeze": lambda x: x[None].squeeze(0)[:, None].squeeze() ** 2 * x.reshape(6, 1).squeeze(-1),
    "Unsqueeze": lambda x: x.unsqueeze(0).unsqueeze(-1) ** 2,
    "Select": lambda x: x.reshape(2, 3).select(1, -1) ** 2 * x[3],
    "Slice": lambda x: x[1:5:2] ** 2 * x[-2:] * x.reshape(2, 3)[:, 1:2].reshape(2),
    "Stack": lambda x: torch.stack([x, x * x, x[0].expand(6)], -1) ** 2,
    "Cat": lambda x: torch.cat([x, x * x, x[:1]]) ** 2,
    "Clone": lambda x: x.clone() ** 2,
    "Split": lambda x: torch.cat(x.split(4)[::-1]) ** 2,
    "SplitWithSizes": lambda x: torch.cat(x.split([1, 3, 2])[::-1]) ** 2,
    "Unbind": lambda x: torch.stack(x.reshape(2, 3).unbind(1)[::-1]) ** 2,
    "network": lambda x: F.softplus(torch.tanh(x.reshape(2, 3) @ A[:3]) @ A).sum(-1),
}


@pytest.fixture
def autograd(monkeypatch):
    """The backend, and what it looked at."""
    looked = []
    monkeypatch.setattr(_rows, "_agrees", lambda *args: looked.append(args) or True)
    with tfc.use_backend("autograd"):
        yield looked


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_rows_are_those_of_a_loop(autograd, monkeypatch, name, dtype):
    for constant in ("A", "B", "C"):
        monkeypatch.setitem(globals(), constant, globals()[constant].to(dtype))
    func, x = FUNCTIONS[name], X.to(dtype)
    first = tfc.jacrev(func)(x)
    assert not autograd
    leaf = x.clone().requires_grad_()
    assert_close(first, by_rows(func)(leaf).detach())

    def scalar(x):
        output = func(x)
        return (output * torch.arange(1.0, output.numel() + 1).to(output).reshape(output.shape).sin()).sum()

    second = tfc.jacrev(tfc.jacrev(scalar))(x)
    assert_close(second, by_rows(by_rows(scalar))(leaf).detach())


def test_each_is_taken_through():
    found = set()
    for func in FUNCTIONS.values():
        leaf = X.clone().requires_grad_()
        output = func(leaf)
        gradient = torch.autograd.grad(output.sum(), leaf, create_graph=True)[0]
        for tensor in (output, gradient):
            found |= {type(node).__name__.rstrip("0123456789") for node in nodes([tensor.grad_fn])}
    kinds = {name[: -len("Backward")] if name.endswith("Backward") else name for name in found}
    missing = _graph.BATCHED_RIGHTLY - kinds
    of_some_torches = (
        "ReshapeAlias Rsub SelectBackward SliceBackward Threshold UnsafeView Relu SWhere Where ClampMin ClampMax "
        "GeluBackward SiluBackward MaskedFill"
    )
    assert missing <= set(of_some_torches.split())


def test_all_else_is_looked_at(autograd):
    class Tanh(torch.autograd.Function):  # the name of its node is that of torch's own
        @staticmethod
        def forward(ctx, x):
            return x.tanh()

        @staticmethod
        def backward(ctx, grad):
            return grad

    for func in (Tanh.apply, lambda x: x.cumsum(0), lambda x: F.layer_norm(x, (6,)), lambda x: x[torch.tensor([0, 2])]):
        tfc.jacrev(func)(X)
        assert autograd
        autograd.clear()
    tfc.jacrev(torch.tanh)(X)
    assert not autograd
