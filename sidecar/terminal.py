"""What people see on a terminal: how a measurement stands, and what it found. Lines where there is no terminal.

Everything is told from what the HTTP interface serves too (`/targets`, `/recommendation`, `/evidence`), so it does not
matter whether the measurement runs here or elsewhere. Nothing here asks or measures; the same facts give the same
picture.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sidecar.core.advice.attribution import KnownLimit
from sidecar.core.advice.bounds import at_least, at_most
from sidecar.core.advice.deaths_told import DEATHS_TOLD
from sidecar.core.advice.recommendation import IdleLimit, Recommendation, SocketOptions
from sidecar.core.evidence import Arm, Observation, Outcome, Status
from sidecar.documents import TargetSummary

Show = Callable[[float, TargetSummary, str], None]
"""Takes the seconds elapsed, a target as it stands, and a remark on it (or nothing)."""

LINE_EVERY_SECONDS = 5.0
"""Without a terminal, while nothing changes: often enough to show that something is going on."""
WIDTH_WITHOUT_TERMINAL = 100
"""Characters; what a log or a file is read in."""

_NEARBY = 1.35
"""A known limit within this factor of what was measured is worth a look."""
_MOST_NEARBY = 4
"""Values of known limits shown."""
_MOST_NAMES = 3
"""Components named of each such value."""
_MOST_ROWS = 16
"""Of the picture of survival; rests close to each other then share one."""
_MOST_MARKS = 24
"""Characters in one row; more are counted instead."""


def console(file: IO[str]) -> Console:
    """A console that prints what it is given: no markup, no highlighting, no surprises in a URL."""
    made = Console(file=file, markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = WIDTH_WITHOUT_TERMINAL
    return made


# -- while it runs ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def progress(console: Console, *, line_every_seconds: float = LINE_EVERY_SECONDS) -> Iterator[Show]:
    """A way to show how the measurement stands, now and again: a picture that moves, or lines without a terminal."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console, line_every_seconds).show
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda elapsed, target, remark: live.update(_moving(elapsed, target, remark), refresh=True)


class _Lines:
    """A line for every change, and one every few seconds to show that something is going on."""

    def __init__(self, console: Console, every_seconds: float) -> None:
        self._console = console
        self._every_seconds = every_seconds
        self._state: object = None
        self._at = -math.inf

    def show(self, elapsed: float, target: TargetSummary, remark: str) -> None:
        state = _state(target)
        if state == self._state and elapsed < self._at + self._every_seconds:
            return
        self._state, self._at = state, elapsed
        resting = [probe for probe in target.probes if probe.state == "resting"]
        oldest = max((probe.idle_seconds for probe in resting), default=None)
        said = f"{len(resting)} resting" + ("" if oldest is None else f", the oldest for {seconds(oldest)}")
        parts = (_headline(elapsed, target), said, remark)
        self._console.print("   ".join(filter(None, parts)), soft_wrap=True)


def _moving(elapsed: float, target: TargetSummary, remark: str) -> Group:
    probes = Table.grid(padding=(0, 2))
    for probe in sorted(target.probes, key=lambda probe: (probe.arm, probe.connection)):
        idle, goal = probe.idle_seconds, probe.until_seconds
        probes.add_row(
            probe.arm,
            ProgressBar(total=goal or max(idle, 1e-9), completed=idle, width=40),
            f"{seconds(idle)} of {seconds(goal)}" if goal else seconds(idle),
            probe.state,
        )
    lines: list[RenderableType] = [Text(_headline(elapsed, target), style="bold"), probes]
    if remark:
        lines.append(Text(remark))
    return Group(*lines)


def _state(target: TargetSummary) -> tuple[bool | None, str, Status, float | None, float | None]:
    limit = target.idle_limit
    bracket = (None, None) if limit is None else (limit.proven_seconds, limit.dead_by_seconds)
    return (target.reachable, target.stage, target.status, *bracket)


def _headline(elapsed: float, target: TargetSummary) -> str:
    reachable, stage, status, proven, dead_by = _state(target)
    unreachable = "   database unreachable" if reachable is False else ""
    return (
        f"{elapsed:6.1f} s   {stage:<8} {status:<11} proven {lived(proven):>8}   dead by {dead(dead_by):>8}"
        + unreachable
    )


def seconds(number: float | None) -> str:
    return "?" if number is None else f"{number:.1f} s"


def lived(number: float | None) -> str:
    return "?" if number is None else f"{at_least(number)} s"


def dead(number: float | None) -> str:
    return "?" if number is None else f"{at_most(number)} s"


