"""A share of the samples in the arguments of a function of a whole batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._torch import pytree
from .batch import batch_dims
from .call import Argnums, positions


class BatchSlices:
    """The samples of the arguments of a call, as `in_dims` of `torch_func_compat.batch_jacobian` names them.

    Raises
    ------
    ValueError
        `in_dims` do not fit the arguments, or do not say whether a tensor of the batch's size is a batch.
    """

    def __init__(self, api: str, in_dims: Any, argnums: Argnums, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        wanted = positions(argnums, len(args))
        self.total = batch_dims(api, in_dims, args, wanted)[1]
        each = (
            in_dims if isinstance(in_dims, tuple) else tuple(in_dims if i in wanted else None for i in range(len(args)))
        )
        self._leaves, self._spec = pytree.flatten(args)
        dims = pytree.broadcast_prefix(each, self._spec)
        assert dims is not None  # batch_dims() has checked it
        self._dims: list[int | None] = dims
        shared = pytree.flatten(kwargs)[0]
        if not isinstance(in_dims, tuple):
            shared += [leaf for leaf, dim in zip(self._leaves, dims) if dim is None]
        for leaf in shared:
            if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == self.total > 1:
                raise ValueError(
                    f"{api}: a tensor of shape {tuple(leaf.shape)} that is not differentiated could belong to the "
                    f"{self.total} samples, which the processes share, or to all of them: give it as a positional "
                    f"argument, and in_dims= as a tuple with its batch dimension, or None, for each argument"
                )

    def between(self, start: int, stop: int) -> tuple[Any, ...]:
        """The arguments, with these samples only."""
        leaves = [
            leaf if dim is None else leaf.narrow(dim, start, stop - start)
            for leaf, dim in zip(self._leaves, self._dims)
        ]
        return tuple(pytree.unflatten(leaves, self._spec))
