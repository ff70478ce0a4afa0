"""Run a suite twice in this environment, plain and swapped, and compare.

    python compare.py --swap tad_mctc.autograd,torch.func accept_dftd3.py ...
    python compare.py --swap torch.func --own-tests CHECKOUT -- -k hessian
    python compare.py --swap torch.func --own-tests FOLDER --packages gpytorch,linear-operator

The second runs the tests of any package that is installed here, with its dependencies. With `--packages`, each of them
that is found is run: the folder is a checkout or an unpacked sdist, or has several. Options in a package's own
configuration (``addopts``) are left out, since they often need plugins.

What passes plain must pass swapped; acceptance tests must all pass swapped, and what they record must be the same to
1e-10. The exit status is 0 only then.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIMIT = 1e-10


def run(arguments, cwd, swapped, folder):
    """Outcomes, values and counts of one run."""
    report = os.path.join(folder, "swapped.json" if swapped else "plain.json")
    env = {**os.environ, "DOWNSTREAM_SWAP": swapped, "DOWNSTREAM_REPORT": report}
    env["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [env.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "pytest", "-p", "swap", "-q", "-p", "no:cacheprovider", *arguments]
    code = subprocess.run(command, cwd=str(cwd), env=env).returncode
    if not os.path.exists(report):
        reason = f"pytest ended with status {code} before it ran a test: see its output above"
        return dict(
            torch=version("torch"), calls={}, values={}, outcomes={"pytest": "failed"}, reasons={"pytest": reason}
        )
    with open(report, encoding="utf-8") as file:
        found = json.load(file)
    for part in glob.glob(report + ".*"):  # of xdist's workers
        with open(part, encoding="utf-8") as file:
            of_worker = json.load(file)
        found["calls"] = Counter(found["calls"]) + Counter(of_worker["calls"])
        found["values"].update(of_worker["values"])
    if code not in (0, 1):  # 1: tests failed, which is compared below
        found["outcomes"][f"pytest, status {code}"] = "failed"
    return found


def difference(plain, swapped):
    """Largest difference of recorded numbers, relative where they are large; infinite where they do not match."""
    worst = 0.0
    for name in set(plain) & set(swapped):
        a, b = plain[name], swapped[name]
        if len(a) != len(b):
            return float("inf")
        scale = max(1.0, *map(abs, a)) if a else 1.0
        for x, y in zip(a, b):
            error = abs(x - y) / scale
            if not error <= worst:
                worst = error if error == error else float("inf")
    return worst


def passed(found):
    return {name for name, outcome in found["outcomes"].items() if outcome == "passed"}


def failed(found):
    return {name for name, outcome in found["outcomes"].items() if outcome == "failed"}


def last_line(reason):
    return (reason.strip().splitlines() or [""])[-1][:150]


BUILT_BY = ("pyproject.toml", "setup.cfg", "setup.py")


def checkout(folder, package):
    """The sources of a package: the folder itself or one within it, by the name in its metadata or by its own.

    The folder's own name may have a version or a branch behind it, and may be the start of the package's name.
    """
    folder, wanted = Path(folder).resolve(), normalized(package)
    if not folder.is_dir():
        sys.exit(f"there is no folder {folder}")
    for path in [folder] if is_checkout(folder) else sorted(filter(is_checkout, folder.iterdir())):
        name = normalized(re.sub(r"-(\d[\w.]*|main|master)$", "", path.name))
        if wanted in (name, declared(path)) or wanted.startswith(name + "-"):
            return path
    return None


def is_checkout(folder):
    return any((folder / file).is_file() for file in BUILT_BY)


def declared(folder):
    """The name that the metadata of a checkout gives."""
    for file in BUILT_BY[:2]:
        text = (folder / file).read_text(encoding="utf-8") if (folder / file).is_file() else ""
        name = re.search(r"""^name\s*=\s*["']?([\w.-]+)""", text, re.MULTILINE)
        if name:
            return normalized(name[1])
    return ""


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def compared(title, swap, arguments, own):
    """Run both, print what differs, and return a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        if own:
            cwd, arguments = Path(own).resolve(), ["-o", "addopts=", *arguments]
        else:
            cwd, arguments = HERE, ["-c", str(HERE / "pytest.ini"), *arguments]
        plain, swapped = (run(arguments, cwd, names, folder) for names in ("", swap))
    count = sum(swapped["calls"].values())
    worst = difference(plain["values"], swapped["values"])
    lost = sorted(failed(swapped) - failed(plain))
    won = sorted(failed(plain) & passed(swapped))
    print(f"\n{title}, torch {swapped['torch']}, in place of {swap}")
    for run_title, found in (("plain", plain), ("swapped", swapped)):
        outcomes = Counter(found["outcomes"].values())
        print(f"  {run_title:8}", ", ".join(f"{n} {outcome}" for outcome, n in outcomes.items()))
    print(f"  {count} calls through this library:", dict(sorted(swapped["calls"].items())))
    print(f"  largest difference of {len(set(plain['values']) & set(swapped['values']))} values: {worst:.1e}")
    for what, names in (("only swapped fails", lost), ("only plain fails", won)):
        for name in names:
            reason = (swapped if names is lost else plain)["reasons"].get(name, "")
            print(f"  {what}: {name}: {last_line(reason)}")
    wrong = bool(lost) or worst > LIMIT or not passed(swapped)
    if not own:
        wrong = wrong or count == 0 or bool(failed(swapped))
    # Tests that need files which the folder lacks say nothing about this library.
    idle = bool(own) and not passed(plain) and not passed(swapped)
    if idle:
        reasons = sorted({last_line(reason) for reason in plain["reasons"].values()})
        print(f"  no test passes plain: {'; '.join(reasons[:3])}")
    return {
        "suite": title,
        "torch": swapped["torch"].partition("+")[0],
        "passed plain": len(passed(plain)),
        "passed swapped": len(passed(swapped)),
        "failed plain, swapped": f"{len(failed(plain))}, {len(failed(swapped))}",
        "calls": count,
        "difference": f"{worst:.0e}",
        "verdict": "cannot run" if idle else "WRONG" if wrong else "ok" if count else "never called",
    }


def tabulated(rows, file):
    """Print the rows as a table, behind those that earlier runs left in the file."""
    if file:
        known = json.loads(Path(file).read_text(encoding="utf-8")) if os.path.exists(file) else []
        new = {(row["suite"], row["torch"]) for row in rows}
        rows = [row for row in known if (row["suite"], row["torch"]) not in new] + rows
        Path(file).write_text(json.dumps(rows), encoding="utf-8")
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(map(str, row.values())) for row in rows)]
    print()
    for line in lines:
        print("|", " | ".join(line), "|")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--name", default="suite", help="what to call it in the report")
    parser.add_argument("--swap", required=True, help="modules that this library takes the place of")
    parser.add_argument("--own-tests", metavar="DIR", help="a checkout whose own tests are run, or a folder of them")
    parser.add_argument("--packages", default="", help="packages whose checkouts to look for in DIR")
    parser.add_argument("--select", action="append", default=[], metavar="PACKAGE=ARGUMENTS", help="for its pytest")
    parser.add_argument("--table", metavar="FILE", help="where rows of several runs are kept")
    parser.add_argument("arguments", nargs="*", help="files and options for pytest")
    options = parser.parse_args()

    if options.packages:
        selected = dict(pair.split("=", 1) for pair in options.select)
        rows = []
        for package in options.packages.split(","):
            folder = checkout(options.own_tests, package)
            if folder is None:
                print(f"no checkout of {package} in {options.own_tests}")
                continue
            arguments = options.arguments or shlex.split(selected.get(package, ""))
            rows.append(compared(f"{package}, its own tests", options.swap, arguments, folder))
    else:
        rows = [compared(options.name, options.swap, options.arguments, options.own_tests)]
    if rows:
        tabulated(rows, options.table)
    return int(any(row["verdict"] in ("WRONG", "cannot run") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
