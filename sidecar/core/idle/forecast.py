"""How long the idle-limit measurement will probably still take.

Theory of operation
===================

The time it takes is a multiple of the limit: what multiple depends on the number of connections, and on whether deaths
show by themselves. `_LIMITS_UNTIL_REACHED` holds the medians of simulated runs of the machine itself
(`bench/discovery.py` prints the like). While nothing has died the limit is not known; the next well-known default
stands in for it, and whoever tells the forecast has to say so. A volley needs no estimate: its connections say when
they are due.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

from sidecar.core.evidence import MILESTONES, Death, Status
from sidecar.core.idle.planning import Stage
from sidecar.core.idle.probes import ProbeState, ProbeView

_LIMITS_UNTIL_REACHED = {
    2: ((4.7, 5.6, 7.1), (2.0, 3.0, 5.3)),
    4: ((2.5, 2.8, 3.7), (1.3, 1.7, 2.9)),
    8: ((1.4, 1.7, 2.3), (1.0, 1.2, 2.1)),
    16: ((1.2, 1.3, 2.2), (1.0, 1.0, 2.0)),
}
"""By number of connections: how many times the limit passes until each milestone, where deaths show only on use, and
where they show by themselves. Medians of simulated runs (`bench/discovery.py`)."""


class Bracket(Protocol):
    """What is known of the limit, in seconds."""

    @property
    def proven_seconds(self) -> float: ...

    @property
    def dead_by_seconds(self) -> float | None: ...

    @property
    def death(self) -> Death | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    seconds: float  # still to go, at a guess
    if_limit_seconds: float | None  # the limit taken for granted; None where it has shown


def forecast(
    *,
    goal: Status,
    stage: Stage,
    limit: Bracket | None,
    elapsed_seconds: float,
    probes: Sequence[ProbeView],
    defaults: Iterable[float],
) -> Forecast | None:
    """The time until the status is `goal`, in seconds; None when nothing can be said.

    `elapsed_seconds` is how long it has been measured, `defaults` the limits known elsewhere (`attribution.defaults`).
    """
    due = [
        probe.until_seconds - probe.idle_seconds
        for probe in probes
        if probe.state == ProbeState.RESTING and probe.until_seconds is not None
    ]
    if stage == Stage.VOLLEY and due:
        return Forecast(seconds=max(0.0, *due), if_limit_seconds=None)
    dead_by = None if limit is None else limit.dead_by_seconds
    proven = 0.0 if limit is None else limit.proven_seconds
    if dead_by is None:
        expected = min((default for default in defaults if default > proven), default=None)
    else:
        expected = sqrt(proven * dead_by) or dead_by
    if expected is None or not due:
        return None
    shows = limit is not None and limit.death is not None and limit.death.visible
    unseen, by_themselves = _LIMITS_UNTIL_REACHED[
        max((k for k in _LIMITS_UNTIL_REACHED if k <= len(probes)), default=2)
    ]
    multiple = (by_themselves if shows else unseen)[MILESTONES.index(goal)]
    return Forecast(
        seconds=max(multiple * expected - elapsed_seconds, min(due), 0.0),
        if_limit_seconds=expected if dead_by is None else None,
    )
