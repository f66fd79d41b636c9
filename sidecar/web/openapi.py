"""The OpenAPI 3.1 description of the HTTP interface.

Paths and parameters come from the table of routes, schemas from the dataclasses that are served; written here is what
neither of them knows: which body a path answers with, and examples.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import is_dataclass
from datetime import datetime
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from sidecar import __version__, documents
from sidecar.core.advice.recommendation import Recommendation
from sidecar.web.answers import EVENT_STREAM, JSON, PROBLEM_JSON
from sidecar.web.routes import ADMIN, FORMATS, OUTCOMES, PAGE_DEFAULT, PAGE_MAX, PUBLIC, Route

Json = dict[str, Any]

_SCALARS: Mapping[Any, Json] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    datetime: {"type": "string", "format": "date-time"},
    NoneType: {"type": "null"},
    object: {},
}

_VALUES: Mapping[tuple[str, str], list[str]] = {
    ("Verdict", "verdict"): ["protected", "exposed", "unknown"],
    ("Verification", "outcome"): ["ok", "failed"],
    ("Trial", "outcome"): ["ok", "error", "hang"],
    ("Observation", "outcome"): [*OUTCOMES],
}
"""What a member may say where its type is text."""

_EXAMPLE: Json = {
    "schema": documents.SCHEMA,
    "target": "default",
    "generated_at": "2026-11-24T03:00:00Z",
    "status": "verified",
    "settings": {
        "pool_recycle": 171,
        "pool_pre_ping": True,
        "selective_pre_ping_after": None,
        "pool_recycle_with_keepalive": 1800,
    },
    "socket": {"keepalive": {"idle": 102, "interval": 15, "count": 3}, "user_timeout_ms": 5000},
    "connect_args": {},
    "idle_limit": {
        "proven_seconds": 343.2,
        "dead_by_seconds": 350.2,
        "estimate_seconds": 346.7,
        "death": "silent",
        "sqlstate": None,
        "keepalive_helps": True,
        "likely": [{"id": "network_firewall", "component": "a stateful firewall that drops what it has forgotten"}],
    },
    "lifetime_limit": None,
    "pre_ping_cost": {
        "round_trips": 3,
        "p50_ms": 1.8,
        "p99_ms": 4.1,
        "overhead_ratio": 0.3,
        "overhead_low": 0.28,
        "overhead_high": 0.33,
        "round_trips_autocommit": 1,
    },
    "failover": {
        "outages": 2,
        "outage_seconds": {"p50": 14.2, "max": 31.5},
        "write_outage_seconds": {"p50": 16.1, "max": 33.4},
    },
    "application": {"verdict": "exposed", "because": "its pool_recycle of 1800 s lies above the idle limit"},
    "verification": {"outcome": "ok", "idle_seconds": 357.1, "checkout_ms": 6.2, "at": "2026-11-24T02:59:58.25Z"},
    "trials": [
        {
            "name": "pre_ping_only",
            "pool_recycle": -1,
            "pool_pre_ping": True,
            "keepalive": False,
            "outcome": "hang",
            "idle_seconds": 367.7,
            "checkout_ms": None,
            "reconnected": None,
            "error": "no answer within 15 s",
            "at": "2026-11-24T02:59:58.25Z",
        }
    ],
    "reasons": [
        {
            "code": "idle_limit_measured",
            "text": "Connections die after resting between 343 and 350 seconds.",
            "evidence": "/evidence?target=default&outcome=died",
        }
    ],
    "warnings": [],
}

_QUERY: Mapping[str, Json] = {
    "target": {
        "description": "A target's name. Without it: `default` if there is one, else the only one.",
        "schema": {"type": "string"},
        "example": "default",
    },
    "format": {
        "description": "The dialect of the advice.",
        "schema": {"type": "string", "enum": [*FORMATS], "default": "json"},
    },
    "arm": {
        "description": "Show only what was seen by connections open for this: search, guard, keepalive, lifetime, …",
        "schema": {"type": "string"},
    },
    "outcome": {
        "description": "Show only rests that ended so.",
        "schema": {"type": "string", "enum": [*OUTCOMES]},
    },
    "limit": {
        "description": "How many to show at most.",
        "schema": {"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": PAGE_DEFAULT},
    },
    "before": {
        "description": "Show what is older than the one with this id; `next` in a page is the address to go on with.",
        "schema": {"type": "string"},
    },
}

_PROBLEM: Json = {
    "description": "What went wrong (RFC 9457). Further members say more, such as `available`: what there is instead.",
    "type": "object",
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string"},
        "instance": {"type": "string", "format": "uri-reference"},
        "available": {"type": "array", "items": {"type": "string"}},
        "parameter": {"type": "string"},
    },
    "required": ["type", "title", "status", "detail", "instance"],
    "examples": [
        {
            "type": "urn:connection-health:problem:unknown-target",
            "title": "Unknown target",
            "status": 404,
            "detail": "There is no target 'orders'; there is: default, reports",
            "instance": "/recommendation?target=orders",
            "available": ["default", "reports"],
        }
    ],
}


_ENGINE_ARGUMENTS: Json = {
    "description": "Keyword arguments for SQLAlchemy's create_async_engine (format=sqlalchemy).",
    "type": "object",
    "properties": {
        "pool_recycle": {"type": "number"},
        "pool_pre_ping": {"type": "boolean"},
        "connect_args": {"type": "object"},
    },
    "required": ["pool_recycle", "pool_pre_ping"],
    "additionalProperties": False,
}

_TEXT: Json = {"type": "string"}

_EVENTS: Json = {
    "type": "string",
    "description": "Server-sent events; the data of each is JSON on one line. `reset`: what the reader holds may be "
    "incomplete, fetch it anew (an empty object; also the first event of every stream that is not resumed). "
    "`observation`: an Observation, `outage`: an Outage, each with an id to resume from; one whose member `id` came "
    "before replaces that. `target`: a TargetSummary, and `recommendation`: the same as /recommendation; both are told "
    "on connecting and whenever they have changed, without an id. `heartbeat`: a Heartbeat, after 10 s of silence.",
}

_CONTENT: Mapping[str, Mapping[str, Any]] = {
    "/": {"text/html": _TEXT, JSON: documents.Index},
    "/health": {JSON: documents.Health},
    "/readyz": {JSON: documents.Health},
    "/livez": {JSON: documents.Liveness},
    "/startupz": {JSON: documents.Startup},
    "/recommendation": {JSON: Recommendation, "text/plain": _TEXT},
    "/targets": {JSON: documents.Targets},
    "/evidence": {JSON: documents.Evidence},
    "/outages": {JSON: documents.Outages},
    "/events": {EVENT_STREAM: _EVENTS},
    "/known-limits": {JSON: documents.KnownLimits},
    "/metrics": {"text/plain": _TEXT, "application/openmetrics-text": _TEXT},
    "/openapi.json": {JSON: {"type": "object"}},
    "/quitquitquit": {JSON: documents.Leaving},
    "/measure": {JSON: documents.Measuring},
    "/trial": {JSON: documents.Trying},
}
"""What a path answers with when all is well: content type -> the dataclass served, or a schema."""

_PROBES = ("/health", "/readyz", "/livez", "/startupz")
"""Their bad news is a problem that also has the members of the good news."""

_UNTAGGED = (*_PROBES, "/metrics", "/events")
"""Read for the present moment: nothing to revalidate."""


def document() -> Json:
    """The whole description, ready to be encoded."""
    schemas = _Schemas(Problem=_PROBLEM, EngineArguments=_ENGINE_ARGUMENTS)
    schemas.of(documents.Heartbeat)
    paths: dict[str, Json] = {}
    for route in PUBLIC:
        paths[route.path] = {"get": _operation(route, schemas)}
    for route in ADMIN:
        paths[route.path] = {
            "servers": [{"url": "http://127.0.0.1:9091", "description": "the admin port, on the loopback only"}],
            "post": _operation(route, schemas),
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "connection-health-sidecar",
            "version": __version__,
            "description": "How connections to the database die, and the pool settings that survive it. "
            "Every GET answers HEAD too. A number that is not known is null.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": dict(schemas)},
    }


def _operation(route: Route, schemas: _Schemas) -> Json:
    tagged = route.method == "GET" and route.path not in _UNTAGGED
    good: Json = {
        "description": route.summary,
        "content": {kind: {"schema": schemas.of(body)} for kind, body in _CONTENT[route.path].items()},
    }
    if route.path == "/recommendation":
        advice = good["content"][JSON]
        advice["schema"] = {"anyOf": [advice["schema"], {"$ref": "#/components/schemas/EngineArguments"}]}
        advice["example"] = _EXAMPLE
    headers: Json = {}
    if tagged:
        headers["ETag"] = {"description": "Names this very body.", "schema": _TEXT}
    if "before" in route.query:
        headers["Link"] = {"description": 'The older page, as rel="next"; absent on the last.', "schema": _TEXT}
    responses: Json = {"200" if route.method == "GET" else "202": good | ({"headers": headers} if headers else {})}
    if tagged:
        responses["304"] = {"description": "The body is still the one named in If-None-Match."}
    responses["400"] = _problem("a query parameter is unknown, given twice, or has no such value")
    if route.method == "POST":
        responses["403"] = _problem("a web page asked")
    if "target" in route.query or route.method == "POST":
        responses["404"] = _problem("there is no such target or cursor, or no such path on this port")
    if route.path in _PROBES:
        body = schemas.of(_CONTENT[route.path][JSON])
        responses["503"] = _problem("not so; `detail` says why", body)
    if route.path == "/events":
        responses["503"] = _problem("there are too many readers")
    responses["default"] = _problem("anything else that went wrong")
    parameters = [{"name": name, "in": "query", **_QUERY[name]} for name in route.query]
    if route.path == "/events":
        parameters[0]["description"] = "Only what concerns this target; without it, all of them."
        last = {"description": "The id of the last event received: what came after it is told first.", "schema": _TEXT}
        parameters.append({"name": "Last-Event-ID", "in": "header", **last})
    if tagged:
        held = {"description": "Tags of the bodies held.", "schema": _TEXT}
        parameters.append({"name": "If-None-Match", "in": "header", **held})
    return {
        "operationId": route.path.strip("/").replace(".", "_").replace("-", "_") or "index",
        "summary": route.summary,
        "parameters": parameters,
        "responses": responses,
    }


def _problem(description: str, also: Json | None = None) -> Json:
    problem: Json = {"$ref": "#/components/schemas/Problem"}
    schema = problem if also is None else {"allOf": [problem, also]}
    return {"description": description, "content": {PROBLEM_JSON: {"schema": schema}}}


class _Schemas(dict[str, Json]):
    """The named schemas, collected as types are asked for."""

    def of(self, hint: Any) -> Json:
        """The JSON schema of a type, as the encoder writes it; a dict is one already."""
        if isinstance(hint, dict):
            return hint
        if hint in _SCALARS:
            return dict(_SCALARS[hint])
        if isinstance(hint, type) and issubclass(hint, StrEnum):
            self[hint.__name__] = {"type": "string", "enum": [member.value for member in hint]}
            return _reference(hint)
        if isinstance(hint, type) and is_dataclass(hint):
            self[hint.__name__] = self._object(hint)
            return _reference(hint)
        arguments = get_args(hint)
        if get_origin(hint) is UnionType:
            return {"anyOf": [self.of(argument) for argument in arguments]}
        if get_origin(hint) is tuple:
            return {"type": "array", "items": self.of(arguments[0])}
        if get_origin(hint) in (dict, Mapping):
            return {"type": "object", "additionalProperties": self.of(arguments[1])}
        raise TypeError(f"no schema for {hint}")

    def _object(self, body: type) -> Json:
        properties = {name: self.of(hint) for name, hint in documents.members(body).items()}
        for name in properties:
            if values := _VALUES.get((body.__name__, name)):
                properties[name]["enum"] = values
        if body is Recommendation:
            properties |= {"schema": {"const": documents.SCHEMA}, "generated_at": self.of(datetime)}
        schema: Json = {"type": "object", "properties": properties, "required": list(properties)}
        text = body.__doc__ or ""
        if not text.startswith(f"{body.__name__}("):  # what dataclass writes where there is no docstring
            schema["description"] = inspect.cleandoc(text)
        return schema


def _reference(named: type) -> Json:
    return {"$ref": f"#/components/schemas/{named.__name__}"}
