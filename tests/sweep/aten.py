"""The operators that the operations of the database consist of, as traced and exported programs call them."""

from __future__ import annotations

from typing import Any, Callable, Iterator

import torch
from cases import Case, is_number, leaves, of_database, replaced, short, usable
from torch import Tensor

EACH = 3  # cases of one operator


def _watching(found: dict[str, list[Any]]) -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            name = func.overloadpacket._qualified_op_name
            tree = (list(args), dict(kwargs))
            tensors = [x for x in leaves(tree) if isinstance(x, Tensor)]
            known = found.setdefault(name, [])
            kind = (str(func), [(x.dim(), x.dtype) for x in tensors])
            fits = tensors and all(map(usable, tensors)) and sum(x.numel() for x in tensors) <= 500
            if name.startswith("aten::") and len(known) < EACH and fits and kind not in [k for k, *_ in known]:
                if "out" not in kwargs and not func._schema.is_mutable:
                    known.append((kind, func, replaced(tree, iter([x.detach().clone() for x in tensors]))))
            return func(*args, **kwargs)

    return Watch()


def _cases(entries: list[Any]) -> Callable[[], Iterator[Case]]:
    def make() -> Iterator[Case]:
        for _, func, tree in entries:
            one = [x for x in leaves(tree) if isinstance(x, Tensor)]
            primal = [is_number(x) for x in one]
            two = [x * 0.9375 if p else x.clone() for x, p in zip(one, primal)]

            def call(*given: Tensor, func: Any = func, tree: Any = tree) -> Any:
                args, kwargs = replaced(tree, iter(given))
                return func(*args, **kwargs)

            what = ", ".join(short(x) for x in leaves(tree))
            yield Case(f"{func}({what})", call, [one, two], primal)

    return make


def table(database: list[Any]) -> dict[str, Callable[[], Iterator[Case]]]:
    """An entry for each operator."""
    found: dict[str, list[Any]] = {}
    for info in database:
        try:
            for k, case in enumerate(of_database(info, torch.float64)):
                with _watching(found):
                    case.function(*case.points[0])
                if k == 1:
                    break
        except Exception:  # noqa: BLE001
            continue
    return {name: _cases(entries) for name, entries in sorted(found.items()) if entries and "empty" not in name}
