"""Products with Jacobians and Hessians: vjp, jvp, linearize, gradients, hvp and vhp."""

from __future__ import annotations

import functools
from typing import Any, Sequence

import torch
from torch import Tensor

from .._arguments.batch import BatchCall
from .._arguments.call import ALL, Call, Function, ScalarCall, check_tangents
from .._arguments.protocol import Backend
from .._arguments.required import require_differentiable, require_floating, require_tensors, require_tuple
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
    api = "jvp(f, primals, tangents)"
    require_tuple(api, primals)
    call = Call(api, func, primals, {}, ALL, options.has_aux)
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


# The names, in errors, of transforms of a function that must return one number.
_NAMES = {name: f"{name}(f)(*args)" for name in ("grad", "grad_and_value", "hessian")}


def _differentiate(
    backend: Backend, func: Function, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Call, list[Tensor], list[Tensor], list[Tensor]]:
    """The call of a scalar function, its output, its gradients and its aux; of a batch, with all samples together."""
    label = _NAMES.get(options.name, _NAMES["grad_and_value"])
    call: Call
    if options.in_dims is None:
        call = ScalarCall(label, func, args, kwargs, options.argnums, options.has_aux)
        require_tensors(call.primals)
    else:
        call = BatchCall(label, func, args, kwargs, options.argnums, options.has_aux, options.in_dims)
    return (call, *_pull_scalar(backend, call, call.primals))


def _pull_scalar(
    backend: Backend, call: Call, primals: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The output, the gradients and the aux."""
    outputs, pullback, aux = backend.vjp(call, primals)
    # Without grad mode nothing can ask for this graph again: free it on the way.
    return outputs, pullback.pull([torch.ones_like(outputs[0])], torch.is_grad_enabled(), None), aux


def hvp(backend: Backend, func: Function, primals: Any, tangents: Any, *, options: Options) -> Any:
    """See `torch_func_compat.hvp`."""
    return _with_hessian("hvp(f, primals, tangents)", backend, func, primals, tangents, options)


def vhp(backend: Backend, func: Function, primals: Any, cotangents: Any, *, options: Options) -> Any:
    """See `torch_func_compat.vhp`."""
    return _with_hessian("vhp(f, primals, cotangents)", backend, func, primals, cotangents, options)


class _Gradient:
    """The gradient of a scalar call as a function of its flat primals; the value comes first in its aux."""

    takes_rows = False

    def __init__(self, backend: Backend, call: ScalarCall) -> None:
        self.func: Function = functools.partial(grad, backend, call.func)
        self._backend = backend
        self._call = call
        self.generators, self.others, self.put_others = call.generators, call.others, call.put_others
        self.outside = call.outside

    def __call__(self, *primals: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        outputs, found, aux = _pull_scalar(self._backend, self._call, primals)
        return found, [*outputs, *aux]

    def captured(self) -> list[Tensor]:
        """None: the call itself is asked when it is recorded."""
        return []


def _with_hessian(label: str, backend: Backend, func: Function, primals: Any, vectors: Any, options: Options) -> Any:
    """The product with a Hessian from either side, by the pullback of the gradient.

    A Hessian is symmetric. So is that of a real function of complex numbers, which torch differentiates by their real
    and imaginary parts: the Hessian is a linear map over the real numbers.
    """
    require_tuple(label, primals)
    call = ScalarCall(label, func, primals, {}, ALL, options.has_aux)
    flat = check_tangents(call, vectors)
    _, pullback, (value, *aux) = backend.vjp(_Gradient(backend, call), call.primals)
    product = call.select(pullback.pull(flat, torch.is_grad_enabled(), None))
    return (value, product, call.aux(aux)) if options.has_aux else (value, product)


def batch_hvp(backend: Backend, func: Function, primals: Any, tangents: Any, *, options: Options) -> Any:
    """See `torch_func_compat.batch_hvp`."""
    label = "batch_hvp(f, primals, tangents)"
    require_tuple(label, primals)
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
