"""The cheaper mode of a Jacobian or Hessian, by the sizes of inputs and outputs.

The size of the output is known only after an evaluation. So reverse mode goes first; where it turns out to be the more
expensive one, the other mode starts again. The mode is remembered by the shapes of the arguments.
"""

from __future__ import annotations

from typing import Any, Callable

from torch import Tensor

from .._arguments.batch import batch_dims
from .._arguments.call import Function, positions
from .._arguments.protocol import Backend
from .._torch import pytree
from .._torch.closures import captured_tensors
from .._torch.surroundings import Surroundings
from .._torch.tensors import tensors_in
from .basis import count_elements
from .options import Options

JACOBIAN_MODES = ("auto", "forward", "reverse")
HESSIAN_MODES = ("auto", "reverse-reverse", "forward-reverse", "reverse-forward", "forward-forward")

# For a batch, forward mode must save at least MIN_ROWS_SAVED rows x samples, or have MAX_RATIO times fewer columns than
# rows.
MIN_ROWS_SAVED = 2500
MAX_RATIO = 16
# Rows of a single sample up to which their transpose, which takes one more backward pass, does not pay.
MAX_ROWS = 255

# has_forward_mode, elements of the outputs and of the inputs of a sample, samples -> a mode, and why
Rule = Callable[[bool, int, int, int], "tuple[str, str]"]


def check_mode(api: str, mode: str, modes: tuple[str, ...]) -> None:
    """Raise ValueError unless `mode` is one of the modes."""
    if mode not in modes:
        raise ValueError(f"{api}: unknown mode {mode!r}, expected one of {', '.join(map(repr, modes))}")


def jacobian_mode(has_forward_mode: bool, outputs: int, inputs: int, samples: int) -> tuple[str, str]:
    """The cheaper mode, by the numbers of output and input elements of a sample, and why."""
    # A column costs more than a row: about 1.5 times with forward mode (median over networks, convolutions and linear
    # algebra on CPU), and one more backward pass with the transpose of reverse mode.
    ratio = 1.5 if has_forward_mode else 3.0
    # The first column of a batch also costs more than its first row: as much as some thousand rows of samples.
    saved = (outputs - inputs) * samples
    if samples > 1 and ratio * inputs < outputs <= MAX_RATIO * inputs and saved < MIN_ROWS_SAVED:
        return "reverse", f"reverse mode, since forward mode would save no more than {saved} rows of samples"
    if not has_forward_mode and samples == 1 and ratio * inputs < outputs <= MAX_ROWS:
        return "reverse", f"reverse mode, since {outputs} rows cost less than the transpose of reverse mode"
    mode = "forward" if outputs > ratio * inputs else "reverse"
    sign = ">" if mode == "forward" else "<="
    return mode, f"{mode} mode, since {outputs} outputs {sign} {ratio} x {inputs} inputs"


def hessian_mode(has_forward_mode: bool, outputs: int, inputs: int, samples: int) -> tuple[str, str]:
    """The cheaper order of modes, by the number of outputs, and why."""
    if outputs <= 1:
        return "reverse-reverse", "reverse over reverse mode, since the function has one output"
    if not has_forward_mode:
        return "reverse-reverse", "reverse over reverse mode, since this backend has no forward mode of its own"
    return "forward-reverse", f"forward over reverse mode, since the function has {outputs} outputs"


def diagonal_mode(has_forward_mode: bool, outputs: int, inputs: int, samples: int) -> tuple[str, str]:
    """The cheaper way to the diagonal of a Hessian, and why."""
    # torch's forward mode within forward mode can fail on tensors without elements.
    if outputs <= 1 or not inputs or not has_forward_mode:
        return "reverse", f"rows of the Hessian by reverse mode, since the function has {outputs} output(s)"
    return "forward", f"forward over forward mode, since the function has {outputs} outputs"


def _shapes(args: tuple[Any, ...]) -> Any:
    if len(args) == 1 and isinstance(args[0], Tensor):
        return args[0].shape
    return tuple(leaf.shape if isinstance(leaf, Tensor) else None for leaf in pytree.flatten(args)[0])


def _count_samples(options: Options, args: tuple[Any, ...]) -> int:
    if options.in_dims is None:
        return 1
    return max(batch_dims(options.name, options.in_dims, args, positions(options.argnums, len(args)))[1], 1)


class _OtherModeIsCheaper(Exception):
    """Another mode is cheaper for outputs of this size: abandon the one that was begun."""


def automatic(
    backend: Backend,
    func: Function,
    options: Options,
    first: str,
    rule: Rule,
    make: Callable[[str, Function], Function],
) -> Function:
    """``make(mode, func)`` by ``options.mode``; with 'auto' by `rule`, and by `first` until the sizes are known."""
    if options.mode != "auto":
        return make(options.mode, func)
    partition = options.partition
    known: dict[Any, tuple[str, str]] = {}
    made: dict[str, Function] = {}

    def chosen(output: Any, args: tuple[Any, ...]) -> tuple[str, str]:
        samples = _count_samples(options, args)
        inputs = count_elements([args[i] for i in positions(options.argnums, len(args))])
        forward_mode = backend.has_forward_mode if partition is None else partition.has_forward_mode(backend)
        return rule(forward_mode, count_elements(output) // samples, inputs // samples, samples)

    def traced(*args: Any, **kwargs: Any) -> Any:
        # One more evaluation; torch.compile removes it from the graph.
        result = func(*args, **kwargs)
        return make(chosen(result[0] if options.has_aux else result, args)[0], func)(*args, **kwargs)

    if not backend.remembers:
        return traced

    def by_cheaper_mode(*args: Any, **kwargs: Any) -> Any:
        shapes = _shapes(args)
        found = known.get(shapes)
        if found is None:

            def sized(*inner: Any, **options_: Any) -> Any:
                result = func(*inner, **options_)
                aux = options.has_aux and isinstance(result, tuple) and len(result) > 0
                known[shapes] = chosen(result[0] if aux else result, args)
                if known[shapes][0] != first:
                    raise _OtherModeIsCheaper
                return result

            before = Surroundings(tensors_in((args, kwargs, captured_tensors(func))), (), func)
            try:
                result = make(first, sized)(*args, **kwargs)
                if options.report is not None:
                    options.report.mode = known[shapes][1]
                return result
            except _OtherModeIsCheaper:
                before.restore()
            found = known[shapes]
        if options.report is not None:
            options.report.mode = found[1]
        if found[0] not in made:
            made[found[0]] = make(found[0], func)
        return made[found[0]](*args, **kwargs)

    return by_cheaper_mode
