"""The OpenAPI 3.1 description of the HTTP interface, made from a table of routes.

What a route takes, answers and refuses is in the table. Schemas of bodies are pydantic's, from the dataclasses that are
served, except that they follow the encoder of `documents`: every member is always there, derived ones are shown beside
the others, and an instant is text.

This is loaded when somebody asks for the description, and takes a few hundredths of a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from sidecar import __version__, documents
from sidecar.core.advice.recommendation import Recommendation
from sidecar.web.answers import JSON, PROBLEM_JSON
from sidecar.web.routes import Parameter, Route

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}

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


def document(public: Iterable[Route], admin: Iterable[Route]) -> Json:
    """The whole description of these routes, ready to be encoded."""
    public, admin = tuple(public), tuple(admin)
    contents, schemas = _contents((*public, *admin))
    paths: dict[str, Json] = {}
    for route in public:
        paths[route.path] = {"get": _operation(route, contents[route.path])}
    for route in admin:
        paths[route.path] = {
            "servers": [{"url": "http://127.0.0.1:9091", "description": "the admin port, on the loopback only"}],
            "post": _operation(route, contents[route.path]),
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
        "components": {"schemas": dict(sorted({**schemas, "Problem": _PROBLEM}.items()))},
    }


def _operation(route: Route, content: Json) -> Json:
    good: Json = {"description": route.summary, "content": content}
    headers: Json = {}
    if route.tagged:
        headers["ETag"] = {"description": "Names this very body.", "schema": _TEXT}
    if "before" in route.query:
        headers["Link"] = {"description": 'The older page, as rel="next"; absent on the last.', "schema": _TEXT}
    responses: Json = {"200" if route.method == "GET" else "202": good | ({"headers": headers} if headers else {})}
    if route.tagged:
        responses["304"] = {"description": "The body is still the one named in If-None-Match."}
    responses["400"] = _problem("a query parameter is unknown, given twice, or has no such value")
    if route.method == "POST":
        responses["403"] = _problem("a web page asked")
    if "target" in route.query or route.method == "POST":
        responses["404"] = _problem("there is no such target or cursor, or no such path on this port")
    if route.unavailable is not None:
        responses["503"] = _problem(route.unavailable, content[JSON]["schema"] if route.probe else None)
    responses["default"] = _problem("anything else that went wrong")
    parameters = [_parameter(name, "query", parameter) for name, parameter in route.query.items()]
    parameters += [_parameter(name, "header", parameter) for name, parameter in route.headers.items()]
    if route.tagged:
        held = Parameter(description="Tags of the bodies held.")
        parameters.append(_parameter("If-None-Match", "header", held))
    return {
        "operationId": route.path.strip("/").replace(".", "_").replace("-", "_") or "index",
        "summary": route.summary,
        "parameters": parameters,
        "responses": responses,
    }


def _parameter(name: str, place: str, parameter: Parameter) -> Json:
    told: Json = {"name": name, "in": place, "description": parameter.description, "schema": parameter.schema}
    return told if parameter.example is None else told | {"example": parameter.example}


def _problem(description: str, also: Json | None = None) -> Json:
    problem: Json = {"$ref": "#/components/schemas/Problem"}
    schema = problem if also is None else {"allOf": [problem, also]}
    return {"description": description, "content": {PROBLEM_JSON: {"schema": schema}}}


def _contents(routes: Iterable[Route]) -> tuple[Mapping[str, Json], Json]:
    """What each path answers with, by content type; and the named schemas that this refers to."""
    places = [(route, kind) for route in routes for kind in route.answers]
    bodies = [route.answers[kind] for route, kind in places]
    bodies += [body for route in routes for body in route.streamed]
    # As one type, because pydantic then looks at each body once.
    described = TypeAdapter(tuple[*bodies]).json_schema(  # type: ignore[valid-type]
        mode="serialization", ref_template="#/components/schemas/{model}", schema_generator=_Schemas
    )
    contents: dict[str, Json] = {}
    for (route, kind), schema in zip(places, described["prefixItems"], strict=False):
        example = {"example": route.example} if kind == JSON and route.example is not None else {}
        contents.setdefault(route.path, {})[kind] = {"schema": schema, **example}
    for schema in described["$defs"].values():
        del schema["title"]  # its name, once more
    return contents, described["$defs"]


class _Schemas(GenerateJsonSchema):
    """Pydantic's schemas of what is served, as the encoder of `documents` writes it."""

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        described = super().dataclass_schema(schema)
        body: type = schema["cls"]
        fields, properties = described["properties"], {}
        for name, hint in documents.members(body).items():
            differs = name not in fields or hint in (datetime, datetime | None)  # derived, or an instant
            properties[name] = self._of(hint) if differs else fields[name]
        if body is Recommendation:
            properties |= {"schema": self._of(Literal[documents.SCHEMA]), "generated_at": self._of(datetime)}
        return described | {"properties": properties, "required": list(properties)}

    def _of(self, hint: Any) -> JsonSchemaValue:
        return self.generate_inner(TypeAdapter(hint).core_schema)

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])  # nothing is left out of an answer, so nobody assumes a default

    def field_title_should_be_set(self, schema: object) -> bool:
        return False
