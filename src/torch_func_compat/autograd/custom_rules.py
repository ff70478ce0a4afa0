"""custom_vjp and custom_jvp: functions with a custom derivative, as in JAX."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import types
from typing import Any, Callable, ContextManager, Sequence, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._functions import legacy as _legacy
from .._functions.apply import is_level
from .._functions.closed_over import watched
from .._functions.context import is_differentiable
from .._functions.rules import untraced
from .._guards.adjoint_test import agree, wave
from .._torch import pytree
from .._torch.tensors import version
from .function import Function
from .internals import vjp

__all__ = ["custom_jvp", "custom_vjp"]


class _Call:
    """One call: its arguments as a flat list of tensors, and everything else that it needs."""

    def __init__(self, rule: _Rule, args: tuple[Any, ...]) -> None:
        self.rule: _Rule = rule
        leaves, spec = pytree.flatten(args)
        self._leaves: list[Any] = leaves
        self.spec: pytree.TreeSpec = spec
        self._where = [i for i, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)]
        self.tensors: list[Any] = [self._leaves[i] for i in self._where]
        fixed = rule.fixed(len(args))
        owners = [n for n, child in enumerate(self.spec.children) for _ in range(child.num_leaves)]
        self.is_fixed: list[bool] = [owners[i] in fixed for i in self._where]
        for i in self._where:
            self._leaves[i] = None
        self.output_spec: Any = None
        self.recording: bool = torch.is_grad_enabled()
        self.transformed: bool = is_level()

    def like(self, other: _Call) -> _Call:
        """This call, with the output structure of another one."""
        self.output_spec = other.output_spec
        return self

    def is_like(self, other: _Call) -> bool:
        """Whether the arguments are the very same."""
        mine, theirs = (call._leaves + call.tensors for call in (self, other))
        return self.spec == other.spec and all(a is b for a, b in zip(mine, theirs))

    def args(self, tensors: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments with these tensors."""
        leaves = list(self._leaves)
        for i, tensor in zip(self._where, tensors):
            leaves[i] = tensor
        return tuple(pytree.unflatten(leaves, self.spec))

    def outputs(self, output: Any) -> tuple[Tensor, ...]:
        """The flat outputs, whose structure is kept."""
        leaves, spec = pytree.flatten(output)
        if self.output_spec is not None and spec != self.output_spec:
            raise TypeError(
                f"expected the forward rule of {self.rule.name} to return an output of its structure "
                f"{self.output_spec}, got {spec}"
            )
        self.output_spec = spec
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise TypeError(f"expected {self.rule.name} to return a pytree of tensors, got one with {leaf!r}")
        return tuple(leaves)

    def require_fixed(self, moving: Sequence[bool]) -> None:
        """Raise if a tensor that was declared as not differentiated is differentiated."""
        if any(fixed and moves for fixed, moves in zip(self.is_fixed, moving)):
            raise RuntimeError(
                f"{self.rule.name} is differentiated by a tensor that was said to be fixed: detach() it, or let the "
                f"rule give its derivative"
            )

    def gradients(self, gradients: Any) -> tuple[Any, ...]:
        """One gradient for each tensor, from the rule's result for each differentiated argument."""
        rule, children = self.rule, self.spec.children
        differentiated = [i for i in range(len(children)) if i not in rule.fixed(len(children))]
        if not isinstance(gradients, (tuple, list)) or len(gradients) != len(differentiated):
            raise TypeError(
                f"expected the backward rule of {rule.name} to return a tuple with a gradient for each of its "
                f"{len(differentiated)} differentiated arguments, got {_describe(gradients)}"
            )
        found: list[Any] = [[None] * child.num_leaves for child in children]
        for i, gradient in zip(differentiated, gradients):
            if gradient is None:
                continue
            leaves, spec = pytree.flatten(gradient)
            if spec != children[i]:
                raise TypeError(
                    f"expected the backward rule of {rule.name} to return for argument {i} a gradient of its structure "
                    f"{children[i]}, got {spec}"
                )
            found[i] = leaves
        flat = [leaf for leaves in found for leaf in leaves]
        return tuple(flat[i] for i in self._where)


def _describe(value: Any) -> str:
    return f"{len(value)}" if isinstance(value, (tuple, list)) else f"{type(value)}"


