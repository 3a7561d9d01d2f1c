"""All results as one SVG: each figure against its target, on a logarithmic scale; whiskers are minimum and maximum."""

import html
import math

from report import quartile_pair, write_text

ROW = 34
LABELS = 660
PLOT = 420
NUMBERS = 190
MARGIN = 24
TOP = 64
# Times the target; what lies beyond is drawn at the edge.
LOWEST, HIGHEST = 1 / 16, 16
HOLDS, MISSED, INK, FAINT = "#2b7a4b", "#b3372f", "#1d1d1f", "#c9c9ce"


def cost(result, value):
    """A figure as a multiple of its target, the higher the worse."""
    value = max(value, 1e-9)
    return result.target / value if result.at_least else value / result.target


def position(share):
    share = min(max(share, LOWEST), HIGHEST)
    return LABELS + MARGIN + PLOT * math.log(share / LOWEST) / math.log(HIGHEST / LOWEST)


def text(x, y, content, anchor="start", size=12, color=INK):
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-size="{size}" fill="{color}">'
        f"{html.escape(content)}</text>"
    )


def line(x1, y1, x2, y2, color, width=1.0):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width}"/>'


def scale(height):
    share = LOWEST
    while share <= HIGHEST:
        x = position(share)
        yield line(x, TOP - 14, x, height - MARGIN, INK if share == 1 else FAINT)
        label = f"{share:g}" if share >= 1 else f"1/{1 / share:g}"
        yield text(x, TOP - 20, "target" if share == 1 else label, "middle", 11)
        share *= 2


def row(result, y):
    color = HOLDS if result.holds else MISSED
    values = (min(result.ratios), max(result.ratios), *quartile_pair(result.ratios), result.figure)
    minimum, maximum, low, high, figure = (position(cost(result, value)) for value in values)
    claim = result.claim if len(result.claim) <= 108 else result.claim[:107] + "…"
    yield text(LABELS, y + 4, claim, "end")
    low, high = sorted((low, high))
    yield line(minimum, y, maximum, y, color, 1.5)
    yield from (line(x, y - 4, x, y + 4, color, 1.5) for x in (minimum, maximum))
    yield f'<rect x="{low:.1f}" y="{y - 5}" width="{max(high - low, 1):.1f}" height="10" fill="{color}" opacity="0.35"/>'
    yield f'<circle cx="{figure:.1f}" cy="{y}" r="4.5" fill="{color}"/>'
    numbers = f"{result.with_unit(f'{result.figure:.3g}')} ({result.bound})"
    yield text(LABELS + PLOT + 2 * MARGIN, y + 4, numbers, color=color)


def plot(path, results):
    height = TOP + ROW * len(results) + MARGIN
    width = LABELS + PLOT + NUMBERS + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        text(MARGIN, 24, "Figures against their targets: median, quartiles, minimum and maximum", size=14),
        text(MARGIN, TOP - 20, "left of the target: it holds; for lower bounds (≥) the scale is turned round", size=11),
        *scale(height),
    ]
    for number, result in enumerate(results):
        parts += row(result, TOP + ROW * number + ROW // 2)
    write_text(path, "\n".join([*parts, "</svg>"]) + "\n")
