"""Small operations on tensors that old torches lack, or that have a cheaper form."""

from __future__ import annotations

from typing import Any, Callable, Iterator, Sequence

import torch
from torch import Tensor


def wave(like: Tensor) -> Tensor:
    """Fixed numbers of the shape and dtype of `like` that no structure of a derivative is likely to cancel."""
    angles = torch.arange(1, like.numel() + 1, dtype=torch.float64, device=like.device).reshape(like.shape)
    values = torch.cos(angles)
    if like.is_complex():  # a real probe would not see an error in the imaginary part
        values = torch.complex(values, torch.cos(angles + 0.5))
    return values.to(like.dtype)


def identity(size: int, like: Tensor) -> Tensor:
    """`torch.eye`, which old torches lack for bfloat16, in the dtype and on the device of `like`."""
    matrix = torch.zeros(size, size, dtype=like.dtype, device=like.device)
    matrix.diagonal().fill_(1)
    return matrix


def version(tensor: Tensor) -> int:
    """How often `tensor` was modified in place; inference tensors do not count."""
    try:
        return tensor._version
    except RuntimeError:
        return 0


def _is_inference(tensor: Tensor) -> bool:
    if not hasattr(torch, "inference_mode"):  # to torch 1.8
        return False
    try:
        return tensor._version < 0
    except RuntimeError as error:  # torch 1.9: inference tensors count no versions; nor do tensors of its vmap
        return "Inference" in str(error)


# Whether a tensor was made in inference mode: autograd does not save it, and it counts no versions.
is_inference: Callable[[Tensor], bool] = getattr(Tensor, "is_inference", _is_inference)  # from torch 1.10 on


def with_attributes(tensor: Tensor, source: Tensor, but: str = "") -> Tensor:
    """`tensor`, which stands for `source`, with the attributes that the user has set on `source`.

    A subclass without a ``__torch_function__`` of its own keeps its class in every operation, and its attributes in
    none.
    """
    if type(source) is not Tensor and type(tensor) is type(source):
        for name, value in source.__dict__.items():
            if name != but:
                tensor.__dict__.setdefault(name, value)
    return tensor


def layout_of(tensor: Tensor) -> tuple[Any, ...]:
    """How a view reads its memory, except for the offset."""
    is_conj, is_neg = getattr(tensor, "is_conj", bool), getattr(tensor, "is_neg", bool)
    return (tensor.stride(), tensor.shape, tensor.dtype, tensor.requires_grad, is_conj(), is_neg())


def movedim(tensor: Tensor, source: int, destination: int) -> Tensor:
    """`torch.movedim`, which the batching rules of old torches lack, by permute."""
    if {source, destination} == {0, 1}:
        return tensor.transpose(0, 1)
    order = list(range(tensor.dim()))
    order.insert(destination % tensor.dim(), order.pop(source % tensor.dim()))
    return tensor.permute(order)


def pieces(tensor: Tensor, sizes: Sequence[int], dim: int = 0) -> Sequence[Tensor]:
    """`tensor.split`, whose backward is a copy, only where there is something to split."""
    return [tensor] if len(sizes) == 1 else tensor.split(list(sizes), dim)


# Above this many samples, slices are taken in two steps. The backward of select() makes a tensor as
# large as what it selects from, so slices of one tensor would cost the square of the batch size.
# (unbind() has a linear backward, but its results refuse in-place operations.)
BLOCK = 32


def slices(tensor: Tensor, dim: int) -> Iterator[Tensor]:
    """Views of each sample, made when they are needed; in-place operations on them reach `tensor`."""
    size = tensor.size(dim)
    if size <= BLOCK or not tensor.requires_grad:
        return (tensor.select(dim, i) for i in range(size))
    step = BLOCK
    while step * BLOCK < size:
        step *= BLOCK
    blocks = (tensor.narrow(dim, start, min(step, size - start)) for start in range(0, size, step))
    return (view for block in blocks for view in slices(block, dim))


is_zerotensor: Any = getattr(Tensor, "_is_zerotensor", lambda tensor: False)


def allocated(tensor: Tensor) -> Tensor:
    """`tensor` with memory: autograd's tensors for a zero derivative have none."""
    return tensor + tensor.new_zeros(()) if is_zerotensor(tensor) else tensor


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors among arguments; built-in containers are entered."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
        elif isinstance(value, dict):
            found += tensors_in(value.values())
    return found


def versions(values: Any) -> list[int]:
    """How often each tensor among arguments was modified in place."""
    return [version(tensor) for tensor in tensors_in(values)]
