"""Progress for people: a picture that moves on a terminal, lines everywhere else."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Show = Callable[[float, Mapping[str, Any]], None]
"""Takes the seconds elapsed and a target as `/targets` describes it."""

_LINE_EVERY_SECONDS = 5.0


@contextlib.contextmanager
def progress(console: Console) -> Iterator[Show]:
    """A way to show how the measurement stands, now and again."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console).show
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda elapsed, target: live.update(_picture(elapsed, target), refresh=True)


class _Lines:
    """A line for every change, and one every few seconds to show that something is going on."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._state: object = None
        self._at = -math.inf

    def show(self, elapsed: float, target: Mapping[str, Any]) -> None:
        state = _state(target)
        if state == self._state and elapsed < self._at + _LINE_EVERY_SECONDS:
            return
        self._state, self._at = state, elapsed
        resting = [probe for probe in target["probes"] if probe["state"] == "resting"]
        oldest = max((probe["idle_seconds"] for probe in resting), default=None)
        self._console.print(f"{_headline(elapsed, target)}   {len(resting)} resting, the oldest for {seconds(oldest)}")


def _picture(elapsed: float, target: Mapping[str, Any]) -> Group:
    probes = Table.grid(padding=(0, 2))
    for probe in sorted(target["probes"], key=lambda probe: (probe["arm"], probe["connection"])):
        idle, goal = probe["idle_seconds"], probe["until_seconds"]
        probes.add_row(
            probe["arm"],
            ProgressBar(total=goal or max(idle, 1e-9), completed=idle, width=40),
            f"{seconds(idle)} of {seconds(goal)}" if goal else seconds(idle),
            probe["state"],
        )
    return Group(Text(_headline(elapsed, target), style="bold"), probes)


def _state(target: Mapping[str, Any]) -> tuple[Any, ...]:
    limit = target["idle_limit"] or {}
    return (
        target["reachable"],
        target["stage"],
        target["status"],
        limit.get("proven_seconds"),
        limit.get("dead_by_seconds"),
    )


def _headline(elapsed: float, target: Mapping[str, Any]) -> str:
    _, stage, status, proven, dead_by = _state(target)
    return f"{elapsed:6.1f} s   {stage:<8} {status:<11} proven {seconds(proven):>8}   dead by {seconds(dead_by):>8}"


def seconds(number: float | None) -> str:
    return "?" if number is None else f"{number:.1f} s"
