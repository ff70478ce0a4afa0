"""What a call needed is freed when it is over, and not only when the garbage collector comes by."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import torch_func_compat as tfc
from torch_func_compat import tad_mctc

CALLS = {
    "grad": lambda f, x: tfc.grad(f)(x[0]),
    "vmap": lambda f, x: tfc.vmap(f)(x),
    "vmap in chunks": lambda f, x: tfc.vmap(f, chunk_size=2)(x),
    "jacrev in chunks": lambda f, x: tfc.jacrev(f, chunk_size=2)(x[0]),
    "jacfwd in chunks": lambda f, x: tfc.jacfwd(f, chunk_size=2)(x[0]),
    "jacobian": lambda f, x: tfc.jacobian(f)(x[0]),
    "hessian": lambda f, x: tfc.hessian(f)(x[0]),
    "hessian in chunks": lambda f, x: tfc.hessian(f, chunk_size=2)(x[0]),
    "hessians": lambda f, x: tfc.vmap(tfc.hessian(f))(x),
    "nested": lambda f, x: tfc.jacrev(tfc.jacrev(f))(x[0]),
    "hvp": lambda f, x: tfc.hvp(f, (x[0],), (x[0],)),
    "vjp": lambda f, x: tfc.vjp(f, x[0])[1](torch.ones((), dtype=x.dtype)),
    "laplacian": lambda f, x: tfc.laplacian(f)(x[0]),
    "batch_jacobian": lambda f, x: tfc.batch_jacobian(f)(x),
    "batch_hessian": lambda f, x: tfc.batch_hessian(f)(x),
    "batch_laplacian": lambda f, x: tfc.batch_laplacian(f)(x),
    "the drop-in's hessian": lambda f, x: tad_mctc.hessian(f, (x,), 0, is_batched=True),
}


def arguments():
    return torch.linspace(0.1, 1.2, 12, dtype=torch.float64).reshape(4, 3)


def function():
    factor = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    return lambda x: (factor * x.sin() ** 3).sum(-1), weakref.ref(factor)


@pytest.mark.parametrize("name", CALLS)
def test_freed(backend, name):
    CALLS[name](function()[0], arguments())  # what is found out once is kept
    gc.disable()
    try:
        x = arguments()
        f, factor = function()
        argument = weakref.ref(x)
        CALLS[name](f, x)
        del f, x
        assert argument() is None, "the argument is still there"
        assert factor() is None, "what the function closes over is still there"
    finally:
        gc.enable()
