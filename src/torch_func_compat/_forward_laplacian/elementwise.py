"""One rule for all elementwise operations, with derivatives by torch.autograd, and the rules of sums.

With the derivatives f' and f'' of the operation, J becomes f' J and L becomes f' L + f'' (J, J); with several
arguments there are partial derivatives and pairs of them.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping, Sequence

import torch
from torch import Tensor

from .carried import Carried, Refused, Run, make
from .closed_forms import CLOSED, Second
from .parts import constant, is_carried, lift, lifted, plain, total
from .ranges import require_range
from .registry import rule

# Operations that have a complex derivative for complex numbers
_HOLOMORPHIC = frozenset(
    "exp log sqrt sin cos tan sinh cosh tanh reciprocal square pow sigmoid div divide true_divide __rtruediv__ "
    "__rdiv__ __truediv__ __div__ expm1 log1p rsqrt __pow__ __rpow__ atan asin acos".split()
)


@rule(
    "exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal sin cos tan asin acos atan arcsin arccos arctan "
    "sinh cosh tanh asinh acosh atanh sigmoid erf erfc abs absolute lgamma digamma sinc "
    "pow Tensor.__pow__ Tensor.__rpow__ atan2 arctan2 maximum minimum hypot xlogy logaddexp logaddexp2 "
    "clamp clamp_min clamp_max clip "
    "relu relu6 leaky_relu elu selu celu silu mish F.gelu softplus softsign logsigmoid tanhshrink hardtanh hardswish "
    "hardsigmoid softshrink hardshrink threshold special.expit special.erf special.erfc special.log1p special.expm1 "
    "special.xlogy special.xlog1py"
)
def elementwise(run: Run, func: Any, *args: Any, **kwargs: Any) -> Any:
    if kwargs.get("inplace") or any(arg is True for arg in args):
        raise Refused(f"{func.__name__} writes in place")
    if any(isinstance(value, Carried) for value in kwargs.values()):
        args, kwargs = _positional(args, kwargs)
    where = [k for k, arg in enumerate(args) if is_carried(arg)]
    rest, options = [plain(arg) for arg in args], plain(kwargs)
    if not where:
        return constant(run, func(*rest, **options))
    carried = [args[k] for k in where]
    numbers = [*(x.value for x in carried), *rest]
    if any(x.is_complex() if isinstance(x, Tensor) else isinstance(x, complex) for x in numbers):
        if func.__name__ not in _HOLOMORPHIC:
            raise Refused(f"{func.__name__} of complex numbers")

    name = _name(func, rest)
    if name == "reciprocal":
        return quotient(run, 1, carried[0])
    if name in CLOSED and not any(options.values()) and not carried[0].value.is_complex():
        value, first, second = CLOSED[name](carried[0].value)
        return spread(run, carried, value, [first], {} if second is None else {(0, 0): second})

    def operation(*values: Tensor) -> Tensor:
        inner = list(rest)
        for k, value in zip(where, values):
            inner[k] = value
        return func(*inner, **options)  # type: ignore[no-any-return]

    return applied(run, operation, carried)


def _positional(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    names = [name for name in ("input", "self", "other", "exponent") if name in kwargs]
    if not set(names) >= {name for name, value in kwargs.items() if isinstance(value, Carried)}:
        raise Refused(f"unexpected {sorted(kwargs)}")
    rest = {name: value for name, value in kwargs.items() if name not in names}
    return (*args, *[kwargs[name] for name in names]), rest


def _name(func: Any, args: Sequence[Any]) -> str:
    """The closed form of an operation with these arguments, or None."""
    if len(args) == 2 and func.__name__ in ("pow", "__pow__") and type(args[1]) in (int, float) and args[1] == 2:
        return "square"
    if len(args) == 2 and func.__name__ in ("pow", "__pow__") and type(args[1]) is float and args[1] == 0.5:
        return "sqrt"
    return func.__name__ if len(args) == 1 else ""


def applied(run: Run, operation: Callable[..., Tensor], carried: Sequence[Any]) -> Any:
    """An operation that is elementwise in what is carried, after broadcasting."""
    value, firsts, seconds = _derivatives(operation, [x.value for x in carried])
    for (i, j), second in seconds.items():
        jacs = [lifted(carried[k].jac, value.dim()) for k in (i, j)]
        require_range(second, [firsts[i], firsts[j]], jacs)
    wide = {pair: Second(second, wide=True) for pair, second in seconds.items()}
    return spread(run, carried, value, firsts, wide)


def spread(
    run: Run, carried: Sequence[Any], value: Tensor, firsts: Sequence[Tensor], seconds: Mapping[tuple[int, int], Second]
) -> Any:
    """The carried result of an operation with these derivatives."""
    dim = value.dim()
    jacs: list[Tensor] = [lifted(x.jac, dim) for x in carried]
    terms: list[Any] = [None if x.lap is None else first * lift(x.lap, dim) for x, first in zip(carried, firsts)]
    # products of the first derivatives with the Jacobians, and of the second ones where their order keeps the range
    found = [first * jac for first, jac in zip(firsts, jacs)]
    for (i, j), second in seconds.items():
        compact = second.of_first and jacs[i].numel() < run.size * value.numel()
        if not second.of_first:
            left, rest = (second.factor, None) if second.wide else (None, second.factor)
            pairs = run.pairs(jacs[i], jacs[j], left)
        elif compact:
            if second.wide:
                pairs, rest = run.pairs(jacs[i], jacs[j], firsts[i], second.factor), None
            else:
                pairs, rest = run.pairs(jacs[i], jacs[j]), firsts[i] * second.factor
        else:
            left, rest = (second.factor, None) if second.wide else (None, second.factor)
            pairs = run.pairs(found[i], jacs[j], left)
        term = pairs if rest is None else rest * pairs
        terms.append(term if i == j else 2 * term)
    lap = total(terms)
    jac = total(found)
    return make(run, value, jac, None if lap is None else lap.expand_as(value))


def _derivatives(
    operation: Callable[..., Tensor], values: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], dict[tuple[int, int], Tensor]]:
    """The value, the first derivatives by each argument, and the second ones (i <= j) that are not zero."""
    recording = torch.is_grad_enabled()
    shape = values[0].shape if len(values) == 1 else torch.broadcast_tensors(*values)[0].shape
    with torch.enable_grad():
        inputs = []
        for value in values:
            if not (recording and value.requires_grad):
                value = value.detach()
            alias = value.expand(shape) if value.shape != shape else value.view_as(value)
            inputs.append(alias if alias.requires_grad else alias.requires_grad_())
        output = operation(*inputs)
        if output.is_complex() and not all(x.is_complex() for x in inputs):
            # By a real input, torch gives the real part of a derivative. The operation is holomorphic.
            inputs = [x.to(output.dtype) for x in inputs]
            output = operation(*inputs)
        outside = [value for value in values if value.requires_grad]
        kept = recording and (bool(outside) or _reaches(output, inputs))
        if output.shape != shape:  # broadcast with what is not carried
            inputs = [x.expand(output.shape) for x in inputs]
            output = operation(*inputs)
        firsts = _gradients(output, inputs, True)
        seconds: dict[tuple[int, int], Tensor] = {}
        for i, first in enumerate(firsts):
            if first is None or not first.requires_grad:
                continue
            for j, second in enumerate(_gradients(first, inputs[i:], kept)):
                if second is not None:
                    seconds[i, i + j] = second
    found = [torch.zeros_like(output) if first is None else first for first in firsts]
    if not kept:
        return (
            output.detach(),
            [first.detach() for first in found],
            {pair: second.detach() for pair, second in seconds.items()},
        )
    return output, found, seconds


def _reaches(output: Tensor, inputs: Sequence[Tensor]) -> bool:
    """Whether a leaf other than the inputs is below the output."""
    own = {id(x) for x in inputs}
    stack, seen = [output.grad_fn], set()
    while stack:
        node: Any = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable") and id(node.variable) not in own:
            return True
        stack.extend([child for child, _ in node.next_functions])
    return False


def _gradients(output: Tensor, inputs: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
    """Derivatives by each input; complex ones without torch's conjugation."""
    try:
        found = torch.autograd.grad(
            output,
            list(inputs),
            torch.ones_like(output),
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
        )
    except RuntimeError as error:
        raise Refused(f"torch does not differentiate an operation ({error})") from error
    return [g.conj() if g is not None and g.is_complex() else g for g in found]