# torch switches forward mode off in the forward of an autograd.Function; it is on here, so that lost tangents show
_forward_mode: Any = getattr(forward_ad, "_set_fwd_grad_enabled", None)
_forward_mode = contextlib.nullcontext if _forward_mode is None else functools.partial(_forward_mode, True)


def _primal(x: Tensor) -> Tensor:
    """The tensor without its tangent of torch's own forward mode, if it has one."""
    if getattr(forward_ad, "_current_level", -1) < 0:
        return x
    with _forward_mode():
        primal, tangent = forward_ad.unpack_dual(x)
    return x if tangent is None else primal


class _Known(threading.local):
    """Calls whose forward rule runs again, with their outputs: as in JAX, the rule may call its function."""

    def __init__(self) -> None:
        self.values: list[tuple[_Call, Sequence[Tensor]]] = []


class _Rule:
    """The common part of the two decorators: the function, its name and the fixed arguments."""

    def __init__(self, func: Callable[..., Any], nondiff_argnums: int | Sequence[int]) -> None:
        functools.update_wrapper(self, func)  # type: ignore[arg-type]
        self.func: Callable[..., Any] = func
        self.name: str = getattr(func, "__name__", repr(func))
        self.known: _Known = _Known()
        self._nondiff = (nondiff_argnums,) if isinstance(nondiff_argnums, int) else tuple(nondiff_argnums)

    def fixed(self, count: int) -> tuple[int, ...]:
        """Positions of the arguments that are not differentiated."""
        for n in self._nondiff:
            if not -count <= n < count:
                raise ValueError(f"nondiff_argnums={self._nondiff} do not fit the {count} arguments of {self.name}")
        return tuple(n % count for n in self._nondiff)

    def split(self, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Arguments that are not differentiated, and those that are."""
        fixed = self.fixed(len(args))
        return tuple(args[i] for i in fixed), tuple(x for i, x in enumerate(args) if i not in fixed)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(cast(Any, self), instance)

    @untraced  # torch.compile cannot flatten the saved values of a call
    def apply(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs:
            bound = inspect.signature(self.func).bind(*args, **kwargs)
            if bound.kwargs:
                raise TypeError(f"{self.name} has keyword-only arguments, which a custom derivative cannot have")
            args = bound.args
        call = _Call(self, args)
        for known, outputs in self.known.values:
            if known.is_like(call):
                return pytree.unflatten(outputs, known.output_spec)
        return pytree.unflatten(function.apply(call, *call.tensors), call.output_spec)

    def evaluate(self, func: Callable[..., Any], call: _Call, tensors: Sequence[Tensor]) -> Any:
        """A result that depends on these tensors only; raises if it depends on others, whose derivatives it would
        lack."""
        inner = [_primal(x).detach() for x in tensors]
        versions = list(map(version, inner))
        with torch.set_grad_enabled(call.recording), _forward_mode(), self.watch(call):
            result = func(*call.args(inner))
        if versions != list(map(version, inner)):
            raise RuntimeError(
                f"{self.name} modifies its argument in place, which has no derivative: work on a clone()"
            )
        leaves, spec = pytree.flatten(result)
        known = {id(x): outer for x, outer in zip(inner, tensors)}
        if any(isinstance(x, Tensor) and (x.requires_grad or _primal(x) is not x) for x in leaves):
            raise RuntimeError(
                f"{self.name} uses a tensor that requires grad and is not among its arguments: its own rule gives no "
                f"gradient for it. Pass it as an argument, or detach() it"
            )
        return pytree.unflatten([known.get(id(x), x) for x in leaves], spec)

    def watch(self, call: _Call) -> ContextManager[Any]:
        return watched(self.name) if call.transformed else contextlib.nullcontext()


class custom_vjp(_Rule):
    """A function with a reverse rule of your own (a decorator).

    Parameters
    ----------
    func : callable
        Takes and returns pytrees; what it returns are tensors.
    nondiff_argnums : int or sequence of int
        Positional arguments that are not differentiated: callables, options, tensors that need no gradient.

    Raises
    ------
    RuntimeError
        Called before `defvjp`; it modifies an argument in place; a derivative is asked by a tensor that is among
        `nondiff_argnums`, or that it uses without having it as an argument.
    TypeError
        Keyword-only arguments; results or gradients of another structure.

    Notes
    -----
    A `Function` underneath, so that it works under every transform. Forward mode is the transpose of the reverse
    rule. Derivatives of higher order are those of the operations in `fwd` and `bwd`, as in JAX. Cost: one
    evaluation of `fwd` where something is differentiated, of `func` where nothing is, and of both for each
    enclosing derivative of torch.func.

    torch.compile breaks its graph at a call, which it leaves eager.

    It follows JAX: https://docs.jax.dev/en/latest/notebooks/Custom_derivative_rules_for_Python_code.html

    Examples
    --------
    >>> import torch
    >>> import torch_func_compat as tfc
    >>> @tfc.custom_vjp
    ... def clipped(x):
    ...     return x**2
    >>> clipped.defvjp(lambda x: (x**2, x), lambda x, grad: ((2 * x * grad).clamp(-1, 1),))
    >>> with tfc.use_fallback("silent"):
    ...     tfc.grad(clipped)(torch.tensor(3.0))
    tensor(1.)
    """

    def __init__(self, func: Callable[..., Any], nondiff_argnums: int | Sequence[int] = ()) -> None:
        super().__init__(func, nondiff_argnums)
        self.fwd: Callable[..., Any] | None = None
        self.bwd: Callable[..., Any] | None = None

    def defvjp(self, fwd: Callable[..., Any], bwd: Callable[..., Any]) -> None:
        """Give the rule.

        Parameters
        ----------
        fwd : callable
            ``fwd(*args) -> (output, residuals)``, the arguments and output of the function; residuals are a pytree.
        bwd : callable
            ``bwd(*nondiff_args, residuals, cotangent) -> gradients``, a tuple with one for each of the other
            arguments, of its structure, or None for zero.
        """
        self.fwd, self.bwd = fwd, bwd

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.fwd is None or self.bwd is None:
            raise RuntimeError(f"no derivative is defined for {self.name}: call {self.name}.defvjp(fwd, bwd) first")
        return self.apply(_Vjp, args, kwargs)


class _OldVjp:
    """An old-style Function, since fwd() returns the output and the saved values together."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        rule: Any = call.rule
        args = call.args(tensors)
        if not any(ctx.needs_input_grad) or not call.recording:
            return call.outputs(rule.evaluate(rule.func, call, tensors))
        if ctx.outputs is None:
            result = rule.evaluate(rule.fwd, call, tensors)
        else:
            rule.known.values.append((_Call(rule, args).like(call), ctx.outputs))
            try:
                result = rule.fwd(*args)
            finally:
                rule.known.values.pop()
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"expected the forward rule of {rule.name} to return (output, residuals), got {result!r}")
        output, ctx.residuals = result
        ctx.nondiff = rule.split(args)[0]
        ctx.call = call
        outputs = call.outputs(output)
        ctx.mark_non_differentiable(*[x for x in outputs if not is_differentiable(x)])
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        call = ctx.call
        call.require_fixed(ctx.needs_input_grad[1:])
        cotangent = pytree.unflatten(grads, call.output_spec)
        return (None, *call.gradients(call.rule.bwd(*ctx.nondiff, ctx.residuals, cotangent)))


