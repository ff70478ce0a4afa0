"""What a transform is called with: argnums, in_dims, out_dims, aux and chunks, checked in one place.

The backends differentiate and map functions of a flat list of tensors only. `Call` and `BatchedCall`
turn a user's call into such a function and the results back into the user's structures. Conditions
and error types are those of the newest torch.func; so are the texts, as far as people match on them.
"""

from __future__ import annotations

import functools
import itertools
from functools import cached_property
from typing import Any, Callable, Iterable, Iterator, Sequence, Tuple, Union

import torch
from torch import Tensor

from .._torch import pytree
from .._torch.closures import captured

Argnums = Union[int, Tuple[int, ...]]

# Instead of argnums: every positional argument, as in vjp and jvp.
ALL: Any = object()


def name_of(func: Callable[..., Any]) -> str:
    """What to call `func` in a message; partials and modules have no ``__name__``."""
    if isinstance(func, functools.partial):
        return f"functools.partial({name_of(func.func)}, ...)"
    return getattr(func, "__name__", None) or repr(func)


def check_randomness(randomness: str) -> None:
    """Raise RuntimeError (torch's own choice) unless `randomness` is one of the three modes."""
    if randomness not in ("error", "different", "same"):
        raise RuntimeError(f"Only allowed values for randomness are 'error', 'different', or 'same'. Got {randomness}")


def positions(argnums: Argnums, num_args: int) -> tuple[int, ...]:
    """`argnums` as non-negative positions among `num_args` positional arguments."""
    if isinstance(argnums, int) and not isinstance(argnums, bool):
        argnums = (argnums,)
    elif not isinstance(argnums, tuple):
        raise RuntimeError(f"argnum must be int or Tuple[int], got: {type(argnums)}")
    if not argnums:
        raise RuntimeError("argnums must be non-empty")
    result = []
    for argnum in argnums:
        if not isinstance(argnum, int) or isinstance(argnum, bool):
            raise RuntimeError(f"argnum must be int, got: {type(argnum)}")
        if not -num_args <= argnum < num_args:
            raise RuntimeError(f"Got argnum={argnum}, but only {num_args} positional inputs")
        result.append(argnum % num_args)
    if len(set(result)) != len(result):
        raise RuntimeError(f"argnums elements must be unique, got {argnums}")
    return tuple(result)


def require_real(api: str, tensors: Sequence[Any], role: str) -> None:
    """Jacobians of complex functions are ambiguous (the function need not be holomorphic)."""
    for index, tensor in enumerate(tensors):
        if isinstance(tensor, Tensor) and tensor.is_complex():
            raise RuntimeError(
                f"{api}: Expected all {role} to be real but received complex tensor at flattened input idx: {index}"
            )


def require_tensors(tensors: Sequence[Any]) -> None:
    """Raise torch.func's ValueError where something to be differentiated is no tensor."""
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise ValueError(f"Thing passed to transform API must be Tensor, got {type(tensor)}")


