"""Every operation of torch's database, and those of our own table, through every kind of derivative.

Run by ``nox -s "sweep(torch-2.15.0)"``. A worker goes through the operations and writes a line of JSON for each; where
one takes the process down or too long, the next worker goes on after it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any, Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
SECONDS = 2.0  # of CPU for each operation, after which no more cases are begun
PATIENCE = 240.0  # seconds until an operation is given up


def _database() -> list[Any]:
    from torch.testing._internal.common_methods_invocations import op_db

    return list(op_db)


def _operations(only: str | None) -> list[tuple[str, Any]]:
    """Names, and what gives the cases."""
    import arguments

    for name in ("own", "own_numbers", "own_matrices", "own_nn"):
        importlib.import_module(name)
    import torch
    from cases import of_database

    from torch_func_compat._torch import facts

    found: list[tuple[str, Any]] = [(name, make) for name, make in arguments.TABLE.items()]

    def database(info: Any) -> Any:
        def make() -> Iterator[Any]:
            dtypes = [dtype for dtype in (torch.float64, torch.complex128) if info.supports_dtype(dtype, "cpu")]
            for dtype in dtypes or [torch.int64]:
                yield from of_database(info, dtype)

        return make

    for info in _database():
        if "empty" in info.name:  # has no values to compare
            continue
        variant = f".{info.variant_test_name}" if getattr(info, "variant_test_name", "") else ""
        found.append((f"{info.name}{variant}", database(info)))
    if facts.has("torch_function_modes") and (not only or "aten" in only):
        import aten

        known = {re.sub(r"\W", "_", name) for name, _ in found} | {re.split(r"\W", name)[-1] for name, _ in found}
        found += [row for row in aten.table(_database()).items() if row[0].split("::")[1] not in known]
    return found


@contextlib.contextmanager
def _settings(checked: bool) -> Iterator[None]:
    """The library as users have it; or with torch's own results, by which it is decided what to check."""
    import torch_func_compat as tfc

    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if not checked:
            stack.enter_context(tfc.use_fallback("error"))
            stack.enter_context(tfc.use_checks("off"))
        yield


def _with_single_primals(cases: Iterator[Any]) -> Iterator[Any]:
    """Cases; and the first one by its first and by its last tensor alone, since formulas leave out what is constant."""
    for k, case in enumerate(cases):
        yield case
        primal = [i for i, is_primal in enumerate(case.primal) if is_primal]
        if k == 0 and len(primal) > 1:
            for i in (primal[0], primal[-1]):
                alone = [j == i for j in range(len(case.primal))]
                yield case._replace(name=f"{case.name} by {i}", primal=alone)


def examine(name: str, make: Any, checked: bool) -> dict[str, Any]:
    """What became of each kind of each case of an operation."""
    from kinds import KINDS
    from points import Prepared, Unknown, is_nan_only, plain, same

    from torch_func_compat._guards.recorder import recorded
    from torch_func_compat._torch import facts

    began, found = time.process_time(), {}

    def note(kind: str, levels: str, outcome: str, case: str, text: str, main: Any = (), every: Any = ()) -> None:
        key = json.dumps([levels, outcome, sorted(main), sorted(every)])
        entry = found.setdefault(key, {"kind": kind, "case": case, "text": text[:160], "count": 0})
        entry["count"] += 1

    cases = 0
    with _settings(checked):
        try:
            for case in _with_single_primals(make()):
                if cases and time.process_time() - began > SECONDS:
                    break
                cases += 1
                try:
                    run = Prepared(case)
                except Exception as error:  # noqa: BLE001
                    note("plain", "", "unknown", case.name, f"{type(error).__name__}: {error}")
                    continue
                differentiable = any(case.primal) and bool(run.points[0].outputs)
                doubtful = 3  # the order of derivatives from which on plain autograd is not trusted
                low = run.tolerance > 1e-6  # differences say nothing in low precision
                if differentiable and case.differences and not run.random and not low:
                    try:
                        for levels, got, want in plain(run):
                            if not same(got, want, max(1e-4, 10 * run.tolerance)):
                                note("plain", levels, "wrong", case.name, f"{got} and not {want}")
                                doubtful = min(doubtful, len(levels))
                    except Exception as error:  # noqa: BLE001
                        note("plain", "r", "unknown", case.name, f"{type(error).__name__}: {error}")
                for levels, kind, order, function in KINDS:
                    if order and not differentiable:
                        continue
                    run.main = set()
                    text = ""
                    with contextlib.nullcontext(set()) if checked else recorded() as pairs:
                        try:
                            got, want = function(run)
                            outcome = "right" if same(got, want, run.tolerance) else "wrong"
                            outcome = "unknown" if outcome == "wrong" and is_nan_only(got, want) else outcome
                            text = "" if outcome == "right" else f"{_brief(got)} and not {_brief(want)}"[:120]
                        except Unknown as error:
                            outcome, text = "unknown", str(error)
                        except Exception as error:  # noqa: BLE001
                            outcome, text = "refused", f"{type(error).__name__}: {' '.join(str(error).split())}"
                    if (outcome == "right" and order >= doubtful) or (outcome == "wrong" and run.random):
                        outcome = "unknown"
                    if outcome == "wrong" and order >= doubtful:
                        text += " (plain autograd is wrong, too)"
                    around = "a" if levels.startswith("a") else ""
                    main, every = ({(n, around + at) for n, at in some if at} for some in (run.main, pairs))
                    if outcome == "unknown":
                        continue
                    elif outcome != "right":
                        every = set()
                    if checked or main or outcome != "right" or not facts.has("torch_function_modes"):
                        note(kind, levels, outcome, case.name, text, main, every - main)
        except Exception as error:  # noqa: BLE001
            note("plain", "", "broken", name, f"{type(error).__name__}: {error}")
    return {"name": name, "seconds": round(time.process_time() - began, 2), "cases": cases, "found": found}


