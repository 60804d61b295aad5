"""Draws the panels of a memory benchmark's page: matplotlib (extra `charts`) to SVG that stands within the page.

A system looks the same in every picture: a colour, a dash and a marker, so that it is told apart without colours too.
Colours are names of the page's (`var(--s0)`), which has them for light, dark and paper; type is the page's own.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from io import StringIO
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree as ET

import msgspec

from replay.bench.memory.panels import Line, Panel, Stack, family_of, main_memory, memories, size_of
from replay.bench.memory.report import System
from replay.bench.memory.systems import OURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIGHT: Final = {
    "paper": "#ffffff", "ink": "#1b2733", "dim": "#526373", "rule": "#d5dce3", "shade": "#f3f6f8",
    "good": "#00694c", "bad": "#b3261e", "s0": "#0067a8", "s1": "#c24f00", "s2": "#00805c", "s3": "#a8447f",
    "s4": "#8a6400", "s5": "#2a86b8", "s6": "#6a51a3", "s7": "#7a4a2b",
    "t0": "#12395b", "t1": "#2a7f9e", "t2": "#b06a00", "t3": "#7d7d7d",
}  # fmt: skip
DARK: Final = {
    "paper": "#12181f", "ink": "#e4eaf0", "dim": "#9aabbb", "rule": "#33414e", "shade": "#1b242d",
    "good": "#56d6a4", "bad": "#ff8f85", "s0": "#5ab4f5", "s1": "#ff9350", "s2": "#3ccf9f", "s3": "#ee9aca",
    "s4": "#e8bf4d", "s5": "#9bdcff", "s6": "#b8a6f0", "s7": "#d9a582",
    "t0": "#a9d3f5", "t1": "#43b3c7", "t2": "#e0a43b", "t3": "#a5a5a5",
}  # fmt: skip
"""Colours by name: `s` of systems, `t` of tiers. Those of systems begin as Okabe and Ito have them (Color Universal
Design, 2008), darker or lighter until each has three to one of contrast to its paper (WCAG 1.4.11)."""

_SYSTEM_COLOURS, _TIER_COLOURS = 8, 4
_MARKERS: Final = "osD^vPX*<>h"
_DASHES: Final = ((), (1, 1.2), (4, 1.5), (6, 1.5, 1, 1.5))
_DASH_BOUND: Final = (9, 3)
_LEGEND_COLUMNS: Final = 4
_LEVEL_DASHES: Final = ((2, 2), (6, 2), (1, 3))
_WIDTH_OURS, _WIDTH_LINE, _WIDTH_BOUND = 2.8, 1.6, 1.0
_STAND_INS: Final = {name: f"#fe{number:02x}ef" for number, name in enumerate(LIGHT)}
"""What a colour is called while matplotlib draws: nothing else comes out as one of these."""
_UNIT_IN: Final = 1 / 72
"""A unit of the SVG in inches, so that sizes below are about pixels of the page."""
_WIDTH, _HEIGHT, _BAR_HEIGHT, _BARS_BESIDE = 580, 300, 22, 90
_SWATCH: Final = (44, 14)
_TICK_ROOM: Final = 0.06
"""The part of an axis that the name of a load takes."""
_NEVER_ABOVE: Final = 2.5
"""How far above the highest number of a picture `never` stands (a factor: its axis is logarithmic)."""
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_FONT: Final = re.compile(r"font-family:[^;]*;?\s*|\bfont: (\d+)px[^;]*;?\s*")


class Style(msgspec.Struct, frozen=True, kw_only=True):
    """How a line is drawn."""

    colour: str
    dash: tuple[float, ...] = ()
    marker: str = ""
    width: float = _WIDTH_LINE


NEUTRAL: Final = Style(colour="dim", dash=(1, 2.5), width=1.2)


def has_charts() -> bool:
    """Whether the extra `charts` is installed."""
    return find_spec("matplotlib") is not None


def styles(systems: Sequence[System]) -> dict[str, Style]:
    """How each system is drawn, by name: the colour is that of its policy, the dash that of its memory, the marker its
    own. What is ours comes first and is thick; a bound, which nobody reaches, is thin."""
    families = list(dict.fromkeys(family_of(one) for one in sorted(systems, key=lambda one: one.name != OURS)))
    main = main_memory(systems)
    kinds = sorted(memories(one for one in systems if not one.unlimited_kv), key=lambda name: name != main)
    dashes = {name: _DASHES[number % len(_DASHES)] for number, name in enumerate(kinds)}
    return {
        system.name: Style(
            colour=f"s{families.index(family_of(system)) % _SYSTEM_COLOURS}",
            dash=_DASH_BOUND if system.unlimited_kv else dashes[size_of(system)],
            marker=_MARKERS[number % len(_MARKERS)],
            width=_WIDTH_OURS if system.name == OURS else _WIDTH_BOUND if system.unlimited_kv else _WIDTH_LINE,
        )
        for number, system in enumerate(systems)
    }


def swatch(style: Style, name: str) -> str:
    """A piece of a system's line, for a legend."""
    width, height = _SWATCH

    def draw(axes: "Axes") -> None:
        axes.set_axis_off()
        axes.set(xlim=(0, 2), ylim=(-1, 1))
        axes.plot([0.1, 1, 1.9], [0, 0, 0], markevery=[1], **_look(style))

    return _drawn(draw, width, height, f"swatch {name}")


