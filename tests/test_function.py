"""Functions of every kind under every transform, on every backend, against plain operations under plain autograd."""

from __future__ import annotations

import pytest
import torch
from function_transforms import TRANSFORMS, Case, X
from functions import KINDS
from tolerances import assert_close

import torch_func_compat as tfc

pytestmark = pytest.mark.filterwarnings("ignore::torch_func_compat.FallbackWarning")


@pytest.fixture(autouse=True)
def _silently():
    with tfc.use_fallback("silent"):
        yield


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_kind(backend, kind, transform):
    case = Case(kind, KINDS[kind])
    result, expected = (side(case) for side in TRANSFORMS[transform])
    assert_close(result, expected, rtol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    case = Case(kind, KINDS[kind])
    x = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(case.f, (x,))
    assert torch.autograd.gradgradcheck(case.f, (x,))
