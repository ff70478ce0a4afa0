"""Products with Jacobians and Hessians: vjp, jvp, linearize, gradients, hvp and vhp."""

from __future__ import annotations

import contextlib
from typing import Any, Iterator

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
from .._arguments.mapped import BatchedCall
from .._arguments.protocol import Backend, Pullback
from .._torch import pytree
from .._torch.tensors import movedim, version
from .batch_independence import verify
from .jacobian import call_of, jacrev, with_value
from .options import Options


class _Library:
    """The library whose transforms may run around a linear map that was recorded outside of them.

    Its levels do not reach into a graph of plain autograd: forward mode is zero there, and gradients keep the graph of
    an inner level. So where they track the vectors, the function is recorded on the levels, with the same random
    numbers.
    """

    def __init__(self, backend: Backend, options: Options) -> None:
        self._backend = backend
        self._find = options.running_library
        self._state = None if self._find is None else backend.draws(None)

    def running(self) -> Any:
        """The backend of the library, where one of its transforms runs that did not when the map was recorded."""
        found = None if self._find is None else self._find()
        return None if found is self._backend else found

    @contextlib.contextmanager
    def same_draws(self) -> Iterator[None]:
        """Draw the random numbers of the first recording again; the state outside does not move."""
        assert self._state is not None
        now = self._backend.draws(None)
        self._state.restore()
        try:
            yield
        finally:
            now.restore()


class VjpFunction:
    """What vjp returns beside the output: cotangents -> gradients of the primals.

    ``vjp_fn(cotangents, retain_graph=True, create_graph=None)``, where the cotangents have the structure of
    the function's output and the result is a tuple with one entry for each primal.
    """

    def __init__(self, backend: Backend, call: Call, pullback: Pullback, options: Options) -> None:
        self.batches_itself = pullback.batches_itself
        self._retains_graph = True  # unless the caller has freed it
        self._call = call
        self._pullback = pullback
        self._backend = backend
        self._versions = [version(primal) for primal in call.primals]
        self._library = _Library(backend, options)

    def __call__(self, cotangents: Any, retain_graph: bool = True, create_graph: bool | None = None) -> Any:
        flat, spec = pytree.flatten(cotangents)
        self._require(spec)
        library = self._library.running()
        pullback = self._pullback
        self._retains_graph = self._retains_graph and retain_graph
        if library is not None and library.is_tracked(flat):
            with self._library.same_draws():
                pullback = library.vjp(self._call, self._call.primals)[1]
        elif library is not None:
            library.check_rows(pullback.outputs)
        try:
            return self._call.select(pullback.pull(flat, retain_graph, create_graph))
        except RuntimeError as error:
            if "backward through the graph a second time" not in str(error) or not self._can_record_again():
                raise
        # A backward pass through the output has freed the graph, which the pullback shares with it.
        with self._library.same_draws():
            self._pullback = self._backend.vjp(self._call, self._call.primals)[1]
        return self(cotangents, retain_graph, create_graph)

    def _can_record_again(self) -> bool:
        unchanged = [version(primal) for primal in self._call.primals] == self._versions
        return unchanged and self._retains_graph and self.batches_itself

    def _require(self, spec: pytree.TreeSpec) -> None:
        if spec != self._call.output_spec:
            raise RuntimeError(
                f"Expected pytree structure of cotangents to be the same as pytree structure of outputs to the "
                f"function. cotangents: {spec}, primal output: {self._call.output_spec}"
            )

    def mapped(self, call: BatchedCall) -> Any:
        """The value of a vmap over this, from all cotangents at once; None where a loop must do it."""
        if call.kwargs or len(call.spec.children) != 1 or len(call.where) < len(call.leaves) or not call.batch_size:
            return None
        self._require(call.spec.children[0])
        stacked = [movedim(tensor, dim, 0) for tensor, dim in zip(call.tensors, call.dims)]
        return call.whole(self._call.select(self._pullback.batched(*stacked)))


def vjp(backend: Backend, func: Function, *primals: Any, options: Options) -> Any:
    """See `torch_func_compat.vjp`."""
    call = Call("vjp(f, *primals)", func, primals, {}, ALL, options.has_aux)
    require_tensors(call.primals)
    outputs, pullback, aux = backend.vjp(call, call.primals)
    require_differentiable(outputs)
    result = (call.output(outputs), VjpFunction(backend, call, pullback, options))
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
    outputs, push, _ = backend.linearize(call, call.primals)
    around = _Library(backend, options)

    def jvp_fn(*tangents: Any) -> Any:
        flat, spec = pytree.flatten(tangents)
        if spec != call.primals_spec:
            raise RuntimeError(
                f"Expected the tangents {spec} to have the same argspec as the primals {call.primals_spec}"
            )
        for index, (tangent, primal) in enumerate(zip(flat, call.primals)):
            for what in ("shape", "device", "dtype"):
                if getattr(tangent, what) != getattr(primal, what):
                    raise RuntimeError(
                        f"tangent:{index} with {what} {getattr(tangent, what)} in flattened pytree doesn't match the "
                        f"{what} {getattr(primal, what)} of the corresponding primal."
                    )
        library = around.running()
        if library is None or not library.is_tracked(flat):
            return call.output(push(*flat))
        with around.same_draws():
            return call.output(library.linearize(call, call.primals)[1](*flat))

    return call.output(outputs), jvp_fn


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


def _differentiate(
    backend: Backend, func: Function, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Call, list[Tensor], list[Tensor], list[Tensor]]:
    """The call of a scalar function, its output, its gradients and its aux."""
    call = ScalarCall("grad_and_value(f)(*args)", func, args, kwargs, options.argnums, options.has_aux)
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
    _, product, value = jvp(backend, gradient, primals, tangents, options=both)
    return (value[0], product, value[1]) if options.has_aux else (value, product)
