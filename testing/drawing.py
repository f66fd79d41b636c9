"""Observations as a picture: which connection rested how long, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 56, 16, 34, 44
COLOURS = {"survived": "#2b7a4b", "died": "#c23b22", "censored": "#8a8a8a"}


def draw(observations: Sequence[dict[str, Any]], limit: float) -> str:
    """An SVG: every rest is a line from its beginning (at the bottom) to its end (time, rest), all in seconds."""
    started = min(map(_began, observations))
    rests = sorted(((_began(each) - started, each) for each in observations), key=lambda rest: rest[0])
    until = max(begun + each["idle_seconds"] for begun, each in rests)
    longest = 1.05 * max(each["idle_seconds"] for _, each in rests)

    def x(seconds: float) -> str:
        return f"{LEFT + (WIDTH - LEFT - RIGHT) * seconds / until:.1f}"

    def y(seconds: float) -> str:
        return f"{HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * seconds / longest:.1f}"

    bottom = y(0)
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' role='img'"
        " font-family='system-ui, sans-serif' font-size='12'>",
        f"<title>One measurement of a path with an idle limit of {limit:g} s</title>",
        f"<rect width='{WIDTH}' height='{HEIGHT}' fill='#fff'/>",
        f"<path d='M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}' fill='none' stroke='#444'/>",
    ]
    parts += [
        *(
            f"<text x='{LEFT - 6}' y='{y(mark)}' dy='.35em' text-anchor='end'>{mark:g}</text>"
            for mark in _marks(longest)
        ),
        *(
            f"<text x='{x(mark)}' y='{float(bottom) + 16:.1f}' text-anchor='middle'>{mark:g}</text>"
            for mark in _marks(until)
        ),
        f"<text x='{LEFT}' y='{TOP - 12}'>rest of a connection, seconds</text>",
        f"<text x='{WIDTH - RIGHT}' y='{HEIGHT - 8}' text-anchor='end'>time since the start, seconds</text>",
        f"<path d='M{LEFT} {y(limit)}H{WIDTH - RIGHT}' stroke='#444' stroke-dasharray='6 4'/>",
        f"<text x='{LEFT + 6}' y='{float(y(limit)) - 5:.1f}'>the limit</text>",
    ]
    for begun, each in rests:
        outcome, rested = each["outcome"], each["idle_seconds"]
        end_x, end_y, colour = x(begun + rested), y(rested), COLOURS[each["outcome"]]
        parts.append(f"<path d='M{x(begun)} {bottom}L{end_x} {end_y}' stroke='{colour}' stroke-opacity='.45'/>")
        parts.append(
            f"<circle class='{outcome}' cx='{end_x}' cy='{end_y}' r='3.5' fill='{colour}'><title>{each['arm']}:"
            f" {outcome} after {rested:.2f} s</title></circle>"
        )
    for n, (outcome, colour) in enumerate(COLOURS.items()):
        if any(each["outcome"] == outcome for each in observations):
            at = WIDTH - RIGHT - 250 + 85 * n
            parts.append(f"<circle cx='{at}' cy='{TOP - 16}' r='3.5' fill='{colour}'/>")
            parts.append(f"<text x='{at + 8}' y='{TOP - 12}'>{outcome}</text>")
    return "\n".join([*parts, "</svg>", ""])


def _began(observation: dict[str, Any]) -> float:
    ended: float = datetime.fromisoformat(observation["at"]).timestamp()
    return ended - float(observation["idle_seconds"])


def _marks(until: float) -> list[float]:
    """Round numbers up to `until`: about six of them."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000) if until / step <= 8)
    return [float(step * n) for n in range(int(until / step) + 1)]
