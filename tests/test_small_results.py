"""A wrong result that is tiny beside right ones does not hide from the tests of a first call."""

from __future__ import annotations

import pytest
import torch
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat._backends.autograd import batched_vjp
from torch_func_compat._guards import adjoint_test
from torch_func_compat._torch import facts

X = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
TINY = 1e-12


class Doubled(torch.autograd.Function):
    """The sine, whose backward takes its cotangent out of autograd's sight: its transpose is zero."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad.detach() * ctx.saved_tensors[0].cos()


@pytest.mark.parametrize("scale", [1.0, TINY, 1e-40])
def test_tangents_beside_large_ones(backend, scale):
    func = lambda x: (x.exp(), Doubled.apply(x) * scale)
    with tfc.use_fallback("silent"):
        assert_close(tfc.jvp(func, (X,), (X,))[1][1] / scale, X.cos() * X)
        assert_close(tfc.jacfwd(func)(X)[1] / scale, torch.diag(X.cos()))
        assert_close(tfc.linearize(func, X)[1](X)[1] / scale, X.cos() * X)


if facts.has("torch_func"):

    class WrongRule(torch.autograd.Function):
        """A cube whose rule for forward mode is wrong."""

        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x**3

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx, grad):
            return 3 * grad * ctx.saved_tensors[0] ** 2

        @staticmethod
        def jvp(ctx, tangent):
            return 2 * tangent * ctx.saved_tensors[0] ** 2

    @pytest.mark.parametrize("scale", [1.0, TINY, 1e-40])
    def test_tangents_of_a_library_beside_large_ones(backend, scale):
        func = lambda x: (x.exp(), WrongRule.apply(x) * scale)
        with tfc.use_fallback("silent"):
            assert_close(tfc.jvp(func, (X,), (X,))[1][1] / scale, 3 * X**3)
            assert_close(tfc.jacfwd(func)(X)[1] / scale, torch.diag(3 * X**2))
            assert_close(tfc.jacfwd(func, chunk_size=1)(X)[1] / scale, torch.diag(3 * X**2))
        # within a transform that the user has taken from torch.func, and where a Function has no transpose
        with pytest.raises(RuntimeError, match="forward mode is wrong"):
            torch.func.vmap(lambda x: tfc.jvp(func, (x,), (x,))[1][1])(torch.stack([X, 2 * X]))


def test_an_output_of_rounding_errors_is_no_mistake(backend):
    """The sum of a softmax is one, whatever the input: its tangent is noise, and so is the difference from one."""
    func = lambda x: (x.sin(), x.exp() / x.exp().sum(), (x.exp() / x.exp().sum()).sum() - 1)
    with tfc.use_fallback("error"), tfc.use_checks("always"):
        assert_close(tfc.jvp(func, (X,), (X,))[1][0], X.cos() * X)
        assert_close(tfc.jacfwd(func)(X)[0], torch.diag(X.cos()))


def test_rows_beside_large_ones():
    """Each row counts in the test of batched rows, unless it is so small that it may consist of rounding errors."""
    matrix = torch.diag(torch.tensor([1.0, TINY, 1e-40], dtype=torch.float64))
    units = [torch.eye(3, dtype=torch.float64)]
    right = lambda vectors, create: [vectors[0] @ matrix]
    assert batched_vjp._agrees(right, units, [matrix])
    wrong = matrix.clone()
    wrong[1] *= 2
    assert not batched_vjp._agrees(right, units, [wrong])
    wrong = matrix.clone()
    wrong[2] *= 2
    assert batched_vjp._agrees(right, units, [wrong])
    assert batched_vjp._agrees(right, units, [torch.zeros(3, 3).double()]) is False


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.complex128])
def test_probes_are_finite(dtype):
    outputs = [torch.tensor([0.0, 1.0]), torch.zeros(2), torch.tensor([1e-42, 0.0]), torch.zeros(0), torch.tensor(3.0)]
    outputs = [output.to(dtype) for output in outputs]
    for pushed in ((), outputs[::1], [None] * 5):
        for probe, output in zip(adjoint_test.probes(outputs, pushed), outputs):
            assert probe.dtype == output.dtype and probe.shape == output.shape
            assert torch.view_as_real(probe).isfinite().all() if probe.is_complex() else probe.isfinite().all()
