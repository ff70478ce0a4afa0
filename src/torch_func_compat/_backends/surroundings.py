"""The state around a function: whether a call changed it, and how to evaluate the function again for a test."""

from __future__ import annotations

import contextlib
from typing import Iterator, Sequence

import torch
from torch import Tensor

from .._guards.exits import UndifferentiatedError
from .._guards.wrong_answers import MistakenRule
from .._torch.random_state import RandomState
from .._torch.tensors import version

# Errors that settle a test: torch is wrong within the function, or has no derivative.
ANSWERS = (MistakenRule, UndifferentiatedError)


class Surroundings:
    """The random state and the tensors that a function could change, as they were before it ran."""

    def __init__(self, tensors: Sequence[Tensor], generators: Sequence[torch.Generator]) -> None:
        self._tensors = tensors
        self._generators = generators
        self._versions = [version(tensor) for tensor in tensors]
        self._state = RandomState(generators)

    def wrote(self) -> bool:
        """Whether the function wrote to a tensor."""
        return [version(tensor) for tensor in self._tensors] != self._versions

    def drew(self) -> bool:
        """Whether the function drew random numbers."""
        return self._state.moved()

    @contextlib.contextmanager
    def same_numbers(self) -> Iterator[None]:
        """The function draws the same random numbers again within; afterwards the random state is what it is now."""
        now = RandomState(self._generators)
        self._state.restore()
        try:
            yield
        finally:
            now.restore()


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
        return []
    heads, vectors = zip(*pairs)
    found = torch.autograd.grad(heads, wanted, vectors, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g.detach() for x, g in zip(wanted, found)]
