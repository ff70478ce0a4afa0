"""Modules as functions of their parameters and buffers."""

from __future__ import annotations

import contextlib
import threading
from typing import Any, Callable, Dict, Iterator, Sequence, Tuple

import torch
from torch import Tensor, nn

from .._dispatch import choice as _policy
from .._torch.compiling import is_compiling

__all__ = ["functional_call", "replace_all_batch_norm_modules_", "stack_module_state"]

Tensors = Dict[str, Tensor]

_Submodules = Iterator[Tuple[str, nn.Module]]

_MISSING = object()


def functional_call(
    module: nn.Module,
    parameter_and_buffer_dicts: Tensors | Sequence[Tensors],
    args: Any = None,
    kwargs: dict[str, Any] | None = None,
    *,
    tie_weights: bool = True,
    strict: bool = False,
) -> Any:
    """Call a module with other parameters and buffers than its own.

    Parameters
    ----------
    module : torch.nn.Module
        Has its own tensors again afterwards, also when it raises.
    parameter_and_buffer_dicts : dict of str to Tensor, or a sequence of them
        Names, as in ``module.named_parameters()`` and ``module.named_buffers()``, to tensors. What is not named
        keeps the module's own. Where the module assigns another tensor to a named attribute while it runs, the
        dict gets it.
    args : any
        Positional arguments; what is no tuple is the only one.
    kwargs : dict, optional
        Keyword arguments.
    tie_weights : bool
        Whether a tensor that the module has under several names is replaced under all of them.
    strict : bool
        Whether every parameter and buffer has to be named, and nothing else.

    Returns
    -------
    any
        What the module returns.

    Raises
    ------
    ValueError
        A name is in several dicts, tied tensors are given different values, or something else than dicts is given.
    RuntimeError
        `strict` is not met; the module is a scripted one or a DataParallel.
    AttributeError, TypeError, KeyError
        There is no such submodule; something named is no tensor; a name is empty.

    Notes
    -----
    The tensors are exchanged for the time of the call. Calls of one module in several threads wait for each
    other; a plain ``module(...)`` in another thread meanwhile sees the tensors of this one.

    The name of a parametrized tensor itself, as ``"weight"``, disables its parametrization. To parametrize what is
    given, name ``"parametrizations.weight.original"``.

    Cost: that of the module, and some microseconds for each submodule and tensor.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import functional_call, grad
    >>> layer = torch.nn.Linear(2, 1)
    >>> parameters = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.zeros(1)}
    >>> functional_call(layer, parameters, torch.ones(2))
    tensor([3.])
    >>> grad(lambda p: functional_call(layer, p, torch.ones(2)).sum())(parameters)
    {'weight': tensor([[1., 1.]]), 'bias': tensor([1.])}
    """
    if is_compiling():
        traced: Any = _policy.native_transform("functional_call")
        return traced(module, parameter_and_buffer_dicts, args, kwargs, tie_weights=tie_weights, strict=strict)
    dicts = _check_dicts(parameter_and_buffer_dicts)
    if torch._C._get_tracing_state() or isinstance(module, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise RuntimeError("The stateless API can't be used with Jitted modules")
    if isinstance(module, nn.DataParallel):
        raise RuntimeError("The stateless API can't be used with nn.DataParallel module")
    given = {name: tensor for tensors in dicts for name, tensor in tensors.items()}
    modules = dict(_submodules(module))
    own = {
        f"{prefix}{name}": tensor
        for prefix, part in modules.items()
        for table in (part._parameters, part._buffers)
        for name, tensor in table.items()
        if tensor is not None
    }
    wanted = _tie(own, given) if tie_weights else given
    if strict:
        _check_names(module, own, wanted)
    args = () if args is None else args if isinstance(args, tuple) else (args,)
    with _THREADS.alone_with(modules.values()), _exchanged(module, wanted) as places:
        result = module(*args, **(kwargs or {}))
        for tensors in dicts:
            for name in tensors:
                now = getattr(*places[name], _MISSING)
                if now is not tensors[name] and now is not _MISSING:
                    tensors[name] = now  # type: ignore[assignment]
        return result


def _check_dicts(given: Any) -> Sequence[Tensors]:
    if isinstance(given, dict):
        return [given]
    if not isinstance(given, (list, tuple)) and not isinstance(given, Sequence):
        raise ValueError(
            f"Expected parameter_and_buffer_dicts to be a dict, or a list/tuple of dicts, but got {type(given)}"
        )
    if not all(isinstance(tensors, dict) for tensors in given):
        raise ValueError("Expected all elements of parameter_and_buffer_dicts to be dictionaries")
    names = [name for tensors in given for name in tensors]
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1] if len(set(names)) < len(names) else []
    if repeated:
        raise ValueError(f"{repeated} appeared in multiple dictionaries; behavior of functional call is ambiguous")
    return given


