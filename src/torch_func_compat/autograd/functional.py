"""`torch.autograd.functional` with its newest signatures, on every torch and within every transform.

Functions of a tensor or a tuple of tensors, evaluated at once: ``jacobian(func, inputs)``. Results are detached
unless ``create_graph=True``. torch.autograd computes them; within a transform of torch.func or functorch, where
torch's own refuse or give zeros (https://github.com/pytorch/functorch/issues/847), that library does.

The names would hide others of this package, so they are in a module of their own:

>>> import torch
>>> from torch_func_compat import functional, vmap
>>> functional.jacobian(torch.square, torch.tensor([1.0, 2.0]))
tensor([[2., 0.],
        [0., 4.]])
>>> vmap(lambda x: functional.hessian(lambda y: y.pow(3).sum(), x))(torch.tensor([[1.0], [2.0]])).flatten()
tensor([ 6., 12.])
"""

from __future__ import annotations

from typing import Any, Callable, Sequence, Tuple, Union

from torch import Tensor

from .._torch.compiling import untraced
from ._functional import (
    Gradient,
    Recorded,
    Request,
    check_independent,
    check_not_vectorized,
    check_rows,
    check_strategy,
    check_vector,
    derivative,
    first_differentiable,
    ones,
    require_single_element,
)
from .internals import P

__all__ = ["hessian", "hvp", "jacobian", "jvp", "vhp", "vjp"]

Tensors = Union[Tensor, Tuple[Tensor, ...]]


@untraced
def vjp(
    func: Callable[P, Any],
    inputs: Tensors,
    v: Tensors | None = None,
    create_graph: bool = False,
    strict: bool = False,
) -> tuple[Tensors, Tensors]:
    """Value of a function and the product of a vector with its Jacobian.

    Parameters
    ----------
    func : callable
        Takes as many tensors as there are inputs; returns a tensor or a tuple of tensors.
    inputs : Tensor or tuple of Tensor
        Where to evaluate.
    v : Tensor or tuple of Tensor, optional
        The vector, shaped like the output; may be left out where that is a single element.
    create_graph : bool
        Whether the results can be differentiated again by what requires grad outside; else they are detached.
    strict : bool
        Raise where an output does not depend on an input, instead of giving zeros.

    Returns
    -------
    output, product : Tensor or tuple of Tensor
        The product is shaped like the inputs.

    Raises
    ------
    TypeError
        Inputs, outputs or `v` are no tensors.
    RuntimeError
        `v` does not fit, or `strict` is not met.

    Notes
    -----
    Cost: one forward and one backward pass.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import functional
    >>> functional.vjp(torch.square, torch.tensor([1.0, 2.0]), torch.ones(2))
    (tensor([1., 4.]), tensor([2., 4.]))
    """
    request = Request("vjp", inputs, create_graph, strict)
    vector = request.vector(v)

    def check(outputs: Sequence[Tensor], variables: Sequence[Tensor]) -> None:
        if vector is None:
            require_single_element(
                outputs,
                "The vector v can only be None if the user-provided function returns a single Tensor with a "
                "single element.",
            )
        else:
            check_vector(vector, outputs, call.is_tuple)
        if strict:
            found = derivative(outputs, variables, vector)
            check_independent(found, "The output of the user-provided function is independent of input {}. {}.")
            request.check_differentiable(found, "jacobian")

    call = Recorded(request, func, check)
    with request.mode():
        outputs, pullback, _ = request.backend.vjp(call, request.inputs)
        product = pullback.pull(ones(outputs) if vector is None else vector, create_graph, create_graph)
    return request.finish(outputs, call.is_tuple), request.finish(product, request.is_tuple)