def chart(panel: Panel | Stack, look: Mapping[str, Style], where: str) -> str:
    """A panel as SVG. `where` is different for each picture of a page: ids within it are made from it."""
    if isinstance(panel, Stack):
        height = _BARS_BESIDE + _BAR_HEIGHT * len(panel.names)
        return _drawn(lambda axes: _draw_stack(axes, panel), _WIDTH, height, f"{where} {panel.key}", panel.title)
    return _drawn(lambda axes: _draw_lines(axes, panel, look), _WIDTH, _HEIGHT, f"{where} {panel.key}", panel.title)


def _look(style: Style) -> dict[str, Any]:
    line = (0, style.dash) if style.dash else "-"
    return {
        "color": _STAND_INS[style.colour], "linewidth": style.width, "linestyle": line, "marker": style.marker or None,
        "markersize": 5, "markeredgewidth": 0, "zorder": 2 + style.width,
    }  # fmt: skip


def _draw_lines(axes: "Axes", panel: Panel, look: Mapping[str, Style]) -> None:
    numbers = [y for line in panel.lines for _, y in line.points if y is not None]
    never = max(numbers, default=1.0) * _NEVER_ABOVE
    # What stands first in the report is drawn last, above the others.
    for line in reversed(panel.lines):
        style = look.get(line.system, NEUTRAL)
        _draw_line(axes, line, msgspec.structs.replace(style, marker="" if panel.is_over_time else style.marker), never)
    if panel.level is not None:
        _draw_level(axes, *panel.level)
    if panel.x_names:
        axes.set_xticks(range(len(panel.x_names)), panel.x_names)
        axes.margins(x=0.08)
    elif not panel.is_over_time:
        axes.set_xticks(_apart({x for line in panel.lines for x, _ in line.points}))
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label)
    if not panel.is_log:
        axes.set_ylim(bottom=0)
    elif numbers and min(numbers) > 0:
        _scale_log(axes, panel, never)


def _apart(values: Collection[float]) -> list[float]:
    """Those of the values whose names have room beside one another on an axis; round ones first."""
    room = _TICK_ROOM * (max(values, default=0.0) - min(values, default=0.0))
    kept: list[float] = []
    for value in sorted(values, key=lambda value: (len(f"{value:g}"), value)):
        if all(abs(value - other) >= room for other in kept):
            kept.append(value)
    return sorted(kept)


def _draw_line(axes: "Axes", line: Line, style: Style, never: float) -> None:
    xs = [x for x, _ in line.points]
    axes.plot(xs, [never if y is None else y for _, y in line.points], **_look(style))
    if line.band:
        low, high = [one for one, _ in line.band], [one for _, one in line.band]
        axes.fill_between(xs, low, high, color=_STAND_INS[style.colour], alpha=0.15, linewidth=0)