_new: Any = type(Function)
_Vjp = _new("custom_vjp", (Function,), {**_legacy.rules(_OldVjp), "generate_vmap_rule": True, "__module__": __name__})


class custom_jvp(_Rule):
    """A function with a forward rule of your own (a decorator); reverse mode is its transpose.

    Parameters
    ----------
    func, nondiff_argnums
        As for `custom_vjp`.

    Raises
    ------
    RuntimeError
        As for `custom_vjp`; or the rule is not linear in the tangents, where it is transposed.
    TypeError
        Keyword-only arguments; results or tangents of another structure.

    Notes
    -----
    Derivatives of higher order are those of the operations in the rule, as in JAX. The rule must be linear in the
    tangents. Cost: `func` and, for each derivative, the rule once, and once back through it in reverse mode.

    Examples
    --------
    >>> import torch
    >>> import torch_func_compat as tfc
    >>> @tfc.custom_jvp
    ... def log1pexp(x):
    ...     return torch.log1p(torch.exp(x))
    >>> @log1pexp.defjvp
    ... def _(primals, tangents):
    ...     (x,), (t,) = primals, tangents
    ...     return log1pexp(x), (1 - 1 / (1 + torch.exp(x))) * t
    >>> with tfc.use_fallback("silent"):
    ...     tfc.grad(log1pexp)(torch.tensor(100.0))
    tensor(1.)
    """

    def __init__(self, func: Callable[..., Any], nondiff_argnums: int | Sequence[int] = ()) -> None:
        super().__init__(func, nondiff_argnums)
        self.jvp: Callable[..., Any] | None = None

    def defjvp(self, jvp: Callable[..., Any]) -> Callable[..., Any]:
        """Give the rule, which is returned, so that this can be a decorator.

        Parameters
        ----------
        jvp : callable
            ``jvp(*nondiff_args, primals, tangents) -> (output, tangent_out)``; primals and tangents are tuples of
            the other arguments. The tangent of an argument that is no floating-point or complex tensor is None. A
            returned tangent of None is zero.
        """
        self.jvp = jvp
        return jvp

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.jvp is None:
            raise RuntimeError(f"no derivative is defined for {self.name}: call {self.name}.defjvp(jvp) first")
        return self.apply(_Jvp, args, kwargs)

    def push(self, call: _Call, primals: Sequence[Tensor], tangents: Sequence[Any]) -> tuple[Any, ...]:
        """Flat tangents of the outputs."""
        nondiff, args = self.split(call.args(primals))
        moved = self.split(_only_moving(call, tangents))[1]
        assert self.jvp is not None
        with self.watch(call):
            result = self.jvp(*nondiff, args, moved)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"expected the rule of {self.name} to return (output, tangent_out), got {result!r}")
        leaves, spec = pytree.flatten(result[1])
        if spec != call.output_spec:
            raise TypeError(
                f"expected the rule of {self.name} to return tangents of the structure {call.output_spec} of its "
                f"output, got {spec}"
            )
        return tuple(leaves)


