"""The drawings of the documentation, as SVG, with the standard library and what they show."""

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
    """A room of the house: its name, and lines below."""
    words = [text(x + w / 2, y + 22, head, 15, colour, font_weight="600")]
    words += [text(x + w / 2, y + 42 + 17 * i, line, 13, FAINT) for i, line in enumerate(lines)]
    frame = (
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6" fill="{GREY}" stroke="{colour}" stroke-width="1.5"/>'
    )
    return "\n".join([frame, *words])


def arrow(x: float, y: float, to: float) -> str:
    """From a floor down to the next."""
    return (
        f'<path d="M{x} {y}V{to - 6}" stroke="{FAINT}" stroke-width="1.5"/>'
        f'<path d="M{x - 4} {to - 8}L{x} {to - 1}L{x + 4} {to - 8}Z" fill="{FAINT}"/>'
    )


# The modules that the picture names; a test looks for each.
HOUSE = {
    "names": ["autograd/internals.py", "autograd/derivatives.py"],
    "function": ["autograd/function.py", "_functions"],
    "policy": ["_dispatch"],
    "tables": ["_torch/facts.py", "_guards"],
    "operators": ["_transforms"],
    "protocol": ["_arguments/protocol.py"],
    "native": ["_backends/torch_func.py"],
    "functorch": ["_backends/functorch.py"],
    "autograd": ["_backends/autograd"],
    "ground": ["_arguments", "_torch/pytree.py", "_torch/random_state.py"],
}


def house() -> str:
    """How the library is built, from the names at the top to torch at the bottom."""

    def files(room: str) -> str:
        return "  ".join(HOUSE[room])

    parts = [
        f'<path d="M20 92L380 4L740 92Z" fill="{GREY}" stroke="{INK}" stroke-width="1.5"/>',
        text(380, 64, "vmap  grad  vjp  jvp  jacrev  hessian  ...", 15, INK, font_weight="600"),
        text(380, 82, "the public names", 13, FAINT),
        box(20, 104, 460, 66, "Signatures and documentation", [files("names")]),
        box(500, 104, 240, 66, "Function", [files("function")], GREEN),
        arrow(250, 170, 190),
        box(
            20,
            190,
            460,
            84,
            "Policy: which backend answers",
            [files("policy"), "outermost transform refused: all of it by autograd"],
        ),
        box(500, 190, 240, 84, "Two tables", [files("tables"), "versions; refusals"], ORANGE),
        arrow(250, 274, 294),
        box(20, 294, 720, 66, "Operators, derived once for all backends", [files("operators")]),
        arrow(380, 360, 380),
        box(20, 380, 720, 66, "Three primitives: vmap, vjp, jvp", [files("protocol")], INK),
        arrow(135, 446, 466),
        arrow(380, 446, 466),
        arrow(625, 446, 466),
        box(20, 466, 230, 84, "torch.func", [files("native"), "torch 2.0 and newer"]),
        box(265, 466, 230, 84, "functorch", [files("functorch"), "torch 1.11 to 1.13"]),
        box(510, 466, 230, 84, "autograd", [files("autograd"), "every torch"], GREEN),
        f'<rect x="20" y="564" width="720" height="40" rx="6" fill="{INK}"/>',
        text(380, 589, files("ground"), 13, PAPER),
    ]
    return svg(760, 620, parts, "The house: public names, policy, operators, three primitives, three backends")


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
