"""Run a suite twice in this environment, plain and swapped, and compare.

    python compare.py --swap tad_mctc.autograd,torch.func accept_dftd3.py ...
    python compare.py --swap torch.func --own-tests CHECKOUT -- -k hessian

What passes plain must pass swapped; acceptance tests must all pass swapped, and what they record must be the same to
1e-10. The exit status is 0 only then.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
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
        sys.exit(f"pytest ended with status {code} and left no report")
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--name", default="suite", help="what to call it in the report")
    parser.add_argument("--swap", required=True, help="modules that this library takes the place of")
    parser.add_argument("--own-tests", metavar="DIR", help="a checkout whose own tests are run")
    parser.add_argument("arguments", nargs="*", help="files and options for pytest")
    options = parser.parse_args()

    own = options.own_tests
    with tempfile.TemporaryDirectory() as folder:
        if own:
            cwd, arguments = Path(own).resolve(), options.arguments
        else:
            cwd, arguments = HERE, ["-c", str(HERE / "pytest.ini"), *options.arguments]
        plain, swapped = (run(arguments, cwd, swap, folder) for swap in ("", options.swap))

    count = sum(swapped["calls"].values())
    worst = difference(plain["values"], swapped["values"])
    lost = sorted(failed(swapped) - failed(plain))
    won = sorted(failed(plain) & passed(swapped))
    print(f"\n{options.name}, torch {swapped['torch']}, in place of {options.swap}")
    for title, found in (("plain", plain), ("swapped", swapped)):
        print(f"  {title:8}", ", ".join(f"{n} {outcome}" for outcome, n in Counter(found["outcomes"].values()).items()))
    print(f"  {count} calls through this library:", dict(sorted(swapped["calls"].items())))
    print(f"  largest difference of {len(set(plain['values']) & set(swapped['values']))} values: {worst:.1e}")
    for title, names in (("only swapped fails", lost), ("only plain fails", won)):
        for name in names:
            reason = (swapped if names is lost else plain)["reasons"].get(name, "").strip().splitlines()
            print(f"  {title}: {name}: {reason[-1][:150] if reason else ''}")
    wrong = bool(lost) or worst > LIMIT or not passed(swapped)
    if not own:
        wrong = wrong or count == 0 or bool(failed(swapped))
    row = f"{options.name} | {swapped['torch']} | {len(passed(plain))} | {len(passed(swapped))} | {count} | {worst:.0e}"
    print("|", row, "|" if not wrong else "| WRONG")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
