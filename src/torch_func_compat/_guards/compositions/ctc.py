"""The loss of connectionist temporal classification."""

from __future__ import annotations

import math
from typing import Any, Sequence

import torch
from torch import Tensor

from .composition import Composition


def _ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str | int = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """By the recursion of section 4.1 of Graves et al., 2006 (https://www.cs.toronto.edu/~graves/icml_2006.pdf)."""
    is_batched = log_probs.dim() == 3
    if not is_batched:
        log_probs, targets = log_probs.unsqueeze(1), targets.reshape(1, -1)
    times, samples, _ = log_probs.shape
    steps, counts = (
        torch.as_tensor(lengths, device=log_probs.device).long().reshape(-1)
        for lengths in (input_lengths, target_lengths)
    )
    labels = _padded(targets.to(log_probs.device).long(), counts)
    # The labels with a blank around each.
    blanks = torch.full_like(labels, blank)
    states = torch.cat([torch.stack([blanks, labels], 2).flatten(1), blanks.new_full((samples, 1), blank)], 1)
    # A blank between two labels can be skipped, unless they are the same.
    may_skip = (states != blank) & (states != torch.nn.functional.pad(states, (2, 0), value=blank)[:, :-2])
    emitted = log_probs.gather(2, states.expand(times, *states.shape))
    begins = (torch.arange(states.size(1), device=log_probs.device) < 2).expand_as(states)
    alpha = torch.where(begins, emitted[0], torch.full_like(emitted[0], -math.inf))
    for time in range(1, times):
        shifted, skipped = _shifted(alpha, 1), _shifted(alpha, 2).masked_fill(~may_skip, -math.inf)
        following = emitted[time] + _log_sum([alpha, shifted, skipped])
        alpha = torch.where((time < steps).unsqueeze(1), following, alpha)
    last = alpha.gather(1, 2 * counts.unsqueeze(1)).squeeze(1)
    last_label = alpha.gather(1, (2 * counts - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
    loss = -_log_sum([last, last_label.masked_fill(counts == 0, -math.inf)])
    # No labels are emitted in zero steps.
    nothing = torch.zeros_like(loss).masked_fill(counts > 0, math.inf)
    loss = torch.where(steps > 0, loss, nothing)
    if zero_infinity:
        loss = loss.masked_fill(loss == math.inf, 0.0)
    if reduction in ("none", 0):
        return loss if is_batched else loss.squeeze(0)
    return loss.sum() if reduction in ("sum", 2) else (loss / counts.clamp(min=1)).mean()


def _ctc_loss_unreduced(*args: Any, **kwargs: Any) -> Tensor:
    """``torch.ctc_loss``, which has another default than the other names."""
    return _ctc_loss(*args, **(kwargs if len(args) > 5 else {"reduction": 0, **kwargs}))


def _padded(targets: Tensor, counts: Tensor) -> Tensor:
    """One row of labels for each sample, whether they are padded or concatenated."""
    if targets.dim() == 2:
        return targets
    places = (counts.cumsum(0) - counts).unsqueeze(1) + torch.arange(int(counts.max()), device=targets.device)
    if not targets.numel():
        return torch.zeros_like(places)
    return targets[places.clamp(max=targets.numel() - 1)]


def _shifted(alpha: Tensor, by: int) -> Tensor:
    """The values of the states that are `by` places before; the probability before the first state is zero."""
    return torch.nn.functional.pad(alpha, (by, 0), value=-math.inf)[:, : alpha.size(1)]


def _log_sum(logarithms: Sequence[Tensor]) -> Tensor:
    """The logarithm of a sum of exponentials. Its derivatives are zero where the sum is zero."""
    stacked = torch.stack(list(logarithms))
    largest = stacked.detach().amax(0)
    largest = largest.masked_fill(largest == -math.inf, 0.0)
    total = (stacked - largest).exp().sum(0)
    is_zero = total == 0
    return total.masked_fill(is_zero, 1.0).log().masked_fill(is_zero, -math.inf) + largest


_NO_DERIVATIVE = (
    "its backward has no derivative (measured on torch 1.8 to 2.15), and assumes log_probs that log_softmax gave: "
    "the derivatives of the composition agree with it through log_softmax only"
)

ROWS: tuple[Composition, ...] = (
    Composition(
        ("nn.functional.ctc_loss", "ops.aten.ctc_loss"), ("CtcLoss", "CudnnCtcLoss"), 2, _ctc_loss, _NO_DERIVATIVE
    ),
    Composition(("ctc_loss",), (), 2, _ctc_loss_unreduced, _NO_DERIVATIVE),
)
