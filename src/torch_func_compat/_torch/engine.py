"""The autograd engine: without checks that this library has done already, and without freeing graphs."""

from __future__ import annotations

import contextlib
import threading
from typing import AbstractSet, Any, Iterator, Sequence

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


class _Thread(threading.local):
    keeps = 0


class _Keeping:
    """The engine for torch.autograd, which frees no graph in a thread that keeps them."""

    users = 0
    lock = threading.Lock()
    thread = _Thread()

    def run_backward(self, tensors: Any, vectors: Any, keep_graph: bool, *rest: Any, **options: Any) -> Any:
        keep_graph = keep_graph or self.thread.keeps > 0
        return _engine.run_backward(tensors, vectors, keep_graph, *rest, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(_engine, name)


@contextlib.contextmanager
def graphs_kept(names: AbstractSet[str]) -> Iterator[None]:
    """A function of these names may differentiate one graph again and again, as in a batch, where it does so once.

    Only a function that calls torch.autograd.grad changes anything.
    """
    if _engine is None or not ({"autograd", "grad"} <= names or "_make_grads" in names):  # the latter by another name
        yield
        return
    variable: Any = torch.autograd.Variable
    with _Keeping.lock:
        _Keeping.users += 1
        if _Keeping.users == 1:
            variable._execution_engine = _Keeping()
    _Keeping.thread.keeps += 1
    try:
        yield
    finally:
        _Keeping.thread.keeps -= 1
        with _Keeping.lock:
            _Keeping.users -= 1
            if not _Keeping.users:
                variable._execution_engine = _engine
