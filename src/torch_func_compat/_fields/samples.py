"""Is a derivative at one point independent of the other points?

If it is, J^T w = w (J^T 1) for any number w of each point. The numbers are powers of two, so that both sides are the
same to the last bit where points are independent, and a weak dependence shows.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FACTORS = [sign * 2.0**power for power in range(-3, 4) for sign in (1, -1)]
# The allowed deviation in units of machine epsilon, since kernels may add in any order.
_FORGIVEN = 64


def factors(like: Tensor) -> Tensor:
    """A number for each point; neighbours have different ones. No random state changes."""
    size = like.numel()
    generator = torch.Generator().manual_seed(size)
    order = torch.randperm(len(_FACTORS), generator=generator, device="cpu")
    more = torch.randint(len(_FACTORS), (size,), generator=generator, device="cpu")
    chosen = torch.cat([order, more])[:size]
    return torch.tensor(_FACTORS, dtype=torch.float64, device="cpu")[chosen].to(like).reshape(like.shape)


def require_independent(name: str, order: int, gradient: Tensor, scaled: Tensor, numbers: Tensor) -> None:
    """Raise RuntimeError unless `scaled`, the pullback of the numbers, is `gradient` times the numbers."""
    expected = (gradient * numbers.unsqueeze(-1)).detach()
    actual = scaled.detach()
    limit = _FORGIVEN * torch.finfo(actual.dtype).eps * expected.abs().max(-1, keepdim=True)[0]
    # non-finite numbers agree if they are equal
    same = ((actual - expected).abs() <= limit) | (actual == expected) | ((actual != actual) & (expected != expected))
    wrong = int((~same.all(-1)).sum())
    if wrong:
        what = "its value" if order == 0 else f"its derivative of order {order}"
        raise RuntimeError(
            f"{name}: the points are not independent: {what} at one point depends on other points ({wrong} of "
            f"{numbers.numel()} are affected), so derivatives by coordinates would be wrong. Usual causes are "
            f"batch normalisation in train mode (call eval() on the module), a softmax, mean or sum over the batch "
            f"dimension, and a reshape that moves it"
        )
