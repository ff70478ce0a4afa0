"""A vmap over a derivative, as the derivative of the whole batch.

``vmap(grad(f))`` is the gradient of the sum of ``vmap(f)``, since samples are independent. Plain autograd takes it: one
kind of level in place of two, which is faster (benchmarks/bench_of_batch.py), or one backward pass in place of one for
each sample, where ``vmap`` is a loop. Other calls go the usual way.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from .._arguments.call import Function, ScalarCall, name_of, positions
from .._arguments.protocol import Backend
from .._guards.checks import get_checks
from .._guards.compositions import first_order
from .._guards.recognition import LoopError, ends_recomputation
from .._torch import pytree
from .._torch.closures import captured_tensors
from .._torch.surroundings import Surroundings
from .._torch.tensors import tensors_in
from . import hessian, products
from .of_loop import are_independent, in_blocks
from .options import Options
from .vmap import vmap as map_samples

_DERIVATIVES: dict[str, Callable[..., Function]] = {
    "grad": products.grad,
    "grad_and_value": products.grad_and_value,
    "hessian": hessian.hessian,
}

# The most inputs for which a Hessian of the batch is faster. With more, vmap is faster: it multiplies by the unit
# vectors once for all samples.
_MOST_INPUTS = 128


class _Inseparable(Exception):
    """The batch has no graph to its output, which only samples can explain, or samples may depend on each other."""


def derivative_of_batch(
    backend: Backend, func: Function, derivative: Options, vmap: Options, otherwise: Function
) -> Function:
    """``vmap(derivative(func))``, or `otherwise`, which computes the same, where the batch cannot be differentiated.

    `derivative` and `vmap` are the options of the two transforms.
    """
    if not _is_simple(derivative, vmap) or first_order(func):
        return otherwise

    def sample(*args: Any, **kwargs: Any) -> Any:
        call = ScalarCall("", func, args, kwargs, derivative.argnums, derivative.has_aux)
        outputs, aux = call(*call.primals)
        return call.with_aux(call.output(outputs), aux)

    # The names and the tensors that these reach are those of the user's function.
    sample.__wrapped__ = func  # type: ignore[attr-defined]
    native = backend.native("vmap", sample, vmap)
    mapped = map_samples(backend, sample, vmap) if native is None else native

    def batch(*args: Any, **kwargs: Any) -> Any:
        result = mapped(*args, **kwargs)
        output = result[0] if derivative.has_aux else result
        if not output.requires_grad or (backend.loops and not are_independent(output, args)):
            raise _Inseparable
        return result

    batch.__wrapped__ = func  # type: ignore[attr-defined]
    # By the number of arguments; None where it has failed: torch refuses the batch, or `func` raises.
    made: dict[int, Function | None] = {}

    def derivative_of_mapped(*args: Any, **kwargs: Any) -> Any:
        count = len(args)
        if count not in made:
            made[count] = _make(backend, batch, count, derivative, vmap)
        found = made[count]
        if found is None or not _is_safe(backend) or not _is_small(args, derivative):
            return otherwise(*args, **kwargs)
        before = Surroundings([*tensors_in((args, kwargs)), *captured_tensors(func)]) if backend.loops else None
        try:
            return found(*args, **kwargs)
        # Whatever fails with all samples together is computed sample by sample, which raises the user's own errors.
        except Exception as error:
            if ends_recomputation(error):
                raise
            made[count] = None
            if before is not None and not before.can_restore():
                if not isinstance(error, _Inseparable):
                    raise
                raise LoopError(
                    f"vmap({derivative.name}({name_of(func)})): the samples cannot be evaluated together, and the "
                    f"function writes in place to a large tensor from outside, so that they cannot be evaluated again. "
                    f"Work on a clone(), or return what is to be changed"
                ) from error
        if before is not None:
            before.restore()
        return otherwise(*args, **kwargs)

    return derivative_of_mapped


def _is_safe(backend: Backend) -> bool:
    if backend.loops:
        return not torch._C._get_tracing_state()  # a trace of a derivative ends the process on torch < 1.11
    # Untested, a batch may lack a derivative: a Function's own vmap need not be differentiable.
    return get_checks() != "off" and backend.innermost() is None


def _is_simple(derivative: Options, vmap: Options) -> bool:
    return (
        derivative.name in _DERIVATIVES
        and derivative.chunks.trivial
        and derivative.partition is None
        and derivative.mode == "auto"
        and derivative.randomness == vmap.randomness == "error"
        and vmap.out_dims == 0
    )


def _make(backend: Backend, batch: Function, count: int, derivative: Options, vmap: Options) -> Function | None:
    """The derivative of a batch with so many arguments, all of which has its samples along dimension 0."""
    in_dims = vmap.in_dims
    if isinstance(in_dims, int):
        in_dims = (in_dims,) * count
    try:
        where = positions(derivative.argnums, count)
    except RuntimeError:
        return None
    if len(in_dims) != count or any(dim not in (0, None) for dim in in_dims) or any(in_dims[i] != 0 for i in where):
        return None
    options = Options(
        derivative.name,
        derivative.func,
        argnums=derivative.argnums,
        has_aux=derivative.has_aux,
        in_dims=in_dims,
        mode="reverse-reverse" if derivative.name == "hessian" else "auto",
    )
    made = _DERIVATIVES[derivative.name](backend, batch, options)
    return functools.partial(in_blocks, made, in_dims) if backend.loops else made


def _is_small(args: Sequence[Any], derivative: Options) -> bool:
    if derivative.name != "hessian":
        return True
    leaves = pytree.flatten([args[i] for i in positions(derivative.argnums, len(args))])[0]
    if not all(isinstance(leaf, Tensor) and leaf.dim() for leaf in leaves):
        return False
    return bool(sum(leaf[0].numel() for leaf in leaves if len(leaf)) <= _MOST_INPUTS)
