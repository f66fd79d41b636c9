"""The description against the routes it describes and the answers they really give."""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from jsonschema import Draft202012Validator, FormatChecker, ValidationError
from openapi_spec_validator import OpenAPIV31SpecValidator

from sidecar.core.advice.render import FormatName
from sidecar.metrics import Metrics
from sidecar.web.openapi import document
from sidecar.web.routes import ADMIN, PUBLIC
from sidecar.web.server import HttpServer
from testing.pictures import Picture, observation, outage, target, verified

DOCUMENT = document(PUBLIC, ADMIN)


def rich() -> Picture:
    return Picture(
        views={"default": target(advice=verified()), "orders": target("orders")},
        store_warning="the disk is full",
        seen={"default": [observation(serial) for serial in range(5)]},
        disturbed={"default": [outage(serial) for serial in range(5)]},
    )


@pytest.fixture(params=[rich, Picture], ids=["rich", "poor"])
def picture(request: pytest.FixtureRequest) -> Picture:
    return request.param()


@pytest.fixture
async def server(picture: Picture) -> AsyncIterator[HttpServer]:
    server = HttpServer(picture, Metrics(picture, picture.views).render)
    await server.start("127.0.0.1", 0, 0)
    yield server
    await server.stop(1.0)


def closed(node: Any) -> Any:
    """The description with every named schema of an object closed: a member it does not name is a fault.

    The published one stays open, since members may be added. What `allOf` puts together has to stay open here too.
    """
    tight = copy.deepcopy(node)
    for name, schema in tight["components"]["schemas"].items():
        if schema["type"] == "object" and name not in ("Problem", "Health", "Liveness", "Startup"):
            schema.setdefault("additionalProperties", False)
    return tight


def check(path: str, method: str, status: int, content_type: str, body: bytes) -> None:
    """Hold an answer against what the description says of it."""
    tight = closed(DOCUMENT)
    responses = tight["paths"][path][method]["responses"]
    content = responses[str(status) if str(status) in responses else "default"]["content"]
    schema = content[content_type]["schema"]
    value = json.loads(body) if content_type.endswith("json") else body.decode()
    Draft202012Validator(schema | {"components": tight["components"]}, format_checker=FormatChecker()).validate(value)


def test_the_document_is_valid() -> None:
    OpenAPIV31SpecValidator(json.loads(json.dumps(DOCUMENT))).validate()


def test_every_route_is_described_and_nothing_else() -> None:
    described = {
        (path, method): [p["name"] for p in operation.get("parameters", []) if p["in"] == "query"]
        for path, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
        if method != "servers"
    }
    assert described == {(route.path, route.method.lower()): list(route.query) for route in (*PUBLIC, *ADMIN)}


def test_every_named_schema_is_used() -> None:
    text = json.dumps(DOCUMENT)
    told = DOCUMENT["paths"]["/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]["schema"]
    for name in DOCUMENT["components"]["schemas"]:
        assert f'"#/components/schemas/{name}"' in text or name in told["description"], name


def test_examples_fit_their_schemas() -> None:
    example = DOCUMENT["paths"]["/recommendation"]["get"]["responses"]["200"]["content"]["application/json"]["example"]
    check("/recommendation", "get", 200, "application/json", json.dumps(example).encode())
    for problem in DOCUMENT["components"]["schemas"]["Problem"]["examples"]:
        check("/recommendation", "get", 404, "application/problem+json", json.dumps(problem).encode())


@pytest.mark.parametrize("path", [route.path for route in PUBLIC if route.path != "/events"])  # see test_events.py
async def test_answers_are_as_described(server: HttpServer, path: str) -> None:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as client, client.get(path) as response:
        assert response.status == 200
        check(path, "get", 200, response.content_type, await response.read())
        described = DOCUMENT["paths"][path]["get"]["responses"]["200"].get("headers", {})
        assert ("ETag" in response.headers) == ("ETag" in described)


@pytest.mark.parametrize("name", FormatName)
async def test_every_format_is_as_described(server: HttpServer, name: str) -> None:
    address = f"http://127.0.0.1:{server.port}/recommendation?format={name}"
    async with aiohttp.ClientSession() as client, client.get(address) as response:
        assert response.status == 200
        check("/recommendation", "get", 200, response.content_type, await response.read())


async def test_openmetrics_is_described(server: HttpServer) -> None:
    headers = {"Accept": "application/openmetrics-text; version=1.0.0"}
    address = f"http://127.0.0.1:{server.port}/metrics"
    async with aiohttp.ClientSession(headers=headers) as client, client.get(address) as response:
        assert response.content_type == "application/openmetrics-text"
        check("/metrics", "get", 200, response.content_type, await response.read())


@pytest.mark.parametrize("path", [route.path for route in ADMIN])
@pytest.mark.parametrize(("headers", "status"), [({}, 202), ({"Origin": "https://elsewhere.example"}, 403)])
async def test_admin_answers_are_as_described(
    server: HttpServer, path: str, headers: dict[str, str], status: int
) -> None:
    address = f"http://127.0.0.1:{server.admin_port}{path}"
    async with aiohttp.ClientSession() as client, client.post(address, headers=headers) as response:
        assert response.status == status
        check(path, "post", status, response.content_type, await response.read())


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/recommendation?format=xml", 400),
        ("/recommendation?target=gone", 404),
        ("/evidence?limit=0", 400),
        ("/evidence?before=nothing", 404),
        ("/targets?surprise=1", 400),
        ("/health", 503),
        ("/readyz", 503),
        ("/livez", 503),
        ("/startupz", 503),
    ],
)
async def test_problems_are_as_described(server: HttpServer, picture: Picture, address: str, status: int) -> None:
    picture.started, picture.faults = False, {"heartbeat/default": "it stopped"}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as client, client.get(address) as response:
        assert response.status == status
        path = address.partition("?")[0]
        assert str(status) in DOCUMENT["paths"][path]["get"]["responses"]
        check(path, "get", status, response.content_type, await response.read())


@pytest.mark.parametrize(
    "fault", [{"settings": None}, {"status": "certain"}, {"generated_at": "yesterday"}, {"new": 1}]
)
def test_the_check_finds_faults(fault: dict[str, object]) -> None:
    good = DOCUMENT["paths"]["/recommendation"]["get"]["responses"]["200"]["content"]["application/json"]["example"]
    bad = json.dumps(good | fault).encode()
    with pytest.raises(ValidationError, match="not valid under any of the given schemas"):
        check("/recommendation", "get", 200, "application/json", bad)