def _draw_level(axes: "Axes", name: str, value: float) -> None:
    axes.axhline(value, color=_STAND_INS["ink"], linewidth=1, linestyle=(0, (2, 2)))
    axes.annotate(
        name, (1, value), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points", ha="right"
    )


def _scale_log(axes: "Axes", panel: Panel, never: float) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_yscale("log")
    numbers = [y for line in panel.lines for _, y in line.points if y is not None]
    is_never = any(y is None for line in panel.lines for _, y in line.points)
    axes.set_yticks([*_round_numbers(min(numbers), max(numbers)), *([never] if is_never else [])])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _at: "never" if is_never and y >= never else f"{y:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten that lie around what is drawn."""
    steps = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5)]
    around = (bisect_right(steps, low) - 1, bisect_left(steps, high) + 1)
    inside = steps[max(0, around[0]) : around[1]]
    return inside if len(inside) <= 8 else [step for step in inside if f"{step:e}".startswith("1")]


def _draw_stack(axes: "Axes", stack: Stack) -> None:
    left = [0.0] * len(stack.names)
    places = range(len(stack.names))
    for number, (name, sizes) in enumerate(stack.parts):
        colour = _STAND_INS[f"t{number % _TIER_COLOURS}"]
        # Paper shows between parts, so that they are told apart without colours too.
        axes.barh(places, sizes, left=left, color=colour, label=name, edgecolor=_STAND_INS["paper"], linewidth=1)
        left = [before + size for before, size in zip(left, sizes, strict=True)]
    for number, (name, value) in enumerate(stack.levels):
        dash = (0, _LEVEL_DASHES[number % len(_LEVEL_DASHES)])
        axes.axvline(value, color=_STAND_INS["ink"], linewidth=1.2, linestyle=dash, label=name)
    axes.set_yticks(places, stack.names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlabel=stack.x_label)
    axes.set_xlim(left=0)
    axes.figure.legend(loc="outside upper left", ncols=_LEGEND_COLUMNS, frameon=False)


def _drawn(draw: Any, width: float, height: float, salt: str, title: str = "") -> str:
    """One picture as SVG for a page."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink, dim, rule = _STAND_INS["ink"], _STAND_INS["dim"], _STAND_INS["rule"]
    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 11, "text.color": ink, "axes.labelcolor": dim,
        "axes.edgecolor": rule, "xtick.color": dim, "ytick.color": dim, "grid.color": rule, "grid.linewidth": 0.7,
        "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
        "legend.labelcolor": dim, "text.parse_math": False, "xtick.major.size": 0, "ytick.major.size": 0,
    }  # fmt: skip
    with mpl.rc_context(settings):
        figure = Figure(figsize=(width * _UNIT_IN, height * _UNIT_IN), layout="constrained" if title else None)
        FigureCanvasSVG(figure)
        axes = figure.subplots() if title else figure.add_axes((0, 0, 1, 1))
        draw(axes)
        out = StringIO()
        figure.savefig(out, format="svg", transparent=True)
    return _inline(out.getvalue(), title)


def _inline(svg: str, title: str) -> str:
    """What stands within a page: no ids but those that are referred to, no metadata, the page's colours and type."""
    root = ET.fromstring(svg)  # noqa: S314 (matplotlib has just written it)
    for parent in root.iter():
        for child in [child for child in parent if child.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)
    svg_text = ET.tostring(root, encoding="unicode")
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        if (target := element.attrib.pop(_XLINK, None)) is not None:
            element.set("href", target)
        if (own := element.get("id")) is not None and f"#{own}" not in svg_text:
            del element.attrib["id"]
        if (style := element.get("style")) is not None:
            element.set("style", _FONT.sub(lambda found: f"font-size: {found[1]}px; " if found[1] else "", style))
    view = root.get("viewBox", "")
    root.attrib.clear()
    root.set("viewBox", view)
    if title:
        root.attrib.update({"role": "img", "aria-label": title})
    else:
        root.set("aria-hidden", "true")
    page = ET.tostring(root, encoding="unicode")
    for name, stand_in in _STAND_INS.items():
        page = page.replace(stand_in, f"var(--{name})")
    return page
