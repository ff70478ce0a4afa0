"""The examples of custom Functions: as scripts, and under every transform."""

from __future__ import annotations

from math import factorial

import pytest
import torch
from support.function_transforms import TRANSFORMS, Case
from support.functions import Kind
from support.scripts import load_example, run_example
from support.tolerances import assert_close

import torch_func_compat as tfc

pytestmark = [pytest.mark.filterwarnings("ignore::torch_func_compat.FallbackWarning"), pytest.mark.any_torch]


@pytest.mark.parametrize("name", ["linear_solve", "bessel"])
def test_as_a_script(name):
    if name == "bessel":
        pytest.importorskip("scipy")
    status, printed = run_example(name)
    assert status == 0, printed
    assert "ok " in printed and "FAILED" not in printed


def _system(x):
    return x.unsqueeze(0) * x.unsqueeze(1) / 2 + 3 * torch.eye(4, dtype=x.dtype, device=x.device)


K = torch.arange(14)
COEFFICIENTS = torch.tensor(
    [(-1) ** k / (4.0 ** (k + 1) * factorial(k) * factorial(k + 2)) for k in range(14)], dtype=torch.float64
)


def _bessel_series(x):
    """J_2(x) from its power series."""
    return (COEFFICIENTS * x.unsqueeze(-1) ** (2 * K + 2)).sum(-1)


KINDS = {
    "linear_solve": lambda module: Kind(
        lambda x: module.Solve.apply(_system(x), x.sin()), lambda x: torch.inverse(_system(x)) @ x.sin()
    ),
    "bessel": lambda module: Kind(lambda x: module.Bessel.apply(2, x), _bessel_series),
}


SOME = (
    *("double backward", "jvp", "jacrev", "hessian", "jacrev(jacfwd)", "jacfwd(jacfwd(jacfwd))", "nested vmap"),
    *("vmap(grad)", "vmap(hessian)", "jvp(vmap(jvp))", "backward of grad"),
)


@pytest.mark.parametrize("transform", SOME)
@pytest.mark.parametrize("name", KINDS)
def test_under_every_transform(backend, name, transform):
    if name == "bessel":
        pytest.importorskip("scipy")
    case = Case(f"example {name}", KINDS[name](load_example(name)))
    with tfc.use_fallback("silent"):
        result, expected = (side(case) for side in TRANSFORMS[transform])
    assert_close(result, expected, rtol=1e-8, atol=1e-10)
