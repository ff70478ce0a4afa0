"""Diagrams as SVG: at most five series over one axis, with units in the labels."""

from __future__ import annotations

import math
from typing import NamedTuple, Sequence

from figures import BLUE, FAINT, GREEN, GREY, INK, ORANGE, svg, text

COLOURS = (BLUE, ORANGE, GREEN, "#7a3e9d", "#52606d")
WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 78, 738, 76, 356


class Series(NamedTuple):
    """Numbers with a name: a line, or dots."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False
    dashed: bool = False


class Axis:
    """Numbers to positions, linear or logarithmic, with ticks at round numbers."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool, pad: float) -> None:
        self.log, self.start, self.end = log, start, end
        low, high = (self._scaled(value) for value in (min(values), max(values)))
        margin = pad * ((high - low) or 1.0)
        self.low, self.high = low - margin, high + margin

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def at(self, value: float) -> float:
        share = (self._scaled(value) - self.low) / (self.high - self.low)
        return self.start + (self.end - self.start) * share

    def ticks(self) -> list[float]:
        if self.log:
            decades = range(math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9) + 1)
            factors = (1,) if len(decades) > 2 else (1, 2, 5)
            found = [factor * 10.0**k for k in range(math.floor(self.low), decades.stop) for factor in factors]
            return [value for value in found if self.low - 1e-9 <= math.log10(value) <= self.high + 1e-9]
        raw = (self.high - self.low) / 6
        unit = 10 ** math.floor(math.log10(raw))
        step = min((unit * k for k in (1, 2, 5, 10) if unit * k >= raw), default=raw)
        return [k * step for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def number(value: float) -> str:
    """A tick's label."""
    return f"{value:,.0f}".replace(",", "\u2009") if abs(value) >= 1000 else f"{value + 0.0:g}"


def plot(
    title: str,
    xlabel: str,
    ylabel: str,
    series: Sequence[Series],
    *,
    logx: bool = False,
    logy: bool = False,
) -> str:
    """A diagram of at most five series."""
    assert 1 <= len(series) <= 5, "more than five series cannot be told apart"
    x = Axis([value for s in series for value in s.x], LEFT, RIGHT, logx, 0.02)
    y = Axis([value for s in series for value in s.y], BOTTOM, TOP, logy, 0.06)
    parts = [text(LEFT, 24, title, 16, INK, "start", font_weight="600")]
    for value in y.ticks():
        parts.append(f'<path d="M{LEFT} {y.at(value):.1f}H{RIGHT}" stroke="{GREY}" stroke-width="1.5"/>')
        parts.append(text(LEFT - 8, y.at(value) + 4, number(value), 13, FAINT, "end"))
    for value in x.ticks():
        parts.append(f'<path d="M{x.at(value):.1f} {BOTTOM}v5" stroke="{FAINT}"/>')
        parts.append(text(x.at(value), BOTTOM + 20, number(value), 13, FAINT))
    parts.append(f'<path d="M{LEFT} {BOTTOM}H{RIGHT}" stroke="{INK}"/>')
    place = float(LEFT)
    for colour, s in zip(COLOURS, series):
        points = [(x.at(a), y.at(b)) for a, b in zip(s.x, s.y)]
        if s.dots:
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.2" fill="{colour}"/>' for a, b in points]
            parts.append(f'<circle cx="{place + 11}" cy="48" r="4" fill="{colour}"/>')
        else:
            dash = ' stroke-dasharray="6 4"' if s.dashed else ""
            d = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
            parts.append(f'<path d="{d}" fill="none" stroke="{colour}" stroke-width="2.2"{dash}/>')
            parts.append(f'<path d="M{place} 48h22" stroke="{colour}" stroke-width="2.6"{dash}/>')
        parts.append(text(place + 28, 53, s.name, 14, INK, "start"))
        place += 52 + 7.4 * len(s.name)
    parts.append(text((LEFT + RIGHT) / 2, BOTTOM + 46, xlabel, 14, INK))
    parts.append(text(18, (TOP + BOTTOM) / 2, ylabel, 14, INK, transform=f"rotate(-90 18 {(TOP + BOTTOM) / 2:g})"))
    return svg(WIDTH, HEIGHT, parts, title)