def about(duration_seconds: float) -> str:
    """A duration for people, in the unit that suits it."""
    if duration_seconds < 100:
        return f"{duration_seconds:.0f} s"
    return f"{duration_seconds / 60:.0f} min" if duration_seconds < 6000 else f"{duration_seconds / 3600:.1f} h"


# -- when it is over --------------------------------------------------------------------------------------------------


def findings(advice: Recommendation, engine_arguments: Mapping[str, object]) -> dict[str, str]:
    """What was found and what to set, by heading. `engine_arguments` are those of `?format=sqlalchemy`."""
    lines: dict[str, str] = {}
    limit = advice.idle_limit
    if limit is not None and limit.death is not None:
        sqlstate = f" (SQLSTATE {limit.sqlstate})" if limit.sqlstate else ""
        lines["How they die"] = f"{DEATHS_TOLD[limit.death].by_itself}{sqlstate}"
        if limit.likely:
            lines["Likely cause"] = "; ".join(culprit.component for culprit in limit.likely)
    if (lifetime := advice.lifetime_limit) is not None and lifetime.death is not None:
        ages = f"proven to live {lived(lifetime.proven_seconds)}, dead by {dead(lifetime.dead_by_seconds)}"
        lines["Limit on age"] = f"{ages}; {DEATHS_TOLD[lifetime.death].by_itself}"
        if lifetime.likely:
            lines["Likely cause of that"] = "; ".join(culprit.component for culprit in lifetime.likely)
    keywords = (f"{name}={value!r}" for name, value in engine_arguments.items())
    lines["Advice"] = f"create_async_engine({', '.join(['url', *keywords])})"
    if options := _socket_options(advice.socket):
        lines["On each socket"] = options
    return lines


def picture(
    target: TargetSummary,
    advice: Recommendation,
    engine_arguments: Mapping[str, object],
    observations: Iterable[Observation],
    known: Iterable[KnownLimit],
    *,
    ascii_only: bool = False,
) -> Group:
    """The whole result: survival by idle time with the bracket, known limits nearby, what to set, and why."""
    glyphs = _ASCII if ascii_only else _GLYPHS
    seen = [each for each in observations if each.regime == target.regime and each.arm != Arm.LIFETIME]
    kept = [each for each in seen if each.arm == Arm.KEEPALIVE and each.outcome != Outcome.CENSORED]
    tried = [each for each in seen if each.arm != Arm.KEEPALIVE and each.outcome != Outcome.CENSORED]
    untold = sum(each.outcome == Outcome.CENSORED for each in seen)
    parts: list[RenderableType] = [Text(f"{target.database}: {_result(advice)}", style="bold"), Text()]
    if tried:
        parts += [_survival(tried, advice.idle_limit, glyphs), Text()]
    notes = []
    if kept:
        lived = sum(each.outcome == Outcome.SURVIVED for each in kept)
        notes.append(f"Beyond the limit with TCP keepalive: {lived} lived, {len(kept) - lived} died.")
    if untold:
        notes.append(f"{untold} more {'rests say' if untold > 1 else 'rest says'} nothing: something else ended them.")
    if advice.idle_limit is not None and (nearby := _nearby(advice.idle_limit, known)):
        found = advice.idle_limit.dead_by_seconds is not None
        parts += [
            Text("Known limits nearby:" if found else "The next known limits:"),
            Padding(_grid(nearby), (0, 0, 1, 2)),
        ]
    if notes:
        parts += [*map(Text, notes), Text()]
    lines = findings(advice, engine_arguments)
    if (tried_out := advice.verification) is not None:
        lines["Tried out"] = f"{tried_out.outcome}, a pool that rested {seconds(tried_out.idle_seconds)}"
    parts.append(_grid((f"{heading}:", text) for heading, text in lines.items()))
    for heading, remarks in (("Why:", advice.reasons), ("Beware:", advice.warnings)):
        if remarks:
            parts += [Text(), Text(heading), Padding(_grid(("-", remark.text) for remark in remarks), (0, 0, 0, 2))]
    return Group(*parts)


@dataclass(frozen=True, slots=True)
class _Glyphs:
    lived: str
    died: str
    line: str


_GLYPHS = _Glyphs("●", "✕", "─")
_ASCII = _Glyphs("o", "x", "-")


def _result(advice: Recommendation) -> str:
    limit = advice.idle_limit
    if limit is None:
        return "nothing is proven yet"
    proven, dead_by, estimate = limit.proven_seconds, limit.dead_by_seconds, limit.estimate_seconds
    if dead_by is None:
        age = "" if advice.lifetime_limit is None else ", and die of age, however busy they are"
        return f"no idle limit found; connections survived {lived(proven)} of rest{age} ({advice.status})"
    told = "idle limit not narrowed down yet" if estimate is None else f"idle limit {seconds(estimate)}"
    return f"{told}; proven to live {lived(proven)}, dead by {dead(dead_by)} ({advice.status})"