@rule("add Tensor.__radd__ Tensor.__add__")
def add(run: Run, func: Any, input: Any, other: Any, *, alpha: Any = 1) -> Any:
    return combined(run, input, other, 1, alpha)


@rule("sub subtract Tensor.__sub__")
def sub(run: Run, func: Any, input: Any, other: Any, *, alpha: Any = 1) -> Any:
    return combined(run, input, other, 1, -alpha)


@rule("rsub Tensor.__rsub__")
def rsub(run: Run, func: Any, input: Any, other: Any, *, alpha: Any = 1) -> Any:
    return combined(run, input, other, -alpha, 1)


def combined(run: Run, one: Any, two: Any, first: Any, second: Any) -> Any:
    """``first * one + second * two`` with numbers for factors."""
    left, right = plain(one), plain(two)
    value = _times(left, first) + _times(right, second)
    if not (is_carried(one) or is_carried(two)):
        return constant(run, value)
    pairs = [(x, factor) for x, factor in ((one, first), (two, second)) if is_carried(x)]
    jac = total([_times(lifted(x.jac, value.dim()), factor) for x, factor in pairs])
    lap = total([None if x.lap is None else _times(lift(x.lap, value.dim()), factor) for x, factor in pairs])
    assert jac is not None
    return make(run, value, jac.to(value.dtype), None if lap is None else lap.expand_as(value).to(value.dtype))


