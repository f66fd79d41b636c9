"""What the outside may look at: immutable pictures of the state, made by the service, read by web and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from sidecar.core.advice.ping_cost import Spread
from sidecar.core.advice.recommendation import Recommendation
from sidecar.core.availability.readiness import Readiness
from sidecar.core.budget import BudgetStatus, ConnectionRole, PauseReason
from sidecar.core.evidence import Observation, Outage
from sidecar.core.idle.planning import Stage
from sidecar.core.idle.probes import ProbeView
from sidecar.core.journal import Journal
from sidecar.core.pause import Pause


class ConnectionState(StrEnum):
    """What a connection the sidecar holds is doing."""

    IDLE = "idle"
    CHECKED_OUT = "checked_out"
    OPENING = "opening"
    OPEN = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetView:
    """Everything shown of one target at one moment."""

    name: str
    database: str  # host:port/dbname, never credentials
    recommendation: Recommendation
    generated_at: float  # when the recommendation last changed
    readiness: Readiness
    reachable: bool | None  # None until first tried
    stage: Stage  # of the idle-limit measurement
    suspect: bool  # a fresh connection died below the published limit, not yet explained
    regime: int
    elapsed_seconds: float
    probes: tuple[ProbeView, ...]
    connections: Mapping[tuple[ConnectionRole, ConnectionState], int]  # how many
    checkout: Spread | None  # of the held pool: without a pre-ping
    checkout_with_ping: Spread | None
    budget: BudgetStatus | None = None  # None until it was first drawn
    paused: PauseReason | None = None


class Source(Protocol):
    """What web and metrics ask of the service. Every answer comes from memory, at once."""

    @property
    def started(self) -> bool: ...

    @property
    def faults(self) -> Mapping[str, str]:
        """Supervised tasks that died: name -> why. Empty while all live."""
        ...

    @property
    def store_pending_writes(self) -> int: ...

    @property
    def store_warning(self) -> str | None:
        """Why evidence is kept in memory only at the moment; None while the store takes writes."""
        ...

    @property
    def journal(self) -> Journal:
        """The latest observations and outages of all targets, as they come."""
        ...

    def targets(self) -> Mapping[str, TargetView]: ...

    def observations(self, target: str) -> Sequence[Observation]:
        """Oldest first; bounded."""
        ...

    def outages(self, target: str) -> Sequence[Outage]:
        """Oldest first, the last version of each; bounded."""
        ...

    def measure_afresh(self, target: str) -> None:
        """Forget nothing, but open a new regime and measure from the start."""
        ...

    def try_again(self, target: str) -> None:
        """Put the advice to the test now, and beside it what others would set."""
        ...

    @property
    def paused(self) -> Pause | None:
        """The pause that holds at the moment: nothing is held on any server."""
        ...

    def pause(self, seconds: float) -> Pause:
        """Give every connection back, and open none for so long."""
        ...

    def resume(self) -> None:
        """End the pause, if there is one."""
        ...

    def quit(self) -> None:
        """Leave cleanly, as on SIGTERM."""
        ...
