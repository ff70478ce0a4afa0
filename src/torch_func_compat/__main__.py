"""``python -m torch_func_compat``: a report on the environment, the backends and the checks of every operator."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import textwrap
import warnings
from typing import Any, Callable, Sequence

import torch

from . import __api_version__, __version__, _selfcheck
from ._selfcheck import advice, routes
from ._torch import facts
from .autograd import available_backends, get_backend, get_fallback, unavailable_backends, use_backend

Report = Callable[[str], None]
PACKAGE = facts.__name__.rsplit(".", 2)[0]
WIDTH = 100  # of the lines that are wrapped
FALLBACKS = {
    "warn": "warn: autograd computes the functions that the backend refuses, with a warning",
    "silent": "silent: autograd computes the functions that the backend refuses",
    "error": "error: a function that the backend refuses raises",
}
VARIABLES = [f"{PACKAGE.replace('.', '_').upper()}_{setting}" for setting in ("BACKEND", "FALLBACK")]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _cuda() -> dict[str, Any]:
    """The CUDA that torch sees, and whether it can compute there (an old torch on a new GPU cannot)."""
    found: dict[str, Any] = {"built_for": torch.version.cuda, "devices": [], "usable": False, "reason": None}
    try:
        found["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["usable"] = bool(torch.cuda.is_available()) and float(torch.ones(2, device="cuda").sum()) == 2
    except (RuntimeError, AssertionError) as error:
        found["reason"] = _first_line(error)
    return found


def _environment() -> dict[str, Any]:
    backends: dict[str, Any] = {
        "available": list(available_backends()),
        "unavailable": unavailable_backends(),
        "answers": None,
        "fallback": None,
        "error": None,
    }
    try:
        backends["answers"] = get_backend()
        backends["fallback"] = get_fallback()
    except (ValueError, ImportError) as error:
        backends["error"] = str(error)
    functorch = sys.modules.get("functorch")
    return {
        "package": PACKAGE,
        "version": __version__,
        "api_version": __api_version__,
        "torch": str(torch.__version__),
        "functorch": functorch and str(getattr(functorch, "__version__", "of unknown version")),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "cuda": _cuda(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "backends": backends,
    }


def _print_environment(found: dict[str, Any], emit: Report) -> None:
    cuda, backends = found["cuda"], found["backends"]
    built = f"torch is built for CUDA {cuda['built_for']}" if cuda["built_for"] else "torch is built for the CPU only"
    if cuda["usable"]:
        gpu = f"{', '.join(cuda['devices'])} (CUDA {cuda['built_for']})"
    else:
        gpu = f"none that torch can use ({built})" + (f": {cuda['reason']}" if cuda["reason"] else "")
    emit(f"{found['package']} {found['version']}, the torch.func API of torch {found['api_version']}")
    emit("")
    rows = [("torch", found["torch"]), ("functorch", found["functorch"]), ("python", found["python"])]
    rows += [("platform", found["platform"]), ("GPU", gpu), ("backend", backends["answers"] or "none")]
    rows += [("fallback", FALLBACKS.get(backends["fallback"], "none")), *found["variables"].items()]
    _columns([(name, value) for name, value in rows if value is not None], emit)


def _columns(rows: Sequence[Sequence[str]], emit: Report, indent: str = "  ") -> None:
    """Rows of cells, each column as wide as its longest cell; the last one is wrapped."""
    widths = [max(map(len, column)) for column in zip(*rows)][:-1]
    margin = indent + "".join(" " * (width + 2) for width in widths)
    for *cells, last in rows:
        start = indent + "".join(f"{cell:{width}}  " for cell, width in zip(cells, widths))
        room = max(WIDTH - len(margin), 40)
        for number, line in enumerate(textwrap.wrap(last, room, break_on_hyphens=False) or [""]):
            emit((margin if number else start) + line)


def _print_backends(found: dict[str, Any], emit: Report) -> None:
    emit("")
    emit("Backends")
    rows = [(n, "available" + (", in use" if n == found["answers"] else "")) for n in found["available"]]
    _columns([*rows, *((name, f"not available: {reason}") for name, reason in found["unavailable"].items())], emit)


def _operators(backends: Sequence[str], device: str) -> dict[str, Any]:
    """operator -> backend -> route"""
    return {
        name: {backend: _selfcheck.answered_by(name, backend, device) for backend in backends}
        for name in _selfcheck.CHECKS
    }


def _print_operators(table: dict[str, Any], backend: str, emit: Report) -> None:
    """The operators of one backend, grouped by how they are computed."""
    by_meaning: dict[str, list[str]] = {}
    order = list(routes.MEANINGS)
    found = [(name, row[backend]) for name, row in table.items()]
    for name, route in sorted(found, key=lambda item: order.index(item[1]) if item[1] in order else len(order)):
        # functorch's vmap has a derivation around it, which adds no pass
        batched = name == "vmap" and route == "derived"
        by_meaning.setdefault(routes.meaning("native" if batched else route), []).append(name)
    emit("")
    emit(f"How {backend} computes the operators")
    _columns([(meaning, ", ".join(names)) for meaning, names in by_meaning.items()], emit)


def _print_routes(table: dict[str, Any], backends: Sequence[str], emit: Report) -> None:
    """Every operator and backend."""
    emit("")
    emit("Routes")
    _columns([("", *backends), *((name, *(row[backend] for backend in backends)) for name, row in table.items())], emit)


def _facts_table() -> dict[str, Any]:
    unlike = advice.unlike_its_release()
    return {
        name: dict(holds=facts.has(name), as_known=name not in unlike, meaning=fact.meaning, source=fact.source)
        for name, fact in facts.FACTS.items()
    }


def _print_facts(table: dict[str, Any], emit: Report) -> None:
    emit("")
    emit("Facts about this torch")
    unlike = " (unlike other builds of this release)"
    rows = [(row["holds"], row["meaning"] + ("" if row["as_known"] else unlike)) for row in table.values()]
    _columns([("yes" if holds else "no", meaning) for holds, meaning in rows], emit)


def _print_limits(limits: Sequence[dict[str, str]], emit: Report) -> None:
    emit("")
    emit("Limits of this torch, and what to do" if limits else "This torch limits nothing.")
    for limit in limits:
        for mark, sentence in (("- ", limit["what"]), ("  -> ", limit["advice"])):
            margin = " " * (2 + len(mark))
            for line in textwrap.wrap(f"{sentence}.", WIDTH, initial_indent=f"  {mark}", subsequent_indent=margin):
                emit(line)


def _check(operator: str, backend: str, device: str) -> dict[str, Any]:
    row: dict[str, Any] = {"operator": operator, "backend": backend, "device": device, "limit": None}
    row.update(error=None, passed=False, message=None)
    try:
        error = _selfcheck.largest_error(operator, backend, device)
    # An operator may raise anything, and the report shows it.
    except Exception as raised:  # noqa: BLE001
        row["message"] = f"{type(raised).__name__}: {' '.join(str(raised).split())}"
        return row
    row["limit"] = _selfcheck.limit_on(device)
    row["passed"] = error <= row["limit"]
    if math.isfinite(error):
        row["error"] = error  # JSON has no NaN
    if not row["passed"]:
        row["message"] = f"error {error:.1e}, limit {row['limit']:.0e}"
    return row


def _self_check(backends: Sequence[str], devices: Sequence[str]) -> list[dict[str, Any]]:
    return [
        _check(operator, backend, device)
        for device in devices
        for backend in backends
        for operator in _selfcheck.CHECKS
    ]


def _print_checks(rows: Sequence[dict[str, Any]], verbose: bool, emit: Report) -> None:
    """The checks that failed, or all of them, and one line about the whole."""
    shown = [row for row in rows if verbose or not row["passed"]]
    emit("")
    if shown:
        emit("Checks against closed forms: largest error")
        cells = []
        for row in shown:
            mark, result = ("ok", f"{row['error']:.1e}") if row["passed"] else ("FAILED", row["message"])
            cells.append((mark, row["operator"], row["backend"], row["device"], result))
        _columns(cells, emit, indent="")
        emit("")
    failed = sum(not row["passed"] for row in rows)
    if failed:
        emit(f"FAILED  {failed} of {len(rows)} checks")
    elif rows:
        largest = max(row["error"] for row in rows)
        where = f"on {', '.join(dict.fromkeys(row['device'] for row in rows))}"
        emit(f"All {len(rows)} checks against closed forms passed {where}; the largest error is {largest:.1e}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {PACKAGE}",
        description="Show which torch and which backend are in use, how each operator is computed, and what limits "
        "this torch; check every operator against closed forms. The exit status is 1 if a check fails.",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show every backend, fact and check as well")
    parser.add_argument("--json", action="store_true", help="print one JSON document with all of it instead")
    parser.add_argument("--backend", metavar="NAME", help="look at this backend only")
    parser.add_argument(
        "--device", metavar="NAME", help="check on this device only, e.g. cuda:1 (default: CPU and CUDA)"
    )
    return parser


def _emit(line: str) -> None:
    # A console may know no more than ASCII, and a reason may come from anywhere.
    print(line.encode("ascii", "backslashreplace").decode(), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; 0 if every check passed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.backend:
        try:
            with use_backend(options.backend):
                pass
        except (ValueError, ImportError) as error:
            parser.error(str(error))
    if options.device:
        try:
            torch.ones(2, device=options.device).sum().item()
        except (RuntimeError, AssertionError) as error:
            parser.error(f"torch cannot compute on {options.device}: {_first_line(error)}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own internals while it is probed
        report = _collect(options.backend, options.device)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report, options.verbose, _emit)
    return 0 if report["passed"] else 1


def _collect(backend: str | None, device: str | None) -> dict[str, Any]:
    """All that the report says, as JSON has it."""
    report = _environment()
    available = report["backends"]["available"]
    backends = [backend] if backend else available
    devices = [device] if device else ["cpu", "cuda"] if report["cuda"]["usable"] else ["cpu"]
    report["operators"] = _operators(backends, devices[0])
    report["limits"] = advice.limits(tuple(available), report["cuda"])
    report["facts"] = _facts_table()
    report["checks"] = _self_check(backends, devices)
    report["passed"] = all(row["passed"] for row in report["checks"]) and report["backends"]["error"] is None
    return report


def _print(report: dict[str, Any], verbose: bool, emit: Report) -> None:
    _print_environment(report, emit)
    looked_at = list(next(iter(report["operators"].values())))
    if verbose:
        _print_backends(report["backends"], emit)
    in_use = report["backends"]["answers"]
    _print_operators(report["operators"], in_use if in_use in looked_at else looked_at[0], emit)
    if verbose:
        _print_routes(report["operators"], looked_at, emit)
        _print_facts(report["facts"], emit)
    _print_limits(report["limits"], emit)
    if report["backends"]["error"]:
        emit("")
        emit(f"FAILED  {report['backends']['error']}")
    _print_checks(report["checks"], verbose, emit)
    if not verbose:
        emit(f"Details: python -m {PACKAGE} --verbose")


if __name__ == "__main__":
    sys.exit(main())
