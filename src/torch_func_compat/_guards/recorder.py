"""Which operations a function consists of, and under which levels of functorch each of them runs.

A TorchFunctionMode sees the call of every public function of torch, of each method, operator and property of a
tensor, and of ``torch.ops``. A function of torch that calls others is seen as one: ``multi_head_attention_forward``
and not its matrix products. This is not seen:

* TorchScript, which `torch_func_compat._torch.closures.scripts_in` finds in another way;
* operations of C++ extensions that are called as Python functions, and not by ``torch.ops``, and those of other
  threads: only that a tensor comes from nowhere is seen, which counts as `ELSEWHERE`;
* the forward of a `torch.autograd.Function`, which counts as ``custom_function_call`` within a transform;
* what runs in a backward pass, a hook, another thread or ``torch._C.DisableTorchFunction()``;
* which arguments an operation has, but for ``inplace=True``, ``out`` and what kinds of numbers;
* the insides of ``torch.compile``: a compiled function raises within a transform, and is not seen outside;
* whether plain autograd records what happens, which is no level of functorch;
* on torch 2.0, ``x[i]`` and ``x[i] = v`` where `i` is one number, slice or tensor, or where `v` is a tensor.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref
from types import FrameType
from typing import Any, Callable, Iterable, Iterator, Set, Tuple

import torch

from .._torch import facts
from .by_graph import is_mapped
from .mapped_inputs import is_autocast_on

# An operation's name, and the kinds of the levels that it ran under: "v" for vmap, "g" for grad and vjp, "j" for jvp,
# the outermost first. Any number of vmaps that directly contain one another are one "v".
Pairs = Set[Tuple[str, str]]

# Names that begin with this are in no table, since they name no operation. Autocast casts other operations under vmap.
UNKNOWN = "?"
AUTOCAST = UNKNOWN + "autocast"
# An operand is neither a constant that the function can reach nor the result of an operation that was seen.
ELSEWHERE = UNKNOWN + "an operation of another thread or of an extension"
# Suffixes for operations on complex numbers, or on floating-point numbers of several precisions: these can be wrong
# where others are right.
COMPLEX, MIXED = ":complex", ":mixed"
# Of writing to places that are given by tensors with a slice or None between them. Where there are as many samples as
# places, torch writes under vmap to other ones (measured on torch 2.0 to 2.15).
APART = ":apart"
_WRITES = ("__setitem__", "index_put", "index_put_")
# Of an embedding with a row of padding, where the rows are mapped: torch knows the padding of the first sample only.
PADDED = ":padding"


@functools.lru_cache(None)
def _functorch() -> Any:
    return torch._C._functorch


@functools.lru_cache(None)
def _letters() -> dict[Any, str]:
    kinds = _functorch().TransformType
    return {kinds.Vmap: "v", kinds.Grad: "g", kinds.Jvp: "j"}


def interpreters() -> list[Any]:
    """The interpreters of functorch that are running, the outermost first."""
    private = _functorch()
    if hasattr(private, "get_interpreter_stack"):
        return private.get_interpreter_stack() or []
    # torch 2.0 and 2.1 show the innermost one only, so each is taken off for a moment
    stack, taken = [], []
    try:
        while private.peek_interpreter_stack() is not None:
            stack.append(private.peek_interpreter_stack())
            taken.append(private.pop_dynamic_layer_stack())
    finally:
        for layer in reversed(taken):
            private.push_dynamic_layer_stack(layer)
    return stack[::-1]


def levels() -> str:
    """The kinds of the levels of functorch around here."""
    if _functorch().peek_interpreter_stack() is None:
        return ""
    found, letters = "", _letters()
    for interpreter in interpreters():
        letter = letters.get(interpreter.key(), UNKNOWN)
        if letter != "v" or not found.endswith("v"):
            found += letter
    return found


def derivatives() -> int:
    """How many derivatives are being taken around here."""
    return len(levels().replace("v", ""))


@functools.lru_cache(None)
def _higher_order() -> Any:
    return getattr(torch._ops, "HigherOrderOperator", None) or torch._ops.PyOperator  # type: ignore[attr-defined]


def _is_torchs(func: Any) -> bool:
    module = getattr(func, "__module__", None) or ""
    return module.split(".")[0] == "torch" and not module.startswith("torch._higher_order_ops")


def _find_name(func: Any) -> str:
    """The name of what a mode is given, which begins with `UNKNOWN` where torch has no such operation."""
    name = getattr(func, "__name__", type(func).__name__)
    unknown = f"{UNKNOWN}{name}"
    if isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        packet: Any = func.overloadpacket if isinstance(func, torch._ops.OpOverload) else func
        namespace, _, name = packet._qualified_op_name.rpartition("::")
        return name if namespace == "aten" else f"{namespace}::{name}"
    if isinstance(func, _higher_order()):
        name = str(getattr(func, "_name", name))
        return name if name == "custom_function_call" else f"{UNKNOWN}{name}"
    owner = getattr(func, "__self__", None)
    if name in ("__get__", "__set__", "__delete__"):  # of a property of tensors
        attribute = getattr(owner, "__name__", None) or getattr(getattr(owner, "fget", None), "__name__", None)
        if attribute is None:
            return unknown
        return f"{attribute}=" if name == "__set__" else str(attribute)
    if getattr(func, "__objclass__", None) in torch.Tensor.__mro__:
        return str(name)
    return str(name) if _is_torchs(func) and name.isidentifier() and name != "fn" else unknown


_FLOATING = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_COMPLEX = {torch.complex128, torch.complex64}


def _numbers(values: Any, first: Any = None) -> Any:
    """`COMPLEX` or `MIXED` for such numbers, else the one floating-point dtype of all of them, or None."""
    for value in values:
        kind = type(value)
        if kind is torch.Tensor:
            dtype = value.dtype
        elif kind is complex:
            return COMPLEX
        elif kind is tuple or kind is list:
            first = _numbers(value, first)
            if first is COMPLEX:
                return first
            continue
        elif isinstance(value, torch.Tensor):
            with torch._C.DisableTorchFunction():  # so that a subclass does not see this
                dtype = value.dtype
        else:
            continue
        if dtype in _COMPLEX:
            return COMPLEX
        if dtype is not first and dtype in _FLOATING:
            first = dtype if first is None else MIXED
    return first


def _is_apart(index: Any) -> bool:
    """Whether a slice or None is between two tensors of an index. Numbers do not count: torch takes them first."""
    if not isinstance(index, (tuple, list)):
        return False
    parts = [part for part in index if type(part) is not int]
    kinds = "".join("-" if part is None or part is Ellipsis or type(part) is slice else "i" for part in parts)
    return "-i" in kinds.lstrip("-")


def _is_padded(args: Any, kwargs: Any) -> bool:
    padding = kwargs.get("padding_idx", args[2] if len(args) > 2 else None)
    return padding is not None and is_mapped([x for x in args if x is not padding], _functorch(), floating=True)


def bare(name: str) -> str:
    """A name without its suffixes for numbers."""
    return name.replace(COMPLEX, "").replace(MIXED, "")


_names: dict[Any, str] = {}


def name_of(func: Any) -> str:
    """The short name of an operation: 'roll' for torch.roll, Tensor.roll and torch.ops.aten.roll."""
    try:
        return _names[func]
    except (KeyError, TypeError):
        name = _find_name(func)
    if not name.startswith(UNKNOWN):  # other functions may be made anew for each call
        _names[func] = name
    return name


# Attributes whose value under vmap differs from that for a sample. Code that reads one may take another branch, as
# modules with backward hooks do.
_QUESTIONS = {"requires_grad", "grad_fn", "is_leaf", "retains_grad"}
_LIBRARIES = (__name__.partition("._guards")[0] + ".", "torch._functorch.", "torch.autograd.", "functorch.")


_MODES = __name__.rpartition(".")[0] + "."


def _is_a_library(frame: FrameType | None) -> bool:
    """Whether this library or torch's transforms call an operation. The modes of the guards do not count."""
    name = _MODES
    while frame is not None and name.startswith(_MODES):
        name = str(frame.f_globals.get("__name__", ""))
        frame = frame.f_back
    return name.startswith(_LIBRARIES)


