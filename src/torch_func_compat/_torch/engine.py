"""The autograd engine, without the checks that this library has done already."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor
from torch.overrides import has_torch_function

# torch.autograd.grad spends a fifth of a small gradient's time before it calls this (torch 1.8 to 2.15).
_engine: Any = getattr(torch.autograd.Variable, "_execution_engine", None)


def grad(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    vectors: Sequence[Tensor],
    retain_graph: bool,
    create_graph: bool,
) -> list[Tensor | None]:
    """`torch.autograd.grad` with ``allow_unused=True``."""
    outputs, inputs, vectors = tuple(outputs), tuple(inputs), tuple(vectors)
    plain = _engine is not None and not has_torch_function((*outputs, *inputs, *vectors))
    for output, vector in zip(outputs, vectors):
        # The engine would broadcast and cast.
        if vector.shape != output.shape or vector.dtype is not output.dtype:
            plain = False
    if plain:
        return list(
            _engine.run_backward(outputs, vectors, retain_graph, create_graph, inputs, True, accumulate_grad=False)
        )
    flags = {"retain_graph": retain_graph, "create_graph": create_graph, "allow_unused": True}
    return list(torch.autograd.grad(outputs, inputs, vectors, **flags))
