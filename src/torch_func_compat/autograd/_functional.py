"""The parts of `torch_func_compat.functional`: the options of a call, and the functions to differentiate.

Conditions, their order and the texts of errors are those of the newest torch.autograd.functional.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator, Sequence

import torch
from torch import Tensor

from .. import _backends
from .._arguments.call import ALL, Call
from .._arguments.chunks import NO_CHUNKS, Chunks
from .._arguments.protocol import Backend
from .._backends.autograd.graph import gradients
from .._backends.autograd.level import Level
from .._dispatch import choice as _policy
from .._torch.tensors import movedim
from .._transforms.basis import map_basis
from .._transforms.jacobian import jacobian_of_rows
from .._transforms.options import Options

# Takes the outputs and the variables of a running level, and raises if something is wrong.
Check = Callable[[Sequence[Tensor], Sequence[Tensor]], None]

_OUTPUTS = "outputs of the user-provided function"
_STRICT = "This is not allowed in strict mode"


class Request:
    """The options of one call, and the backend that computes it."""

    def __init__(self, name: str, inputs: Any, create_graph: bool, strict: bool) -> None:
        self.name = name
        self.create_graph = create_graph
        self.strict = strict
        self.is_tuple, given = _as_tuple(inputs, "inputs", name)
        self.inputs = self._attached(given)
        self.level = Level()
        # Within a native transform its library computes this, because no other engine can see into its tensors.
        # Outside, torch.autograd does: it takes functions of any kind and is as fast.
        self.backend: Backend = _policy.active_native() or _backends.load("autograd")

    def _attached(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor if self.create_graph else tensor.detach() for tensor in tensors]

    @contextlib.contextmanager
    def mode(self) -> Iterator[None]:
        """The context of the transforms: results are attached to tensors outside only in grad mode."""
        with torch.set_grad_enabled(self.create_graph):
            if self.create_graph and self.backend.loops:
                # As in torch, results also depend on inputs that do not require grad; unless transforms are around,
                # only until this is done.
                self.inputs = [self.level.variable(tensor)[1] for tensor in self.inputs]
            self.level.running = True
            try:
                yield
            finally:
                self.level.running = False

    def vector(self, v: Any) -> list[Tensor] | None:
        """`v` as a list; it is checked against the outputs later."""
        return None if v is None else self._attached(_as_tuple(v, "v", self.name)[1])

    def tangent(self, v: Any) -> list[Tensor]:
        """`v` as a list shaped like the inputs; ones if it may be omitted."""
        vector = self.vector(v)
        if vector is None:
            require_single_element(
                self.inputs,
                "The vector v can only be None if the input to the user-provided function is a single "
                "Tensor with a single element.",
            )
            return ones(self.inputs)
        check_vector(vector, self.inputs, self.is_tuple)
        return vector

    def check_differentiable(self, found: Sequence[Tensor | None], what: str, first: int = 0) -> None:
        """With `strict` and `create_graph`, raise where a derivative depends on no tensor."""
        for index, part in enumerate(found, first):
            if self.create_graph and part is not None and not part.requires_grad:
                raise RuntimeError(
                    f"The {what} of the user-provided function is independent of input {index}. {_STRICT} when "
                    f"create_graph=True."
                )

    def jvp(self, call: Recorded, vector: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Outputs of `call`, their derivatives along `vector`, and aux."""
        if self.strict and self.backend.has_forward_mode:
            # Forward mode does not show dependences, so a run in reverse mode is checked first.
            self.backend.vjp(call, self.inputs)
            call.strict, call.check = False, lambda outputs, variables: None
        return self.backend.jvp(call, self.inputs, vector, False)

    def jacobian(self, call: Recorded, forward: bool, vectorize: bool, is_tuple: Callable[[], bool]) -> Any:
        """Derivatives of each output of `call` by each input, in torch's tuples."""
        options = Options(self.name, call.func, chunks=NO_CHUNKS if vectorize else Chunks(1))
        with self.mode():
            if forward:
                # all columns belong to one draw of random numbers
                push, _ = self.backend.pushforward(call, self.inputs, "same")
                columns = map_basis(self.backend, push, self.inputs, options)
                blocks = [_of_columns(column, self.inputs) for column in columns]
            else:
                outputs, pullback, _ = self.backend.vjp(call, self.inputs)
                rows = map_basis(self.backend, pullback, outputs, options)
                blocks = jacobian_of_rows(call, outputs, outputs, rows)
        results = tuple(self.finish(block, self.is_tuple) for block in blocks)
        return results if is_tuple() else results[0]

    def finish(self, tensors: Sequence[Tensor], is_tuple: bool) -> Any:
        """Results in the structure that the caller gets."""
        results = tuple(tensor if self.create_graph else tensor.detach() for tensor in tensors)
        return results if is_tuple else results[0]


