"""A vmapped call as a function of the flat list of its batched tensors: in_dims and out_dims, checked."""

from __future__ import annotations

import functools
import itertools
from typing import Any, Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from .._torch import pytree
from .._torch.closures import captured
from .._torch.compiling import is_compiling
from .._torch.tensors import layout_of, movedim
from .call import name_of


def check_randomness(randomness: str) -> None:
    """Raise RuntimeError (torch's own choice) unless `randomness` is one of the three modes."""
    if randomness not in ("error", "different", "same"):
        raise RuntimeError(f"Only allowed values for randomness are 'error', 'different', or 'same'. Got {randomness}")


class BatchedCall:
    """A user's vmapped call as a function of the flat list of its batched tensors.

    Attributes
    ----------
    tensors : list of Tensor
        The batched leaves; `dims` names their batch dimensions (non-negative).
    unbatched : list of Tensor
        Tensors that every sample shares.
    batch_size : int
    """

    output_spec: pytree.TreeSpec
    flat_out_dims: list[int | None]
    # For each output to be stacked, the index of the mapped input that it is, or None. As in torch.func, the result is
    # then that input itself where it reads the same memory.
    identity: Iterable[int | None]

    def __init__(
        self, func: Callable[..., Any], in_dims: Any, out_dims: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.func = func
        self.out_dims = out_dims
        self.kwargs = kwargs
        self.identity = itertools.repeat(None)
        # torch.compile cannot trace how the name is made.
        head = "" if is_compiling() else f"vmap({self.name}, in_dims={in_dims}, ...)(<inputs>)"
        if not isinstance(in_dims, (int, tuple)):
            raise ValueError(
                f"{head}: expected `in_dims` to be int or a (potentially nested) tuple matching the structure "
                f"of inputs, got: {type(in_dims)}."
            )
        if not args:
            raise ValueError(
                f"vmap({self.name})(<inputs>): got no inputs. Maybe you forgot to add inputs, or you are trying "
                f"to vmap over a function with no inputs. The latter is unsupported."
            )
        self.leaves, self.spec = pytree.flatten(args)
        flat_dims = pytree.broadcast_prefix(in_dims, self.spec)
        if flat_dims is None:
            raise ValueError(
                f"{head}: in_dims is not compatible with the structure of `inputs`. in_dims has structure "
                f"{pytree.flatten(in_dims)[1]} but inputs has structure {self.spec}."
            )
        for leaf, dim in zip(self.leaves, flat_dims):
            self._check_in_dim(head, leaf, dim)
        self.where = [i for i, dim in enumerate(flat_dims) if dim is not None]
        self.tensors: list[Tensor] = [self.leaves[i] for i in self.where]
        self.dims: list[int] = [flat_dims[i] % self.leaves[i].dim() for i in self.where]
        self.unbatched = [x for x, dim in zip(self.leaves, flat_dims) if dim is None and isinstance(x, Tensor)]
        sizes = [x.size(dim) for x, dim in zip(self.tensors, self.dims)]
        if not sizes:
            raise ValueError("vmap: Expected at least one Tensor to vmap over")
        if any(size != sizes[0] for size in sizes):
            raise ValueError(
                f"vmap: Expected all tensors to have the same size in the mapped dimension, got sizes {sizes} "
                f"for the mapped dimension. The in_dim of an input that all samples share is None, as in "
                f"in_dims=(0, None)"
            )
        self.batch_size = sizes[0]

    @property
    def name(self) -> str:
        """The user's function, for messages."""
        return name_of(self.func)

    @staticmethod
    def _check_in_dim(head: str, leaf: Any, dim: Any) -> None:
        if dim is None:
            return
        if not isinstance(dim, int):
            raise ValueError(
                f"{head}: Got in_dim={dim} for an input but in_dim must be either an integer dimension or None."
            )
        if not isinstance(leaf, Tensor):
            raise ValueError(
                f"{head}: Got in_dim={dim} for an input but the input is of type {type(leaf)}. We cannot vmap "
                f"over non-Tensor arguments: convert arrays with torch.as_tensor(), or use None as the in_dim of others"
            )
        if not -leaf.dim() <= dim < leaf.dim():
            raise ValueError(
                f"{head}: Got in_dim={dim} for some input, but that input is a Tensor of dimensionality "
                f"{leaf.dim()} so expected in_dim to satisfy -{leaf.dim()} <= in_dim < {leaf.dim()}. The in_dim of an "
                f"input that all samples share is None"
            )
        _require_first_dim(leaf, dim)

    def __call__(self, *slices: Tensor) -> tuple[list[Tensor], list[Any]]:
        """One sample: outputs to be stacked, and those with ``out_dims=None``, which all samples share."""
        leaves = list(self.leaves)
        for position, value in zip(self.where, slices):
            leaves[position] = value
        stacked, shared = self.split(self.func(*pytree.unflatten(leaves, self.spec), **self.kwargs))
        if is_compiling():
            self.identity = [None] * len(stacked)
        else:
            positions = {id(value): k for k, value in enumerate(slices)}
            self.identity = [positions.get(id(leaf)) for leaf in stacked]
        return stacked, shared

    def split(self, output: Any) -> tuple[list[Tensor], list[Any]]:
        """An output of the function: what is to be stacked, and what all samples share."""
        flat, self.output_spec = pytree.flatten(output)
        self.flat_out_dims = self._broadcast_out_dims(output)
        stacked: list[Tensor] = []
        shared = []
        for leaf, dim in zip(flat, self.flat_out_dims):
            if dim is None:
                shared.append(leaf)
                continue
            self.require_tensor(leaf)
            stacked.append(leaf)
        return stacked, shared

    def require_tensor(self, leaf: Any) -> None:
        """Raise torch.func's ValueError where an output to be stacked is no tensor."""
        if not isinstance(leaf, Tensor):
            raise ValueError(
                f"vmap({self.name}, ...): `{self.name}` must only return Tensors, got type {type(leaf)}. "
                f"Did you mean to set out_dims= to None for output?"
            )

    def direct(self, samples: Sequence[Iterator[Tensor]]) -> tuple[Callable[..., Any], list[Iterator[Any]]]:
        """The user's function, and for each of its positional arguments the values for all samples."""
        values: list[Iterator[Any]] = [itertools.repeat(leaf) for leaf in self.leaves]
        for position, of_all in zip(self.where, samples):
            values[position] = of_all
        arguments, start = [], 0
        for child in self.spec.children:
            part = values[start : start + child.num_leaves]
            start += child.num_leaves
            arguments.append(part[0] if child.type is None else _trees(part, child))
        return functools.partial(self.func, **self.kwargs) if self.kwargs else self.func, arguments

    def outside(self, called: bool = True) -> tuple[list[Tensor], list[torch.Generator]]:
        """Tensors that all samples share, and random generators, among all that the function can reach."""
        where = set(self.where)
        shared = [leaf for i, leaf in enumerate(self.leaves) if i not in where]
        found = captured([self.func, shared, self.kwargs], called=called)
        generators = [value for value in found if isinstance(value, torch.Generator)]
        return [value for value in found if isinstance(value, Tensor)], generators

    def generators(self) -> list[torch.Generator]:
        """Random generators among the arguments and around the function."""
        return self.outside()[1]

    def _broadcast_out_dims(self, output: Any) -> list[int | None]:
        dims: list[Any] | None
        if isinstance(output, Tensor):
            # (0,) is allowed for a single tensor, although it is a tree of another structure
            single = self.out_dims[0] if isinstance(self.out_dims, tuple) and len(self.out_dims) == 1 else self.out_dims
            dims = [single] if single is None or isinstance(single, int) else None
        else:
            dims = pytree.broadcast_prefix(self.out_dims, self.output_spec)
        if dims is None:
            raise ValueError(
                f"vmap({self.name}, ..., out_dims={self.out_dims})(<inputs>): out_dims is not compatible with the "
                f"structure of `outputs`. out_dims has structure {pytree.flatten(self.out_dims)[1]} but outputs has "
                f"structure {self.output_spec}."
            )
        return dims

    def whole(self, output: Any) -> Any:
        """The vmapped function's value, from outputs stacked already; None where some should not be."""
        flat, self.output_spec = pytree.flatten(output)
        self.flat_out_dims = self._broadcast_out_dims(output)
        return None if None in self.flat_out_dims else self.result(flat, ())

    def result(self, stacked: Sequence[Tensor], shared: Sequence[Any]) -> Any:
        """The vmapped function's value, from outputs stacked along their first dimension."""
        stacked_iter, shared_iter, identity_iter = iter(stacked), iter(shared), iter(self.identity)
        flat: list[Any] = []
        for dim in self.flat_out_dims:
            if dim is None:
                flat.append(next(shared_iter))
                continue
            leaf = next(stacked_iter)
            if not -leaf.dim() <= dim < leaf.dim():
                raise IndexError(
                    f"Dimension out of range (expected to be in range of [{-leaf.dim()}, {leaf.dim() - 1}], "
                    f"but got {dim}): vmap({self.name}, out_dims={self.out_dims}) for an output of shape "
                    f"{tuple(leaf.shape)}, the mapped dimension first"
                )
            _require_first_dim(leaf, dim)
            whole = next(identity_iter)
            if whole is not None and _is_whole(leaf, self.tensors[whole], self.dims[whole]):
                tensor, in_dim = self.tensors[whole], self.dims[whole]
                flat.append(tensor if in_dim == dim % leaf.dim() else movedim(tensor, in_dim, dim))
            else:
                flat.append(leaf if dim == 0 else movedim(leaf, 0, dim))
        return pytree.unflatten(flat, self.output_spec)


def _trees(leaves: Sequence[Iterator[Any]], spec: pytree.TreeSpec) -> Iterator[Any]:
    """A new tree for each sample."""
    rows: Iterator[Any] = zip(*leaves) if leaves else itertools.repeat(())
    return (pytree.unflatten(row, spec) for row in rows)


def _require_first_dim(tensor: Tensor, dim: int) -> None:
    if getattr(tensor, "is_nested", False) and dim % tensor.dim():
        raise RuntimeError(f"Nested tensors can only be vmapped over dim=0, but got dim={dim}")


def check_out_dims(func: Callable[..., Any], out_dims: Any) -> None:
    """Raise ValueError unless `out_dims` is a pytree of ints and Nones."""
    for dim in pytree.flatten(out_dims)[0]:
        if dim is not None and not isinstance(dim, int):
            raise ValueError(
                f"vmap({name_of(func)}, ..., out_dims={out_dims}): `out_dims` must be an int, None or a python "
                f"collection of ints representing where in the outputs the vmapped dimension should appear."
            )


def _is_whole(stacked: Tensor, tensor: Tensor, dim: int) -> bool:
    """Whether `stacked` is a view of the whole of `tensor`, with `dim` in front."""
    if stacked._base is None or stacked.layout != torch.strided or getattr(stacked, "is_nested", False):
        return False
    moved = movedim(tensor, dim, 0)
    same_memory = stacked._base is moved._base and stacked.storage_offset() == moved.storage_offset()
    return bool(same_memory and layout_of(stacked) == layout_of(moved))
