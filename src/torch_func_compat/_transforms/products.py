"""Products with Jacobians and Hessians: vjp, jvp, linearize, gradients, hvp and vhp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._arguments.call import (
    ALL,
    Call,
    Function,
    ScalarCall,
    check_tangents,
    directional_call,
    require_differentiable,
    require_floating,
    require_tensors,
)
from .._arguments.protocol import Backend
from .batch_first_call import with_tests
from .batch_independence import verify
from .jacobian import call_of, jacrev, with_value
from .linear_functions import JvpFunction, RunningLibrary, VjpFunction
from .options import Options


def vjp(backend: Backend, func: Function, *primals: Any, options: Options) -> Any:
    """See `torch_func_compat.vjp`."""
    call = Call("vjp(f, *primals)", func, primals, {}, ALL, options.has_aux)
    require_tensors(call.primals)
    library = RunningLibrary(backend, options)
    outputs, pullback, aux = backend.vjp(call, call.primals)
    require_differentiable(outputs)
    result = (call.output(outputs), VjpFunction(backend, call, pullback, library))
    return (*result, call.aux(aux)) if options.has_aux else result


def jvp(backend: Backend, func: Function, primals: Any, tangents: Any, *, options: Options) -> Any:
    """See `torch_func_compat.jvp`."""
    call = directional_call("jvp(f, primals, tangents)", func, primals, options.has_aux)
    flat_tangents = check_tangents(call, tangents)
    outputs, output_tangents, aux = backend.jvp(call, call.primals, flat_tangents, options.strict)
    result = (call.output(outputs), call.output(output_tangents))
    return (*result, call.aux(aux)) if options.has_aux else result


def linearize(backend: Backend, func: Function, *primals: Any, options: Options) -> Any:
    """See `torch_func_compat.linearize`."""
    call = Call("linearize(f, *primals)", func, primals, {}, ALL, False)
    require_tensors(call.primals)
    require_floating("primal", call.primals)
    library = RunningLibrary(backend, options)
    outputs, push, _ = backend.linearize(call, call.primals)
    return call.output(outputs), JvpFunction(backend, call, push, library)


def grad_and_value(backend: Backend, func: Function, options: Options) -> Function:
    """See `torch_func_compat.grad_and_value`."""

    def gradient_and_value(*args: Any, **kwargs: Any) -> Any:
        call, outputs, found, aux = _differentiate(backend, func, options, args, kwargs)
        return call.select(found), call.with_aux(call.output(outputs), aux)

    return gradient_and_value


def grad(backend: Backend, func: Function, options: Options) -> Function:
    """See `torch_func_compat.grad`."""

    def gradient(*args: Any, **kwargs: Any) -> Any:
        call, _, found, aux = _differentiate(backend, func, options, args, kwargs)
        return call.with_aux(call.select(found), aux)

    return gradient


# What errors call the transform of a function that must return one number.
_NAMES = {name: f"{name}(f)(*args)" for name in ("grad", "grad_and_value", "hessian")}


def _differentiate(
    backend: Backend, func: Function, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Call, list[Tensor], list[Tensor], list[Tensor]]:
    """The call of a scalar function, its output, its gradients and its aux."""
    call = ScalarCall(
        _NAMES.get(options.name, _NAMES["grad_and_value"]), func, args, kwargs, options.argnums, options.has_aux
    )
    require_tensors(call.primals)
    outputs, pullback, aux = backend.vjp(call, call.primals)
    # Without grad mode nothing can ask for this graph again: free it on the way.
    return call, outputs, pullback.pull([torch.ones_like(outputs[0])], torch.is_grad_enabled(), None), aux


def _gradient(backend: Backend, func: Function, primals: tuple[Any, ...], options: Options) -> Function:
    """The gradient by all primals, with the value (and the aux) as its aux."""
    return grad_and_value(backend, func, options.inner(argnums=tuple(range(len(primals)))))


def hvp(backend: Backend, func: Function, primals: Any, tangents: Any, *, options: Options) -> Any:
    """See `torch_func_compat.hvp`."""
    call = directional_call("hvp(f, primals, tangents)", func, primals, options.has_aux)
    flat = check_tangents(call, tangents)
    gradient = _gradient(backend, func, primals, options)
    if any(tensor.is_complex() for tensor in flat):
        _, product, value = jvp(backend, gradient, primals, tangents, options=options.with_aux())
    else:  # A real Hessian is symmetric, and a pullback is not refused.
        _, pullback, value = vjp(backend, gradient, *primals, options=options.with_aux())
        product = pullback(tangents)
    return (value[0], product, value[1]) if options.has_aux else (value, product)


def vhp(backend: Backend, func: Function, primals: Any, cotangents: Any, *, options: Options) -> Any:
    """See `torch_func_compat.vhp`."""
    call = directional_call("vhp(f, primals, cotangents)", func, primals, options.has_aux)
    check_tangents(call, cotangents)
    gradient = _gradient(backend, func, primals, options)
    _, pullback, value = vjp(backend, gradient, *primals, options=options.with_aux())
    product = pullback(cotangents)
    return (value[0], product, value[1]) if options.has_aux else (value, product)


def batch_hvp(backend: Backend, func: Function, primals: Any, tangents: Any, *, options: Options) -> Any:
    """See `torch_func_compat.batch_hvp`."""
    label = "batch_hvp(f, primals, tangents)"
    if not isinstance(primals, tuple):
        raise RuntimeError(f"{label}: Expected primals to be a tuple. E.g. it should be valid to call f(*primals).")
    both = options.with_aux(argnums=tuple(range(len(primals))))
    valued = with_value(func, options.has_aux)
    check_tangents(call_of(label, "", valued, primals, {}, both), tangents)
    gradient = jacrev(backend, valued, both.inner())
    if options.check:
        verify(backend, [valued, gradient], both, primals, {})

    def compute() -> Any:
        return jvp(backend, gradient, primals, tangents, options=both)

    tests = options.check is None and backend.remembers
    _, product, value = with_tests(backend, compute, [valued, gradient], both, primals, {}) if tests else compute()
    return (value[0], product, value[1]) if options.has_aux else (value, product)