@untraced
def jvp(
    func: Callable[P, Any],
    inputs: Tensors,
    v: Tensors | None = None,
    create_graph: bool = False,
    strict: bool = False,
) -> tuple[Tensors, Tensors]:
    """Value of a function and the product of its Jacobian with a vector.

    Parameters
    ----------
    func : callable
        Takes as many tensors as there are inputs; returns a tensor or a tuple of tensors.
    inputs : Tensor or tuple of Tensor
        Where to evaluate.
    v : Tensor or tuple of Tensor, optional
        The vector, shaped like the inputs; may be left out where there is a single input of one element.
    create_graph : bool
        Whether the results can be differentiated again by what requires grad outside; else they are detached.
    strict : bool
        Raise where an output does not depend on an input, instead of giving zeros.

    Returns
    -------
    output, product : Tensor or tuple of Tensor
        The product is shaped like the output.

    Raises
    ------
    TypeError
        Inputs, outputs or `v` are no tensors.
    RuntimeError
        `v` does not fit, or `strict` is not met.

    Notes
    -----
    Cost: one forward pass and two backward passes (the transpose of reverse mode, as in torch).

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import functional
    >>> functional.jvp(torch.square, torch.tensor([1.0, 2.0]), torch.ones(2))
    (tensor([1., 4.]), tensor([2., 4.]))
    """
    request = Request("jvp", inputs, create_graph, strict)
    vector = request.tangent(v)

    def check(outputs: Sequence[Tensor], variables: Sequence[Tensor]) -> None:
        if not strict:
            return
        found = derivative(outputs, variables)
        check_independent(found, "The output of the user-provided function is independent of input {}. {}.")
        for index, output in enumerate(outputs):
            parts = [part for part in derivative([output], variables) if part is not None]
            check_independent(
                [parts or None],
                "The gradient with respect to the input is independent of entry {} in the grad_outputs when using the "
                "double backward trick to compute forward mode gradients. {}.",
                index,
            )
            request.check_differentiable([first_differentiable([*parts, *vector])], "jacobian", index)

    call = Recorded(request, func, check)
    with request.mode():
        outputs, product, _ = request.jvp(call, vector)
    return request.finish(outputs, call.is_tuple), request.finish(product, call.is_tuple)


@untraced
def jacobian(
    func: Callable[P, Any],
    inputs: Tensors,
    create_graph: bool = False,
    strict: bool = False,
    vectorize: bool = False,
    strategy: str = "reverse-mode",
) -> Any:
    """Jacobian of a function.

    Parameters
    ----------
    func, inputs, create_graph, strict
        As for `vjp`.
    vectorize : bool
        Compute all rows at once, where that can be done right; else one by one.
    strategy : {'reverse-mode', 'forward-mode'}
        Rows by reverse mode, or columns by forward mode, which needs `vectorize`.

    Returns
    -------
    Tensor, tuple or tuple of tuples
        Tensors of shape ``output.shape + input.shape``: a tuple over the outputs if they are a tuple, and within it a
        tuple over the inputs if they are one.

    Raises
    ------
    TypeError
        Inputs or outputs are no tensors.
    RuntimeError
        `strict` is not met, or comes with `vectorize`.
    NotImplementedError
        Forward mode without `vectorize` or with `create_graph`.
    AssertionError
        There is no such strategy.

    Notes
    -----
    Cost: one forward pass and a backward pass for each element of the output, in one batch with `vectorize`. In
    forward mode the transposed pass for each element of the inputs.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import functional
    >>> functional.jacobian(torch.mul, (torch.tensor(2.0), torch.tensor(3.0)))
    (tensor(3.), tensor(2.))
    """
    forward = check_strategy(
        strategy,
        create_graph,
        strict,
        vectorize,
        ' Hint: If your function has more outputs than inputs, "forward-mode" '
        'tends to be more performant. Otherwise, prefer to use "reverse-mode".',
    )
    request = Request("jacobian", inputs, create_graph, strict)

    def check(outputs: Sequence[Tensor], variables: Sequence[Tensor]) -> None:
        if strict:
            check_not_vectorized(vectorize)
            check_rows(request, outputs, variables)

    call = Recorded(request, func, check)
    return request.jacobian(call, forward, vectorize, lambda: call.is_tuple)


@untraced
def hessian(
    func: Callable[P, Any],
    inputs: Tensors,
    create_graph: bool = False,
    strict: bool = False,
    vectorize: bool = False,
    outer_jacobian_strategy: str = "reverse-mode",
) -> Any:
    """Hessian of a function whose output is a single element.

    Parameters
    ----------
    func, inputs, create_graph, strict, vectorize
        As for `jacobian`.
    outer_jacobian_strategy : {'reverse-mode', 'forward-mode'}
        The mode that differentiates the gradient. The gradient itself always comes from reverse mode.

    Returns
    -------
    Tensor or tuple of tuples
        Tensors of shape ``input_i.shape + input_j.shape``.

    Raises
    ------
    TypeError, RuntimeError, NotImplementedError, AssertionError
        As for `jacobian`; RuntimeError also where the output has several elements.

    Notes
    -----
    Cost: one gradient, and a pass back through it for each element of the inputs, in one batch with `vectorize`.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import functional
    >>> functional.hessian(lambda x: x.pow(3).sum(), torch.tensor([1.0, 2.0]), vectorize=True)
    tensor([[ 6.,  0.],
            [ 0., 12.]])
    """
    request = Request("hessian", inputs, create_graph, strict)
    forward = check_strategy(outer_jacobian_strategy, create_graph, strict, vectorize, "")

    def check(gradient: Sequence[Tensor], variables: Sequence[Tensor]) -> None:
        if strict:
            check_not_vectorized(vectorize)
            check_rows(request, gradient, variables)

    return request.jacobian(Gradient(request, func, check), forward, vectorize, lambda: request.is_tuple)


