"""A function and the inputs at which it is checked, as a function from one vector to another."""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from . import _trees


def of_argnums(argnums: int | Sequence[int] | None, inputs: Sequence[Any]) -> int | tuple[int, ...]:
    """The arguments to differentiate: by default all that hold tensors of floating-point numbers only."""
    if argnums is None:
        found = [i for i, argument in enumerate(inputs) if _is_real(argument)]
        if not found:
            raise ValueError("no input is a pytree of floating-point tensors: there is nothing to differentiate")
        return found[0] if len(found) == 1 else tuple(found)
    chosen = [argnums] if isinstance(argnums, int) else list(argnums)
    for i in chosen:
        if not -len(inputs) <= i < len(inputs):
            raise ValueError(f"argnums has {i}, and there are {len(inputs)} inputs")
        if not _is_real(inputs[i]):
            raise ValueError(f"input {i} is to be differentiated: expected a pytree of floating-point tensors")
    positions = [i % len(inputs) for i in chosen]
    return positions[0] if isinstance(argnums, int) else tuple(positions)


def _is_real(argument: Any) -> bool:
    leaves = _trees.flatten(argument)[0]
    return bool(leaves) and all(isinstance(leaf, Tensor) and leaf.dtype.is_floating_point for leaf in leaves)


class Point:
    """`function` at `inputs`. The N elements that are differentiated and the M outputs have consecutive numbers."""

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Any], argnums: int | tuple[int, ...]) -> None:
        self.function = function
        self.argnums = argnums
        self.positions = (argnums,) if isinstance(argnums, int) else argnums
        self.inputs = tuple(_trees.mapped(lambda leaf: leaf.detach(), argument) for argument in inputs)
        self.leaves, self.structure = _trees.flatten(tuple(self.inputs[i] for i in self.positions))
        output = function(*self.fresh())
        found, self.output_structure = _trees.flatten(output)
        for leaf in found:
            if not (isinstance(leaf, Tensor) and leaf.dtype.is_floating_point):
                kind = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
                raise ValueError(
                    f"the function returned {kind}: expected floating-point tensors. Split complex numbers into "
                    "their real and imaginary parts"
                )
        # Parameters of a module, for example, which the caller may want derivatives by
        self.needs_grad = any(leaf.requires_grad for leaf in found)
        self.outputs = [leaf.detach() for leaf in found]

    @property
    def is_scalar(self) -> bool:
        return len(self.outputs) == 1 and self.output_structure.kind is None and not self.outputs[0].dim()

    @property
    def dtypes(self) -> set[torch.dtype]:
        return {leaf.dtype for leaf in (*self.leaves, *self.outputs)}

    def fresh(self, requires_grad: bool = False) -> tuple[Any, ...]:
        """Copies of the inputs."""
        return fresh(self.inputs, self.positions, requires_grad)

    def chosen(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """Those of the inputs that are differentiated."""
        return tuple(inputs[i] for i in self.positions)

    def closed(self, function: Callable[..., Any], inputs: Sequence[Any]) -> Callable[..., Any]:
        """`function` of the differentiated inputs alone."""

        def of_chosen(*chosen: Any) -> Any:
            merged = list(inputs)
            for i, argument in zip(self.positions, chosen):
                merged[i] = argument
            return function(*merged)

        return of_chosen

    # --- vectors and matrices as the pytrees that operators return ---

    def outputs_of(self, vector: Tensor) -> Any:
        """M numbers in the structure of the output."""
        return self.output_structure.fill(_parts(vector, self.outputs))

    def primals_of(self, vector: Tensor) -> tuple[Any, ...]:
        """N numbers as a tuple with each argument that is differentiated."""
        return tuple(self.structure.fill(_parts(vector, self.leaves)))

    def arguments_of(self, vector: Tensor) -> Any:
        """The same as `argnums` asks for it: without the tuple for an int."""
        return self._unpacked(self.primals_of(vector))

    def rows_of(self, matrix: Tensor) -> Any:
        """A matrix of M rows and N columns in the structure of a Jacobian."""
        return self._by_output(lambda rows, like: self._columns(rows, like.shape), matrix)

    def products_of(self, matrix: Tensor) -> Any:
        """The same, with the tuple of the arguments also where `argnums` is an int."""
        return self._by_output(lambda rows, like: self.structure.fill(self._blocks(rows, like.shape)), matrix)

    def second_of(self, cube: Tensor) -> Any:
        """M x N x N numbers in the structure of a Hessian."""

        def of_output(planes: Tensor, like: Tensor) -> Any:
            blocks, start = [], 0
            for leaf in self.leaves:
                block = planes[:, start : start + leaf.numel()]
                start += leaf.numel()
                blocks.append(self._columns(block.reshape(-1, planes.shape[-1]), like.shape + leaf.shape))
            return self._unpacked(self.structure.fill(blocks))

        return self._by_output(of_output, cube)

    def _by_output(self, of_output: Callable[[Tensor, Tensor], Any], values: Tensor) -> Any:
        found, start = [], 0
        for like in self.outputs:
            found.append(of_output(values[start : start + like.numel()], like))
            start += like.numel()
        return self.output_structure.fill(found)

    def _columns(self, rows: Tensor, shape: torch.Size) -> Any:
        return self._unpacked(self.structure.fill(self._blocks(rows, shape)))

    def _blocks(self, rows: Tensor, shape: torch.Size) -> list[Tensor]:
        """Rows of N numbers, one for each element of `shape`, in columns of each leaf."""
        parts = torch.split(rows, [leaf.numel() for leaf in self.leaves], -1)
        return [part.reshape(shape + leaf.shape).to(leaf.dtype) for part, leaf in zip(parts, self.leaves)]

    def _unpacked(self, arguments: Any) -> Any:
        return arguments[0] if isinstance(self.argnums, int) else arguments


def fresh(inputs: Sequence[Any], positions: Sequence[int], requires_grad: bool = False) -> tuple[Any, ...]:
    """The inputs, copied, since a function may change what it is given; those at `positions` may require grad."""
    copies = [_trees.mapped(lambda leaf: leaf.detach().clone(), argument) for argument in inputs]
    if requires_grad:
        for i in positions:
            copies[i] = _trees.mapped(lambda leaf: leaf.requires_grad_(), copies[i])
    return tuple(copies)


def _parts(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = torch.split(vector, [leaf.numel() for leaf in like])
    return [part.reshape(leaf.shape).to(leaf.dtype) for part, leaf in zip(parts, like)]


def flat(leaves: Sequence[Tensor]) -> Tensor:
    """The elements of tensors, one after the other, in float64."""
    return torch.cat([leaf.reshape(-1).double() for leaf in leaves])
