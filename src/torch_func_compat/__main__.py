"""``python -m torch_func_compat``: what is here, what answers, and whether it is right. For bug reports."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from typing import Any, Callable, Sequence

import torch

from . import __api_version__, __version__, _selfcheck
from ._torch import facts
from .autograd import available_backends, get_backend, get_fallback, unavailable_backends, use_backend

Report = Callable[[str], None]
PACKAGE = facts.__name__.rsplit(".", 2)[0]
VARIABLES = [f"{PACKAGE.replace('.', '_').upper()}_{setting}" for setting in ("BACKEND", "FALLBACK")]


def _installed(name: str) -> str | None:
    module = sys.modules.get(name)
    return None if module is None else str(getattr(module, "__version__", "of unknown version"))


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
    return {
        "package": PACKAGE,
        "version": __version__,
        "api_version": __api_version__,
        "torch": str(torch.__version__),
        "functorch": _installed("functorch"),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "cuda": _cuda(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "backends": backends,
    }


def _print_environment(found: dict[str, Any], emit: Report) -> None:
    cuda, backends = found["cuda"], found["backends"]
    if cuda["usable"]:
        gpu = f"{cuda['built_for']}, {', '.join(cuda['devices'])}"
    else:
        gpu = f"none that torch can use (built for {cuda['built_for'] or 'the CPU only'})"
        gpu += f": {cuda['reason']}" if cuda["reason"] else ""
    emit(f"{found['package']} {found['version']}, with the API of torch.func {found['api_version']}")
    rows = [("torch", found["torch"]), ("functorch", found["functorch"])]
    rows += [("python", found["python"]), ("platform", found["platform"]), ("CUDA", gpu), *found["variables"].items()]
    for name, value in rows:
        if value is not None:
            emit(f"  {name:10}  {value}")
    emit("")
    emit("Backends")
    for name in backends["available"]:
        emit(f"  {name:10}  available{', answers' if name == backends['answers'] else ''}")
    for name, reason in backends["unavailable"].items():
        emit(f"  {name:10}  not available: {reason}")


def _operators(backends: Sequence[str], device: str, emit: Report) -> dict[str, Any]:
    emit("")
    emit("Operators".ljust(16) + "".join(f"  {name:15}" for name in backends).rstrip())
    table = {}
    for name in _selfcheck.CHECKS:
        table[name] = {backend: _selfcheck.answered_by(name, backend, device) for backend in backends}
        emit(f"  {name:14}" + "".join(f"  {table[name][backend]:15}" for backend in backends).rstrip())
    return table


def _facts_table(emit: Report) -> dict[str, Any]:
    emit("")
    emit("Facts about this torch")
    table = {}
    for name, fact in facts.FACTS.items():
        holds = facts.has(name)
        as_known = holds == fact.expected(facts.TORCH)
        table[name] = {"holds": holds, "as_known": as_known, "meaning": fact.meaning, "source": fact.source}
        surprise = "" if as_known else " (unlike other builds of this release)"
        emit(f"  {'yes' if holds else 'no':3}  {fact.meaning}{surprise}")
    return table


def _check(operator: str, backend: str, device: str) -> dict[str, Any]:
    row: dict[str, Any] = {"operator": operator, "backend": backend, "device": device, "limit": None}
    row.update(error=None, passed=False, message=None)
    try:
        error = _selfcheck.largest_error(operator, backend, device)
    # Whatever an operator raises on a machine, it is what the report is about.
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


def _self_check(backends: Sequence[str], devices: Sequence[str], emit: Report) -> list[dict[str, Any]]:
    emit("")
    emit("Self-check against closed forms: largest error")
    rows = []
    for device in devices:
        for backend in backends:
            for operator in _selfcheck.CHECKS:
                row = _check(operator, backend, device)
                mark, result = ("ok    ", f"{row['error']:.1e}") if row["passed"] else ("FAILED", row["message"])
                emit(f"{mark}  {operator:14}  {backend:10}  {device:6}  {result}")
                rows.append(row)
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {PACKAGE}",
        description="Print what this torch has, which backend answers, how each operator is computed, and check "
        "every operator against closed forms. The exit status is 1 if a check fails.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
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
    emit: Report = (lambda line: None) if options.json else _emit
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

    report = _environment()
    _print_environment(report, emit)
    backends = [options.backend] if options.backend else report["backends"]["available"]
    devices = [options.device] if options.device else ["cpu", "cuda"] if report["cuda"]["usable"] else ["cpu"]
    report["operators"] = _operators(backends, devices[0], emit)
    report["facts"] = _facts_table(emit)
    report["checks"] = _self_check(backends, devices, emit)

    failed = [row for row in report["checks"] if not row["passed"]]
    report["passed"] = not failed and report["backends"]["error"] is None
    emit("")
    if report["backends"]["error"]:
        emit(f"FAILED  {report['backends']['error']}")
    if failed:
        emit(f"FAILED  {len(failed)} of {len(report['checks'])} checks")
    elif report["passed"]:
        emit(f"All {len(report['checks'])} checks passed.")
    if options.json:
        print(json.dumps(report, indent=2))
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
