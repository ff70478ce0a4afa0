"""Tests whether the samples of a batch are independent of each other.

If they are, scaling a cotangent by one factor for each sample scales the derivative of each sample by the same factor:
J (w v) = w (J v). Two pullbacks decide. All factors are powers of two, so where the samples are independent both sides
agree to the last bit, and even a weak dependence shows.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from .._arguments.batch import BatchCall
from .._arguments.call import Function, name_of
from .._arguments.protocol import Backend
from .options import Options

# What mixes samples most often, by the names of nodes in torch's graphs, and what to do about it.
_SYMPTOMS = {
    "BatchNorm": "batch normalisation in train mode (call eval() on the module)",
    "Softmax": "a softmax over the batch dimension (give it dim=-1)",
    "Cum": "a cumulative sum or product (perhaps over the batch dimension)",
    "Roll": "rolled samples",
    "Flip": "flipped samples",
    "Sort": "a sort (perhaps over the batch dimension)",
}
# Of the factors between -8 and 8; close to each other, so that no number overflows.
_FACTORS = [sign * 2.0**power for power in range(-3, 4) for sign in (1, -1)]
# Deviations that are forgiven, in units of the machine's precision: kernels that add up in any order.
_FORGIVEN = 64


def _factors(size: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(size)  # nobody's random state moves
    order = torch.randperm(len(_FACTORS), generator=generator)
    more = torch.randint(len(_FACTORS), (size,), generator=generator)
    chosen = torch.cat([order, more])[:size]  # no two alike as long as that is possible
    return torch.tensor(_FACTORS, dtype=torch.float64)[chosen].to(like)


def _random(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(like.numel())
    return (torch.rand(like.shape, generator=generator, dtype=torch.float64) + 0.5).to(like)


def _scaled(tensors: Sequence[Tensor], dims: Sequence[int], size: int) -> list[Tensor]:
    shapes = [[size if d == dim else 1 for d in range(tensor.dim())] for tensor, dim in zip(tensors, dims)]
    return [tensor * _factors(size, tensor).reshape(shape) for tensor, shape in zip(tensors, shapes)]


def _deviating(actual: Tensor, expected: Tensor, dim: int) -> Tensor:
    """For each sample, whether its derivatives differ."""
    size = actual.shape[dim]
    a, e = (t.detach().transpose(0, dim).reshape(size, -1) for t in (actual, expected))
    if not a.numel():
        return torch.zeros(size, dtype=torch.bool, device=a.device)
    limit = _FORGIVEN * torch.finfo(a.dtype).eps * e.abs().max(1, keepdim=True)[0]
    # what is not finite is equal where it is the same
    return ~(((a - e).abs() <= limit) | (a == e) | ((a != a) & (e != e))).all(1)


def _symptoms(outputs: Sequence[Tensor]) -> list[str]:
    names, seen = set(), set()
    stack: list[Any] = [output.grad_fn for output in outputs]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        names.add(type(node).__name__)
        stack.extend(child for child, _ in node.next_functions)
    return [symptom for key, symptom in _SYMPTOMS.items() if any(key in name for name in names)]


class _Observed(BatchCall):
    """A call of a function of a whole batch that notes what its graph has."""

    symptoms: Sequence[str] = ()

    def __call__(self, *primals: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        outputs, aux = super().__call__(*primals)
        self.symptoms = _symptoms(outputs)
        return outputs, aux


def _require_independent(backend: Backend, call: _Observed, order: int, name: str) -> None:
    """Raise RuntimeError unless the samples of `call`, a derivative of that order, are independent."""
    if call.size < 2:
        return  # there are no others
    with torch.no_grad():
        outputs, pullback, _ = backend.vjp(call, [primal.detach() for primal in call.primals])
        vectors = [_random(output) for output in outputs]
        expected = _scaled(pullback(*vectors), call.dims, call.size)
        actual = pullback(*_scaled(vectors, [0] * len(outputs), call.size))
    differs = [_deviating(a, e, dim) for a, e, dim in zip(actual, expected, call.dims)]
    samples = torch.stack(differs).any(0).nonzero().reshape(-1).tolist()
    if not samples:
        return
    what = "its output" if order == 0 else "its first derivative"
    likely = (
        "Batch normalisation in train mode, a softmax, mean or sum over the batch dimension, or a reshape that moves "
        "it does that"
    )
    if call.symptoms:
        likely = f"Its graph has {', and '.join(call.symptoms)}"
    raise RuntimeError(
        f"{call.api}: the samples of `{name}` are not independent: {what} for one sample depends on other samples "
        f"({len(samples)} of {call.size} are affected, the first is {samples[0]}), so derivatives of single samples "
        f"would be wrong. {likely}. If that is what the function is meant to do, take jacobian or hessian"
    )


def verify(
    backend: Backend, stages: Sequence[Function], options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Check each of the functions that are differentiated, one after another, on the arguments."""
    if not backend.remembers:
        raise ValueError("check=True looks at values, which torch.compile does not have: check one eager call")
    state = backend.draws(None)
    for order, stage in enumerate(stages):
        call = _Observed(options.name, stage, args, kwargs, options.argnums, options.has_aux, options.in_dims)
        _require_independent(backend, call, order, name_of(options.func))
    state.restore()


def verified(backend: Backend, found: Function, stages: Callable[[], Sequence[Function]], options: Options) -> Function:
    """`found`; with ``options.check``, after each of the functions that it differentiates was checked."""
    if not options.check:
        return found

    def after_check(*args: Any, **kwargs: Any) -> Any:
        verify(backend, stages(), options, args, kwargs)
        return found(*args, **kwargs)

    return after_check