def _survival(tried: Sequence[Observation], limit: IdleLimit | None, glyphs: _Glyphs) -> Table:
    """Rows of rests, shortest first, with a mark for each connection; a line where the limit lies."""
    limit = limit or IdleLimit(proven_seconds=0.0)
    proven, dead_by, estimate = limit.proven_seconds, limit.dead_by_seconds, limit.estimate_seconds
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_row(Text("rest", style="dim"), Text(f"{glyphs.lived} lived  {glyphs.died} died", style="dim"))
    crossed = dead_by is None
    for row in _rows(tried, proven):
        rests = [each.idle_seconds for each in row]
        lived = sum(each.outcome == Outcome.SURVIVED for each in row)
        if not crossed and rests[0] > _up(proven):
            where = "not narrowed down yet" if estimate is None else seconds(estimate)
            table.add_row("", glyphs.line * 8, Text(f"idle limit {where}", style="bold"))
            crossed = True
        marks = Text(_marks(glyphs.lived, lived), style="green")
        marks.append(_marks(glyphs.died, len(row) - lived), style="red")
        note = "proven to live" if rests[0] <= _up(proven) and proven <= rests[-1] else ""
        note = "dead by" if dead_by is not None and rests[0] <= dead_by <= _up(rests[-1]) else note
        table.add_row(_span(rests[0], rests[-1]), marks, Text(note, style="bold"))
    return table


def _up(rest: float) -> float:
    """The advice rounds its bounds to a millisecond, away from the limit."""
    return rest + 0.001


def _rows(tried: Sequence[Observation], proven: float) -> list[list[Observation]]:
    """Rests close to each other share a row, but never those on either side of the longest proven."""
    ordered = sorted(tried, key=lambda each: (each.idle_seconds, each.outcome != Outcome.SURVIVED))
    ratio = 1.02
    while True:
        rows: list[list[Observation]] = []
        for each in ordered:
            rest = each.idle_seconds
            first = rows[-1][0].idle_seconds if rows else None
            if first is None or rest > first * ratio or first <= _up(proven) < rest:
                rows.append([])
            rows[-1].append(each)
        if len(rows) <= _MOST_ROWS:
            return rows
        ratio *= 1.1


def _marks(mark: str, count: int) -> str:
    return mark * count if count <= _MOST_MARKS else f"{mark * _MOST_MARKS} (of {count})"


def _span(first: float, last: float) -> str:
    return seconds(last) if f"{first:.1f}" == f"{last:.1f}" else f"{first:.1f} - {seconds(last)}"


def _nearby(limit: IdleLimit, known: Iterable[KnownLimit]) -> list[tuple[str, str]]:
    """Well-known idle limits around the one measured, or the next ones above what is proven; those that fit first."""
    proven, dead_by = limit.proven_seconds, limit.dead_by_seconds
    low, high = (proven, math.inf) if dead_by is None else (proven / _NEARBY, dead_by * _NEARBY)
    fits = {culprit.id for culprit in limit.likely}
    by_value: dict[float, list[KnownLimit]] = {}
    for each in known:
        if each.limits == "idle" and each.default_seconds and low <= each.default_seconds <= high:
            by_value.setdefault(each.default_seconds, []).append(each)
    middle = limit.estimate_seconds or dead_by or proven or 1.0
    nearest = sorted(by_value, key=lambda value: abs(math.log(value / middle)))[:_MOST_NEARBY]
    rows = []
    for value in sorted(nearest):
        components = sorted(by_value[value], key=lambda each: each.id not in fits)
        names = [f"{each.component}{' (fits)' if each.id in fits else ''}" for each in components[:_MOST_NAMES]]
        more = len(components) - _MOST_NAMES
        rows.append((f"{value:g} s", ", ".join(names) + (f", {more} more" if more > 0 else "")))
    return rows


def _grid(rows: Iterable[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for heading, text in rows:
        grid.add_row(Text(heading), Text(text))
    return grid


def _socket_options(socket: SocketOptions) -> str:
    values = {"TCP_USER_TIMEOUT": socket.user_timeout_ms}
    if (keepalive := socket.keepalive) is not None:
        values |= {
            "TCP_KEEPIDLE": keepalive.idle,
            "TCP_KEEPINTVL": keepalive.interval,
            "TCP_KEEPCNT": keepalive.count,
        }
    return " ".join(f"{name}={value}" for name, value in values.items() if value is not None)