@untraced
def vhp(
    func: Callable[P, Any],
    inputs: Tensors,
    v: Tensors | None = None,
    create_graph: bool = False,
    strict: bool = False,
) -> tuple[Tensors, Tensors]:
    """Value of a function and the product of a vector with its Hessian.

    Parameters
    ----------
    func : callable
        Takes as many tensors as there are inputs; returns a tensor with one element.
    inputs : Tensor or tuple of Tensor
        Where to evaluate.
    v : Tensor or tuple of Tensor, optional
        The vector, shaped like the inputs; may be left out where there is a single input of one element.
    create_graph : bool
        Whether the results can be differentiated again by what requires grad outside; else they are detached.
    strict : bool
        Raise where an output does not depend on an input, instead of giving zeros.

    Returns
    -------
    output, product : Tensor or tuple of Tensor
        The product is shaped like the inputs.

    Raises
    ------
    TypeError
        Inputs, outputs or `v` are no tensors.
    RuntimeError
        `v` does not fit, the output has several elements, or `strict` is not met.

    Notes
    -----
    Cost: one gradient and one backward pass through it: cheaper than `hvp`, and the same product wherever the
    Hessian is symmetric.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import functional
    >>> functional.vhp(lambda x: x.pow(3).sum(), torch.tensor([1.0, 2.0]), torch.ones(2))
    (tensor(9.), tensor([ 6., 12.]))
    """
    request = Request("vhp", inputs, create_graph, strict)
    vector = request.tangent(v)

    def check(gradient: Sequence[Tensor], variables: Sequence[Tensor]) -> None:
        if strict:
            found = derivative(gradient, variables, vector)
            check_independent(found, "The jacobian of the user-provided function is independent of input {}. {}.")
            request.check_differentiable(found, "hessian")

    call = Gradient(request, func, check)
    with request.mode():
        _, pullback, value = request.backend.vjp(call, request.inputs)
        product = pullback.pull(vector, create_graph, create_graph)
    return request.finish(value, False), request.finish(product, request.is_tuple)


@untraced
def hvp(
    func: Callable[P, Any],
    inputs: Tensors,
    v: Tensors | None = None,
    create_graph: bool = False,
    strict: bool = False,
) -> tuple[Tensors, Tensors]:
    """Value of a function and the product of its Hessian with a vector.

    Parameters
    ----------
    func : callable
        Takes as many tensors as there are inputs; returns a tensor with one element.
    inputs : Tensor or tuple of Tensor
        Where to evaluate.
    v : Tensor or tuple of Tensor, optional
        The vector, shaped like the inputs; may be left out where there is a single input of one element.
    create_graph : bool
        Whether the results can be differentiated again by what requires grad outside; else they are detached.
    strict : bool
        Raise where an output does not depend on an input, instead of giving zeros.

    Returns
    -------
    output, product : Tensor or tuple of Tensor
        The product is shaped like the inputs.

    Raises
    ------
    TypeError
        Inputs, outputs or `v` are no tensors.
    RuntimeError
        `v` does not fit, the output has several elements, or `strict` is not met.

    Notes
    -----
    Cost: one gradient and two backward passes through it.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import functional
    >>> functional.hvp(lambda x: x.pow(3).sum(), torch.tensor([1.0, 2.0]), torch.ones(2))
    (tensor(9.), tensor([ 6., 12.]))
    """
    request = Request("hvp", inputs, create_graph, strict)
    vector = request.tangent(v)

    def check(gradient: Sequence[Tensor], variables: Sequence[Tensor]) -> None:
        if not strict:
            return
        for index, part in enumerate(gradient):
            parts = [second for second in derivative([part], variables) if second is not None]
            check_independent(
                [parts or None],
                "The hessian of the user-provided function is independent of entry {} in the grad_jacobian. {} as it "
                "prevents from using the double backward trick to replace forward mode AD.",
                index,
            )
            request.check_differentiable([first_differentiable([*parts, *vector])], "hessian", index)

    call = Gradient(request, func, check)
    with request.mode():
        _, product, value = request.jvp(call, vector)
    return request.finish(value, False), request.finish(product, request.is_tuple)
