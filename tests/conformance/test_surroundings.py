"""What surrounds a call (grad mode, inference mode, autocast, global settings) does not change what it computes."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from support.modes import default_dtype
from support.operators import cube, every, of_cube
from support.tolerances import assert_close

from torch_func_compat._torch import facts


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def anomaly():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Anomaly Detection has been enabled")
        with torch.autograd.detect_anomaly():
            yield


def settings():
    """The global state of torch that a context can have changed."""
    return (
        torch.is_grad_enabled(),
        torch.is_anomaly_enabled(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        getattr(torch, "is_inference_mode_enabled", bool)(),
        getattr(torch, "is_autocast_cpu_enabled", bool)(),
    )


SURROUNDINGS = {
    "no_grad": torch.no_grad,
    "inference_mode": getattr(torch, "inference_mode", torch.no_grad),
    "default_dtype_float16": lambda: default_dtype(torch.float16),
    "default_dtype_float32": lambda: default_dtype(torch.float32),
    "default_dtype_float64": lambda: default_dtype(torch.float64),
    "deterministic": deterministic,
    "anomaly": anomaly,
    # before torch 2.0, nothing chooses a device for what is made without one
    "default_device_meta": lambda: torch.device("meta") if facts.has("torch_func") else contextlib.nullcontext(),
}
surroundings = pytest.mark.parametrize("surrounding", list(SURROUNDINGS.values()), ids=list(SURROUNDINGS))


@every()
@surroundings
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_surroundings_change_nothing(operator, surrounding, dtype, backend, device):
    x = torch.tensor([0.5, -0.75, 1.25], dtype=dtype, device=device)
    expected = of_cube(operator, x)
    with surrounding():
        before = settings()
        result = operator.call(cube, x)
        inside = operator.call(cube, x.clone())
        assert settings() == before
    assert_close(result, expected)
    assert_close(inside, expected)


@every()
@pytest.mark.skipif(not hasattr(torch, "autocast"), reason="torch < 1.10 has no autocast on CPUs")
def test_autocast_reaches_into_the_function(operator, backend, device):
    x = torch.tensor([0.5, -0.75, 1.25], device=device)
    seen = []

    def func(x):
        y = (x[None] @ torch.eye(3, device=device))[0] if x.dim() else x * 1
        seen.append(y.dtype)
        return cube(y.float())

    with torch.autocast(device.type, dtype=torch.bfloat16):
        result = operator.call(func, x)
    if "vmap" not in operator.name:
        assert set(seen) == {torch.bfloat16}
    assert_close(result, of_cube(operator, x), rtol=5e-2, atol=5e-2)
