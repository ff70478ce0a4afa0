"""One table of tolerances and the comparison that uses it, for pytrees of tensors on every torch."""

from __future__ import annotations

import torch

from torch_func_compat._torch import pytree

# dtype: (relative, absolute), for first derivatives computed in another order of operations
TOLERANCES = {
    torch.float64: (1e-9, 1e-10),
    torch.float32: (1e-4, 1e-5),
    torch.float16: (2e-2, 2e-3),
    torch.bfloat16: (5e-2, 1e-2),
    torch.complex128: (1e-9, 1e-10),
    torch.complex64: (1e-4, 1e-5),
}


def assert_close(actual, expected, *, rtol=None, atol=None, dtype=True):
    """Same structure, shapes, dtypes and, within the tolerances of the dtype, values."""
    actual_leaves, actual_spec = pytree.flatten(actual)
    expected_leaves, expected_spec = pytree.flatten(expected)
    assert actual_spec == expected_spec, f"structure {actual_spec}, expected {expected_spec}"
    for i, (a, e) in enumerate(zip(actual_leaves, expected_leaves)):
        assert isinstance(a, torch.Tensor), f"leaf {i} is a {type(a)}, expected a tensor"
        e = torch.as_tensor(e, device=a.device)
        assert a.shape == e.shape, f"leaf {i} has shape {tuple(a.shape)}, expected {tuple(e.shape)}"
        if dtype:
            assert a.dtype == e.dtype, f"leaf {i} has dtype {a.dtype}, expected {e.dtype}"
        a, e = a.detach(), e.detach().to(a.dtype)
        if a.is_complex():  # torch 1.8 compares no complex numbers with NaN in them
            a, e = (torch.view_as_real(getattr(z, "resolve_conj", lambda z=z: z)()) for z in (a, e))
        default = TOLERANCES.get(a.dtype, (0, 0))
        close = torch.isclose(
            a, e, rtol=default[0] if rtol is None else rtol, atol=default[1] if atol is None else atol, equal_nan=True
        )
        assert bool(close.all()), f"leaf {i}:\n{a}\nexpected\n{e}"
