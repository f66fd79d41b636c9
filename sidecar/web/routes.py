"""Every route, as a table: what it takes, which handler answers, with what, and how it may refuse.

The server dispatches by it, and the OpenAPI document is made from it; so what is described is what is served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from sidecar import documents
from sidecar.core.advice.recommendation import Recommendation
from sidecar.core.advice.render import FormatName
from sidecar.core.evidence import Arm, Observation, Outage, Outcome
from sidecar.core.pause import LONGEST, SHORTEST, UNLESS_TOLD, Pause
from sidecar.web import page
from sidecar.web.answers import EVENT_STREAM, JSON, Answer, Stream
from sidecar.web.examples import RECOMMENDATION
from sidecar.web.handlers import PAGE_DEFAULT, PAGE_MAX, Ask, Handlers

TEXT = "text/plain"
HTML = "text/html"
OPEN_METRICS = "application/openmetrics-text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """What a caller may say, in the query or in a header. `schema` is JSON schema."""

    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})
    example: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """One path and one method."""

    path: str
    summary: str
    handler: Callable[[Handlers, Ask], Answer | Stream]
    _: KW_ONLY
    answers: Mapping[str, Any] = field(default_factory=dict)
    """When all is well: content type -> type of the body, as annotations have it."""
    query: Mapping[str, Parameter] = field(default_factory=dict)
    headers: Mapping[str, Parameter] = field(default_factory=dict)
    """Of the request, beside those that every GET looks at."""
    method: str = "GET"
    """GET answers HEAD too."""
    volatile: bool = False
    """Read for the present moment: its answer has no tag, since there is nothing to revalidate."""
    probe: bool = False
    """Its bad news, 503, is a problem that also has the members of its good news."""
    unavailable: str | None = None
    """Why it may answer 503."""
    streamed: tuple[type, ...] = ()
    """The bodies of which a stream is made, told of in the description of its answer."""
    example: Mapping[str, Any] | None = None
    """Of its answer in JSON."""

    @property
    def allow(self) -> str:
        return "GET, HEAD" if self.method == "GET" else self.method

    @property
    def tagged(self) -> bool:
        """Whether its answer has an ETag."""
        return self.method == "GET" and not self.volatile


def _one_of(words: type[StrEnum], **more: object) -> Mapping[str, Any]:
    return {"type": "string", "enum": [word.value for word in words], **more}


_TARGET = Parameter(
    description="A target's name. Without it: `default` if there is one, else the only one.", example="default"
)
_FORMAT = Parameter(description="The dialect of the advice.", schema=_one_of(FormatName, default=FormatName.JSON.value))
_ARM = Parameter(description=f"Show only what was seen by connections open for this: {', '.join(Arm)}.")
_OUTCOME = Parameter(description="Show only rests that ended so.", schema=_one_of(Outcome))
_LIMIT = Parameter(
    description="How many to show at most.",
    schema={"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": PAGE_DEFAULT},
)
_BEFORE = Parameter(
    description="Show what is older than the one with this id; `next` in a page is the address to go on with."
)
_TARGET_OF_STREAM = Parameter(description="Only what concerns this target; without it, all of them.", example="default")
_PAUSED_FOR = Parameter(
    description=f"For how long, {SHORTEST} to {LONGEST}, as in `30s`, `10m`, `1h` or a number of seconds.",
    schema={"type": "string", "default": UNLESS_TOLD},
)
_LAST_EVENT_ID = Parameter(description="The id of the last event received: what came after it is told first.")

_Events = Annotated[
    str,
    Field(
        description="Server-sent events; the data of each is JSON on one line. `reset`: what the reader holds may be "
        "incomplete, fetch it anew (an empty object; also the first event of every stream that is not resumed). "
        "`observation`: an Observation, `outage`: an Outage, each with an id to resume from; one whose member `id` "
        "came before replaces that. `target`: a TargetSummary, and `recommendation`: the same as /recommendation; both "
        "are told on connecting and whenever they have changed, without an id. `heartbeat`: a Heartbeat, after 10 s of "
        "silence."
    ),
]


def _probe(path: str, summary: str, handler: Callable[[Handlers, Ask], Answer], body: type) -> Route:
    return Route(
        path,
        summary,
        handler,
        answers={JSON: body},
        volatile=True,
        probe=True,
        unavailable="not so; `detail` says why",
    )


PUBLIC: tuple[Route, ...] = (
    Route(
        "/",
        "one page for people; an index to a program that asks for JSON",
        Handlers.index,
        answers={HTML: str, JSON: documents.Index},
    ),
    _probe("/health", "readiness, with the reason per target", Handlers.health, documents.Health),
    _probe("/readyz", "the same as /health", Handlers.health, documents.Health),
    _probe(
        "/livez",
        "whether every supervised task is alive; never depends on a database",
        Handlers.livez,
        documents.Liveness,
    ),
    _probe("/startupz", "whether starting is over", Handlers.startupz, documents.Startup),
    Route(
        "/recommendation",
        "the advice, in the format asked for",
        Handlers.recommendation,
        answers={JSON: Recommendation | documents.EngineArguments, TEXT: str},
        query={"target": _TARGET, "format": _FORMAT},
        example=RECOMMENDATION,
    ),
    Route("/targets", "every target in short", Handlers.targets, answers={JSON: documents.Targets}),
    Route(
        "/evidence",
        "the observations behind the numbers, newest first",
        Handlers.evidence,
        answers={JSON: documents.Evidence},
        query={"target": _TARGET, "arm": _ARM, "outcome": _OUTCOME, "limit": _LIMIT, "before": _BEFORE},
    ),
    Route(
        "/outages",
        "what happened to the database, newest first",
        Handlers.outages,
        answers={JSON: documents.Outages},
        query={"target": _TARGET, "limit": _LIMIT, "before": _BEFORE},
    ),
    Route(
        "/events",
        "the same live, as server-sent events",
        Handlers.events,
        answers={EVENT_STREAM: _Events},
        query={"target": _TARGET_OF_STREAM},
        headers={"Last-Event-ID": _LAST_EVENT_ID},
        volatile=True,
        unavailable="there are too many readers",
        streamed=(Observation, Outage, documents.TargetSummary, Recommendation, documents.Heartbeat),
    ),
    Route(
        "/known-limits",
        "known limits with which the measured one is compared",
        Handlers.known_limits,
        answers={JSON: documents.KnownLimits},
    ),
    Route(
        "/metrics",
        "metrics for Prometheus, as text or OpenMetrics",
        Handlers.metrics,
        answers={TEXT: str, OPEN_METRICS: str},
        volatile=True,
    ),
    Route(
        "/openapi.json",
        "this interface, as an OpenAPI 3.1 document",
        Handlers.openapi,
        answers={JSON: dict[str, object]},
    ),
)

ASSETS: tuple[Route, ...] = tuple(
    Route(f"/assets/{name}", "a part of the page", Handlers.asset) for name in page.ASSETS
)
"""Served beside `PUBLIC`; no interface, they come and go with the page."""

ADMIN: tuple[Route, ...] = (
    Route(
        "/quitquitquit",
        "leave cleanly, as on SIGTERM",
        Handlers.quit,
        answers={JSON: documents.Leaving},
        method="POST",
    ),
    Route(
        "/measure",
        "measure a target afresh",
        Handlers.measure,
        answers={JSON: documents.Measuring},
        query={"target": _TARGET},
        method="POST",
    ),
    Route(
        "/trial",
        "try a target's advice, and what others would set, anew",
        Handlers.try_again,
        answers={JSON: documents.Trying},
        query={"target": _TARGET},
        method="POST",
    ),
    Route(
        "/pause",
        "give back every connection of all targets for a while, and tell until when",
        Handlers.pause,
        answers={JSON: Pause},
        query={"for": _PAUSED_FOR},
        method="POST",
    ),
    Route(
        "/resume",
        "end the pause",
        Handlers.resume,
        answers={JSON: documents.Resumed},
        method="POST",
    ),
)
