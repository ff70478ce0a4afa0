"""The tables and pictures of the support matrix, from what the tests saw on each torch (docs/support/*.json)."""

from __future__ import annotations

import html
import json
import textwrap
from pathlib import Path
from typing import Any

import figures

FOLDER = Path(__file__).with_name("support")
# route: letter, colours of letter and cell, meaning
ROUTES = {
    "native": ("N", "#fff", "#1a7f37", "the library's own transform"),
    "derived": ("D", "#fff", "#4a9d5f", "made of the backend's primitives, as fast as its own transforms or faster"),
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


def picture(backends: tuple[str, ...]) -> str:
    """A coloured grid of all operators, kinds of functions and releases; a cell is of the first of `backends` there."""
    seen = load()
    kinds = {kind: None for release in seen.values() for kind in release}
    operators = {name: None for release in seen.values() for kind in release.values() for name in kind}
    left, top, height, gap = 232, 84, 15, 14
    width = max(9, 150 // len(seen))
    panel = width * len(seen)
    parts = []
    for row, operator in enumerate(operators):
        parts.append(figures.text(left - 8, top + height * row + 11, operator, 11, anchor="end"))
    for number, kind in enumerate(kinds):
        x = left + number * (panel + gap)
        for line, words in enumerate(textwrap.wrap(kind, panel // 7)):
            parts.append(figures.text(x, 42 + 14 * line, words, 12, anchor="start", font_weight="600"))
        first, last = (f"{release[0]}.{release[1]}" for release in (min(seen), max(seen)))
        parts.append(figures.text(x, 78, first, 10, figures.FAINT, anchor="start"))
        parts.append(figures.text(x + panel, 78, last, 10, figures.FAINT, anchor="end"))
        for column, (release, found) in enumerate(seen.items()):
            for row, operator in enumerate(operators):
                cells = found[kind].get(operator, {})
                route = next((cells[backend] for backend in backends if backend in cells), None)
                if route is not None:
                    where = (
                        f'x="{x + width * column}" y="{top + height * row}" width="{width - 1}" height="{height - 1}"'
                    )
                    tip = html.escape(f"{operator}, torch {release[0]}.{release[1]}: " + ": ".join(route))
                    colour = ROUTES[route[0].partition(", ")[0]][2]
                    parts.append(f'<rect {where} fill="{colour}"><title>{tip}</title></rect>')
    bottom, x = top + height * len(operators) + 24, 8
    for route, (_, _, colour, _) in ROUTES.items():
        parts.append(f'<rect x="{x}" y="{bottom - 11}" width="14" height="14" fill="{colour}"/>')
        parts.append(figures.text(x + 20, bottom, route, 12, anchor="start"))
        x += 44 + 7 * len(route)
    title = f"How each operator is computed, on each torch, by {backends[0]}"
    parts.append(figures.text(left, 20, title, 14, anchor="start", font_weight="600"))
    return figures.svg(left + len(kinds) * (panel + gap), bottom + 16, parts, title)


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
