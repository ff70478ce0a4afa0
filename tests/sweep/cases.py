"""A case: a function of tensors at two points of the same kind."""

from __future__ import annotations

from typing import Any, Callable, Iterator, NamedTuple, Sequence

import torch
from torch import Tensor

SAMPLES = {torch.float64: 4, torch.complex128: 2, torch.int64: 2}
LOOKED_AT = 40  # of what an operation's database yields


class Case(NamedTuple):
    """A function, and what it is evaluated at.

    Attributes
    ----------
    name : str
        What the report calls it.
    function : callable
        Takes the tensors, returns any structure of tensors; what it calls is under test.
    points : list of list of Tensor
        Two lists of tensors of the same shapes.
    primal : list of bool
        Which of the tensors are differentiated.
    finish : callable
        What is made of its result before it is compared, such as a phase taken away.
    differences : bool
        Whether its derivative is that of its values: not where it detaches.
    """

    name: str
    function: Callable[..., Any]
    points: list[list[Tensor]]
    primal: list[bool]
    finish: Callable[[Any], Any] = lambda result: result
    differences: bool = True


def leaves(tree: Any) -> list[Any]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, (list, tuple)):
        return [leaf for item in tree for leaf in leaves(item)]
    if isinstance(tree, dict):
        return [leaf for item in tree.values() for leaf in leaves(item)]
    return [tree]


def replaced(tree: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return next(tensors)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(replaced(item, tensors) for item in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(replaced(item, tensors) for item in tree)
    if isinstance(tree, dict):
        return {key: replaced(value, tensors) for key, value in tree.items()}
    return tree


def is_number(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def usable(x: Any) -> bool:
    return not isinstance(x, Tensor) or (type(x) is Tensor and x.layout == torch.strided and not x.is_quantized)


def _signature(sample: Any) -> str:
    parts = []
    for leaf in leaves((sample.input, sample.args, sample.kwargs)):
        parts.append(f"{leaf.dtype}{tuple(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf))
    return f"{' '.join(parts)} {sorted(map(str, sample.kwargs))}"


def _samples(info: Any, dtype: torch.dtype, seed: int) -> list[Any]:
    torch.manual_seed(seed)
    found = []
    # not sample_inputs(), which sets the seed for each sample
    for sample in info.sample_inputs_func(info, "cpu", dtype, dtype != torch.int64):
        found.append(sample)
        if len(found) == LOOKED_AT:
            break
    return found


def _numel(sample: Any) -> int:
    return sum(leaf.numel() for leaf in leaves((sample.input, sample.args, sample.kwargs)) if isinstance(leaf, Tensor))


def _chosen(samples: Sequence[Any], count: int) -> list[int]:
    """Samples that differ: in the arguments that are no tensors, in dimensions, in the number of tensors."""
    fitting = []
    for k, sample in enumerate(samples):
        tensors = [x for x in leaves((sample.input, sample.args, sample.kwargs)) if isinstance(x, Tensor)]
        if tensors and all(map(usable, tensors)) and 0 < _numel(sample) <= 10000:
            fitting.append(k)
    small = [k for k in fitting if _numel(samples[k]) <= 2000]
    fitting = small or fitting[:1]
    kinds: dict[Any, list[int]] = {}
    for k in fitting:
        sample = samples[k]
        found = leaves((sample.input, sample.args, sample.kwargs))
        others = tuple(repr(x) for x in found if not isinstance(x, Tensor))
        dims = tuple(x.dim() for x in found if isinstance(x, Tensor))
        kinds.setdefault((sorted(sample.kwargs), others, dims).__repr__(), []).append(k)
    order = sorted(kinds.values(), key=lambda ks: min(ks))
    picked = [ks[0] for ks in order]
    if len(picked) > count:  # evenly, the first and the last among them
        picked = [picked[round(i * (len(picked) - 1) / max(count - 1, 1))] for i in range(count)]
    rest = [k for k in fitting if k not in picked]
    return (picked + rest)[:count]


def of_database(info: Any, dtype: torch.dtype) -> Iterator[Case]:
    """The cases of an operation in torch's own database."""
    count = SAMPLES[dtype]
    first = _samples(info, dtype, 0)
    second = _samples(info, dtype, 1)
    same = len(first) == len(second)
    names = [("", info.op)]
    if dtype == torch.float64:
        names += [(".inplace", info.inplace_variant)] if getattr(info, "inplace_variant", None) else []
        names += [(f".{alias.name}", alias.op) for alias in getattr(info, "aliases", ())]
        method = getattr(info, "method_variant", None)
        if method is not None and getattr(method, "__name__", "") != getattr(info.op, "__name__", ""):
            names.append((".method", method))
    for suffix, function in names:
        for k in _chosen(first, 1 if suffix else count):
            inplace = suffix == ".inplace"
            if inplace and getattr(first[k], "broadcasts_input", False):
                continue
            other = second[k] if same and _signature(first[k]) == _signature(second[k]) else None
            case = _of_sample(info, f"{info.name}{suffix}", function, inplace, first[k], other, dtype)
            if case is not None:
                yield case


def _of_sample(
    info: Any, name: str, function: Any, inplace: bool, sample: Any, other: Any, dtype: torch.dtype
) -> Case | None:
    tree = (sample.input, list(sample.args), dict(sample.kwargs))
    tensors = [x for x in leaves(tree) if isinstance(x, Tensor)]
    if "out" in sample.kwargs:
        return None
    primal = [x.requires_grad and is_number(x) for x in tensors]
    one = [x.detach().clone() for x in tensors]
    if other is None:
        two = [x * 0.9375 if is_primal else x.clone() for x, is_primal in zip(one, primal)]
    else:
        others = leaves((other.input, list(other.args), dict(other.kwargs)))
        two = [x.detach().clone() for x in others if isinstance(x, Tensor)]
    two = [x * 0.9375 if p and torch.equal(x, y) else x for x, y, p in zip(two, one, primal)]
    wrapper = getattr(info, "gradcheck_wrapper", None) or (lambda op, *args, **kwargs: op(*args, **kwargs))

    def call(*given: Tensor) -> Any:
        first, args, kwargs = replaced(tree, iter(given))
        if inplace:
            return wrapper(lambda x, *a, **k: function(x.clone(), *a, **k), first, *args, **kwargs)
        return wrapper(function, first, *args, **kwargs)

    finish = getattr(sample, "output_process_fn_grad", None) or (lambda result: result)
    what = ", ".join(short(x) for x in leaves((sample.input, list(sample.args)))) + "".join(
        f", {key}={short(value)}" for key, value in sample.kwargs.items()
    )
    return Case(f"{name}({what})", call, [one, two], primal, finish)


def short(x: Any) -> str:
    if isinstance(x, Tensor):
        kind = {torch.float64: "", torch.complex128: "c", torch.int64: "i", torch.bool: "b"}.get(x.dtype, str(x.dtype))
        return f"{kind}[{','.join(map(str, x.shape))}]"
    return repr(x)[:40]
