"""Who is probably to blame: a measured limit compared with the known ones.

A number alone names nothing: 350 s is the default of half a dozen components that die in two different ways. A known
limit is a suspect when its value, its kind of death and its answer to TCP keepalive all fit what was measured; each
of the three is left out where it is unknown on either side. A SQLSTATE names its sender whatever the value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sidecar.core.advice.recommendation import LikelyCulprit
from sidecar.core.evidence import Death

VALUE_TOLERANCE = 0.03
"""How far, as a share, a default may lie outside the bracket measured and still fit: timers are coarse."""

MOST_SUSPECTS = 5
"""How many are named at most: a longer list accuses nobody."""

_DEATHS = {
    "fin": Death.CLOSED,
    "rst-at-timeout": Death.CLOSED,
    "rst-on-use": Death.RESET_ON_USE,
    "silent": Death.SILENT,
}
"""The catalogue's words for how a limit kills, as it shows to a client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownLimit:
    """One entry of the catalogue."""

    id: str
    component: str
    limits: str
    default_seconds: float | None
    death: str
    tcp_keepalive_resets: str
    configurable: bool  # may be set to anything, so that any value fits a little

    @property
    def sqlstate(self) -> str | None:
        return self.death.removeprefix("fatal ") if self.death.startswith("fatal ") else None


def defaults(catalogue: Iterable[KnownLimit]) -> tuple[float, ...]:
    """The distinct defaults of known idle limits, ascending, in seconds: where the search looks first."""
    return tuple(sorted({k.default_seconds for k in catalogue if k.limits == "idle" and k.default_seconds}))


def likely_culprits(
    catalogue: Iterable[KnownLimit],
    *,
    limits: str,
    low_seconds: float,
    high_seconds: float,
    death: Death,
    sqlstate: str | None,
    keepalive_helps: bool | None,
) -> tuple[LikelyCulprit, ...]:
    """The known limits of a kind (`idle` or `lifetime`) that fit a measured bracket, the best fit first.

    Of those that fit alike, the order of the catalogue decides.
    """
    ranked: list[tuple[int, LikelyCulprit]] = []
    for known in catalogue:
        if known.limits != limits or not _death_fits(known, death, sqlstate):
            continue
        if not _keepalive_fits(known, keepalive_helps):
            continue
        value_fits = bool(known.default_seconds) and (
            low_seconds * (1 - VALUE_TOLERANCE) <= (known.default_seconds or 0) <= high_seconds * (1 + VALUE_TOLERANCE)
        )
        named = known.sqlstate is not None and known.sqlstate == sqlstate
        if value_fits or named or known.configurable:
            rank = 0 if named else 1 if value_fits else 2
            ranked.append((rank, LikelyCulprit(id=known.id, component=known.component)))
    ranked.sort(key=lambda entry: entry[0])
    # Components that may be set to anything are only worth naming when nothing fits better.
    best = [entry for entry in ranked if entry[0] < 2] or ranked
    return tuple(culprit for _, culprit in best[:MOST_SUSPECTS])


def _death_fits(known: KnownLimit, death: Death, sqlstate: str | None) -> bool:
    if known.sqlstate is not None:
        return death is Death.FATAL and known.sqlstate == sqlstate
    if known.death == "unknown":
        return death is not Death.FATAL
    return _DEATHS.get(known.death) is death


def _keepalive_fits(known: KnownLimit, keepalive_helps: bool | None) -> bool:
    if keepalive_helps is None or known.tcp_keepalive_resets not in ("yes", "no"):
        return True
    return keepalive_helps == (known.tcp_keepalive_resets == "yes")
