"""The drawings of the documentation as SVG, made with the standard library."""

from __future__ import annotations

import math
import sys
from html import escape
from pathlib import Path
from typing import Iterable, Sequence

ROOT = Path(__file__).resolve().parent.parent
INK, FAINT, PAPER = "#1f2933", "#52606d", "#ffffff"
BLUE, ORANGE, GREEN, GREY = "#1b6ca8", "#c4501b", "#2a7f4f", "#f0f4f8"


def svg(width: int, height: int, parts: Iterable[str], title: str) -> str:
    """A drawing on white paper, which can be read on pages of any colour."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def text(
    x: float, y: float, words: str, size: int = 14, colour: str = INK, anchor: str = "middle", **style: str
) -> str:
    """Words at a point."""
    more = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size}" fill="{colour}"{more}>{escape(words)}</text>'


def box(x: float, y: float, w: float, h: float, head: str, lines: Sequence[str], colour: str = BLUE) -> str:
    """A frame with a heading and lines below."""
    words = [text(x + w / 2, y + 22, head, 15, colour, font_weight="600")]
    words += [text(x + w / 2, y + 42 + 17 * i, line, 13, FAINT) for i, line in enumerate(lines)]
    frame = (
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6" fill="{GREY}" stroke="{colour}" stroke-width="1.5"/>'
    )
    return "\n".join([frame, *words])


def arrow(x: float, y: float, to: float) -> str:
    """Downwards, from one box to the next."""
    return (
        f'<path d="M{x} {y}V{to - 6}" stroke="{FAINT}" stroke-width="1.5"/>'
        f'<path d="M{x - 4} {to - 8}L{x} {to - 1}L{x + 4} {to - 8}Z" fill="{FAINT}"/>'
    )


# Room -> the files that the picture of the rooms names; a test looks for each.
ROOMS = {
    "": ["autograd", "tad_mctc", "distributed", "sparse", "operators", "implicit", "testing"],
    "_dispatch": ["transform.py", "fallback.py", "choice.py", "refused.py"],
    "_transforms": ["vmap.py", "products.py", "jacobian.py", "hessian.py", "diagonal.py", "basis.py"],
    "_backends": [
        "combined.py",
        "autograd",
        "native.py",
        "torch_func.py",
        "functorch.py",
        "traced.py",
        "tried_vmap.py",
    ],
    "_functions": ["apply.py", "plain_autograd.py", "interpreters.py"],
    "_arguments": ["call.py", "mapped.py", "batch.py", "chunks.py", "protocol.py"],
    "_guards": ["refusals.py", "wrong_answers.py", "compositions", "trial.py"],
    "_torch": ["facts.py", "pytree.py", "random_state.py", "compiling.py"],
}


def rooms() -> str:
    """The folders of the package in the order in which a call passes them."""

    def lines(room: str, per_line: int) -> list[str]:
        names = [name if name.endswith(".py") else f"{name}/" for name in ROOMS[room]]
        return [" · ".join(names[k : k + per_line]) for k in range(0, len(names), per_line)]

    def room(x: float, y: float, w: float, h: float, name: str, question: str, per_line: int, colour: str) -> str:
        return box(x, y, w, h, f"{name or 'public'}: {question}", lines(name, per_line), colour)

    parts = [
        room(20, 16, 720, 56, "", "what may I call?", 7, INK),
        arrow(380, 72, 92),
        room(20, 92, 720, 56, "_dispatch", "who answers?", 4, ORANGE),
        arrow(180, 148, 172),
        room(20, 172, 320, 92, "_transforms", "what is computed?", 3, BLUE),
        room(420, 172, 320, 92, "_backends", "on what?", 3, GREEN),
        f'<path d="M340 212H412" stroke="{FAINT}" stroke-width="1.5"/>',
        f'<path d="M412 208L419 212L412 216Z" fill="{FAINT}"/>',
        text(380, 204, "vmap vjp", 12, FAINT),
        text(380, 230, "jvp", 12, FAINT),
        arrow(580, 264, 286),
        room(420, 286, 320, 56, "_functions", "a custom Function?", 3, GREEN),
        arrow(180, 264, 364),
        arrow(580, 342, 364),
        room(20, 364, 350, 74, "_arguments", "what was I given?", 3, INK),
        room(390, 364, 350, 74, "_guards", "what does torch get wrong?", 3, ORANGE),
        arrow(195, 438, 460),
        arrow(565, 438, 460),
        room(20, 460, 720, 56, "_torch", "what can this torch do?", 4, INK),
    ]
    return svg(760, 532, parts, "The folders of the package, in the order in which a call passes them")


def curve(
    centres: Sequence[float], lowest: float, highest: float, width: float, points: int = 700
) -> list[tuple[float, float]]:
    """Lorentzians of one height at the given places: a density of vibrations."""
    xs = [lowest + (highest - lowest) * i / (points - 1) for i in range(points)]
    return [(x, sum(1 / (1 + ((x - c) / width) ** 2) for c in centres)) for x in xs]


def panel(
    top: float, label: str, series: dict[str, tuple[str, Sequence[float]]], highest: float, step: float, width: float
) -> list[str]:
    """One diagram with its axis, a curve per series and a stick per vibration."""
    left, right, height = 50.0, 730.0, 170.0
    base = top + 40 + height

    def at(x: float) -> float:
        return left + (right - left) * x / highest

    parts = [text(left, top + 18, label, 15, INK, "start", font_weight="600")]
    curves = {name: curve(lines, 0, highest, width) for name, (_, lines) in series.items()}
    tallest = max(y for points in curves.values() for _, y in points)
    for i, (name, (colour, lines)) in enumerate(series.items()):
        d = "M" + "L".join(f"{at(x):.1f} {base - height * y / tallest:.1f}" for x, y in curves[name])
        parts.append(f'<path d="{d}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        parts += [f'<path d="M{at(x):.1f} {base}v{8 + 3 * i}" stroke="{colour}" stroke-width="1.5"/>' for x in lines]
        parts.append(text(right - 70 * (len(series) - 1 - i), top + 18, name, 14, colour, "end", font_weight="600"))
    parts.append(f'<path d="M{left} {base}H{right}" stroke="{INK}"/>')
    for k in range(math.floor(highest / step) + 1):
        parts.append(text(at(k * step), base + 32, f"{k * step:g}", 13, FAINT))
    return parts


def spectrum() -> str:
    """Vibrations of water and of an argon cluster, computed now by examples/vibrations.py."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import vibrations
    finally:
        sys.path.pop(0)

    def lines(system: str) -> dict[str, list[float]]:
        found = vibrations.analyse(vibrations.SYSTEMS[system])["isotopologues"]
        return {name: part["wavenumbers_per_cm"] for name, part in found.items()}

    water, argon = lines("water"), lines("ar13")
    colours = [BLUE, GREEN, ORANGE]
    parts = panel(8, "Water", {n: (c, w) for (n, w), c in zip(water.items(), colours)}, 4500, 500, 30)
    parts += panel(270, "Argon, 13 atoms", {n: (BLUE, w) for n, w in argon.items()}, 65, 10, 0.6)
    parts.append(text(390, 538, "wavenumber in cm⁻¹", 14, INK))
    return svg(760, 552, parts, "Vibrations of water, its isotopologues and a cluster of 13 argon atoms")