def _brief(tensors: Any) -> str:
    numbers = [v for t in tensors for v in t.detach().flatten()[:4].tolist()][:4]
    text = ", ".join(f"{v:.6g}" for v in numbers)
    return f"[{text}] of {', '.join(str(tuple(t.shape)) for t in tensors[:2])}"


def work(start: int, only: str | None, checked: bool) -> None:
    """Write a line for each operation from `start` on: its number before, what was found after."""
    sys.path.insert(0, str(HERE))
    import torch

    torch.set_num_threads(1)
    for k, (name, make) in enumerate(_operations(only)):
        if k < start or (only and only not in name):
            continue
        print(json.dumps({"begin": k, "name": name}), flush=True)
        print(json.dumps(examine(name, make, checked)), flush=True)
    print(json.dumps({"end": True}), flush=True)


def run(only: str | None = None, checked: bool = False) -> list[dict[str, Any]]:
    """All operations, by as many workers as it takes."""
    results: list[dict[str, Any]] = []
    start, ended = 0, False
    while not ended:
        command = [sys.executable, "-W", "ignore", __file__, "--start", str(start), *(["--only", only] if only else [])]
        command += ["--checked"] if checked else []
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        timer = threading.Timer(PATIENCE, worker.kill)
        timer.start()
        current = None
        assert worker.stdout is not None
        for line in worker.stdout:
            timer.cancel()
            timer = threading.Timer(PATIENCE, worker.kill)
            timer.start()
            try:
                entry = json.loads(line)
            except ValueError:  # something that torch prints
                continue
            if "begin" in entry:
                current = entry
            elif "end" in entry:
                ended = True
            elif current is not None:
                results.append(entry)
                current = None
        timer.cancel()
        worker.wait()
        if not ended:
            if current is None:
                raise RuntimeError("a worker died between two operations: run `python tests/sweep/sweep.py --start 0`")
            results.append({"name": current["name"], "crashed": True, "found": {}, "cases": 0, "seconds": 0})
            start = current["begin"] + 1
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", type=int, help="be a worker, from this operation on")
    parser.add_argument("--only", help="only operations with this in their names; nothing is written")
    parser.add_argument(
        "--checked", action="store_true", help="with the library's guards and tests: what is wrong there is a fault"
    )
    parser.add_argument("--keep", help="a file for all that was found, as JSON")
    parser.add_argument("--from", dest="source", help="such a file, to write the tables anew")
    options = parser.parse_args()
    if options.start is not None:
        work(options.start, options.only, options.checked)
        return
    sys.path.insert(0, str(HERE))
    import judge

    if options.source:
        results = json.loads(Path(options.source).read_text())
    else:
        results = run(options.only, options.checked)
    if options.keep:
        Path(options.keep).write_text(json.dumps(results))
    verdict = judge.Verdict(results)
    if options.checked:
        print(verdict.faults())
    elif options.only:
        print(verdict.report())
        print(verdict.table())
    else:
        verdict.write()


if __name__ == "__main__":
    main()
