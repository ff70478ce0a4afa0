"""Tests whether the samples of a batch are independent of each other.

If they are, scaling a cotangent by one factor for each sample scales the derivative of each sample by the same factor:
J^T (w v) = w (J^T v). All factors are powers of two, so where the samples are independent both sides agree to the last
bit, and even a weak dependence shows. Where the rows of J are known, J^T v is their sum with weights v. That agrees to
rounding only; where it does not, a second pullback decides. Before an error is raised, a second test confirms the
dependence: samples whose cotangents are zero must have zero derivatives.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Iterable, Sequence

import torch
from torch import Tensor

from .._arguments.batch import BatchCall
from .._arguments.call import Function, name_of
from .._arguments.protocol import Backend, Pullback
from .._guards.by_graph import nodes
from .._torch.grad_mode import no_grad
from .._torch.modules import modules
from .._torch.surroundings import unchanged
from .._torch.tensors import movedim
from .options import Options

# The usual operations that mix samples, by their nodes' names in torch's graphs, each with advice.
_SYMPTOMS = {
    "BatchNorm": "batch normalisation in train mode (call eval() on the module)",
    "Softmax": "a softmax (give it dim=-1 if it is over the batch dimension)",
    "Cum": "a cumulative sum or product (perhaps over the batch dimension)",
    "Roll": "rolled samples",
    "Flip": "flipped samples",
    "Sort": "a sort (perhaps over the batch dimension)",
}
# Reductions; their nodes tell whether they reduce dimension 0.
_REDUCTIONS = {"Mean": "a mean", "Sum": "a sum", "Var": "a variance", "Std": "a standard deviation", "Norm": "a norm"}
# The factors lie between -8 and 8, so that no number overflows.
_FACTORS = [sign * 2.0**power for power in range(-3, 4) for sign in (1, -1)]
# The allowed deviation in units of machine epsilon, since kernels may add in any order.
_FORGIVEN = 64


class DependentSamples(RuntimeError):
    """The samples of a batch are not independent of each other."""


def _factors(size: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(size)  # torch's own random state does not move
    order = torch.randperm(len(_FACTORS), generator=generator, device="cpu")
    more = torch.randint(len(_FACTORS), (size,), generator=generator, device="cpu")
    chosen = torch.cat([order, more])[:size]  # all different, while there are enough
    return torch.tensor(_FACTORS, dtype=torch.float64, device="cpu")[chosen].to(like)


def _random(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(like.numel())
    return (torch.rand(like.shape, generator=generator, dtype=torch.float64, device="cpu") + 0.5).to(like)


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
    # non-finite numbers agree if they are equal
    return ~(((a - e).abs() <= limit) | (a == e) | ((a != a) & (e != e))).all(1)


def _agree_with_rows(
    actual: Sequence[Tensor], weights: Sequence[Tensor], rows: Sequence[Tensor], call: BatchCall
) -> bool:
    """Whether pullbacks are the sums of the rows, of shape ``(rows, *primal)``, with weights, to rounding."""
    eps = max(torch.finfo(tensor.dtype).eps for tensor in (*actual, *weights))
    for found, part, dim in zip(actual, rows, call.dims):
        if not part.numel():
            continue
        blocks = movedim(part.detach(), dim + 1, 0).reshape(call.size, len(part), -1)
        if blocks.element_size() < 4:  # not every torch multiplies these on every device
            blocks = blocks.float()
        factors = torch.cat([weight.reshape(call.size, -1).to(blocks.dtype) for weight in weights], 1)
        expected = torch.bmm(factors.unsqueeze(1), blocks).squeeze(1)
        # by Cauchy and Schwarz, no sum of absolute values is larger
        scale = factors.norm(dim=1) * blocks.norm(dim=1).max(1)[0]
        differs = (found.detach().transpose(0, dim).reshape(call.size, -1).to(blocks.dtype) - expected).abs()
        if not bool((differs <= _FORGIVEN * eps * scale.unsqueeze(1)).all()):
            return False
    return True


def require_independent(
    call: BatchCall,
    outputs: Sequence[Tensor],
    pullback: Pullback,
    order: int,
    func: Function,
    rows: Sequence[Tensor] | None = None,
) -> None:
    """Raise `DependentSamples` unless the samples of `call`, a derivative of that order of `func`, are independent.

    Costs one backward pass where all `rows` of the Jacobian are known, else two.
    """
    if call.size < 2:
        return  # there is no other sample
    with no_grad():
        vectors = [_random(output.detach()) for output in outputs]
        weights = _scaled(vectors, [0] * len(vectors), call.size)
        pull = functools.partial(pullback.pull, retain_graph=True, create_graph=False)
        actual = pull(weights)
        if rows is not None and _agree_with_rows(actual, weights, rows, call):
            return
        expected = _scaled(pull(vectors), call.dims, call.size)
        samples = _differing(actual, expected, call.dims)
        if samples and not _reached_by_others(pull, vectors, call):
            # Rounding is no dependence: some kernels add in any order, or scale by the cotangent (matrix_exp).
            samples = []
    if samples:
        raise DependentSamples(_message(call, outputs, pullback, order, func, samples))


def _reached_by_others(pull: Callable[..., Sequence[Tensor]], vectors: Sequence[Tensor], call: BatchCall) -> bool:
    """Whether samples with zero cotangents have nonzero derivatives.

    Each pass zeroes the cotangents of the samples whose index has a given value in a given bit, so that every pair of
    samples is separated in some pass.
    """
    for bit in range((call.size - 1).bit_length()):
        for value in (0, 1):
            silent = [k for k in range(call.size) if k >> bit & 1 == value]
            if not silent:
                continue
            found = pull([vector.index_fill(0, torch.tensor(silent, device=vector.device), 0) for vector in vectors])
            for gradient, dim in zip(found, call.dims):
                if bool((gradient.index_select(dim, torch.tensor(silent, device=gradient.device)) != 0).any()):
                    return True
    return False


def _differing(actual: Sequence[Tensor], expected: Sequence[Tensor], dims: Sequence[int]) -> Any:
    differs = [_deviating(a, e, dim) for a, e, dim in zip(actual, expected, dims)]
    return torch.stack([d.to(differs[0].device) for d in differs]).any(0).nonzero().reshape(-1).tolist()


def _message(
    call: BatchCall, outputs: Sequence[Tensor], pullback: Pullback, order: int, func: Function, samples: Sequence[int]
) -> str:
    what = "its output" if order == 0 else "its first derivative"
    found = [*_normalisations(func), *_symptoms(pullback.outputs)]
    likely = (
        f"Its graph has {', and '.join(found)}"
        if found
        else (
            "Usual causes are batch normalisation in train mode, a softmax, mean or sum over the batch dimension, "
            "and a reshape that moves it"
        )
    )
    return (
        f"{call.api}: the samples of `{name_of(func)}` are not independent: {what} for one sample depends on other "
        f"samples ({len(samples)} of {call.size} are affected, the first is {samples[0]}), so derivatives of single "
        f"samples would be wrong. {likely}. If that is what the function is meant to do, take jacobian or hessian, or "
        f"check=False, which sums the derivatives by all samples"
    )


def _normalisations(func: Function) -> Iterable[str]:
    """The batch normalisations in train mode among the modules of a function."""
    for root in modules(func):
        for name, module in root.named_modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.training:
                label = f"{type(module).__name__} {name!r}" if name else type(module).__name__
                yield f"the module {label} in train mode"


def _symptoms(outputs: Sequence[Tensor]) -> list[str]:
    found: dict[str, None] = {}
    for node in nodes([output.grad_fn for output in outputs]):
        name = type(node).__name__
        for key, symptom in _SYMPTOMS.items():
            if key in name:
                found[symptom] = None
        dims = getattr(node, "_saved_dim", None)
        if dims == 0 or (isinstance(dims, (tuple, list)) and 0 in dims):
            for key, reduction in _REDUCTIONS.items():
                if name.startswith(key):
                    found[f"{reduction} over dimension 0"] = None
    return list(found)


def verify(
    backend: Backend, stages: Sequence[Function], options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Check each of the functions that are differentiated, one after another, on the arguments."""
    if not backend.remembers:
        raise ValueError("check=True looks at values, which torch.compile does not have: check one eager call")
    for order, stage in enumerate(stages):
        verify_stage(backend, stage, order, options, args, kwargs)


def verify_stage(
    backend: Backend, stage: Function, order: int, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Check one of the functions, a derivative of that order, by one more evaluation."""
    call = BatchCall(options.name, stage, args, kwargs, options.argnums, options.has_aux, options.in_dims)
    with no_grad(), unchanged(*call.outside()):
        # copies, since the function may change its inputs in place
        outputs, pullback, _ = backend.vjp(call, [primal.detach().clone() for primal in call.primals])
    require_independent(call, outputs, pullback, order, options.func)