class Call:
    """A user's call as a function of the flat list of tensors to differentiate.

    Parameters
    ----------
    api : str
        What to call the transform in messages.
    func, args, kwargs
        The user's function and what it is called with.
    argnums : int, tuple of int, or ALL
        Which positional arguments are differentiated.
    has_aux : bool
        Whether `func` returns ``(output, aux)``.

    Attributes
    ----------
    primals : list of Tensor
        The leaves to differentiate.
    output_spec : TreeSpec
        Structure of the output; known once the call was evaluated.
    """

    output_spec: pytree.TreeSpec
    aux_spec: pytree.TreeSpec

    def __init__(
        self,
        api: str,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        argnums: Argnums,
        has_aux: bool,
    ) -> None:
        self.api = api
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.has_aux = has_aux
        self.single = isinstance(argnums, int)
        self.positions = tuple(range(len(args))) if argnums is ALL else positions(argnums, len(args))
        self.primals, self.primals_spec = pytree.flatten(tuple([args[i] for i in self.positions]))

    def __call__(self, *primals: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Flat outputs and flat aux for these values of the primals."""
        args = list(self.args)
        for position, value in zip(self.positions, pytree.unflatten(primals, self.primals_spec)):
            args[position] = value
        output = self.func(*args, **self.kwargs)
        flat_aux: list[Any] = []
        if self.has_aux:
            if not (isinstance(output, tuple) and len(output) == 2):
                raise RuntimeError(
                    f"{self.api}: output of function f should be a tuple: (output, aux) if has_aux is True"
                )
            output, aux = output
            flat_aux, self.aux_spec = pytree.flatten(aux)
        outputs, self.output_spec = pytree.flatten(output)
        self.check_output(output)
        for leaf in flat_aux:
            if not isinstance(leaf, Tensor):
                raise RuntimeError(f"{self.api}: Expected tensors, got unsupported type {type(leaf)} in aux")
        return outputs, flat_aux

    def check_output(self, output: Any) -> None:
        """Raise unless the function's output (without aux) can be differentiated; operators may ask for more."""
        if isinstance(output, Tensor):
            return
        outputs = pytree.flatten(output)[0]
        if not outputs or (len(outputs) == 1 and outputs[0] is None):
            raise RuntimeError(
                f"{self.api}: Expected f to be a function that has non-empty output (got output = {outputs})"
            )
        for leaf in outputs:
            if not isinstance(leaf, Tensor):
                raise RuntimeError(
                    f"{self.api}: expected f(*primals) to return only tensors, got unsupported type {type(leaf)}"
                )

    @cached_property
    def _rest(self) -> tuple[list[Any], pytree.TreeSpec]:
        """What is not differentiated: positional arguments by their positions, and keyword arguments."""
        return pytree.flatten(({i: arg for i, arg in enumerate(self.args) if i not in self.positions}, self.kwargs))

    def others(self) -> list[Tensor]:
        """Tensors among the arguments (leaves of them) that are not differentiated."""
        if len(self.positions) == len(self.args) and not self.kwargs:
            return []
        return [leaf for leaf in self._rest[0] if isinstance(leaf, Tensor)]

    def put_others(self, others: Sequence[Tensor]) -> None:
        """Let the function be given these in their place."""
        leaves, spec = self._rest
        values = iter(others)
        rest, self.kwargs = pytree.unflatten([next(values) if isinstance(x, Tensor) else x for x in leaves], spec)
        self.args = tuple(rest.get(i, arg) for i, arg in enumerate(self.args))

    def captured(self) -> list[Tensor]:
        """Tensors around the function, which it can reach without being given them as leaves of its arguments."""
        hidden = [leaf for leaf in self._rest[0] if not isinstance(leaf, Tensor)]
        return [value for value in captured([self.func, hidden]) if isinstance(value, Tensor)]

    def generators(self) -> list[torch.Generator]:
        """Random generators among the arguments and around the function."""
        found = captured([self.func, self.args, self.kwargs])
        return [value for value in found if isinstance(value, torch.Generator)]

    def select(self, flat: Sequence[Any]) -> Any:
        """One value a primal, as `argnums` asks for it: a bare tree for an int, else a tuple."""
        trees = pytree.unflatten(flat, self.primals_spec)
        return trees[0] if self.single else trees

    def output(self, flat: Sequence[Any]) -> Any:
        """One value an output leaf, in the structure of the function's output."""
        return pytree.unflatten(flat, self.output_spec)

    def aux(self, flat: Sequence[Any]) -> Any:
        """The function's aux."""
        return pytree.unflatten(flat, self.aux_spec)

    def with_aux(self, result: Any, aux: Sequence[Any]) -> Any:
        """``(result, aux)`` where the user's function has aux, else the result alone."""
        return (result, self.aux(aux)) if self.has_aux else result


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
    # For each output to be stacked, which of the mapped inputs it was, if it was one: as in torch.func, the result
    # is then that input itself where it reads the same memory.
    identity: Iterable[int | None]

    def __init__(
        self, func: Callable[..., Any], in_dims: Any, out_dims: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.func = func
        self.out_dims = out_dims
        self.kwargs = kwargs
        self.name = name_of(func)
        self.identity = itertools.repeat(None)
        head = f"vmap({self.name}, in_dims={in_dims}, ...)(<inputs>)"
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
                f"for the mapped dimension"
            )
        self.batch_size = sizes[0]

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
                f"over non-Tensor arguments, please use None as the respective in_dim"
            )
        if not -leaf.dim() <= dim < leaf.dim():
            raise ValueError(
                f"{head}: Got in_dim={dim} for some input, but that input is a Tensor of dimensionality "
                f"{leaf.dim()} so expected in_dim to satisfy -{leaf.dim()} <= in_dim < {leaf.dim()}."
            )
        _require_first_dim(leaf, dim)

    def __call__(self, *slices: Tensor) -> tuple[list[Tensor], list[Any]]:
        """One sample: outputs to be stacked, and those with ``out_dims=None``, which all samples share."""
        leaves = list(self.leaves)
        for position, value in zip(self.where, slices):
            leaves[position] = value
        stacked, shared = self.split(self.func(*pytree.unflatten(leaves, self.spec), **self.kwargs))
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

    def reachable(self) -> tuple[list[Tensor], list[torch.Generator]]:
        """What the function can reach beside its slices: tensors that all samples share, and random generators."""
        where = set(self.where)
        found = captured([self.func, [leaf for i, leaf in enumerate(self.leaves) if i not in where], self.kwargs])
        generators = [value for value in found if isinstance(value, torch.Generator)]
        return [value for value in found if isinstance(value, Tensor)], generators

    def generators(self) -> list[torch.Generator]:
        """Random generators among the arguments and around the function."""
        return self.reachable()[1]

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
                    f"but got {dim})"
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


def version(tensor: Tensor) -> int:
    """How often `tensor` was modified in place; inference tensors do not count."""
    try:
        return tensor._version
    except RuntimeError:
        return 0


def layout_of(tensor: Tensor) -> tuple[Any, ...]:
    """How a view reads its memory, but for where it begins."""
    is_conj, is_neg = getattr(tensor, "is_conj", bool), getattr(tensor, "is_neg", bool)
    return (tensor.stride(), tensor.shape, tensor.dtype, tensor.requires_grad, is_conj(), is_neg())


def _is_whole(stacked: Tensor, tensor: Tensor, dim: int) -> bool:
    """Whether the first one is a view of the whole of the second, with `dim` in front."""
    if stacked._base is None or stacked.layout != torch.strided or getattr(stacked, "is_nested", False):
        return False
    moved = movedim(tensor, dim, 0)
    same_memory = stacked._base is moved._base and stacked.storage_offset() == moved.storage_offset()
    return bool(same_memory and layout_of(stacked) == layout_of(moved))


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
