"""vmap's results share memory with its inputs where each sample's does, as torch.func's do."""

from __future__ import annotations

import pytest
import torch
from support.tolerances import assert_close

from torch_func_compat import grad, vmap

VIEWS = {
    "transposed": lambda a: a.t(),
    "flat": lambda a: a.reshape(-1),
    "row": lambda a: a[1],
    "number": lambda a: a[1, 0],
    "step": lambda a: a[:, ::2],
    "diagonal": torch.diagonal,
    "expanded": lambda a: a[0].expand(4, 3),
    "mapped_within": lambda a: vmap(lambda row: row[1:])(a),
}
views = pytest.mark.parametrize("view", list(VIEWS.values()), ids=list(VIEWS))


@pytest.fixture
def x(device):
    return torch.arange(24.0, dtype=torch.float64, device=device).reshape(4, 2, 3)


@views
@pytest.mark.parametrize(("in_dim", "out_dim"), [(0, 0), (-1, 0), (1, -1)], ids=str)
def test_a_view_of_the_sample_is_a_view_of_the_input(view, in_dim, out_dim, backend, x):
    x = x.permute(1, 2, 0) if in_dim else x
    x = x.permute(0, 2, 1) if in_dim == 1 else x
    result = vmap(view, in_dim, out_dim)(x)
    expected = torch.stack([view(sample) for sample in x.unbind(in_dim)], out_dim)
    assert_close(result, expected)
    assert result._base is x._base or result._base is x
    x[...] = 7.0
    assert_close(result, torch.full_like(expected, 7.0))


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_what_comes_back_whole_is_the_input(dim, backend, x):
    assert vmap(lambda a: a, dim, dim)(x) is x
    assert vmap(torch.Tensor.sin_, dim, dim)(x) is x
    moved = vmap(lambda a: {"same": a}, dim, -1)(x)["same"]
    assert moved.data_ptr() == x.data_ptr()
    assert moved.shape == (*x[0].shape, len(x)) or dim


def test_what_was_reshaped_in_place_is_not_the_input(backend, x):
    result = vmap(lambda a: a.unsqueeze_(0))(x.clone())
    assert_close(result, x[:, None])


def test_one_sample_and_none(backend, x):
    assert_close(vmap(lambda a: a.t())(x[:1]), x[:1].transpose(1, 2))
    assert vmap(lambda a: a.t())(x[:0]).shape == (0, 3, 2)


def test_views_of_different_places_are_copied(backend, x):
    picked = vmap(lambda a: a[0] if a.sum() > 60 else a[1])(x)
    assert_close(picked, torch.stack([x[0, 1], x[1, 1], x[2, 0], x[3, 0]]))


@views
def test_views_are_differentiated(view, backend, x):
    weights = vmap(view)(x).clone().cos()
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad((torch.stack([view(a) for a in leaf]) * weights).sum(), leaf)
    assert_close(grad(lambda x: (vmap(view)(x) * weights).sum())(x), expected)
    assert_close(torch.autograd.grad((vmap(view)(leaf) * weights).sum(), leaf)[0], expected)


def test_writing_to_the_result_of_what_is_differentiated_leaves_the_sum_right(backend, x):
    def func(x):
        y = x * 1
        vmap(lambda a: a.t())(y).mul_(2)
        return vmap(torch.Tensor.mul_)(y, x).sum()

    # whether the view was written through or a copy of it: either is right, a mixture of both is not
    gradient = grad(func)(x)
    assert torch.equal(gradient, 2 * x) or torch.equal(gradient, 4 * x)


@pytest.mark.skipif(not hasattr(torch.nn.functional, "rms_norm"), reason="torch < 2.4 cannot map nested tensors")
def test_nested_tensors(backend):
    parts = [torch.ones(2, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64) * 2]
    nested = torch.nested.nested_tensor(parts)
    result = vmap(lambda a: a.sin() * 2)(nested)
    assert result.is_nested
    for part, expected in zip(result.unbind(), parts):
        assert_close(part, expected.sin() * 2)
    for dims in ({"in_dims": 2}, {"out_dims": 2}):
        with pytest.raises(RuntimeError, match="only be vmapped over dim=0"):
            vmap(torch.sin, **dims)(nested)
