"""Modules as functions of their parameters and buffers."""

from __future__ import annotations

import contextlib
from typing import Any, ContextManager, Iterable, Iterator, Sequence, Tuple

import torch
from torch import Tensor, nn

from .._dispatch import choice as _policy
from .._torch.compiling import is_compiling
from ._checkpoints import repeated_with
from ._exchange import MISSING, THREADS, Places, Tensors, exchanged

__all__ = ["functional_call", "replace_all_batch_norm_modules_", "stack_module_state"]

_Submodules = Iterator[Tuple[str, nn.Module]]


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
        Names, as in ``module.named_parameters()`` and ``module.named_buffers()``, to tensors. A tensor without
        a name here stays the module's own. If the module assigns another tensor to a named attribute while it runs,
        the dict gets it.
    args : any
        Positional arguments as a tuple; anything else is the only argument.
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

    The name of a parametrized tensor itself, such as ``"weight"``, disables its parametrization. To parametrize the
    given tensor, name it ``"parametrizations.weight.original"``.

    A checkpoint within the module runs again in the backward pass, with the tensors that were given here. Within
    ``torch.nn.utils.parametrize.cached()``, values that were cached for other tensors are not used.

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
    if not isinstance(module, nn.Module):
        raise AttributeError(f"functional_call: expected a torch.nn.Module first, got {type(module)}")
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

    def exchange() -> ContextManager[Places]:
        return _alone(module, modules.values(), wanted)

    with exchange() as places, repeated_with(exchange):
        result = module(*args, **(kwargs or {}))
        for tensors in dicts:
            for name in tensors:
                now = getattr(*places[name], MISSING)
                if now is not tensors[name] and now is not MISSING:
                    tensors[name] = now  # type: ignore[assignment]
        return result


@contextlib.contextmanager
def _alone(module: nn.Module, parts: Iterable[nn.Module], wanted: Tensors) -> Iterator[Places]:
    with THREADS.alone_with(parts), exchanged(module, wanted) as places:
        yield places


def _check_dicts(given: Any) -> Sequence[Tensors]:
    if isinstance(given, dict):
        return [given]
    if not isinstance(given, (list, tuple)) and not isinstance(given, Sequence):
        raise ValueError(
            f"Expected parameter_and_buffer_dicts to be a dict, or a list/tuple of dicts, but got {type(given)}"
        )
    if not all(isinstance(tensors, dict) for tensors in given):
        raise ValueError(
            "Expected all elements of parameter_and_buffer_dicts to be dictionaries, as dict(module.named_parameters())"
        )
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
        models' do: an optimizer takes them. Tensors that `functional_call` has put into the places of parameters are
        stacked as they are, so that derivatives by them are right.

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
    if not hasattr(models, "__len__"):
        raise TypeError(f"stack_module_state: expected a list of modules, got {type(models)}")
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
    # A tensor that functional_call has put into a parameter's place is no nn.Parameter. It may be differentiated, so it
    # stays attached.
    if True not in flags or not all(isinstance(tensor, nn.Parameter) for tensor in tensors):
        return stacked
    stacked = stacked.detach()
    # Within a transform of a library there is no optimizer, and torch refuses to make leaves.
    return stacked if _policy.active_native() else stacked.requires_grad_()


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
