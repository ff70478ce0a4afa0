"""The tables and pictures of the support matrix, from what the tests saw on each torch (docs/support/*.json)."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import figures

FOLDER = Path(__file__).with_name("support")
# route: letter, colours of letter and cell, meaning
ROUTES = {
    "native": ("N", "#fff", "#1a7f37", "torch's own transform"),
    "derived": ("D", "#fff", "#4a9d5f", "composed of the backend's primitives, without a loop"),
    "vectorised rows": ("V", "#111", "#a6d8b0", "rows of a derivative in one batched backward pass"),
    "looped": ("L", "#111", "#f2d675", "one sample after another"),
    "falls back": ("F", "#111", "#f0a868", "refused by torch, computed by the autograd backend (the pointer says why)"),
    "refused": ("R", "#fff", "#b3261e", "raises (the pointer says why)"),
}
NATIVE = ("torch.func", "functorch")


def load() -> dict[tuple[int, ...], Any]:
    """Release of torch, the oldest first -> kind of function -> operator -> backend -> [route] or [route, why]."""
    files = {tuple(map(int, file.stem.split("-")[1].split("."))): file for file in FOLDER.glob("torch-*.json")}
    return {release: json.loads(files[release].read_text(encoding="utf-8")) for release in sorted(files)}


PICTURES = {"default": ("torch.func", "functorch", "autograd"), "autograd": ("autograd",)}


def slug(kind: str) -> str:
    """A kind of function as part of a file's name."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in kind.lower()).split())


def pictures() -> dict[str, str]:
    """Name of a file -> a picture of one kind of function on all releases."""
    seen = load()
    return {
        f"support-{slug(kind)}-{name}.svg": picture(kind, backends)
        for kind in next(iter(seen.values()))
        for name, backends in PICTURES.items()
    }


def page() -> str:
    """All pictures and tables, in Markdown with HTML."""
    seen = load()
    parts = [_legend()]
    for kind in next(iter(seen.values())):
        parts.append(f"## {kind[0].upper()}{kind[1:]}\n")
        tabs = {"default": "the default backend", "autograd": 'use_backend("autograd")'}
        parts.append("::::{tab-set}\n")
        for name, title in tabs.items():
            alt = f"Operators against releases of torch, coloured by route, for {kind}, with {title}"
            parts.append(f":::{{tab-item}} {title}\n![{alt}](_generated/support-{slug(kind)}-{name}.svg)\n:::\n")
        parts.append("::::\n")
        for title, backends in (("torch.func and functorch", NATIVE), ("autograd", ("autograd",))):
            table = _table(seen, kind, backends)
            parts.append(f":::{{dropdown}} Table with reasons: {kind}, by {title}\n{table}\n:::\n")
    return "\n".join(parts)


def _legend() -> str:
    rows = (f"<tr>{_cell([route])}<td>{route}: {meaning}</td></tr>" for route, (*_, meaning) in ROUTES.items())
    styles = (
        f".{_class(route)} {{ color: {colour}; background: {background}; text-align: center }}"
        for route, (_, colour, background, _) in ROUTES.items()
    )
    return f"<style>{' '.join(styles)}</style>\n<table>\n{''.join(rows)}\n</table>\n"


def picture(kind: str, backends: tuple[str, ...]) -> str:
    """A coloured grid of operators and releases for one kind of function; the first of `backends` there answers."""
    seen = load()
    operators = list(dict.fromkeys(name for release in seen.values() for name in release[kind]))
    left, top, width, height = 236, 78, 23, 18
    parts = [figures.text(8, 24, f"With {kind}, by {_words(backends)}", 15, anchor="start", font_weight="600")]
    for row, operator in enumerate(operators):
        parts.append(figures.text(left - 8, top + height * row + 13, operator, 12, anchor="end"))
    for column, (release, found) in enumerate(seen.items()):
        x = left + width * column
        turned = f"rotate(-55 {x + 9} {top - 8})"
        label = f"{release[0]}.{release[1]}"
        parts.append(figures.text(x + 9, top - 8, label, 12, figures.FAINT, "start", transform=turned))
        for row, operator in enumerate(operators):
            cells = found[kind].get(operator, {})
            route = next((cells[backend] for backend in backends if backend in cells), None)
            if route is not None:
                where = f'x="{x}" y="{top + height * row}" width="{width - 2}" height="{height - 2}" rx="2"'
                tip = html.escape(f"{operator}, torch {release[0]}.{release[1]}: " + ": ".join(route))
                colour = ROUTES[route[0].partition(", ")[0]][2]
                parts.append(f'<rect {where} fill="{colour}"><title>{tip}</title></rect>')
    bottom, x = top + height * len(operators) + 26, 8
    for route, (_, _, colour, _) in ROUTES.items():
        parts.append(f'<rect x="{x}" y="{bottom - 12}" width="14" height="14" rx="2" fill="{colour}"/>')
        parts.append(figures.text(x + 20, bottom, route, 13, anchor="start"))
        x += 44 + 8 * len(route)
    title = f"How each operator is computed on each torch, with {kind}"
    return figures.svg(left + width * len(seen) + 8, bottom + 18, parts, title)


def _words(backends: tuple[str, ...]) -> str:
    return "the autograd backend" if backends == ("autograd",) else "the default backend"


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
    table = f'<div class="seen" style="overflow-x: auto"><table>\n{rows}\n</table></div>\n'
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