# Each transform but vmap calls one of these when it has entered its level, or before it leaves it.
_SWITCHES = {"_make_dual", "_unpack_dual", "_set_grad_enabled", "requires_grad_", "grad"}


@functools.lru_cache(None)
def _mode() -> Callable[[Pairs, Iterable[torch.Tensor]], Any]:
    from torch.overrides import TorchFunctionMode

    private = _functorch()

    def current() -> Any:  # torch 2.0 has only a function that raises where there are no levels
        return 0 if private.peek_interpreter_stack() is None else private.current_level()

    depth: Callable[[], Any] = getattr(private, "maybe_current_level", current)

    level_of = private.maybe_get_level

    class Recorder(TorchFunctionMode):
        def __init__(self, pairs: Pairs, constants: Iterable[torch.Tensor]) -> None:
            super().__init__()
            self._add = pairs.add
            self._known = {id(x): weakref.ref(x) for x in constants}
            # To ask for the levels is the largest cost here. So it is done again only if their number has changed, or
            # if a transform has begun or ended.
            self._depth: Any = -1
            self._levels = ""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = name_of(func)
            now = depth()
            if now != self._depth or name in _SWITCHES:
                self._levels = levels()
                self._depth = -1 if name in _SWITCHES else now
            if kwargs:
                if kwargs.get("inplace") is True:
                    name += "_"
                if kwargs.get("out") is not None:
                    name += ".out"
            if name in _WRITES and len(args) > 1 and _is_apart(args[1]):
                name += APART
            elif name == "embedding" and self._levels and _is_padded(args, kwargs or {}):
                name += PADDED
            numbers = _numbers(args)
            if kwargs and numbers is not COMPLEX:
                numbers = _numbers(kwargs.values(), numbers)
            if numbers is COMPLEX or numbers is MIXED:
                name += numbers
            if is_autocast_on():
                name = AUTOCAST
            elif name in _QUESTIONS and not _is_a_library(sys._getframe(1)):
                name = UNKNOWN + name
            self._add((name, self._levels))
            # forward mode takes the tangents of what the function returns
            if self._levels and (name == "_unpack_dual" or not _is_a_library(sys._getframe(1))):
                self._look_for_strangers(args)
            result = func(*args, **(kwargs or {}))
            self._note(result)
            return result

        def _note(self, result: Any) -> None:
            if isinstance(result, torch.Tensor):
                self._known[id(result)] = weakref.ref(result)
            elif isinstance(result, (tuple, list)):
                for value in result:
                    self._note(value)

        def _look_for_strangers(self, values: Any) -> None:
            for value in values:
                if type(value) in (tuple, list):
                    self._look_for_strangers(value)
                elif isinstance(value, torch.Tensor) and level_of(value) < 0:
                    known = self._known.get(id(value))
                    if known is None or known() is not value:
                        self._known[id(value)] = weakref.ref(value)
                        self._add((ELSEWHERE, self._levels))

    return Recorder


@contextlib.contextmanager
def recorded(constants: Iterable[torch.Tensor] = ()) -> Iterator[Pairs]:
    """Note each operation that runs within, on torch >= 2.0.

    Parameters
    ----------
    constants : iterable of Tensor
        Tensors that the function can reach from outside.

    Yields
    ------
    set of (str, str)
        The operation and the levels that it ran under; see `Pairs`. It is empty before torch 2.0.
    """
    pairs: Pairs = set()
    if not facts.has("torch_function_modes"):
        yield pairs
        return
    with _mode()(pairs, constants):
        yield pairs
