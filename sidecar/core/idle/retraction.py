"""Taking back what was learned of deaths when the disturbance that caused them is reported late.

A death is judged as soon as a fresh connection has answered, but a restart or a failover may be noticed elsewhere only
seconds later. Evidence cannot be unlearned, so what was known before each recent observation is kept for a while: then
the knowledge is set back to before the first death in doubt, and what still stands is learned anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sidecar.core.evidence import Cause, Observation, Outcome
from sidecar.core.idle.knowledge import Knowledge

RETRACT_SECONDS = 10.0
"""A disturbance reported by others may come this long after the deaths it caused."""

_KEPT_SECONDS = 2 * RETRACT_SECONDS
"""Deaths in doubt are no older, and what was learned after them is needed, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedObservation:
    """An observation, when it was made (monotonic seconds), and what was known before it."""

    observation: Observation
    at: float
    known_before: Knowledge


@dataclass(frozen=True, slots=True, kw_only=True)
class Retraction:
    """What was known before the first death in doubt, the deaths judged anew, and what still stands of the rest."""

    known_before: Knowledge
    censored: tuple[Observation, ...]
    standing: tuple[LearnedObservation, ...]


class RecentLearning:
    """The observations learned last, in their order."""

    def __init__(self) -> None:
        self._learned: list[LearnedObservation] = []

    def remember(self, learned: LearnedObservation, now: float) -> None:
        self._learned = [recent for recent in self._learned if now - recent.at < _KEPT_SECONDS]
        self._learned.append(learned)

    def forget(self) -> None:
        """What was known before is of no use any more: a new regime has begun."""
        self._learned = []

    def take_back(self, cause: Cause, now: float) -> Retraction | None:
        """Doubt the deaths of the last moments: they may be of this cause. None where there were none.

        Whatever comes of it, nothing is taken back twice.
        """
        learned, self._learned = self._learned, []
        first = next((n for n, each in enumerate(learned) if _in_doubt(each, now)), None)
        if first is None:
            return None
        since = learned[first:]
        return Retraction(
            known_before=since[0].known_before,
            censored=tuple(
                replace(each.observation, outcome=Outcome.CENSORED, cause=cause)
                for each in since
                if _in_doubt(each, now)
            ),
            standing=tuple(each for each in since if not _in_doubt(each, now)),
        )


def _in_doubt(learned: LearnedObservation, now: float) -> bool:
    return learned.observation.outcome == Outcome.DIED and learned.at >= now - RETRACT_SECONDS
