"""Whether the backward of a custom autograd.Function computes with numbers that plain autograd cannot differentiate.

These are intermediate results of its forward: autograd takes what a forward saves beside inputs and outputs for
constant. Each application of a Function is looked at by itself. A comparison of the whole function with finite
differences would refuse functions with a gradient that is not theirs on purpose (gradient reversal, straight-through
estimators), and would not see what depends on tensors around the function.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from types import FrameType
from typing import Any, Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from ..._torch.closures import captured
from ..._torch.surroundings import unchanged
from ..._torch.tensors import tensors_in, version, wave
from .graph import gradients, is_out_of_sight

Application = Sequence[Any]


def keeps_constants(node: Any) -> bool:
    """Whether a node keeps numbers that do not require grad: inputs, constants, or intermediate results."""
    if not isinstance(node, BackwardCFunction) or is_out_of_sight(node):
        return False
    try:
        saved = node.saved_tensors or ()
    except RuntimeError:  # the graph was freed
        return False
    try:
        return bool(_constants(node, saved, ()))
    except RuntimeError:  # a tensor of a level of torch.func that has ended
        return True


class Applications:
    """The arguments of the custom Functions that are applied meanwhile in this thread, by their nodes.

    A Function may be applied by a method that the user has stored, so only a profile function sees all of them.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, Application, list[int]]] = {}
        self._other: Callable[..., Any] | None = None

    def of(self, node: Any) -> Application | None:
        """The arguments, where they were seen and are as they were."""
        ctx, arguments, versions = self._seen.get(id(node), (None, (), []))
        return arguments if ctx is node and versions == [version(x) for x in tensors_in(arguments)] else None

    def _watch(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and (frame.f_code.co_argcount or frame.f_code.co_flags & inspect.CO_VARARGS):
            self._note(frame)
        if self._other is not None:
            self._other(frame, event, argument)

    def _note(self, frame: FrameType) -> None:
        code, values = frame.f_code, frame.f_locals
        names = code.co_varnames
        given: list[Any] = [values.get(name) for name in names[: code.co_argcount]]
        if code.co_flags & inspect.CO_VARARGS:
            given += values.get(names[code.co_argcount + code.co_kwonlyargcount]) or ()
        if not given or not isinstance(given[0], BackwardCFunction) or id(given[0]) in self._seen:
            return
        ctx, arguments = given[0], given[1:]
        if _has_setup_context(ctx):
            arguments = list(given[1])
        self._seen[id(ctx)] = ctx, arguments, [version(x) for x in tensors_in(arguments)]

    @contextlib.contextmanager
    def seen(self) -> Iterator[None]:
        """Around what applies them. A profiler in C, which cannot pass events on, stays alone."""
        other = sys.getprofile()
        if other is not None and not callable(other):
            yield
            return
        self._other = other
        sys.setprofile(self._watch)
        try:
            yield
        finally:
            sys.setprofile(other)


def lacks_terms(node: Any, arguments: Application, generators: Sequence[torch.Generator]) -> bool | None:
    """Whether the derivative of a node's backward lacks terms; None where all numbers are zero.

    The Function is applied again at other inputs. Where what it keeps is not the same there, the derivative of its
    backward in one direction has to be what differences of it are.
    """
    if not _constants(node, node.saved_tensors or (), arguments):
        return False
    cls = type(node)._forward_cls
    there = [x for x in tensors_in(arguments) if not x.requires_grad]

    def applied(far: float) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        with unchanged(there, generators):
            return _applied(cls, arguments, far)

    here, *moved = (applied(far)[2] for far in (0.0, 1.0, -0.7))
    if all(len(here) == len(other) and all(map(_equal, here, other)) for other in moved):
        return False
    leaves, found, _ = applied(0.0)
    directions = _directions(leaves)
    product = real_dot(found, directions)
    exact = 0.0
    if product.requires_grad:
        again = gradients([product], leaves, [torch.ones_like(product)], create_graph=False)
        exact = float(real_dot(again, directions))
    eps = max(torch.finfo(leaf.dtype).eps for leaf in leaves) ** (1 / 3)

    def quotient(step: float) -> float:
        ahead, behind = (float(real_dot(applied(far)[1], directions)) for far in (step, -step))
        return (ahead - behind) / (2 * step)

    return differ(exact, quotient(eps), quotient(0.5 * eps))


def differ(exact: float, wide: float, narrow: float) -> bool | None:
    """Whether a derivative differs from central differences of two step sizes; None where all of them are zero.

    The differences have to agree with each other: where they do not, the function is too rough for a test. The error
    of the narrow one is about a third of what they differ by.
    """
    size = max(abs(exact), abs(wide), abs(narrow))
    if not size:
        return None
    return abs(wide - narrow) <= 0.01 * size and abs(narrow - exact) > 4 * abs(wide - narrow) + 0.001 * size


def _applied(cls: Any, arguments: Application, far: float) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Its inputs, moved so `far` in a fixed direction, gradients by them, and the constants that the Function kept."""
    leaves = [x.detach().clone() for x in arguments if isinstance(x, Tensor) and x.requires_grad]
    with torch.no_grad():
        leaves = [(leaf + far * direction).requires_grad_() for leaf, direction in zip(leaves, _directions(leaves))]
    rest = iter(leaves)
    given = [
        # a Function may modify its inputs in place
        (next(rest).clone() if x.requires_grad else x.detach().clone()) if isinstance(x, Tensor) else x
        for x in arguments
    ]
    outputs = [x for x in tensors_in([cls.apply(*given)]) if x.requires_grad]
    node: Any = outputs[0].grad_fn
    found = gradients(outputs, leaves, [wave(output) for output in outputs], create_graph=True)
    return (
        leaves,
        [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found)],
        _constants(node, node.saved_tensors or (), given),
    )


def _directions(leaves: Sequence[Tensor]) -> list[Tensor]:
    """Fixed directions, as long as the tensors are large."""
    sizes = [float(leaf.detach().abs().max()) if leaf.numel() else 0.0 for leaf in leaves]
    return [(size or 1.0) * wave(leaf) for size, leaf in zip(sizes, leaves)]


def _constants(node: Any, saved: Sequence[Any], arguments: Application) -> list[Tensor]:
    """The numbers that a node keeps, apart from tensors that require grad and the arguments that do not."""
    given = [x for x in tensors_in(arguments) if not x.requires_grad]
    attributes = list(vars(node).values())
    kept = [*saved, *captured(attributes), *_numbers(attributes, arguments)]
    return [
        x.detach()
        for x in kept
        if isinstance(x, Tensor)
        and (x.is_floating_point() or x.is_complex())
        and not x.requires_grad
        and not any(_is_alias(x, y) for y in given)
    ]


def _numbers(values: Sequence[Any], arguments: Application) -> list[Tensor]:
    """Numbers of Python and numpy as tensors, but for those that were given as arguments."""
    found: list[Tensor] = []
    for value in values:
        if any(value is argument for argument in arguments):
            continue
        if isinstance(value, (float, complex)):
            found.append(torch.as_tensor(value, dtype=torch.complex128, device="cpu"))
        elif isinstance(value, (list, tuple)):
            found += _numbers(value, arguments)
        elif isinstance(value, dict):
            found += _numbers(list(value.values()), arguments)
        elif type(value).__module__ == "numpy" and getattr(getattr(value, "dtype", None), "kind", "") in ("f", "c"):
            found.append(torch.as_tensor(value.copy(), device="cpu"))
    return found


def _is_alias(x: Tensor, y: Tensor) -> bool:
    if x is y:
        return True
    if x.layout != torch.strided or y.layout != torch.strided or x.shape != y.shape or x.dtype != y.dtype:
        return False
    return x.device == y.device and x.stride() == y.stride() and x.data_ptr() == y.data_ptr()


def _equal(x: Tensor, y: Tensor) -> bool:
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    return torch.equal(x, y) or bool(((x == y) | ((x != x) & (y != y))).all())


def _has_setup_context(ctx: Any) -> bool:
    own = getattr(type(ctx)._forward_cls, "setup_context", None)
    return own is not getattr(torch.autograd.Function, "setup_context", None)


def real_dot(found: Sequence[Tensor | None], vectors: Sequence[Tensor]) -> Tensor:
    """The real part of the inner product."""
    total = torch.zeros((), device="cpu")
    for x, vector in zip(found, vectors):
        if x is not None:
            product = (x.conj() * vector).sum()
            total = total + (torch.real(product) if product.is_complex() else product)
    return total
