"""The bodies this service answers with, the one way they become JSON, and the way back for who asks.

Bodies are dataclasses: those of the core as they are, and the few below that put them together. `members` says what
is shown of each; the encoder, the reader and the OpenAPI document go by it, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

import orjson
from pydantic import BaseModel

from sidecar.core.advice.attribution import KnownLimit
from sidecar.core.advice.ping_cost import Spread, milliseconds
from sidecar.core.advice.recommendation import IdleLimit, PoolSettings, Recommendation
from sidecar.core.availability.readiness import Readiness
from sidecar.core.budget import BudgetStatus, CeilingKind, Grant, Hindrance, PauseReason
from sidecar.core.evidence import Downtime, Observation, Outage, Status
from sidecar.core.idle.probes import ProbeView
from sidecar.core.pause import Pause
from sidecar.core.views import Source, TargetView

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCHEMA = 1
"""Version of the recommendation's document. Members are added under the same number; none changes its meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """What is served here."""

    service: str
    version: str
    routes: Mapping[str, str]  # path -> what it answers
    formats: tuple[str, ...]  # of /recommendation


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether traffic may come: only when every target is ready."""

    ready: bool
    targets: Mapping[str, Readiness]


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """Whether the process works. `faults` names the supervised tasks that died, and why."""

    alive: bool
    faults: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Startup:
    """Whether starting is over."""

    started: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionCount:
    """How many connections the sidecar holds in one role and state."""

    role: str
    state: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long the latest of something took. The 99th percentile is null below a hundred of them."""

    count: int
    p50_ms: float
    p99_ms: float | None
    max_ms: float

    @classmethod
    def of(cls, spread: Spread | None) -> Latency | None:
        if spread is None:
            return None
        return cls(
            count=spread.count,
            p50_ms=milliseconds(spread.p50_seconds),
            p99_ms=milliseconds(spread.p99_seconds),
            max_ms=milliseconds(spread.max_seconds),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetState:
    """What a target may hold, and why it is not more.

    The numbers are those of the tightest limit on sessions, `ceiling`; null while nobody has seen it. `hindrance` is
    null while as much is held as it takes to measure well.
    """

    usable: int | None
    used: int | None
    others: int | None  # of those used, no sidecar's
    ceiling: CeilingKind | None
    joint: int | None  # connections beside heartbeats that all sidecars together may hold
    granted: Grant
    wished: Grant
    hindrance: Hindrance | None
    since: float

    @classmethod
    def of(cls, status: BudgetStatus) -> BudgetState:
        return cls(
            usable=status.usable,
            used=status.used,
            others=status.others,
            ceiling=status.ceiling,
            joint=status.joint,
            granted=status.granted,
            wished=status.wished,
            hindrance=status.hindrance,
            since=status.since_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSummary:
    """One target in short."""

    name: str
    database: str
    status: Status
    settings: PoolSettings
    idle_limit: IdleLimit | None
    readiness: Readiness
    reachable: bool | None
    stage: str
    suspect: bool
    regime: int
    elapsed_seconds: float
    probes: tuple[ProbeView, ...]
    connections: tuple[ConnectionCount, ...]
    checkout: Latency | None  # from the held pool, on connections open before: without a pre-ping
    checkout_with_ping: Latency | None
    budget: BudgetState | None = None  # null until the server was first looked at
    paused: PauseReason | None = None  # why nothing at all is held; null while something is

    @classmethod
    def of(cls, view: TargetView) -> TargetSummary:
        advice = view.recommendation
        return cls(
            name=view.name,
            database=view.database,
            status=advice.status,
            settings=advice.settings,
            idle_limit=advice.idle_limit,
            readiness=view.readiness,
            reachable=view.reachable,
            stage=view.stage,
            suspect=view.suspect,
            regime=view.regime,
            elapsed_seconds=view.elapsed_seconds,
            probes=view.probes,
            connections=tuple(
                ConnectionCount(role=role, state=state, count=count)
                for (role, state), count in view.connections.items()
            ),
            checkout=Latency.of(view.checkout),
            checkout_with_ping=Latency.of(view.checkout_with_ping),
            budget=None if view.budget is None else BudgetState.of(view.budget),
            paused=view.paused,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreState:
    """How the evidence is kept. `warning` says why it is held in memory only; null while the store takes writes."""

    pending_writes: int
    warning: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Every target in short."""

    targets: tuple[TargetSummary, ...]
    store: StoreState
    paused: Pause | None  # of all targets; null where there is none

    @classmethod
    def of(cls, source: Source) -> Targets:
        return cls(
            targets=tuple(map(TargetSummary.of, source.targets().values())),
            store=StoreState(pending_writes=source.store_pending_writes, warning=source.store_warning),
            paused=source.paused,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A page of observations, newest first. `next` is the address of the older page, null on the last."""

    target: str
    observations: tuple[Observation, ...]
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outages:
    """A page of outages, newest first. `next` is the address of the older page, null on the last."""

    target: str
    outages: tuple[Outage, ...]
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownLimits:
    """The catalogue of known limits, with which a measured one is compared."""

    limits: tuple[KnownLimit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Nothing has happened, and the stream is alive."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """The service was told to leave and will, as on SIGTERM."""

    leaving: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """There is no pause, or none any more."""

    paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """The target's measurement starts afresh."""

    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trying:
    """The target's trials are taken anew; they end when the rest they need is over."""

    target: str


class EngineArguments(BaseModel, extra="forbid"):
    """Keyword arguments for SQLAlchemy's create_async_engine (format=sqlalchemy)."""

    pool_recycle: float
    pool_pre_ping: bool
    connect_args: dict[str, object] = {}  # left out where there are none


def recommendation(view: TargetView) -> dict[str, object]:
    """The advice as `/recommendation` serves it: the same bytes for as long as it stays the same."""
    shown = {name: getattr(view.recommendation, name) for name in members(Recommendation)}
    head = {"schema": SCHEMA, "target": view.name, "generated_at": datetime.fromtimestamp(int(view.generated_at), UTC)}
    return head | shown


_DERIVED: Mapping[type, tuple[str, ...]] = {
    Downtime: ("shortest_seconds", "longest_seconds"),
    Outage: ("dns_lag_seconds",),
}
"""Properties shown beside the fields: how long is what people ask first."""

_HIDDEN: Mapping[type, tuple[str, ...]] = {Recommendation: ("forgets_statements",)}
"""Fields not shown: what they say is said by another in the terms of its reader."""


@cache
def members(body: type) -> Mapping[str, Any]:
    """What is shown of a dataclass: name -> type, wall-clock floats as `datetime` (they are written in ISO 8601)."""
    hints = get_type_hints(body)
    hidden = _HIDDEN.get(body, ())
    shown = {field.name: hints[field.name] for field in fields(body) if field.name not in hidden}
    for name in _DERIVED.get(body, ()):
        shown[name] = get_type_hints(getattr(body, name).fget)["return"]
    return {name: _as_instant(name, hint) for name, hint in shown.items()}


def _as_instant(name: str, hint: Any) -> Any:
    if name in ("at", "since", "after", "until") or name.endswith("_at"):
        return {float: datetime, float | None: datetime | None}.get(hint, hint)
    return hint


@cache
def _readers(body: type) -> tuple[tuple[str, bool], ...]:
    return tuple((name, hint in (datetime, datetime | None)) for name, hint in members(body).items())


def _plain(value: Any) -> object:
    """One step towards JSON; orjson takes the rest and comes back for what lies deeper."""
    if is_dataclass(value) and not isinstance(value, type):
        shown = {}
        for name, is_instant in _readers(type(value)):
            member = getattr(value, name)
            shown[name] = datetime.fromtimestamp(member, UTC) if is_instant and member is not None else member
        return shown
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


_Body = TypeVar("_Body", bound="DataclassInstance")


def read(body: type[_Body], document: Mapping[str, Any]) -> _Body:
    """The body that was served as this document. Members that it does not know are passed over.

    Raises LookupError, TypeError or ValueError where the document is one of something else.
    """
    known = {field.name for field in fields(body)}
    shown = {name: hint for name, hint in members(body).items() if name in known}
    return body(**{name: _member(hint, document[name]) for name, hint in shown.items()})


def _member(hint: Any, value: Any) -> Any:
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind is UnionType:  # of something and None
        return None if value is None else _member(arguments[0], value)
    if kind is tuple:
        return tuple(_member(arguments[0], each) for each in value)
    if kind is Mapping:
        return {key: _member(arguments[1], each) for key, each in value.items()}
    if kind is datetime:
        return datetime.fromisoformat(value).timestamp()
    if isinstance(kind, type) and is_dataclass(kind):
        return read(kind, value)
    return kind(value) if issubclass(kind, StrEnum) else value


_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS


def instant(at: float) -> str:
    """A wall-clock time for people, in whole seconds."""
    return f"{datetime.fromtimestamp(round(at), UTC):%Y-%m-%dT%H:%M:%SZ}"


def dumps(value: object) -> bytes:
    """JSON of any body. Instants end in Z; a fraction of a second is written only where there is one."""
    return orjson.dumps(value, default=_plain, option=_OPTIONS)