def _submodules(module: nn.Module, prefix: str = "", above: tuple[nn.Module, ...] = ()) -> _Submodules:
    """Every submodule under each of its names, which torch < 2.0 does not list; a cycle ends where it closes."""
    yield prefix, module
    above = (*above, module)
    for name, child in module._modules.items():
        if child is not None and not any(child is other for other in above):
            yield from _submodules(child, f"{prefix}{name}.", above)


def _tie(own: Tensors, given: Tensors) -> Tensors:
    """`given`, with each tensor under all names of the one that it replaces."""
    groups: dict[int, list[str]] = {}
    for name, tensor in own.items():
        groups.setdefault(id(tensor), []).append(name)
    tied = dict(given)
    for names in groups.values():
        values = {id(given[name]): given[name] for name in names if name in given}
        if len(values) > 1:
            raise ValueError(
                f"functional_call got multiple values for keys {sorted(names)}, which are tied. "
                f"Consider using tie_weights=False"
            )
        for value in values.values():
            tied.update(dict.fromkeys(names, value))
    return tied


def _check_names(module: nn.Module, own: Tensors, wanted: Tensors) -> None:
    kinds = {"Unexpected": sorted(wanted.keys() - own.keys()), "Missing": sorted(own.keys() - wanted.keys())}
    messages = [f"{kind} key(s): {', '.join(map(repr, names))}." for kind, names in kinds.items() if names]
    if messages:
        raise RuntimeError(
            "Error(s) in reparametrizing for {}:\n\t{}".format(type(module).__name__, "\n\t".join(messages))
        )


@contextlib.contextmanager
def _exchanged(module: nn.Module, wanted: Tensors) -> Iterator[dict[str, tuple[nn.Module, str]]]:
    """`wanted` in the places of the module's own tensors; gives the place of each: its module and its name there."""
    places = {}
    with contextlib.ExitStack() as stack:  # puts back in the reverse order, as places with two names need it
        for path, tensor in wanted.items():
            places[path] = owner, name = _find(module, path)
            if not isinstance(tensor, Tensor) and tensor is not None:
                raise TypeError(f"{tensor} is not an instance of torch.Tensor")
            stack.callback(_exchange(owner, name, tensor))
        for owner in {id(owner): owner for owner, _ in places.values()}.values():
            if "_flat_weights" in owner.__dict__:
                stack.callback(_refresh_flat_weights(owner))
        yield places


