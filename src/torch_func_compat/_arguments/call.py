"""A differentiated call as a function of the flat list of its primals: argnums and aux, checked.

The backends differentiate functions of a flat list of tensors only. `Call` turns a user's call into such a function
and the results back into the user's structures. Conditions and error types are those of the newest torch.func; so are
the texts that programs match on.
"""

from __future__ import annotations

import functools
from functools import cached_property
from numbers import Number
from typing import Any, Callable, Sequence, Tuple, Union

import torch
from torch import Tensor

from .._torch import pytree
from .._torch.closures import captured, captured_tensors
from .required import require_floating, way_to

Argnums = Union[int, Tuple[int, ...]]
Function = Callable[..., Any]

# Instead of argnums: every positional argument, as in vjp and jvp.
ALL: Any = object()


def name_of(func: Callable[..., Any]) -> str:
    """The name of `func` in a message; partials and modules have no ``__name__``."""
    if isinstance(func, functools.partial):
        return f"functools.partial({name_of(func.func)}, ...)"
    if isinstance(func, torch.nn.Module):
        return type(func).__name__  # whose repr() is as long as the network
    return getattr(func, "__name__", None) or repr(func)


def positions(argnums: Argnums, num_args: int) -> tuple[int, ...]:
    """`argnums` as non-negative positions among `num_args` positional arguments."""
    if isinstance(argnums, int):  # as for torch.func, True is 1
        argnums = (argnums,)
    elif not isinstance(argnums, tuple):
        raise RuntimeError(
            f"argnums must be int or Tuple[int, ...], got: {type(argnums)}. A transform takes a function and returns "
            f"a function: call it as grad(f)(x)"
        )
    if not argnums:
        raise RuntimeError("argnums must be non-empty")
    result = []
    for argnum in argnums:
        if not isinstance(argnum, int):
            raise RuntimeError(f"argnum must be int, got: {type(argnum)}")
        if not -num_args <= argnum < num_args:
            hint = "" if num_args else ". Arguments that are differentiated are passed by position"
            raise RuntimeError(f"Got argnum={argnum}, but only {num_args} positional inputs{hint}")
        result.append(argnum % num_args)
    if len(set(result)) != len(result):
        raise RuntimeError(f"argnums elements must be unique, got {argnums}")
    return tuple(result)


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
    takes_rows = False

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
        if argnums is ALL:
            self.positions: tuple[int, ...] = tuple(range(len(args)))
        else:
            self.positions = positions(argnums, len(args))
        # whether all arguments are differentiated, in their order
        self._is_whole = len(args) == 1 or self.positions == tuple(range(len(args)))
        chosen = args if self._is_whole else tuple([args[i] for i in self.positions])
        self.primals, self.primals_spec = pytree.flatten(chosen)

    def __call__(self, *primals: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Flat outputs and flat aux for these values of the primals."""
        values = pytree.unflatten(primals, self.primals_spec)
        if self._is_whole:
            output = self.func(*values, **self.kwargs)
        else:
            args = list(self.args)
            for position, value in zip(self.positions, values):
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
        self.check_output(output, outputs)
        for leaf in flat_aux:
            if not isinstance(leaf, Tensor):
                raise RuntimeError(f"{self.api}: Expected tensors, got unsupported type {type(leaf)} in aux")
        return outputs, flat_aux

    def check_output(self, output: Any, outputs: Sequence[Any]) -> None:
        """Raise unless the output (without aux), whose leaves are `outputs`, can be differentiated."""
        if isinstance(output, Tensor):
            return
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
        """Arguments that are not differentiated: positional ones by their positions, and keyword arguments."""
        return pytree.flatten(({i: arg for i, arg in enumerate(self.args) if i not in self.positions}, self.kwargs))

    def others(self) -> list[Tensor]:
        """Tensors among the arguments (leaves of them) that are not differentiated."""
        if self._is_whole and not self.kwargs:
            return []
        return [leaf for leaf in self._rest[0] if isinstance(leaf, Tensor)]

    def put_others(self, others: Sequence[Tensor]) -> None:
        """Call the function with these in place of `others`."""
        leaves, spec = self._rest
        values = iter(others)
        rest, self.kwargs = pytree.unflatten([next(values) if isinstance(x, Tensor) else x for x in leaves], spec)
        self.args = tuple(rest.get(i, arg) for i, arg in enumerate(self.args))

    def captured(self) -> list[Tensor]:
        """Tensors that the function can reach although they are no leaves of its arguments."""
        found = captured_tensors(self.func)
        if self._is_whole and not self.kwargs:
            return found
        hidden = [leaf for leaf in self._rest[0] if not isinstance(leaf, Tensor)]
        return [*found, *(value for value in captured(hidden) if isinstance(value, Tensor))] if hidden else found

    def outside(self) -> tuple[list[Tensor], list[torch.Generator]]:
        """What an evaluation can change: tensors that are not differentiated, and random generators."""
        return [*self.others(), *self.captured()], self.generators()

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


def _cure_of_output(output: Any) -> str:
    if output is None:
        return ": the function has no return statement where it ends"
    if isinstance(output, tuple) and len(output) == 2:
        return ": of (output, aux), the output is differentiated with has_aux=True"
    return ": compute it by torch operations" if isinstance(output, Number) or hasattr(output, "__array__") else ""


class ScalarCall(Call):
    """A call whose output must be one number."""

    def check_output(self, output: Any, outputs: Sequence[Any]) -> None:
        """Raise unless the output is a real tensor of no dimensions."""
        if not isinstance(output, Tensor):
            raise RuntimeError(
                f"{self.api}: Expected f(*args) to return a Tensor, got {type(output)}{_cure_of_output(output)}"
            )
        if output.dim() != 0:
            raise RuntimeError(
                f"{self.api}: Expected f(*args) to return a scalar Tensor, got tensor with {output.dim()} dims. "
                f"Maybe you wanted to use the vjp or jacrev APIs instead? To differentiate the sum, return output.sum()"
            )
        if output.is_complex():
            raise RuntimeError(f"grad can be implicitly created only for real scalar outputs but got {output.dtype}")


def check_tangents(call: Call, tangents: Any) -> list[Tensor]:
    """The tangents as a flat list, which must match the primals."""
    api = call.api
    flat_tangents, spec = pytree.flatten(tangents)
    if spec != call.primals_spec:
        raise RuntimeError(
            f"{api}: Expected primals and tangents to have the same python structure. For example, if primals is a "
            f"tuple of 3 tensors, tangents also must be. Got primals with structure {call.primals_spec} and tangents "
            f"with structure {spec}"
        )
    for name, leaves in (("primals", call.primals), ("tangents", flat_tangents)):
        if not leaves:
            raise RuntimeError(f"{api}: Expected {name} to contain at least one Tensor.")
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise RuntimeError(f"{api}: Expected {name} to only contain Tensors, got {type(leaf)}: {way_to(leaf)}")
    require_floating("primal", call.primals)
    require_floating("tangent", flat_tangents)
    flat_tangents = [
        t.to(p.dtype) if p.is_complex() and not t.is_complex() else t for p, t in zip(call.primals, flat_tangents)
    ]
    for primal, tangent in zip(call.primals, flat_tangents):
        if primal.is_complex() != tangent.is_complex():
            raise RuntimeError(
                f"{api}: Expected a real tangent for a real primal, got a tangent of {tangent.dtype} for a primal of "
                f"{primal.dtype}"
            )
        if primal.shape != tangent.shape:
            raise RuntimeError(
                f"{api}: Expected tangent to have the same shape as its primal, got {tuple(tangent.shape)} for a "
                f"primal of shape {tuple(primal.shape)}"
            )
    return flat_tangents
