"""Times of derivatives by this library and by others, as ``nox -s bench`` measured them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import plots
from figures import FAINT, GREY, INK, svg, text

Candidates = Dict[str, List[Any]]  # name -> median in ms, peak memory in MB or None

OWN, MAPPED = "torch_func_compat", "torch_func_compat: vmap(hessian)"
KINDS = {  # a column of the table and a series of the figure -> how the names of its candidates begin
    "compiled": ("torch_func_compat, torch.compile",),
    "torch.func": ("torch.func",),
    "torch.autograd.functional": ("functional.",),
    "by hand": ("sum trick", "torch.autograd.grad"),
    "JAX, jit": ("JAX",),
}


def measured() -> dict[str, Any]:
    """What benchmarks/report.py wrote."""
    path = Path(__file__).with_name("benchmarks") / "derivatives.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def rows() -> dict[str, tuple[str, Candidates]]:
    """{workload: (name of this library's candidate, candidates)}: batched Hessians in both ways of this library."""
    found = {}
    for workload, candidates in measured()["milliseconds and peak MB"].items():
        found[workload] = (OWN, {name: times for name, times in candidates.items() if "compile of vmap" not in name})
        if MAPPED in candidates:
            mapped = {name: times for name, times in candidates.items() if not name.endswith("torch.compile")}
            found[f"{workload}, by vmap"] = (MAPPED, mapped)
    return found


def ratios(own: str, candidates: Candidates) -> dict[str, float]:
    """{kind: the time of its fastest candidate over that of this library}."""
    times = {
        kind: [value[0] for name, value in candidates.items() if name.startswith(beginnings)]
        for kind, beginnings in KINDS.items()
    }
    return {kind: min(found) / candidates[own][0] for kind, found in times.items() if found}


def table() -> str:
    """Markdown: the time of this library, and those of others in units of it."""
    lines = [f"{measured()['machine']}.\n\n```{{table}}\n:class: compact\n"]
    lines.append(f"| workload | ms | MB | {' | '.join(kind.replace('torch.autograd.', '') for kind in KINDS)} |")
    lines.append(f"| --- {'| ---: ' * (2 + len(KINDS))}|")
    for workload, (own, candidates) in rows().items():
        (milliseconds, peak), found = candidates[own], ratios(own, candidates)
        cells = [workload, f"{milliseconds:.2f}", f"{peak:.3g}" if peak else ""]
        lines.append(f"| {' | '.join(cells + [f'{found[kind]:.2f}' if kind in found else '' for kind in KINDS])} |")
    return "\n".join([*lines, "```\n"])


def figure() -> str:
    """The ratios of the table, each workload in a row."""
    found = {workload: ratios(*row) for workload, row in rows().items()}
    left, right, top, height = 292.0, 738.0, 76.0, 17.0
    base = top + height * len(found)
    axis = plots.Axis([value for row in found.values() for value in row.values()], left, right, True, 0.03)
    title = "Time of others in units of the time of this library"
    parts = [text(14, 24, title, 16, INK, "start", font_weight="600")]
    for value in axis.ticks():
        parts.append(f'<path d="M{axis.at(value):.1f} {top - 8}V{base}" stroke="{GREY}" stroke-width="1.5"/>')
        parts.append(text(axis.at(value), base + 20, plots.number(value), 13, FAINT))
    parts.append(f'<path d="M{axis.at(1):.1f} {top - 8}V{base}" stroke="{INK}"/>')
    for k, (workload, row) in enumerate(found.items()):
        y = top + height * (k + 0.5)
        parts.append(text(left - 8, y + 4, workload, 12, INK, "end"))
        parts += [
            f'<circle cx="{axis.at(row[kind]):.1f}" cy="{y}" r="3.6" fill="{colour}"/>'
            for kind, colour in zip(KINDS, plots.COLOURS)
            if kind in row
        ]
    place = 14.0
    for kind, colour in zip(KINDS, plots.COLOURS):
        parts.append(f'<circle cx="{place + 6}" cy="48" r="4.5" fill="{colour}"/>')
        parts.append(text(place + 18, 53, kind, 14, INK, "start"))
        place += 46 + 7.4 * len(kind)
    parts.append(text((left + right) / 2, base + 44, "time / time of this library", 14, INK))
    return svg(760, int(base + 60), parts, title)


def over_sizes() -> str:
    """Times of batched derivatives over the number of samples, inputs and outputs."""
    curves = {name: curve for name, curve in measured()["scaling"].items() if not name.startswith("peak")}
    series = []
    for name, curve in curves.items():
        sizes, seconds = zip(*curve)
        series.append(plots.Series(name, sizes, [1e3 * value for value in seconds]))
    return plots.plot(
        "Batched Jacobians (J) and Hessians (H)", "size that varies", "time in ms", series, logx=True, logy=True
    )


def over_chunks() -> str:
    """Peak memory of a batched Jacobian over the size of chunks."""
    sizes, peaks = zip(*measured()["scaling"]["peak MB over chunk size"])
    series = [plots.Series("rows of the Jacobian", sizes, peaks)]
    return plots.plot("Memory of a batched Jacobian", "chunk_size", "peak memory in MB", series, logx=True)
