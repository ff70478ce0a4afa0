"""Which operations are proven: right in every case of a sweep through torch's own database of operations.

There is one table for each minor release, ``proven/2.15.txt`` for torch 2.15, which ``nox -s "sweep(torch-2.15.0)"``
writes. A release without a table proves nothing. In a table, each paragraph begins with strings of levels in brackets
(see `torch_func_compat._guards.recorder`), and names the operations that are proven under each of them.

A proven operation has come out right on CPU, under these levels, in some cases, and wrong in none: for a few shapes
and options, in double precision, and for complex numbers where the name says so. This is evidence, not a proof.
"""

from __future__ import annotations

import functools
import pkgutil
from typing import AbstractSet, Iterable

from .._torch import facts
from .recorder import bare

# These read what a tensor is, make one without values, or switch a setting, and compute nothing.
METADATA = frozenset(
    (
        "__len__ __repr__ _is_view _set_grad_enabled _version device dim dtype element_size empty empty_like "
        "empty_strided is_complex is_conj is_cpu is_cuda is_floating_point is_inference is_meta is_mkldnn is_neg "
        "is_nested is_quantized is_signed is_sparse is_sparse_csr is_tensor itemsize layout names ndim ndimension "
        "nelement grad_fn is_leaf requires_grad retains_grad new_empty new_empty_strided numel output_nr shape size"
    ).split()
)

# Torch treats these as constants in every mode. A trial finds that out and raises.
_CONSTANT = tuple(
    f"special_{name}"
    for name in (
        "airy bessel chebyshev hermite laguerre legendre modified_bessel scaled_modified_bessel shifted_chebyshev "
        "spherical_bessel"
    ).split()
)


def parse(text: str) -> dict[str, frozenset[str]]:
    """The levels under which each operation of a table is proven."""
    table: dict[str, frozenset[str]] = {}
    levels: frozenset[str] = frozenset()
    for line in text.splitlines():
        if line.startswith("["):
            levels = frozenset(line.strip("[]").split())
        elif not line.startswith("#"):
            table.update(dict.fromkeys(line.split(), levels))
    return table


@functools.lru_cache(None)
def table(major: int, minor: int) -> dict[str, frozenset[str]]:
    """The table of a release of torch; an empty one where there is none."""
    try:
        data = pkgutil.get_data(__package__, f"proven/{major}.{minor}.txt")
    except OSError:
        return {}
    return parse((data or b"").decode())


def unproven(pairs: Iterable[tuple[str, str]]) -> AbstractSet[str]:
    """The operations among `pairs` that are not proven on this torch under the levels that they ran under.

    Parameters
    ----------
    pairs : iterable of (str, str)
        From `torch_func_compat._guards.recorder.recorded`. Levels may begin with an "a": plain autograd records the
        operation and may differentiate it once more. Without levels there is nothing to prove.

    Returns
    -------
    set of str
        Their names.
    """
    known = table(*facts.TORCH[:2])
    found = {
        name
        for name, levels in pairs
        if levels and (levels not in known.get(name, ()) or (name.startswith(_CONSTANT) and levels != "v"))
    }
    return {name for name in found if bare(name) not in METADATA}
