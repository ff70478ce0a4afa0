"""Function: a custom autograd.Function that is written once for every torch and every transform."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Callable

import torch

from .._functions import legacy as _legacy
from .._functions.apply import call, is_level, is_level_traced, plain, settled
from .._functions.plain_autograd import modifies, traced
from .._functions.rules import has, untraced

__all__ = ["Function"]

_is_compiling: Callable[[], bool] = getattr(getattr(torch, "compiler", None), "is_compiling", lambda: False)


class TracedMeta(torch.autograd.function.FunctionMeta):
    """A separate metaclass, for torch.compile.

    If a class has torch's metaclass, torch.compile traces forward() and ignores backward() within transforms of
    torch.func. The derivative is then that of the operations in forward(), or lacks what backward() takes from saved
    tensors (torch 2.1-2.15, https://github.com/pytorch/pytorch/issues/193279). With this metaclass it traces apply().
    """


class Function(torch.autograd.Function, metaclass=TracedMeta):
    """A function with a custom derivative.

    Subclass it and give it the static methods below, as for `torch.autograd.Function` of torch >= 2.0; then call
    ``Mine.apply(*args)``. It works on every torch from 1.8 on: under ``backward()``, `torch.autograd.grad`,
    ``gradcheck`` and every transform of this library on every backend, to any order and nested in any way.

    ======================================  ==================================================================
    ``forward(*args)``                      the value: a tensor or a tuple of tensors, by any means
    ``setup_context(ctx, inputs, output)``  keep what the rules need, by ``ctx.save_for_backward(...)``,
                                            ``ctx.save_for_forward(...)`` or as attributes of ctx
    ``backward(ctx, *grad_outputs)``        the gradient of each input; None for what has none
    ``jvp(ctx, *tangents)``                 optional: the tangent of each output. Without it, forward mode
                                            is the transpose of ``backward``
    ``vmap(info, in_dims, *args)``          optional: ``(output, out_dims)`` of a batch
    ``generate_vmap_rule = True``           instead of ``vmap``, where the rules are made of torch operations:
                                            batch them. With neither, `vmap` runs ``forward`` per sample
    ======================================  ==================================================================

    Raises
    ------
    TypeError
        On the first ``apply``: a rule is missing, or ``forward`` takes ctx (see `from_legacy`).
    RuntimeError
        "this derivative cannot be differentiated again": a derivative of higher order would be wrong, since
        ``backward`` is marked with ``once_differentiable``, computes its result from numbers outside of torch (numpy),
        or uses a tensor that ``setup_context`` saved and that is not determined by inputs and outputs.

    Notes
    -----
    Cost: that of the rules; on plain autograd no more than torch's own. Forward mode without a ``jvp`` costs one
    evaluation more, two of ``backward`` and one back through it. A second derivative on plain autograd computes the
    tensors that ``setup_context`` saves beside inputs and outputs once more, with ``forward``: return expensive
    intermediates from ``forward`` as further outputs.

    A second derivative is that of ``backward``: a value that it detaches is constant there, as in torch. ``functorch``
    on torch < 2.0 cannot evaluate a Function, so the outermost transform falls back to the autograd backend. A tensor
    that ``forward`` uses without taking it as an argument has no derivative, as in torch.

    Examples
    --------
    >>> import torch
    >>> import torch_func_compat as tfc
    >>> class Cube(tfc.Function):
    ...     @staticmethod
    ...     def forward(x):
    ...         return x**3
    ...
    ...     @staticmethod
    ...     def setup_context(ctx, inputs, output):
    ...         ctx.save_for_backward(*inputs)
    ...
    ...     @staticmethod
    ...     def backward(ctx, grad):
    ...         (x,) = ctx.saved_tensors
    ...         return 3 * x**2 * grad
    >>> with tfc.use_fallback("silent"):
    ...     tfc.hessian(lambda x: Cube.apply(x).sum())(torch.tensor([1.0, 2.0]))
    tensor([[ 6.,  0.],
            [ 0., 12.]])
    """

    generate_vmap_rule = False
    _positional: Any = None
    _traced: Any = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._positional = None
        cls._traced = traced(cls)  # no class can be made while torch.compile traces

    @staticmethod
    def forward(*args: Any, **kwargs: Any) -> Any:
        """Compute the value; override this."""
        raise NotImplementedError("a Function needs a forward(*args) staticmethod")

    if TYPE_CHECKING:  # an override may have any parameters, which torch's own types do not say

        @staticmethod
        def backward(ctx: Any, *args: Any, **kwargs: Any) -> Any: ...

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the Function. Keyword arguments and defaults are those of ``forward``."""
        if _is_compiling():
            if kwargs or cls._traced is None or is_level_traced():
                return _untraced(cls, args, kwargs)
            return cls._traced.apply(*args)
        positional = cls._positional
        if positional is None:
            positional = _prepare(cls)
        if kwargs or len(args) < positional:
            args = _bind(cls, args, kwargs)
        if is_level():
            return call(cls, args)
        return plain(cls)(*map(settled, args))

    @classmethod
    def from_legacy(cls, old: Any = None, *, generate_vmap_rule: bool = False) -> Any:
        """Make a Function of a `torch.autograd.Function` in the old style, ``forward(ctx, *args)``.

        torch.func refuses those, and this library's transforms fall back to the autograd backend with them. The
        adapted one is evaluated natively on torch >= 2.0. Usable as a decorator.

        Parameters
        ----------
        old : subclass of torch.autograd.Function
            One that already has ``setup_context`` is used unchanged; its ``jvp`` rule then nests, which torch gets
            wrong.
        generate_vmap_rule : bool
            Whether its ``forward``, ``backward`` and ``jvp`` consist of torch operations, so that `vmap` may batch
            them. Otherwise it runs sample by sample.

        Returns
        -------
        subclass of Function and of `old`

        Raises
        ------
        TypeError
            `old` is no autograd.Function, or a Function of this library.

        Notes
        -----
        Limits. Within transforms ``forward`` runs once more for each level that differentiates, on tensors of that
        level. A ``forward`` that leaves torch (numpy, ``.item()``) or modifies its input falls back to the autograd
        backend. A second derivative differentiates tensors that ``forward`` saves beside inputs and outputs by the
        operations that made them, and raises if these are not torch's.

        Examples
        --------
        >>> import torch
        >>> import torch_func_compat as tfc
        >>> @tfc.Function.from_legacy
        ... class Cube(torch.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         ctx.save_for_backward(x)
        ...         return x**3
        ...
        ...     @staticmethod
        ...     def backward(ctx, grad):
        ...         (x,) = ctx.saved_tensors
        ...         return 3 * x**2 * grad
        >>> with tfc.use_fallback("silent"):
        ...     tfc.vmap(tfc.grad(Cube.apply))(torch.tensor([1.0, 2.0]))
        tensor([ 3., 12.])
        """
        if old is None:
            return functools.partial(cls.from_legacy, generate_vmap_rule=generate_vmap_rule)
        if not isinstance(old, type) or not issubclass(old, torch.autograd.Function):
            raise TypeError(f"expected a subclass of torch.autograd.Function, got {old!r}")
        if issubclass(old, Function):
            raise TypeError(f"{old.__name__} is a Function of this library already")
        is_new = has(old, "setup_context")
        rules = {} if is_new else _legacy.rules(old)
        if generate_vmap_rule:
            rules["generate_vmap_rule"] = True
        elif is_new:
            rules["generate_vmap_rule"] = getattr(old, "generate_vmap_rule", False)
        names = {"__module__": old.__module__, "__qualname__": old.__qualname__, "__doc__": old.__doc__}
        if is_new:  # the rules of the class before those of its bases, except this one
            names["apply"] = vars(Function)["apply"]
        bases = (old, cls) if is_new else (cls, old)
        meta: Any = type(cls)
        adapted = meta(old.__name__, bases, {**rules, **names})
        if not is_new:
            adapted._traced = None if modifies(old.forward) else old
        return adapted


# A break in the graph, or an error with fullgraph=True: see TracedMeta
@untraced
def _untraced(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    _prepare(cls)
    return call(cls, _bind(cls, args, kwargs))


def _prepare(cls: Any) -> int:
    """The number of positional arguments for which binding is unnecessary; raises if a rule is missing."""
    if not has(cls, "setup_context") and cls.forward is not Function.forward:
        raise TypeError(
            f"{cls.__name__} has no setup_context(ctx, inputs, output) staticmethod. A Function separates it from "
            f"forward(*args), which takes no ctx; for the old style, forward(ctx, *args), decorate a "
            f"torch.autograd.Function with Function.from_legacy"
        )
    parameters = inspect.signature(cls.forward).parameters.values()
    if any(p.kind is p.KEYWORD_ONLY for p in parameters):
        raise TypeError(f"{cls.__name__}.forward has keyword-only parameters, which autograd cannot pass on")
    cls._positional = sum(p.kind is p.POSITIONAL_OR_KEYWORD or p.kind is p.POSITIONAL_ONLY for p in parameters)
    return cls._positional  # type: ignore[no-any-return]


def _bind(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    bound = inspect.signature(cls.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.args
