"""Jacobians and Hessians by the cheaper mode, on the two Jacobians of ``products.py``.

The mode follows from sizes, and those of the outputs are known only after an evaluation: reverse mode goes
first, and where it turns out to be the dearer one, the other mode starts again. What was found is
kept by the shapes of the arguments, so that later calls go straight.
"""

from __future__ import annotations

import functools
from typing import Any, Callable

from torch import Tensor

from .._arguments.call import Argnums, name_of, positions
from .._arguments.chunks import Chunks, Taken, taken_by
from .._arguments.partition import Part
from .._arguments.protocol import Backend
from .._torch import pytree
from .._torch.random_state import RandomState
from .products import Function, elements, jacfwd, jacrev, require_floating

JACOBIAN_MODES = ("auto", "forward", "reverse")
HESSIAN_MODES = ("auto", "reverse-reverse", "forward-reverse", "reverse-forward", "forward-forward")

# Of a batch, forward mode is taken where it saves so many rows of samples, or this many times as many as it costs.
WORTH_IT = 2500
SKEWED = 16
# Rows of a single sample up to which their transpose, of one more backward pass, does not pay.
FEW = 255


def check_mode(api: str, mode: str, modes: tuple[str, ...]) -> None:
    """Raise ValueError unless `mode` is one of the modes."""
    if mode not in modes:
        raise ValueError(f"{api}: unknown mode {mode!r}, expected one of {', '.join(map(repr, modes))}")


def jacobian_mode(has_forward_mode: bool, outputs: int, inputs: int, samples: int = 1) -> tuple[str, str]:
    """The cheaper mode for so many elements of outputs and inputs, and why; of each of so many samples."""
    # A column costs more than a row: about 1.5 times where there is forward mode (median over networks, convolutions
    # and linear algebra on CPU), and one more backward pass where it is the transpose of reverse mode.
    ratio = 1.5 if has_forward_mode else 3.0
    # The first column of a batch costs more than its first row, too: as much as some thousand rows of samples.
    saved = (outputs - inputs) * samples
    if samples > 1 and ratio * inputs < outputs <= SKEWED * inputs and saved < WORTH_IT:
        return "reverse", f"reverse mode, since forward mode would save no more than {saved} rows of samples"
    if not has_forward_mode and samples == 1 and ratio * inputs < outputs <= FEW:
        return "reverse", f"reverse mode, since {outputs} rows cost less than the transpose of reverse mode"
    mode = "forward" if outputs > ratio * inputs else "reverse"
    sign = ">" if mode == "forward" else "<="
    return mode, f"{mode} mode, since {outputs} outputs {sign} {ratio} x {inputs} inputs"


def hessian_mode(has_forward_mode: bool, outputs: int, inputs: int, samples: int = 1) -> tuple[str, str]:
    """The cheaper order of modes for a function with so many outputs, and why."""
    if outputs <= 1:
        return "reverse-reverse", "reverse over reverse mode, since the function has one output"
    if not has_forward_mode:
        return "reverse-reverse", "reverse over reverse mode, since this backend has no forward mode of its own"
    return "forward-reverse", f"forward over reverse mode, since the function has {outputs} outputs"


class Choice:
    """Modes that were found for the shapes of arguments, and the sentence that explains the last one."""

    def __init__(self) -> None:
        self._found: dict[Any, tuple[str, str]] = {}
        self.explanation = ""

    def known(self, shapes: Any) -> str | None:
        """The mode for arguments of these shapes, once one was found."""
        found = self._found.get(shapes)
        if found is None:
            return None
        self.explanation = found[1]
        return found[0]

    def found(self, shapes: Any, mode: tuple[str, str]) -> str:
        """Remember a mode."""
        self._found[shapes] = mode
        self.explanation = mode[1]
        return mode[0]


def _shapes(args: tuple[Any, ...]) -> Any:
    if len(args) == 1 and isinstance(args[0], Tensor):
        return args[0].shape
    return tuple(leaf.shape if isinstance(leaf, Tensor) else None for leaf in pytree.flatten(args)[0])


class _Dearer(Exception):
    """The outputs turned out to be such that another mode is cheaper: leave the one that was begun."""


