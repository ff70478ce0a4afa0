"""Shared parts of the tests of a library's results."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from .._guards.exits import UndifferentiatedError
from .._guards.wrong_answers import MistakenRule
from .._torch.tensors import wave

# Errors that settle a test: torch is wrong within the function, or has no derivative.
ANSWERS = (MistakenRule, UndifferentiatedError)


def nudged(tensor: Tensor) -> Tensor:
    """The values with other last digits, which change rounding errors and nothing else."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    return tensor * (1 + 4 * torch.finfo(tensor.dtype).eps * wave(tensor))


def copied(tensor: Tensor) -> Tensor:
    """A leaf with the same values."""
    leaf = tensor.detach().clone()
    return leaf.requires_grad_() if tensor.requires_grad else leaf


def is_recorded(tensors: Sequence[Tensor]) -> bool:
    """Whether plain autograd records what leads to the tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def gradients(outputs: Sequence[Tensor], cotangents: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients by plain autograd, which keeps the graph; zeros for an input that nothing depends on."""
    pairs = [(output, cotangent) for output, cotangent in zip(outputs, cotangents) if output.requires_grad]
    wanted = [x for x in inputs if x.requires_grad]
    if not pairs or not wanted:
        return [torch.zeros_like(x) for x in wanted]
    heads, vectors = zip(*pairs)
    found = torch.autograd.grad(heads, wanted, vectors, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g.detach() for x, g in zip(wanted, found)]
