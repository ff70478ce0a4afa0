"""Which pairs of an operation and levels are proven, by what became of all cases; the table and the report."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, Iterator

import torch

from torch_func_compat._guards.proven import METADATA
from torch_func_compat._guards.recorder import UNKNOWN, bare

RESULTS = Path(__file__).parent / "results"
TABLES = Path(__file__).parents[2] / "src" / "torch_func_compat" / "_guards" / "proven"
# These are what somebody else's code does, and never proven.
NEVER = {"custom_function_call", "triplet_margin_with_distance_loss"}


def _contains(levels: str, part: str) -> bool:
    """Whether `part` is a subsequence of `levels`."""
    letters = iter(levels)
    return all(letter in letters for letter in part)


class Verdict:
    """All cases, judged.

    Parameters
    ----------
    results : list of dict
        What `sweep.examine` gave for each operation.
    """

    def __init__(self, results: list[dict[str, Any]]) -> None:
        self.results = results
        self.version = str(torch.__version__).split("+")[0]
        self.counts: dict[str, Counter[str]] = {}
        self.wrong: list[dict[str, Any]] = []
        self.refused: list[dict[str, Any]] = []
        self.plain: list[dict[str, Any]] = []
        self.broken: list[str] = []
        self.known: set[str] = set()  # the names that something was recorded of
        self.times: Counter[tuple[str, str]] = Counter()
        self.right: set[tuple[str, str]] = set()
        singles: set[tuple[str, str]] = set()
        wrong_singles: set[tuple[str, str]] = set()
        for entry in self._entries():
            levels, outcome, main = entry["levels"], entry["outcome"], entry["main"]
            if entry["kind"] == "plain":
                if outcome == "wrong":
                    self.plain.append(entry)
                elif outcome == "broken":
                    self.broken.append(f"{entry['name']} ({entry['text'][:60]})")
                continue
            self.counts.setdefault(levels, Counter())[outcome] += entry["count"]
            self.known |= {name for name, _ in main}
            if outcome == "right":
                self.right |= main | entry["every"]
                self.times.update(dict.fromkeys(main, entry["count"]))
                if len(main) == 1:
                    singles |= main
            elif outcome == "wrong":
                self.wrong.append(entry)
                if len(main) == 1:
                    wrong_singles |= main
            elif outcome == "refused":
                self.refused.append(entry)
        alone = singles - wrong_singles
        self.disproved: set[tuple[str, str]] = set()
        for entry in self.wrong:
            entry["blamed"] = self._blamed(entry, alone)
            self.disproved |= entry["blamed"]
        self.proven = {pair for pair in self.right if self._is_proven(pair)}

    def _entries(self) -> Iterator[dict[str, Any]]:
        for result in self.results:
            for key, entry in result["found"].items():
                levels, outcome, main, every = json.loads(key)
                first, second = _computing(main), _computing(every)
                yield {
                    **entry,
                    "name": result["name"],
                    "levels": levels,
                    "outcome": outcome,
                    "main": first,
                    "every": second,
                }

    def _blamed(self, entry: dict[str, Any], alone: set[tuple[str, str]]) -> set[tuple[str, str]]:
        """The operations that a wrong number is due to, as far as one can tell."""
        main = entry["main"]
        names = {part.rstrip("_") for part in re.split(r"\W+", entry["name"])}
        names |= {"_".join(re.split(r"\W+", entry["name"])[:2])}
        named = {pair for pair in main if bare(pair[0]).rstrip("_") in names}
        named = set() if " " in entry["name"] else named  # one of ours, whose name says where and not what
        suspects = named or (main - alone)
        if suspects or not main:
            return suspects
        # All of them are right alone: those are blamed that have been so least often.
        least = min(self.times[pair] for pair in main)
        return {pair for pair in main if self.times[pair] <= 4 * least}

    def _is_proven(self, pair: tuple[str, str]) -> bool:
        name, levels = pair
        if name.startswith(UNKNOWN) or bare(name) in NEVER:
            return False
        # What writes in place has fewer cases: it is what it does out of place that is proven or not.
        base = _out_of_place(name)
        if (
            base in self.known
            and base != name
            and not ((base, levels) in self.right and self._is_proven((base, levels)))
        ):
            return False
        return not any(name == other and _contains(levels, part) for other, part in self.disproved)

    def table(self) -> str:
        """The operations by the levels under which they are proven."""
        by_name: dict[str, set[str]] = {}
        for name, levels in self.proven:
            by_name.setdefault(name, set()).add(levels)
        groups: dict[str, list[str]] = {}
        for name, levels in by_name.items():
            groups.setdefault(" ".join(sorted(levels, key=lambda x: (len(x), x))), []).append(name)
        lines = [f'# torch {self.version}, by nox -s "sweep(torch-{self.version})": see proven.py']
        for levels, names in sorted(groups.items(), key=lambda group: -len(group[1])):
            lines.append(f"[{levels}]")
            lines += _wrapped(sorted(names))
        return "\n".join(lines) + "\n"

    def report(self) -> str:
        """What is wrong and what is refused, by name, and the counts of the rest."""
        crashed = [result["name"] for result in self.results if result.get("crashed")]
        silent = [r["name"] for r in self.results if not any(json.loads(k)[1] == "right" for k in r["found"])]
        seconds = sum(result["seconds"] for result in self.results)
        lines = [
            f"torch {self.version}: {len(self.results)} operations, {sum(r['cases'] for r in self.results)} cases, "
            f"{seconds:.0f} s of CPU",
            "",
            "levels  right  wrong  refused  proven operations",
        ]
        for levels, counts in sorted(self.counts.items(), key=lambda item: (len(item[0]), item[0])):
            number = sum(1 for _, at in self.proven if at == levels)
            lines.append(f"{levels:6} {counts['right']:6} {counts['wrong']:6} {counts['refused']:8} {number:6}")
        lines += ["", "Wrong, with the operations that it is put down to, and one input:"]
        lines += _by_operation(self.wrong)
        lines += ["", "Wrong in plain autograd, by finite differences of values (r) and of gradients (rr):"]
        lines += _by_operation(self.plain)
        lines += ["", "Refused:"]
        names: dict[tuple[str, str], set[str]] = {}
        for entry in self.refused:
            text = re.sub(r"0x\w+|\d+", "#", entry["text"])[:70]
            names.setdefault((entry["levels"], text), set()).add(entry["name"])
        by_text: dict[tuple[str, str], set[str]] = {}
        for (levels, text), found in names.items():
            by_text.setdefault((text, " ".join(sorted(found))), set()).add(levels)
        for (text, found), at in sorted(by_text.items()):
            lines.append(f"  [{' '.join(sorted(at))}] {text}: {found}")
        lines += ["", "Crashed or hung:", *_wrapped(crashed), "", "Not made, or not all:"]
        lines += [*_wrapped(self.broken), "", "Nothing right, or not looked at:", *_wrapped(silent)]
        return "\n".join(lines) + "\n"

    def faults(self) -> str:
        """What came out wrong of a sweep with the library's guards and tests, by operation and kind.

        Where plain autograd differs from finite differences there is nothing to compare with: compositions are right
        there, and it is not.
        """
        total: Counter[str] = sum(self.counts.values(), Counter())
        unknown = [entry for entry in self.wrong if "plain autograd is wrong" in entry["text"]]
        lines = [
            f"torch {self.version} with guards and tests: {total['right']} right, {total['refused']} refused, "
            f"{total['wrong']} wrong, plain autograd, too, in {sum(entry['count'] for entry in unknown)}"
        ]
        for entry in self.wrong:
            if entry not in unknown:
                lines.append(f"  {entry['name']}: {entry['kind']} of {entry['case']}: {entry['text']}")
        return "\n".join(lines)

    def write(self) -> None:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self.version}.txt").write_text(self.report(), encoding="utf-8")
        if self.right:
            TABLES.mkdir(exist_ok=True)
            minor = ".".join(self.version.split(".")[:2])
            (TABLES / f"{minor}.txt").write_text(self.table(), encoding="utf-8")


def _out_of_place(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])_(?=:|$)", "", name)


def _computing(pairs: list[list[str]]) -> set[tuple[str, str]]:
    return {(name, levels) for name, levels in pairs if bare(name) not in METADATA}


def _names(pairs: set[tuple[str, str]]) -> str:
    return " ".join(sorted({name for name, _ in pairs}))


def _by_operation(entries: list[dict[str, Any]]) -> list[str]:
    """One line for each operation, with the shortest of the strings of levels as its example."""
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        name = _names(entry.get("blamed", ())) or re.split(r"::|\.|special_", entry["name"])[-1]
        found.setdefault(name, []).append(entry)
    lines = []
    for name, wrong in sorted(found.items()):
        levels = sorted({entry["levels"] for entry in wrong}, key=lambda x: (len(x), x))
        first = min(wrong, key=lambda e: ("plain" in e["text"], len(e["levels"]), len(e["case"]), e["case"]))
        at = f"{first['kind']} of {first['case']}" if first["kind"] != "plain" else first["case"]
        lines.append(f"  {name} [{' '.join(levels)}]: {at[:90]}: {first['text']}")
    return lines


def _wrapped(names: list[str], width: int = 118) -> list[str]:
    lines = [""]
    for name in names:
        if lines[-1] and len(lines[-1]) + 1 + len(name) > width:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + name
    return lines if names else []