def _only_moving(call: _Call, tangents: Sequence[Any]) -> tuple[Any, ...]:
    """The tangents in the structure of the arguments, None for everything else."""
    return tuple(pytree.map(lambda x: x if isinstance(x, Tensor) else None, call.args(tangents)))


class _Jvp(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        return call.outputs(call.rule.evaluate(call.rule.func, call, tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.call, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.differentiable = [is_differentiable(x) for x in output]
        ctx.mark_non_differentiable(*[x for x in output if not is_differentiable(x)])

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> tuple[Any, ...]:
        call, primals = ctx.call, ctx.saved_tensors
        call.require_fixed([t is not None for t in tangents])
        full = [torch.zeros_like(x) if t is None and is_differentiable(x) else t for x, t in zip(primals, tangents)]
        found: tuple[Any, ...] = call.rule.push(call, primals, full)
        return tuple(t if there else None for t, there in zip(found, ctx.differentiable))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        call, primals = ctx.call, ctx.saved_tensors
        call.require_fixed(ctx.needs_input_grad[1:])
        moving = [i for i, x in enumerate(primals) if is_differentiable(x)]
        wanted = [n for n, grad in enumerate(grads) if grad is not None and ctx.differentiable[n]]
        gradients: list[Any] = [None] * len(primals)
        if not moving or not wanted:
            return (None, *gradients)

        def push(*values: Tensor) -> tuple[Any, ...]:
            tangents: list[Any] = [None] * len(primals)
            for i, value in zip(moving, values):
                tangents[i] = value
            found = call.rule.push(call, primals, tangents)
            return tuple(torch.zeros_like(grads[n]) if found[n] is None else found[n] for n in wanted)

        # a linear rule has its transpose at any tangents; these show whether it is linear
        fixed = [wave(primals[i]) for i in moving]
        cotangents = tuple(grads[n] for n in wanted)
        with torch.enable_grad():
            pushed, pull = vjp(push, *fixed)
        found = pull(cotangents)
        if not agree(cotangents, pushed, found, fixed):
            raise RuntimeError(
                f"the rule of {call.rule.name} is not linear in the tangents, or hides them from autograd "
                f"(detach(), numpy): it has no transpose for reverse mode. Write it in torch operations, or a "
                f"custom_vjp"
            )
        for i, gradient in zip(moving, found):
            gradients[i] = gradient
        return (None, *gradients)
