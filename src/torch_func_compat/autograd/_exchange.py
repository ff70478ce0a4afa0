"""Exchange the tensors of a module during a call, in one thread at a time."""

from __future__ import annotations

import contextlib
import threading
from typing import Any, Callable, Dict, Iterator, Sequence, Tuple

from torch import Tensor, nn

Tensors = Dict[str, Tensor]
# The module that has a tensor, and its name there, by the whole name
Places = Dict[str, Tuple[nn.Module, str]]

MISSING = object()


@contextlib.contextmanager
def exchanged(module: nn.Module, wanted: Tensors) -> Iterator[Places]:
    """Put `wanted` in place of the module's own tensors; yields the place of each, its module and its name there."""
    places = {}
    with contextlib.ExitStack() as stack:  # restored in reverse order, which places with two names need
        for path, tensor in wanted.items():
            places[path] = owner, name = _find(module, path)
            if not isinstance(tensor, Tensor) and tensor is not None:
                raise TypeError(f"`{path}`: {tensor} is not an instance of torch.Tensor")
            stack.callback(_exchange(owner, name, tensor))
        stack.callback(_forget_cached_parametrizations())
        for owner in {id(owner): owner for owner, _ in places.values()}.values():
            if "_flat_weights" in owner.__dict__:
                stack.callback(_refresh_flat_weights(owner))
        yield places


def _find(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    *prefixes, name = path.split(".")
    for prefix in prefixes:
        child = getattr(module, prefix, MISSING)
        if child is MISSING:
            raise AttributeError(f"{type(module).__name__} has no attribute `{prefix}`")
        if not isinstance(child, nn.Module):
            raise TypeError(f"submodule `{path}`: {child} is not an instance of torch.nn.Module")
        module = child
    if not name:
        raise KeyError('tensor name can\'t be empty string ""')
    return module, name


def _exchange(module: nn.Module, name: str, tensor: Tensor) -> Callable[[], None]:
    """Set the attribute `name` of a module; the result restores it."""
    for table in (module._parameters, module._buffers, module.__dict__):
        if name in table:
            _check_attribute(name, table[name])
            return _in_table(module, table, name, tensor)
    there = getattr(module, name, MISSING)
    if there is MISSING:
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
    """Delete an attribute from the dict that holds it now, since the module may have moved it."""
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
    values = [tensor]  # a tensor that the module assigns meanwhile stays here
    attribute = property(lambda _: values[0], lambda _, value: values.__setitem__(0, value))
    module.__class__ = type(cls.__name__, (cls,), {name: attribute, "__module__": cls.__module__})

    def undo() -> None:
        module.__class__ = cls

    return undo


def _forget_cached_parametrizations() -> Callable[[], None]:
    """Within ``parametrize.cached()``, start from an empty cache; afterwards the old one is back."""
    parametrize: Any = getattr(nn.utils, "parametrize", None)
    if not getattr(parametrize, "_cache_enabled", 0):
        return lambda: None
    cached = parametrize._cache
    parametrize._cache = {}

    def undo() -> None:
        parametrize._cache = cached if parametrize._cache_enabled else {}

    return undo


def _refresh_flat_weights(module: nn.Module) -> Callable[[], None]:
    """Refresh the list of weights that RNNs compute with; before torch 1.12 they do not notice an exchange."""
    names = ("_flat_weights", "_flat_weight_refs")
    state: Any = module.__dict__
    saved = {name: state[name] for name in names if name in state}
    state["_flat_weights"] = [getattr(module, name, None) for name in state.get("_flat_weights_names", ())]
    return lambda: state.update(saved)


class _Threads:
    """The threads that have exchanged tensors, by module; other threads wait for them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users: dict[int, list[int]] = {}  # module -> the thread that uses it, once for each use

    @contextlib.contextmanager
    def alone_with(self, modules: Any) -> Iterator[None]:
        """A context in which no other thread exchanges the tensors of these modules.

        Raises
        ------
        RuntimeError
            Waiting for another thread could last for ever.
        """
        keys, me = {id(module) for module in modules}, threading.get_ident()
        with self._changed:
            while any(self._users.get(key, [me])[0] != me for key in keys):
                # A thread must not wait if another one may wait for it: if it holds modules itself, or if it works for
                # a thread that waits for it, as autograd's threads do, which Python has not started.
                foreign = isinstance(threading.current_thread(), threading._DummyThread)
                if foreign or any(users[0] == me for users in self._users.values()):
                    raise RuntimeError(
                        "functional_call: another thread is calling this module or a part of it with tensors of its "
                        "own, and waiting for it within another functional_call may last for ever: give each thread "
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


THREADS = _Threads()
