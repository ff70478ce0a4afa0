"""A call of a function of a whole batch, whose samples are independent of each other."""

from __future__ import annotations

import math
from typing import Any, Sequence, Union

from torch import Tensor

from .._torch import pytree
from .call import Argnums, Call, Function
from .required import require_differentiable, require_floating, require_real, require_tensors


class SampleSpace:
    """The space that each sample of a batch is a vector of. Its basis vectors are the same in all samples.

    Attributes
    ----------
    shape : tuple of int
        The shape of one sample.
    size, dim : int
        The number of samples, and their dimension.
    """

    __slots__ = ("shape", "size", "dim", "dtype", "device", "_numel")

    def __init__(self, batch: Tensor, dim: int) -> None:
        shape = tuple(batch.shape)
        self.shape = shape[:dim] + shape[dim + 1 :]
        self.size = shape[dim]
        self.dim = dim
        self.dtype = batch.dtype
        self.device = batch.device
        self._numel = math.prod(self.shape)

    def numel(self) -> int:
        """How many elements a sample has."""
        return self._numel


Like = Union[Tensor, SampleSpace]


class BatchCall(Call):
    """A call of a function of a whole batch, whose outputs have their samples along dimension 0.

    Attributes
    ----------
    dims : list of int
        Where the primals have their samples.
    size : int
        How many samples there are.
    space : list of SampleSpace
        For each primal, the space of its samples.
    """

    def __init__(
        self,
        api: str,
        func: Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        argnums: Argnums,
        has_aux: bool,
        in_dims: Any,
    ) -> None:
        super().__init__(api, func, args, kwargs, argnums, has_aux)
        require_tensors(self.primals)
        require_real(api, self.primals, "inputs")
        require_floating("primal", self.primals)
        self.dims, self.size = batch_dims(api, in_dims, args, self.positions)
        self.space = [SampleSpace(primal, dim) for primal, dim in zip(self.primals, self.dims)]

    def __call__(self, *primals: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        outputs, aux = super().__call__(*primals)
        require_real(self.api, outputs, "outputs")
        require_differentiable(outputs)
        for output in outputs:
            if output.dim() == 0 or output.shape[0] != self.size:
                raise ValueError(
                    f"{self.api}: expected a function of the whole batch, which returns {self.size} samples along "
                    f"dimension 0, got an output of shape {tuple(output.shape)}. For a function of one sample, take "
                    f"vmap(jacobian(f)) or vmap(hessian(f))"
                )
        return outputs, aux


def batch_dims(api: str, in_dims: Any, args: tuple[Any, ...], wanted: Sequence[int]) -> tuple[list[int], int]:
    """The batch dimension of each leaf to differentiate (not negative), and how many samples there are."""
    # An int is the batch dimension of the differentiated arguments; the others have none then.
    where = wanted if isinstance(in_dims, int) else range(len(args))
    leaves, spec = pytree.flatten(tuple([args[i] for i in where]))
    owners = [i for i, child in zip(where, spec.children) for _ in range(child.num_leaves)]
    if isinstance(in_dims, int):
        dims: list[Any] | None = [in_dims] * len(leaves)
    else:
        dims = pytree.broadcast_prefix(in_dims, spec) if isinstance(in_dims, tuple) else None
    if dims is None:
        raise ValueError(
            f"{api}: expected in_dims to be an int or a tuple with the structure of the arguments, got {in_dims}"
        )
    chosen: dict[int, list[int]] = {i: [] for i in wanted}
    sizes = []
    for leaf, dim, owner in zip(leaves, dims, owners):
        if dim is None:
            if owner in chosen:
                raise ValueError(
                    f"{api}: argument {owner} is differentiated and shared by all samples (its in_dims is None). Its "
                    f"derivatives are not those of single samples: take vmap(jacobian(f)) of a function of one sample"
                )
            continue
        if not (isinstance(leaf, Tensor) and isinstance(dim, int) and -leaf.dim() <= dim < leaf.dim()):
            kind = f"tensor of shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else str(type(leaf))
            raise ValueError(f"{api}: in_dims={in_dims} asks for batch dimension {dim} of a {kind} in argument {owner}")
        sizes.append(leaf.shape[dim])
        if owner in chosen:
            chosen[owner].append(dim % leaf.dim())
    if len(set(sizes)) != 1:
        raise ValueError(f"{api}: expected as many samples in all tensors with a batch dimension, got {sizes}")
    return [dim for i in wanted for dim in chosen[i]], sizes[0]
