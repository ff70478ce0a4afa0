"""Losses."""

from __future__ import annotations

import torch
from torch import Tensor

from .composition import Composition

_REDUCTIONS = ("none", "mean", "sum")


def _reduced(loss: Tensor, reduction: str | int) -> Tensor:
    """The reduced loss. Torch's operators know reductions by numbers, and its functions by names."""
    if reduction == "batchmean":
        return loss.sum() / loss.size(0)
    if isinstance(reduction, int):
        reduction = _REDUCTIONS[reduction]
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def _name(reduction: str, size_average: bool | None, reduce: bool | None) -> str:
    """The reduction, also from the deprecated `size_average` and `reduce`."""
    if size_average is None and reduce is None:
        return reduction
    if reduce is False:
        return "none"
    return "sum" if size_average is False else "mean"


def _multi_margin(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    reduction: str | int = 1,
) -> Tensor:
    scores = input.reshape(-1, input.size(-1)) if input.dim() else input.reshape(1, 1)
    labels = target.reshape(-1, 1)
    excess = torch.relu(margin - scores.gather(1, labels) + scores)
    excess = excess if p == 1 else excess * excess
    if weight is not None:
        excess = excess * weight.take(labels)
    others = torch.ones_like(scores.detach()).scatter(1, labels, 0.0)
    return _reduced(((excess * others).sum(1) / scores.size(1)).reshape(target.shape), reduction)


def _multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    return _multi_margin(input, target, p, margin, weight, _name(reduction, size_average, reduce))


def _multilabel_margin(input: Tensor, target: Tensor, reduction: str | int = 1) -> Tensor:
    scores = input.reshape(-1, input.size(-1)) if input.dim() else input.reshape(1, 1)
    labels = target.reshape(scores.shape)
    # labels count up to the first negative one
    counts = ((labels < 0).cumsum(1) == 0).to(scores.dtype)
    labels = labels.clamp(min=0)
    others = (torch.zeros_like(scores.detach()).scatter_add(1, labels, counts) == 0).to(scores.dtype)
    excess = torch.relu(1 - scores.gather(1, labels).unsqueeze(2) + scores.unsqueeze(1))
    loss = (excess * counts.unsqueeze(2) * others.unsqueeze(1)).sum((1, 2)) / scores.size(1)
    return _reduced(loss if input.dim() > 1 else loss.reshape(()), reduction)


def _multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    return _multilabel_margin(input, target, _name(reduction, size_average, reduce))


# The functions of torch.nn.functional and torch.ops default to the mean, and the functions of torch to no reduction.
def _kl_divergence(input: Tensor, target: Tensor, reduction: str | int = 0, *, log_target: bool = False) -> Tensor:
    if log_target:
        return _reduced(target.exp() * (target - input), reduction)
    # With zeros where there is no probability; so are the derivatives in torch's kernel.
    is_possible = target > 0
    loss = target * (torch.where(is_possible, target, torch.ones_like(target)).log() - input)
    return _reduced(torch.where(is_possible, loss, torch.zeros_like(loss)), reduction)


def _kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    return _kl_divergence(input, target, _name(reduction, size_average, reduce), log_target=log_target)


_NO_DERIVATIVE = "its backward has no derivative (measured on torch 1.8 to 2.15)"
_KL_DIV = "mixed derivatives by its input and target are wrong (fact 'kl_div_twice')"

ROWS: tuple[Composition, ...] = (
    Composition(("nn.functional.multi_margin_loss",), ("MultiMarginLoss",), 2, _multi_margin_loss, _NO_DERIVATIVE),
    Composition(
        ("_C._nn.multi_margin_loss", "ops.aten.multi_margin_loss"),
        ("MultiMarginLoss",),
        2,
        _multi_margin,
        _NO_DERIVATIVE,
    ),
    Composition(
        ("nn.functional.multilabel_margin_loss",),
        ("MultilabelMarginLoss",),
        2,
        _multilabel_margin_loss,
        _NO_DERIVATIVE,
    ),
    Composition(
        ("_C._nn.multilabel_margin_loss", "ops.aten.multilabel_margin_loss"),
        ("MultilabelMarginLoss",),
        2,
        _multilabel_margin,
        _NO_DERIVATIVE,
    ),
    Composition(("nn.functional.kl_div",), ("KlDiv",), 2, _kl_div, _KL_DIV, (1, 13)),
    Composition(("kl_div",), ("KlDiv",), 2, _kl_divergence, _KL_DIV, (1, 13)),
)