def _times(x: Any, factor: Any) -> Any:
    if isinstance(factor, Tensor):
        raise Refused("alpha= is a tensor")
    return x if factor == 1 else -x if factor == -1 else factor * x


@rule("neg negative Tensor.__neg__")
def neg(run: Run, func: Any, input: Any) -> Any:
    return scaled(run, input, -1)


@rule("positive Tensor.__pos__")
def positive(run: Run, func: Any, input: Any) -> Any:
    return input


def scaled(run: Run, x: Any, factor: Any) -> Any:
    """`x` times what is not carried."""
    number = plain(factor)
    value = x.value * number
    if not is_carried(x):
        return constant(run, value)
    dim = value.dim()
    lap = None if x.lap is None else (x.lap * number).expand_as(value)
    return make(run, value, lifted(x.jac, dim) * number, lap)


@rule("div divide true_divide Tensor.__truediv__ Tensor.__div__")
def div(run: Run, func: Any, input: Any, other: Any, *, rounding_mode: Any = None) -> Any:
    if rounding_mode is not None:
        raise Refused(f"division with rounding_mode={rounding_mode!r}")
    if is_carried(other):
        return quotient(run, input, other)
    number = plain(other)
    if not isinstance(input, Carried):
        return constant(run, input / number)
    value = input.value / number
    if not is_carried(input):
        return constant(run, value)
    lap = None if input.lap is None else (input.lap / number).expand_as(value)
    return make(run, value, lifted(input.jac, value.dim()) / number, lap)


@rule("Tensor.__rtruediv__ Tensor.__rdiv__")
def reversed_div(run: Run, func: Any, input: Any, other: Any) -> Any:
    return div(run, torch.div, other, input)


def quotient(run: Run, input: Any, other: Any) -> Any:
    """``v = input / other``, without powers of ``1 / other``, which may leave the range of their dtype.

    ``J(v) = (J(input) - v J(other)) / other`` and ``L(v) = (L(input) - v L(other) - 2 (J(v), J(other))) / other``.
    """
    value, inverse = plain(input) / other.value, 1 / other.value
    dim = value.dim()
    ratio = lifted(other.jac, dim) * inverse
    laps = [None if other.lap is None else -value * (other.lap * inverse)]
    jac = -value * ratio
    if is_carried(input):
        jac = jac + lifted(input.jac, dim) * inverse
        laps.append(None if input.lap is None else input.lap * inverse)
    lap = total([-2 * run.pairs(jac, ratio), *laps])
    assert lap is not None
    return make(run, value, jac, lap.expand_as(value))
