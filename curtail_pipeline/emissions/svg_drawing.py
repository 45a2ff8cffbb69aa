"""A small chart drawn by itself, as SVG: in a millisecond.

Vega, by which the report is drawn, takes 0.3 s of CPU for a small chart, and 0.7 s more for the first of a process:
too much for a picture that every segment's run draws twice.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

from curtail_pipeline.emissions.palette import DOMAIN, GROUND, INK, SOFT

FONT = "Helvetica, Arial, sans-serif"
PADDING = 4.0
_WIDTHS = {
    "ijl'|": 0.22,
    " !,./:;I[]ft·": 0.28,
    '()-r`"{}*': 0.34,
    "cksvxyzJ": 0.5,
    "FTZ": 0.61,
    "ABEKPSVXY&+=<>~": 0.67,
    "CDHNRUw": 0.73,
    "GOQ": 0.78,
    "mM%": 0.86,
    "W@…": 1.0,
}
_WIDTH = {letter: width for letters, width in _WIDTHS.items() for letter in letters}
"""Of Helvetica and of what takes its place, in its size; 0.56 for all others."""
_WIDE = 0x2E80
"""From here on letters are as wide as they are high."""


def width_of(text: str, size: float, bold: bool = False) -> float:
    """About how long a line of text is, pixels."""
    ems = sum(1.0 if ord(letter) >= _WIDE else _WIDTH.get(letter, 0.56) for letter in text)
    return ems * size * (1.07 if bold else 1.0)


def fitted(text: str, size: float, room: float) -> str:
    """The text, cut where it is longer than the room for it."""
    if width_of(text, size) <= room:
        return text
    while text and width_of(f"{text}…", size) > room:
        text = text[:-1]
    return f"{text}…"


@dataclass(frozen=True)
class Scale:
    """From values to pixels; both ends are ticks."""

    low: float
    high: float
    step: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    @property
    def ticks(self) -> list[float]:
        return [self.low + self.step * n for n in range(round((self.high - self.low) / self.step) + 1)]

    def label(self, value: float) -> str:
        """With as many decimals as the step has."""
        if not 1e-5 <= self.step < 1e7:
            return f"{value:.6g}"
        return f"{value:.{max(0, -math.floor(math.log10(self.step) + 1e-9))}f}"


def nice_scale(low: float, high: float, ticks: int, begin: float, end: float) -> Scale:
    """Of about so many round ticks, over at least these values."""
    if not high > low:
        pad = abs(low) * 0.05 or 1.0
        low, high = low - (pad if low else 0.0), high + pad
    rough = (high - low) / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next((nice for nice in (1, 2, 5) if rough / power < nice * math.sqrt(2.1)), 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Scale(first * step, last * step, step, begin, end)


def short_tick(value: float) -> str:
    """`12.5k` for a count."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.6g}{unit}"
    return f"{value:.6g}"


class Drawing:
    """What has been drawn so far; it grows with what is drawn."""

    def __init__(self) -> None:
        self._marks: list[ElementTree.Element] = []
        self._right = self._bottom = 0.0

    def _reach(self, x: float, y: float) -> None:
        self._right, self._bottom = max(self._right, x), max(self._bottom, y)

    def _add(self, tag: str, **attributes: float | str) -> ElementTree.Element:
        written = {
            name.replace("_", "-"): value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
            for name, value in attributes.items()
        }
        self._marks.append(ElementTree.Element(tag, written))
        return self._marks[-1]

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 11,
        colour: str = INK,
        anchor: str = "start",
        bold: bool = False,
    ) -> float:
        """One line; `anchor` is start, middle or end. Where it ends."""
        mark = self._add("text", x=x, y=y, fill=colour, font_size=size)
        mark.text = text
        if anchor != "start":
            mark.set("text-anchor", anchor)
        if bold:
            mark.set("font-weight", "bold")
        right = x + width_of(text, size, bold) * {"start": 1.0, "middle": 0.5, "end": 0.0}[anchor]
        self._reach(right, y + 0.3 * size)
        return right

    def turned(self, x: float, y: float, text: str, size: float = 11, colour: str = SOFT) -> None:
        """A line that reads upwards, its middle here."""
        mark = self._add("text", transform=f"translate({x:.1f} {y:.1f})rotate(-90)", fill=colour, font_size=size)
        mark.set("text-anchor", "middle")
        mark.text = text

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self._add("rect", x=x, y=y, width=width, height=height, fill=colour)
        self._reach(x + width, y + height)

    def line(self, x: float, y: float, x2: float, y2: float, colour: str) -> None:
        self._add("path", d=f"M{x:.1f} {y:.1f}L{x2:.1f} {y2:.1f}", stroke=colour, fill="none")
        self._reach(max(x, x2), max(y, y2))

    def curve(self, points: Iterable[tuple[float, float]], colour: str, width: float) -> None:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self._add("path", d=f"M{path}", stroke=colour, fill="none", stroke_width=width, stroke_linejoin="bevel")

    def dots(self, points: Iterable[tuple[float, float]], colour: str, across: float) -> None:
        """All in one path: a fifth of the bytes of as many circles."""
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
        self._add(
            "path", d=path, stroke=colour, fill="none", stroke_width=across, stroke_linecap="round", opacity="0.85"
        )

    def diamonds(self, points: Iterable[tuple[float, float]], colour: str, across: float) -> None:
        half = across / 2
        path = "".join(f"M{x - half:.1f} {y:.1f}l{half} -{half} {half} {half} -{half} {half}z" for x, y in points)
        self._add("path", d=path, fill=colour)

    def axis(self, scale: Scale, y: float, title: str, labels: Mapping[float, str], grid: tuple[float, str]) -> None:
        """A horizontal one with its title; lines of `grid`, (top, colour), go up from its ticks, none for its top."""
        top, colour = grid
        for tick in labels:
            if top < y:
                self.line(scale(tick), top, scale(tick), y, colour)
            self.line(scale(tick), y, scale(tick), y + 5, DOMAIN)
        self.line(scale.begin, y, scale.end, y, DOMAIN)
        free = -math.inf
        for tick, label in labels.items():
            half = width_of(label, 11) / 2
            if scale(tick) - half > free:
                self.text(scale(tick), y + 17, label, colour=SOFT, anchor="middle")
                free = scale(tick) + half + 4
        self.text((scale.begin + scale.end) / 2, y + 33, title, colour=SOFT, anchor="middle")

    def legend(self, x: float, y: float, entries: Mapping[str, str], room: float, *, round_ones: bool) -> float:
        """Names with their colours, in as many lines as they take; the baseline of the last one."""
        at = x
        for name, colour in entries.items():
            shown = fitted(name, 11, room - 16)
            if at > x and at + 16 + width_of(shown, 11) > x + room:
                at, y = x, y + 18
            if round_ones:
                self.dots([(at + 5, y - 4)], colour, 10)
            else:
                self.box(at, y - 9, 10, 10, colour)
            at = self.text(at + 16, y, shown) + 14
        return y

    def svg(self) -> str:
        """All of it, on a ground, as large as it is."""
        width, height = math.ceil(self._right + PADDING), math.ceil(self._bottom + PADDING)
        root = ElementTree.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "width": str(width),
                "height": str(height),
                "viewBox": f"0 0 {width} {height}",
                "font-family": FONT,
            },
        )
        root.append(ElementTree.Element("rect", {"width": "100%", "height": "100%", "fill": GROUND}))
        root.extend(self._marks)
        return ElementTree.tostring(root, encoding="unicode")
