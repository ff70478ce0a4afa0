"""Rules of queries, such as a tensor's shape, and of constants that are made like a tensor."""

from __future__ import annotations

from typing import Any

from .carried import Run
from .parts import constant, plain
from .registry import rule


@rule(
    "Tensor.size Tensor.dim Tensor.ndimension Tensor.numel Tensor.nelement torch.numel Tensor.__len__ "
    "is_floating_point is_complex Tensor.is_contiguous Tensor.element_size Tensor.get_device Tensor.stride "
    "torch.is_tensor torch.result_type torch.can_cast Tensor.is_signed torch.is_storage "
    ".shape .dtype .device .ndim .layout .is_cuda .is_sparse .is_quantized .is_mkldnn .is_nested .is_meta .itemsize "
    ".nbytes .is_cpu .is_mps .is_xpu .is_xla .is_vulkan .is_sparse_csr"
)
def told(run: Run, func: Any, *args: Any, **kwargs: Any) -> Any:
    if getattr(func, "__name__", "") == "__get__":
        return getattr(plain(args[0]), func.__self__.__name__)
    return func(*plain(args), **plain(kwargs))


@rule(".requires_grad")
def differentiable(run: Run, func: Any, x: Any, *args: Any) -> bool:
    return True


@rule(
    "zeros_like ones_like full_like empty_like Tensor.new_zeros Tensor.new_ones Tensor.new_full Tensor.new_empty "
    "Tensor.new_tensor"
)
def made_like(run: Run, func: Any, *args: Any, **kwargs: Any) -> Any:
    return func(*plain(args), **plain(kwargs))


@rule(
    "eq ne lt le gt ge not_equal less less_equal greater greater_equal isnan isinf isfinite isclose logical_and "
    "logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not "
    "Tensor.__eq__ Tensor.__ne__ Tensor.__lt__ Tensor.__le__ Tensor.__gt__ Tensor.__ge__ Tensor.__and__ Tensor.__or__ "
    "Tensor.__xor__ Tensor.__invert__ Tensor.__rand__ Tensor.__ror__ "
    "any all argmax argmin argsort sign signbit floor ceil round trunc heaviside bucketize searchsorted "
    "Tensor.long Tensor.int Tensor.bool detach nonzero count_nonzero"
)
def without_derivative(run: Run, func: Any, *args: Any, **kwargs: Any) -> Any:
    return constant(run, func(*plain(args), **plain(kwargs)))