class Recorded(Call):
    """The user's function as a backend differentiates it, with checks while it does."""

    is_tuple: bool

    def __init__(self, request: Request, func: Callable[..., Any], check: Check) -> None:
        super().__init__(request.name, func, tuple(request.inputs), {}, ALL, False)
        self.request = request
        self.strict = request.strict
        self.check = check

    def value(self, variables: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of the user's function."""
        self.is_tuple, outputs = _as_tuple(self.func(*variables), _OUTPUTS, self.api)
        for index, output in enumerate(outputs):
            if self.strict and not output.requires_grad:
                raise RuntimeError(
                    f"Output {index} of the user-provided function does not require gradients. The outputs must be "
                    f"computed in a differentiable manner from the input when running in strict mode."
                )
        return list(outputs)

    def __call__(self, *variables: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        outputs = self.value(variables)
        self.check(outputs, variables)
        return outputs, []

    def output(self, flat: Sequence[Any]) -> Any:
        return flat

    def select(self, flat: Sequence[Any]) -> Any:
        return flat


class Gradient(Recorded):
    """The gradient of the user's scalar function, with its value as aux."""

    def __call__(self, *variables: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        missing: list[int] = []

        def inspect(outputs: Sequence[Tensor], inner: Sequence[Tensor]) -> None:
            if self.is_tuple:
                raise RuntimeError(f"The function given to {self.api} should return a single Tensor")
            if outputs[0].numel() != 1:
                raise RuntimeError(
                    f"The Tensor returned by the function given to {self.api} should contain a single element"
                )
            if self.strict:
                found = derivative(outputs, inner)
                missing.extend(index for index, part in enumerate(found) if part is None)

        backend = self.request.backend
        scalar = Scalar(self, inspect)
        value, pullback, _ = backend.vjp(scalar, variables)
        gradient = pullback.pull(ones(value), True, True)
        if self.strict:
            for index, part in enumerate(gradient):
                if index in missing and self.api != "hessian":
                    raise RuntimeError(
                        f"The output of the user-provided function is independent of input {index}. {_STRICT}."
                    )
                if not part.requires_grad:
                    raise RuntimeError(
                        f"While computing the hessian, found that the jacobian of the user-provided function with "
                        f"respect to input {index} is independent of the input. {_STRICT}. You should ensure that your "
                        f"function is twice differentiable and that the jacobian depends on the inputs (this would be "
                        f"violated by a linear function for example)."
                    )
        self.check(gradient, variables)
        return gradient, value


class Scalar(Recorded):
    """The function that `Gradient` differentiates."""

    def __init__(self, outer: Gradient, check: Check) -> None:
        super().__init__(outer.request, outer.func, check)
        self.strict = outer.strict
        self.outer = outer

    def __call__(self, *variables: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        outputs = self.value(variables)
        self.outer.is_tuple = self.is_tuple
        self.check(outputs, variables)
        return outputs, []


def _as_tuple(given: Any, argument: str, function: str) -> tuple[bool, tuple[Tensor, ...]]:
    is_tuple = isinstance(given, tuple)
    tensors = given if is_tuple else (given,)
    for index, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            which = f"the value at index {index}" if is_tuple else f"the given {argument}"
            raise TypeError(
                f"The {argument} given to {function} must be either a Tensor or a tuple of Tensors but {which} has "
                f"type {type(tensor)}."
            )
    return is_tuple, tensors


def ones(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [torch.ones_like(tensor) for tensor in tensors]


def _of_columns(column: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Derivatives of one output by each input, from the stacked derivatives by all elements."""
    shape = column.shape[1:]
    blocks = movedim(column, 0, -1).split([tensor.numel() for tensor in inputs], -1)
    return [block.reshape(shape + tensor.shape) for block, tensor in zip(blocks, inputs)]


def require_single_element(tensors: Sequence[Tensor], message: str) -> None:
    if len(tensors) != 1 or tensors[0].numel() != 1:
        raise RuntimeError(message)


def check_vector(v: Sequence[Tensor], like: Sequence[Tensor], is_tuple: bool) -> None:
    if len(v) != len(like):
        if is_tuple:
            raise RuntimeError(f"v is a tuple of invalid length: should be {len(like)} but got {len(v)}.")
        raise RuntimeError("The given v should contain a single Tensor.")
    for index, (part, tensor) in enumerate(zip(v, like)):
        if part.shape != tensor.shape:
            which = f"Entry {index} in " if is_tuple else ""
            raise RuntimeError(f"{which}v has invalid size: should be {tensor.shape} but got {part.shape}.")


def check_strategy(strategy: str, create_graph: bool, strict: bool, vectorize: bool, hint: str) -> bool:
    """Whether forward mode is asked for; raises where torch.autograd.functional does."""
    if strategy not in ("forward-mode", "reverse-mode"):
        raise AssertionError(f'Expected strategy to be either "forward-mode" or "reverse-mode".{hint}')
    if strategy == "reverse-mode":
        return False
    together = (
        'torch.autograd.functional.jacobian: `{}` and `strategy="forward-mode"` are not supported together (yet). '
        'Please either set `{}` or `strategy="reverse-mode"`.'
    )
    if create_graph:
        raise NotImplementedError(together.format("create_graph=True", "create_graph=False"))
    if strict:
        raise RuntimeError(together.format("strict=True", "strict=False"))
    if not vectorize:
        raise NotImplementedError(
            "Computing Jacobian using forward-AD or forward-over-reverse Hessian is only implemented for "
            "`vectorize=True`."
        )
    return True


def check_not_vectorized(vectorize: bool) -> None:
    if vectorize:
        raise RuntimeError(
            "torch.autograd.functional.jacobian: `strict=True` and `vectorized=True` are not supported together. "
            "Please either set `strict=False` or `vectorize=False`."
        )


def derivative(
    outputs: Sequence[Tensor], variables: Sequence[Tensor], vector: Sequence[Tensor] | None = None
) -> list[Tensor | None]:
    """Gradients within the running level, to see dependences; None where there is none."""
    return gradients(outputs, variables, ones(outputs) if vector is None else vector, create_graph=True)


def first_differentiable(tensors: Sequence[Tensor]) -> Tensor:
    return next((tensor for tensor in tensors if tensor.requires_grad), tensors[0])


def check_independent(found: Sequence[Any], message: str, first: int = 0) -> None:
    for index, part in enumerate(found, first):
        if part is None:
            raise RuntimeError(message.format(index, _STRICT))


def check_rows(request: Request, outputs: Sequence[Tensor], variables: Sequence[Tensor]) -> None:
    for index, output in enumerate(outputs):
        found = derivative([output], variables)
        check_independent(found, f"Output {index} of the user-provided function is independent of input {{}}. {{}}.")
        # torch's text also says "input" for the output here
        for part in found:
            request.check_differentiable([part], "jacobian", index)