def automatic(
    func: Function,
    argnums: Argnums,
    has_aux: bool,
    first: str,
    rule: Callable[[int, int, int], tuple[str, str]],
    make: Callable[[str, Function], Function],
    *,
    samples: Callable[[tuple[Any, ...]], int] = lambda args: 1,
) -> Function:
    """``make(mode, func)`` with the mode that ``rule(outputs, inputs, samples)`` names, by `first` until it is known.

    Outputs and inputs are those of one of the `samples` that the arguments have.
    """
    choice, taken = Choice(), Taken()
    made: dict[str, Function] = {}

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        shapes = _shapes(args)
        mode = choice.known(shapes)
        if mode is None:
            size = max(samples(args), 1)
            inputs = elements([args[i] for i in positions(argnums, len(args))]) // size

            def sized(*inner: Any, **options: Any) -> Any:
                result = func(*inner, **options)
                output = result[0] if has_aux and isinstance(result, tuple) and result else result
                if choice.found(shapes, rule(elements(output) // size, inputs, size)) != first:
                    raise _Dearer
                return result

            state = RandomState()
            try:
                begun = make(first, functools.wraps(func)(sized))
                result = begun(*args, **kwargs)
                taken.chunk = taken_by(begun)
                return result
            except _Dearer:
                state.restore()
            mode = choice.known(shapes)
            assert mode is not None
        if mode not in made:
            made[mode] = make(mode, func)
        result = made[mode](*args, **kwargs)
        taken.chunk = taken_by(made[mode])
        return result

    wrapped.choice, wrapped.taken = choice, taken  # type: ignore[attr-defined]
    return wrapped


def _by(
    backend: Backend,
    mode: str,
    func: Function,
    argnums: Argnums,
    has_aux: bool,
    chunks: Chunks | None,
    part: Part | None = None,
) -> Function:
    """The Jacobian by the mode of that name."""
    if mode == "reverse":
        return jacrev(backend, func, argnums, has_aux=has_aux, chunks=chunks, part=part)
    return jacfwd(backend, func, argnums, has_aux, randomness="error", chunks=chunks, part=part)


def _forward_mode(backend: Backend, part: Part | None) -> bool:
    return backend.has_forward_mode if part is None else part.has_forward_mode(backend)


def jacobian(
    backend: Backend,
    func: Function,
    argnums: Argnums,
    has_aux: bool,
    *,
    mode: str = "auto",
    chunks: Chunks | None = None,
    part: Part | None = None,
) -> Function:
    """See `torch_func_compat.jacobian`; with `part`, a `Share` of its rows or columns."""

    def make(mode: str, function: Function) -> Function:
        return _by(backend, mode, function, argnums, has_aux, chunks, part)

    def rule(outputs: int, inputs: int, samples: int) -> tuple[str, str]:
        return jacobian_mode(_forward_mode(backend, part), outputs, inputs)

    if mode != "auto":
        return make(mode, func)
    return automatic(func, argnums, has_aux, "reverse", rule, make)


def hessian(
    backend: Backend,
    func: Function,
    argnums: Argnums,
    *,
    has_aux: bool = False,
    mode: str = "auto",
    chunks: Chunks | None = None,
    part: Part | None = None,
) -> Function:
    """See `torch_func_compat.hessian`; with `part`, a `Share` of the rows or columns of the outer Jacobian."""

    def make(mode: str, function: Function) -> Function:
        outer, inner = mode.split("-")
        first = _by(backend, inner, function, argnums, has_aux, chunks)
        return _by(backend, outer, first, argnums, has_aux, chunks, part)

    return _checked(func, argnums, _hessian(backend, func, argnums, has_aux, mode, make, part))


def _hessian(
    backend: Backend,
    func: Function,
    argnums: Argnums,
    has_aux: bool,
    mode: str,
    make: Callable[[str, Function], Function],
    part: Part | None = None,
) -> Function:
    def rule(outputs: int, inputs: int, samples: int) -> tuple[str, str]:
        return hessian_mode(_forward_mode(backend, part), outputs, inputs)

    if mode != "auto":
        return make(mode, func)
    return automatic(func, argnums, has_aux, "reverse-reverse", rule, make)


def _checked(func: Function, argnums: Argnums, hess: Function) -> Function:
    """`hess`, which takes what torch.func's, in forward mode on the outside, takes."""

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        chosen = [args[i] for i in positions(argnums, len(args))]
        require_floating("primal", [leaf for leaf in pytree.flatten(chosen)[0] if isinstance(leaf, Tensor)])
        return hess(*args, **kwargs)

    wrapped.choice = getattr(hess, "choice", None)  # type: ignore[attr-defined]
    return wrapped


def with_value(func: Function, has_aux: bool) -> Function:
    """`func` with its output in its aux, too."""

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if not has_aux:
            return result, result
        if not (isinstance(result, tuple) and len(result) == 2):
            raise RuntimeError(
                f"{name_of(func)}: output of function f should be a tuple: (output, aux) if has_aux is True"
            )
        return result[0], result

    return wrapped


def value_and_jacobian(
    backend: Backend,
    func: Function,
    argnums: Argnums,
    has_aux: bool,
    *,
    mode: str = "auto",
    chunks: Chunks | None = None,
) -> Function:
    """See `torch_func_compat.value_and_jacobian`."""
    both = jacobian(backend, with_value(func, has_aux), argnums, True, mode=mode, chunks=chunks)

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        found, value = both(*args, **kwargs)
        return value, found

    wrapped.choice = getattr(both, "choice", None)  # type: ignore[attr-defined]
    return wrapped


def value_grad_and_hessian(
    backend: Backend,
    func: Function,
    argnums: Argnums,
    has_aux: bool,
    *,
    mode: str = "auto",
    chunks: Chunks | None = None,
) -> Function:
    """See `torch_func_compat.value_grad_and_hessian`."""
    valued = with_value(func, has_aux)

    def make(mode: str, function: Function) -> Function:
        outer, inner = mode.split("-")
        first = _by(backend, inner, function, argnums, True, chunks)

        @functools.wraps(func)
        def gradient(*args: Any, **kwargs: Any) -> Any:
            found, value = first(*args, **kwargs)
            return found, (value, found)

        return _by(backend, outer, gradient, argnums, True, chunks)

    all_three = _checked(func, argnums, _hessian(backend, valued, argnums, True, mode, make))

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        second, (value, first) = all_three(*args, **kwargs)
        return value, first, second

    wrapped.choice = getattr(all_three, "choice", None)  # type: ignore[attr-defined]
    return wrapped
