"""Pictures of how slices are used over time: a panel for each tier, a row for each of the slices used most, time from
left to right. As PNG (with matplotlib, of the extra `charts`), or as one HTML page that needs nothing else."""

from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Final

import msgspec

from events.base import NS_PER_S, PPM, SliceId
from events.slice import Tier
from kvstore.stats import AccessExport, Heatmap, Summary, TierCounts, heatmap, top
from services.runtime.snapshot import replace_file

ROWS_MAX: Final = 64
TOP_MAX: Final = 10
TOP_SHARE_PPM: Final = 100_000
SUFFIXES: Final = (".png", ".html")
_WIDTH_IN, _ROW_IN, _PANEL_IN = 12.0, 0.07, 1.2
_DOTS_PER_INCH: Final = 120


class TierUse(msgspec.Struct, frozen=True, kw_only=True):
    """How one tier is used: `top_share_ppm` of its accesses are of the tenth of its slices that is used most."""

    tier: Tier
    hits: int
    computed: int
    slices: int
    top_share_ppm: int
    top: list[tuple[SliceId, int]]


class Pattern(msgspec.Struct, frozen=True, kw_only=True):
    """What a picture says, in numbers. `hit_rate_ppm` is of all accesses: hits in any tier, and what was computed."""

    total_accesses: int
    hit_rate_ppm: int
    from_ns: int
    to_ns: int
    tiers: list[TierUse]


class NothingToShow(Exception):
    """No slice was used in this log."""

    exit_code = 1


def pattern_of(export: AccessExport) -> Pattern:
    """The numbers. Raises NothingToShow."""
    summary: Summary = export.summary
    if not export.windows:
        raise NothingToShow("no slice was used in this log: it has no slices_hit and no slices_stored")
    return Pattern(
        total_accesses=summary.total_accesses, hit_rate_ppm=summary.hit_rate_ppm,
        from_ns=export.windows[0].number * export.window_ns, to_ns=(export.windows[-1].number + 1) * export.window_ns,
        tiers=[_use(export, tier, counts) for tier, counts in _by_speed(summary)],
    )  # fmt: skip


def write(export: AccessExport, path: Path, *, tiers: Sequence[Tier] = tuple(Tier)) -> None:
    """A picture of these tiers into a file, by its suffix (one of SUFFIXES). Raises NothingToShow, ModuleNotFoundError
    (PNG without matplotlib), OSError."""
    assert path.suffix in SUFFIXES, "the caller checks the name"
    pattern = pattern_of(export)
    maps = [each for tier in tiers if (each := heatmap(export, tier, rows_max=ROWS_MAX)).slices]
    if not maps:
        raise NothingToShow(f"no slice was used in {', '.join(tiers)}: take other tiers")
    if path.suffix == ".png":
        _write_png(maps, pattern, path)
    else:
        replace_file(path, _page(maps, pattern).encode())


def _by_speed(summary: Summary) -> list[tuple[Tier, TierCounts]]:
    return [(tier, summary.tiers[tier]) for tier in Tier if tier in summary.tiers]


def _use(export: AccessExport, tier: Tier, counts: TierCounts) -> TierUse:
    slices = {slice_id for window in export.windows for slice_id in window.slices.get(tier, {})}
    ordered = top(export.windows, tier, most=len(slices))
    tenth = ordered[: -(-len(ordered) * TOP_SHARE_PPM // PPM)]
    told = sum(times for _, times in ordered)
    return TierUse(
        tier=tier, hits=counts.hits, computed=counts.misses, slices=len(slices),
        top_share_ppm=PPM * sum(times for _, times in tenth) // max(1, told), top=ordered[:TOP_MAX],
    )  # fmt: skip


def _title(one: Heatmap, pattern: Pattern) -> str:
    [use] = [use for use in pattern.tiers if use.tier is one.tier]
    computed = f", {use.computed:,} computed" if use.computed else ""
    return f"{one.tier.upper()}: {use.hits:,} hits{computed}, {use.slices:,} slices ({len(one.slices)} shown)"


def _write_png(maps: Sequence[Heatmap], pattern: Pattern, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    heights = [_PANEL_IN + _ROW_IN * len(one.slices) for one in maps]
    figure = Figure(figsize=(_WIDTH_IN, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(maps), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, one in zip(panels, maps, strict=True):
        extent = (0.0, _span_s(pattern), float(len(one.slices)), 0.0)
        image = panel.imshow(
            one.rows, aspect="auto", interpolation="nearest", cmap="magma", norm=PowerNorm(0.5), extent=extent
        )
        panel.set_title(_title(one, pattern), loc="left", fontsize=10)
        panel.set_xlabel("pool time, s")
        panel.set_ylabel("slices, most used first")
        figure.colorbar(image, ax=panel, label="accesses", pad=0.01)
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=_DOTS_PER_INCH)
    replace_file(path, drawn.getvalue())


def _span_s(pattern: Pattern) -> float:
    return (pattern.to_ns - pattern.from_ns) / NS_PER_S


def _page(maps: Sequence[Heatmap], pattern: Pattern) -> str:
    panels = [
        {"title": _title(one, pattern), "slices": one.slices, "rows": one.rows,
         "starts_s": [round((at_ns - pattern.from_ns) / NS_PER_S, 3) for at_ns in one.starts_ns]}
        for one in maps
    ]  # fmt: skip
    # A slice's name is hex, but whatever stands in the log must not end the script.
    data = msgspec.json.encode(panels).decode().replace("<", "\\u003c")
    rate = pattern.hit_rate_ppm * 100 / PPM
    words = f"{pattern.total_accesses:,} accesses in {_span_s(pattern):,.1f} s of pool time, {rate:.1f} % of them hits."
    return _PAGE.replace("@words@", escape(words)).replace("@data@", data)


_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Tidegate: how slices are used</title>
<style>
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1b2733 }
 canvas { width: 100%; image-rendering: pixelated; background: #000004; cursor: crosshair }
 h2 { font-size: 1rem; margin: 1.5rem 0 .3rem } output { font-family: ui-monospace, monospace; color: #526373 }
</style>
<h1>How slices are used</h1>
<p>@words@ A row is a slice, the most used first; time goes from left to right; the brighter, the more accesses.</p>
<main></main><p><output>Point at a picture.</output></p>
<script>
const panels = @data@;
const stops = [[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]];
function colour(share) {
  const at = share * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
  return stops[low].map((from, i) => from + (stops[low + 1][i] - from) * (at - low));
}
const said = document.querySelector("output");
for (const panel of panels) {
  const heading = document.createElement("h2"), canvas = document.createElement("canvas");
  heading.textContent = panel.title;
  canvas.width = panel.starts_s.length; canvas.height = panel.rows.length;
  canvas.style.height = Math.max(80, 6 * panel.rows.length) + "px";
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  const most = Math.max(1, ...panel.rows.flat());
  panel.rows.forEach((row, y) => row.forEach((times, x) => {
    image.data.set([...colour(Math.log1p(times) / Math.log1p(most)), 255], 4 * (y * canvas.width + x));
  }));
  context.putImageData(image, 0, 0);
  canvas.onmousemove = event => {
    const box = canvas.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left) / box.width * canvas.width);
    const y = Math.floor((event.clientY - box.top) / box.height * canvas.height);
    if (panel.rows[y] && x >= 0 && x < canvas.width)
      said.textContent = `${panel.slices[y]}  from ${panel.starts_s[x]} s: ${panel.rows[y][x]} accesses`;
  };
  document.querySelector("main").append(heading, canvas);
}
</script>
</html>
"""
