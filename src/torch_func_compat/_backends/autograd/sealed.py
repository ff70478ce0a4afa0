"""Results that raise where they are differentiated once more."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from ..._guards.exits import SealedError


class _Sealed(torch.autograd.Function):
    """The identity; its derivative raises."""

    @staticmethod
    def forward(ctx, reason, value, *anchors):  # type: ignore[no-untyped-def]
        ctx.reason = reason
        return value.clone()

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        raise SealedError(f"this derivative cannot be differentiated again: {ctx.reason}")


def seal(results: Sequence[Tensor], anchors: Sequence[Tensor], reason: str | None) -> list[Tensor]:
    """Make differentiating `results` by anything that the anchors depend on raise, if there is a reason to."""
    if reason is None:
        return list(results)
    attached = [anchor for anchor in anchors if anchor.requires_grad]
    apply: Any = _Sealed.apply
    return [apply(reason, result.detach(), *attached) for result in results]