def _find(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    *prefixes, name = path.split(".")
    for prefix in prefixes:
        child = getattr(module, prefix, _MISSING)
        if child is _MISSING:
            raise AttributeError(f"{type(module).__name__} has no attribute `{prefix}`")
        if not isinstance(child, nn.Module):
            raise TypeError(f"submodule `{path}`: {child} is not an instance of torch.nn.Module")
        module = child
    if not name:
        raise KeyError('tensor name can\'t be empty string ""')
    return module, name


def _exchange(module: nn.Module, name: str, tensor: Tensor) -> Callable[[], None]:
    """Put `tensor` where the module finds the attribute `name`; the result puts back what was there."""
    for table in (module._parameters, module._buffers, module.__dict__):
        if name in table:
            _check_attribute(name, table[name])
            return _in_table(module, table, name, tensor)
    there = getattr(module, name, _MISSING)
    if there is _MISSING:
        setattr(module, name, tensor)
        return lambda: _forget(module, name)
    _check_attribute(name, there)
    if _is_parametrized(module, name):
        return _unparametrized(module, name, tensor)
    setattr(module, name, tensor)
    return lambda: setattr(module, name, there)


def _check_attribute(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) and value is not None:
        raise TypeError(f"attribute `{name}`: {value} is not an instance of torch.Tensor")


def _in_table(module: nn.Module, table: Any, name: str, tensor: Tensor) -> Callable[[], None]:
    there = table[name]
    table[name] = tensor

    def undo() -> None:
        _forget(module, name, table)
        table[name] = there

    return undo


def _forget(module: nn.Module, name: str, keep: Any = None) -> None:
    """Drop an attribute from wherever it is now; the module may have moved it."""
    tables: Sequence[Any] = (module._parameters, module._buffers, module.__dict__)
    for table in tables:
        if table is not keep:
            table.pop(name, None)


def _is_parametrized(module: nn.Module, name: str) -> bool:
    parametrize = getattr(nn.utils, "parametrize", None)  # from torch 1.9 on
    return parametrize is not None and parametrize.is_parametrized(module, name)


def _unparametrized(module: nn.Module, name: str, tensor: Tensor) -> Callable[[], None]:
    """Hide a parametrization: assigning would write its inverse to the original, without a derivative."""
    cls: Any = type(module)
    values = [tensor]  # what the module assigns to it meanwhile stays here
    attribute = property(lambda _: values[0], lambda _, value: values.__setitem__(0, value))
    module.__class__ = type(cls.__name__, (cls,), {name: attribute, "__module__": cls.__module__})

    def undo() -> None:
        module.__class__ = cls

    return undo


def _refresh_flat_weights(module: nn.Module) -> Callable[[], None]:
    """RNNs compute with a list of their weights; those of torch < 1.12 do not notice that the weights are others."""
    names = ("_flat_weights", "_flat_weight_refs")
    state: Any = module.__dict__
    saved = {name: state[name] for name in names if name in state}
    state["_flat_weights"] = [getattr(module, name, None) for name in state.get("_flat_weights_names", ())]
    return lambda: state.update(saved)


class _Threads:
    """Which modules the threads have exchanged the tensors of: a thread waits for those of another one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users: dict[int, list[int]] = {}  # module -> the thread that uses it, as often as it does

    @contextlib.contextmanager
    def alone_with(self, modules: Any) -> Iterator[None]:
        """Nobody else exchanges the tensors of these modules meanwhile.

        Raises
        ------
        RuntimeError
            Waiting for another thread could be without end.
        """
        keys, me = {id(module) for module in modules}, threading.get_ident()
        with self._changed:
            while any(self._users.get(key, [me])[0] != me for key in keys):
                # Who holds modules and waits for others, or works for a thread that waits for it (as autograd's
                # threads do, which Python has not started), may be waited for by the one it waits for.
                foreign = isinstance(threading.current_thread(), threading._DummyThread)
                if foreign or any(users[0] == me for users in self._users.values()):
                    raise RuntimeError(
                        "functional_call: another thread is calling this module or a part of it with tensors of its "
                        "own, and waiting for it within another functional_call may take for ever: give each thread "
                        "a copy of the module"
                    )
                self._changed.wait()
            for key in keys:
                self._users.setdefault(key, []).append(me)
        try:
            yield
        finally:
            with self._changed:
                for key in keys:
                    self._users[key].pop()
                    if not self._users[key]:
                        del self._users[key]
                self._changed.notify_all()


_THREADS = _Threads()


def stack_module_state(models: Sequence[nn.Module] | nn.ModuleList) -> tuple[Tensors, Tensors]:
    """Parameters and buffers of several models of one kind, stacked, for `vmap` over an ensemble.

    Parameters
    ----------
    models : sequence of torch.nn.Module
        Of one class, and alike except for the values of their tensors.

    Returns
    -------
    parameters, buffers : dict of str to Tensor
        Each with a first dimension more, that of the models. Parameters are new leaves that require grad where the
        models' do: an optimizer takes them.

    Raises
    ------
    RuntimeError
        There are no models, or they are of several classes, some in training mode and some not, have tensors of
        other names, or differ in what requires grad.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import functional_call, stack_module_state, vmap
    >>> models = [torch.nn.Linear(3, 2) for _ in range(5)]
    >>> parameters, buffers = stack_module_state(models)
    >>> ensemble = vmap(lambda p, b, x: functional_call(models[0], (p, b), x), in_dims=(0, 0, None))
    >>> ensemble(parameters, buffers, torch.ones(4, 3)).shape
    torch.Size([5, 4, 2])
    """
    if len(models) == 0:
        raise RuntimeError("stack_module_state: Expected at least one model, got 0.")
    modules = list(models)
    if len({module.training for module in modules}) > 1:
        raise RuntimeError("stack_module_state: Expected all models to have the same training/eval mode.")
    if len({type(module) for module in modules}) > 1:
        raise RuntimeError("stack_module_state: Expected all models to be of the same class.")
    return (
        _stack([dict(module.named_parameters()) for module in modules]),
        _stack([dict(module.named_buffers()) for module in modules]),
    )


def _stack(states: Sequence[Tensors]) -> Tensors:
    for number, state in enumerate(states):
        if state.keys() != states[0].keys():
            raise RuntimeError(
                f"stack_module_state: Expected all models to have the same parameters and buffers, but only one of "
                f"model 0 and model {number} has {sorted(state.keys() ^ states[0].keys())}."
            )
    return {name: _stack_leaf(name, [state[name] for state in states]) for name in states[0]}


def _stack_leaf(name: str, tensors: list[Tensor]) -> Tensor:
    flags = {tensor.requires_grad for tensor in tensors}
    if len(flags) > 1:
        raise RuntimeError(f"Expected {name} from each model to have the same .requires_grad")
    stacked = torch.stack(tensors)
    return stacked.detach().requires_grad_() if True in flags else stacked


def replace_all_batch_norm_modules_(root: nn.Module) -> nn.Module:
    """Make every batch norm of a module forget its running statistics, which `vmap` cannot update.

    Parameters
    ----------
    root : torch.nn.Module
        Changed in place: its batch norms use the statistics of the batch from now on, also in eval mode.

    Returns
    -------
    torch.nn.Module
        `root` itself.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import replace_all_batch_norm_modules_
    >>> replace_all_batch_norm_modules_(torch.nn.BatchNorm1d(4)).running_mean is None
    True
    """
    for module in root.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.running_mean = None
            module.running_var = None
            module.num_batches_tracked = None
            module.track_running_stats = False
    return root
