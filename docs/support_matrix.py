"""The tables of the support matrix, from what the tests saw on each torch (docs/support/*.json)."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("support")
# route: letter, colours of letter and cell, meaning
ROUTES = {
    "native": ("N", "#fff", "#1a7f37", "the library's own transform"),
    "derived": ("D", "#fff", "#4a9d5f", "made of transforms of the backend, as fast as they are"),
    "vectorised rows": ("V", "#111", "#a6d8b0", "rows of a derivative in one batched backward pass"),
    "looped": ("L", "#111", "#f2d675", "samples one by one"),
    "falls back": ("F", "#111", "#f0a868", "refused by torch, computed by the autograd backend (the pointer says why)"),
    "refused": ("R", "#fff", "#b3261e", "raises (the pointer says why)"),
}
NATIVE = ("torch.func", "functorch")


def load() -> dict[tuple[int, ...], Any]:
    """Release of torch, the oldest first -> kind of function -> operator -> backend -> [route] or [route, why]."""
    files = {tuple(map(int, file.stem.split("-")[1].split("."))): file for file in FOLDER.glob("torch-*.json")}
    return {release: json.loads(files[release].read_text(encoding="utf-8")) for release in sorted(files)}


def page() -> str:
    """All tables, in Markdown with HTML."""
    seen = load()
    parts = [_legend()]
    for kind in next(iter(seen.values())):
        parts.append(f"## {kind[0].upper()}{kind[1:]}\n")
        for title, backends in (("torch.func, functorch", NATIVE), ("autograd", ("autograd",))):
            parts.append(f"### With {kind}, by {title}\n\n{_table(seen, kind, backends)}")
    return "\n".join(parts)


def _legend() -> str:
    rows = (f"<tr>{_cell([route])}<td>{route}: {meaning}</td></tr>" for route, (*_, meaning) in ROUTES.items())
    styles = (
        f".{_class(route)} {{ color: {colour}; background: {background}; text-align: center }}"
        for route, (_, colour, background, _) in ROUTES.items()
    )
    return f"<style>{' '.join(styles)}</style>\n<table>\n{''.join(rows)}\n</table>\n"


def _table(seen: dict[tuple[int, ...], Any], kind: str, backends: tuple[str, ...]) -> str:
    releases = [release for release, kinds in seen.items() if _has(kinds[kind], backends)]
    head = "".join(f"<th>{release[0]}.{release[1]}</th>" for release in releases)
    operators = dict.fromkeys(operator for release in releases for operator in seen[release][kind])
    lines = [f"<tr><th>torch</th>{head}</tr>"]
    reasons: dict[str, None] = {}
    for operator in operators:
        cells = []
        for release in releases:
            by_backend = seen[release][kind].get(operator, {})
            found = next((by_backend[backend] for backend in backends if backend in by_backend), None)
            cells.append("<td></td>" if found is None else _cell(found))
            if found is not None and len(found) > 1:
                reasons[found[1]] = None
        lines.append(f"<tr><td><code>{operator}</code></td>{''.join(cells)}</tr>")
    why = "".join(f"- {html.escape(reason.split(', and this is torch')[0])}\n" for reason in reasons)
    rows = "\n".join(lines)
    table = f'<div style="overflow-x: auto"><table>\n{rows}\n</table></div>\n'
    return f"{table}\nWhere torch refuses, the reason is:\n\n{why}" if why else table


def _has(operators: dict[str, dict[str, list[str]]], backends: tuple[str, ...]) -> bool:
    return any(backend in cells for cells in operators.values() for backend in backends)


def _cell(found: list[str]) -> str:
    route, _, then = found[0].partition(", ")
    letter = ROUTES[route][0] + (f"<small>{ROUTES[then][0]}</small>" if then else "")
    pointer = f' title="{html.escape(found[1], quote=True)}"' if len(found) > 1 else ""
    return f'<td class="{_class(route)}"{pointer}>{letter}</td>'


def _class(route: str) -> str:
    return "seen-" + route.replace(" ", "-")
