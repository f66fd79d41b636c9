"""The real server on a free port, asked by a real client."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Mapping, Sequence

import aiohttp
import psutil
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from sidecar.catalogue import known_limits
from sidecar.core.advice.render import FormatName
from sidecar.core.evidence import Observation
from sidecar.core.views import TargetView
from sidecar.web.routes import ADMIN, ASSETS, PUBLIC
from sidecar.web.server import HttpServer
from testing.pictures import Picture, measuring, observation, outage, target, verified

PROBLEM_JSON = "application/problem+json"


def render_metrics(accept: str) -> tuple[bytes, str]:
    """Says back what it was asked, which is all the web has to do with metrics."""
    return f"# accept {accept}\n".encode(), "text/plain; version=0.0.4; charset=utf-8"


@pytest.fixture
def picture() -> Picture:
    return Picture()


@pytest.fixture
async def server(picture: Picture) -> AsyncIterator[HttpServer]:
    server = HttpServer(picture, render_metrics)
    await server.start("127.0.0.1", 0, 0)
    yield server
    await server.stop(1.0)


@pytest.fixture
async def client(server: HttpServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        yield session


@pytest.fixture
async def admin(server: HttpServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.admin_port}") as session:
        yield session


async def fetch(client: aiohttp.ClientSession, path: str, status: int = 200, **kwargs: object) -> dict:
    async with client.get(path, **kwargs) as response:
        assert response.status == status, await response.text()
        assert response.content_type == (PROBLEM_JSON if status >= 400 else "application/json")
        body = json.loads(await response.read())
        if status >= 400:
            assert body["status"] == status
            assert body["instance"] == path
            assert body["title"]
            assert body["detail"]
        return body


async def raw(port: int, request: bytes) -> bytes:
    """Everything the server says to these bytes until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        async with asyncio.timeout(60):
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


# --- every route ------------------------------------------------------------------------------------------------------


FINITE = [route.path for route in PUBLIC if route.path != "/events"]


@pytest.mark.parametrize("path", FINITE)
async def test_head_answers_as_get_without_the_body(client: aiohttp.ClientSession, path: str) -> None:
    async with client.get(path) as got, client.head(path) as head:
        body = await got.read()
        assert (got.status, head.status) == (200, 200)
        assert int(head.headers["Content-Length"]) == len(body) > 0
        assert await head.read() == b""
        ignore = {"Date"}
        assert {k: v for k, v in head.headers.items() if k not in ignore} == {
            k: v for k, v in got.headers.items() if k not in ignore
        }


async def test_head_of_the_stream(client: aiohttp.ClientSession, server: HttpServer) -> None:
    async with client.head("/events") as head, client.get("/events") as got:
        assert (got.status, head.status) == (200, 200)
        assert head.headers["Content-Type"] == got.headers["Content-Type"] == "text/event-stream"
        assert head.headers["Cache-Control"] == got.headers["Cache-Control"] == "no-store"
        assert await head.read() == b""


async def test_head_sends_no_byte_after_the_headers(server: HttpServer) -> None:
    answer = await raw(server.port, b"HEAD /recommendation HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n")
    assert answer.count(b"\r\n\r\n") == 1


@pytest.mark.parametrize("path", [*FINITE, "/nowhere"])
async def test_headers_of_every_answer(client: aiohttp.ClientSession, path: str) -> None:
    async with client.get(path) as response:
        assert response.headers["Server"] == "connection-health-sidecar"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == ("no-cache" if "ETag" in response.headers else "no-store")


@pytest.mark.parametrize("path", [route.path for route in PUBLIC])
async def test_wrong_method(client: aiohttp.ClientSession, path: str) -> None:
    async with client.post(path) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET, HEAD"
        assert response.content_type == PROBLEM_JSON


@pytest.mark.parametrize("path", [route.path for route in PUBLIC])
async def test_unknown_query_parameter(client: aiohttp.ClientSession, path: str) -> None:
    problem = await fetch(client, f"{path}?surprise=1", 400)
    assert problem["parameter"] == "surprise"


async def test_a_parameter_given_twice(client: aiohttp.ClientSession) -> None:
    problem = await fetch(client, "/recommendation?target=default&target=other", 400)
    assert problem["parameter"] == "target"


async def test_unknown_path_says_what_there_is(client: aiohttp.ClientSession) -> None:
    problem = await fetch(client, "/recommendations", 404)
    assert "/recommendation" in problem["available"]


# --- the page ---------------------------------------------------------------------------------------------------------

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "json_wanted"),
    [
        (BROWSER, False),
        ("*/*", False),
        ("", False),
        ("text/plain", False),
        ("application/json", True),
        ("Application/JSON, text/plain, */*", True),
        ("application/json, text/html", False),
        ("application/json, text/html;q=0.9", True),
        ("application/json;q=0.5, text/html", False),
        ("application/json;q=0", False),
        ("application/json;q=x", False),
    ],
)
async def test_the_page_by_default_and_an_index_to_who_asks_for_json(
    client: aiohttp.ClientSession, accept: str, json_wanted: bool
) -> None:
    async with client.get("/", headers={"Accept": accept}) as response:
        assert response.content_type == ("application/json" if json_wanted else "text/html")
        assert response.headers["Vary"] == "Accept"


async def test_index_lists_routes_and_formats(client: aiohttp.ClientSession) -> None:
    index = await fetch(client, "/", headers={"Accept": "application/json"})
    assert set(index["routes"]) == {route.path for route in PUBLIC}
    assert index["formats"] == list(FormatName)


async def test_the_page_may_load_nothing_from_elsewhere(client: aiohttp.ClientSession) -> None:
    async with client.get("/") as response:
        html, headers = await response.text(), response.headers
    policy = dict(directive.split(" ", 1) for directive in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[kind] for kind in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert headers["Referrer-Policy"] == "no-referrer"
    assert not re.search(r"<style|style=|<script(?! type=\"module\" src=)|\son\w+=|//", html), "inline or outside"


async def test_the_page_is_small_and_each_part_of_it_is_held_until_it_changes(client: aiohttp.ClientSession) -> None:
    size = 0
    async with client.get("/") as response:
        size += len(await response.read())
        addresses = re.findall(r'(?:src|href)="(assets/[^"]+)"', await response.text())
    assert {f"/{address}" for address in addresses} < {asset.path for asset in ASSETS}
    for asset in ASSETS:
        async with client.get(asset.path) as response:
            assert response.status == 200
            size += len(await response.read())
            addresses = set(re.findall(r"\w+://[^\"']+", await response.text()))
            assert addresses <= {"http://www.w3.org/2000/svg"}  # the name of a language, never asked for
        async with client.get(asset.path, headers={"If-None-Match": response.headers["ETag"]}) as again:
            assert again.status == 304
    assert size < 80_000


async def test_known_limits_are_those_of_the_catalogue(client: aiohttp.ClientSession) -> None:
    shown = (await fetch(client, "/known-limits"))["limits"]
    assert [limit["id"] for limit in shown] == [limit.id for limit in known_limits()]
    assert next(limit for limit in shown if limit["id"] == "natgw")["default_seconds"] == 350


# --- health -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/health", "/readyz"])
async def test_ready_only_when_every_target_is(client: aiohttp.ClientSession, picture: Picture, path: str) -> None:
    picture.views = {"a": target("a"), "b": target("b")}
    assert await fetch(client, path) == {
        "ready": True,
        "targets": {
            name: {"ready": True, "reason": "the database answers", "since": "2026-11-24T12:00:00Z"} for name in "ab"
        },
    }
    picture.views["b"] = target("b", ready=False)
    problem = await fetch(client, path, 503)
    assert problem["ready"] is False
    assert problem["detail"] == "b: the database does not answer"
    assert problem["targets"]["a"]["ready"] is True
    assert problem["targets"]["b"]["reason"] == "the database does not answer"


async def test_not_ready_before_started(client: aiohttp.ClientSession, picture: Picture) -> None:
    picture.started = False
    assert "starting" in (await fetch(client, "/health", 503))["detail"]
    assert (await fetch(client, "/startupz", 503))["started"] is False
    picture.started = True
    assert await fetch(client, "/startupz") == {"started": True}


async def test_livez_names_the_dead_task_and_ignores_the_database(
    client: aiohttp.ClientSession, picture: Picture
) -> None:
    picture.views = {"default": target(ready=False)}
    assert await fetch(client, "/livez") == {"alive": True, "faults": {}}
    picture.faults = {"heartbeat/default": "ZeroDivisionError"}
    problem = await fetch(client, "/livez", 503)
    assert "heartbeat/default" in problem["detail"]
    assert problem["faults"] == picture.faults


# --- the advice -------------------------------------------------------------------------------------------------------


async def test_recommendation_while_measuring(client: aiohttp.ClientSession) -> None:
    assert await fetch(client, "/recommendation") == {
        "schema": 1,
        "target": "default",
        "generated_at": "2026-11-24T12:00:00Z",
        "status": "measuring",
        "settings": {
            "pool_recycle": 30,
            "pool_pre_ping": True,
            "selective_pre_ping_after": None,
            "pool_recycle_with_keepalive": None,
        },
        "socket": {"keepalive": None, "user_timeout_ms": None},
        "connect_args": {},
        "idle_limit": None,
        "lifetime_limit": None,
        "pre_ping_cost": None,
        "failover": None,
        "application": None,
        "verification": None,
        "trials": [],
        "reasons": [],
        "warnings": [],
    }


async def test_recommendation_with_everything_known(client: aiohttp.ClientSession, picture: Picture) -> None:
    picture.views = {"default": target(advice=verified())}
    advice = await fetch(client, "/recommendation")
    assert advice["idle_limit"] == {
        "proven_seconds": 343.0,
        "dead_by_seconds": 350.1,
        "estimate_seconds": 346.5,
        "death": "silent",
        "sqlstate": None,
        "keepalive_helps": True,
        "likely": [{"id": "firewall", "component": "a stateful firewall"}],
    }
    assert advice["socket"] == {"keepalive": {"idle": 114, "interval": 15, "count": 3}, "user_timeout_ms": 5000}
    assert advice["verification"]["at"] == "2026-11-24T12:00:00.250000Z"


async def test_sqlalchemy_format_is_accepted_by_create_async_engine(
    client: aiohttp.ClientSession, picture: Picture
) -> None:
    arguments = await fetch(client, "/recommendation?format=sqlalchemy")
    assert arguments == {"pool_recycle": 30, "pool_pre_ping": True}
    picture.views = {"default": target(advice=verified())}
    arguments = await fetch(client, "/recommendation?format=sqlalchemy")
    engine = create_async_engine("postgresql+asyncpg://app@db.internal/app", **arguments)
    assert engine.pool._recycle == arguments["pool_recycle"] == 171
    assert engine.pool._pre_ping is arguments["pool_pre_ping"] is False
    assert arguments["connect_args"]["prepared_statement_cache_size"] == 0
    await engine.dispose()


async def test_env_format_is_read_by_a_shell(client: aiohttp.ClientSession, picture: Picture) -> None:
    async with client.get("/recommendation?format=env") as response:
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert await response.text() == "POOL_RECYCLE=30\nPOOL_PRE_PING=true\n"

    picture.views = {"default": target(advice=verified())}
    async with client.get("/recommendation?format=env") as response:
        script = await response.text()
    shell = await asyncio.create_subprocess_exec(
        "sh", "-ec", f"set -a\n{script}exec env", stdout=asyncio.subprocess.PIPE, env={"PATH": os.defpath}
    )
    read, _ = await shell.communicate()
    assert shell.returncode == 0
    values = dict(line.split("=", 1) for line in read.decode().splitlines())
    assert json.loads(values.pop("CONNECT_ARGS")) == verified().connect_args
    assert {name: value for name, value in values.items() if name.startswith(("POOL", "TCP"))} == {
        "POOL_RECYCLE": "171",
        "POOL_PRE_PING": "false",
        "POOL_SELECTIVE_PRE_PING_AFTER": "60.0",
        "TCP_KEEPIDLE": "114",
        "TCP_KEEPINTVL": "15",
        "TCP_KEEPCNT": "3",
        "TCP_USER_TIMEOUT": "5000",
    }


async def test_unknown_format_says_what_there_is(client: aiohttp.ClientSession) -> None:
    assert (await fetch(client, "/recommendation?format=xml", 400))["available"] == list(FormatName)


async def test_target_unnamed(client: aiohttp.ClientSession, picture: Picture) -> None:
    picture.views = {"orders": target("orders")}
    assert (await fetch(client, "/recommendation"))["target"] == "orders"
    picture.views["reports"] = target("reports")
    assert (await fetch(client, "/recommendation", 400))["available"] == ["orders", "reports"]
    picture.views["default"] = target()
    assert (await fetch(client, "/recommendation"))["target"] == "default"
    assert (await fetch(client, "/recommendation?target=reports"))["target"] == "reports"


@pytest.mark.parametrize("path", ["/recommendation", "/evidence", "/outages"])
async def test_unknown_target_says_what_there_is(client: aiohttp.ClientSession, path: str) -> None:
    assert (await fetch(client, f"{path}?target=orders", 404))["available"] == ["default"]


# --- revalidation -----------------------------------------------------------------------------------------------------


async def test_etag_stands_with_the_advice_and_falls_with_it(client: aiohttp.ClientSession, picture: Picture) -> None:
    async with client.get("/recommendation") as first:
        etag = first.headers["ETag"]
        assert etag.startswith('"')

    # time passes, the view is a new one, the advice equal
    later = dataclasses.replace(target(advice=measuring()), elapsed_seconds=99.0)
    picture.views = {"default": later}
    for held in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        for request in (client.get, client.head):
            async with request("/recommendation", headers={"If-None-Match": held}) as again:
                assert again.status == 304
                assert again.headers["ETag"] == etag
                assert again.headers["Cache-Control"] == "no-cache"
                assert await again.read() == b""

    picture.views = {"default": target(advice=verified())}
    async with client.get("/recommendation", headers={"If-None-Match": etag}) as changed:
        assert changed.status == 200
        assert changed.headers["ETag"] != etag
        assert json.loads(await changed.read())["status"] == "verified"


async def test_advice_of_a_new_moment_is_not_served_from_before(
    client: aiohttp.ClientSession, picture: Picture
) -> None:
    await fetch(client, "/recommendation")
    view = picture.views["default"]
    picture.views = {"default": dataclasses.replace(view, generated_at=view.generated_at + 60)}
    assert (await fetch(client, "/recommendation"))["generated_at"] == "2026-11-24T12:01:00Z"


@pytest.mark.parametrize("path", ["/", "/targets", "/evidence", "/outages", "/openapi.json"])
async def test_the_others_revalidate_too(client: aiohttp.ClientSession, path: str) -> None:
    async with client.get(path) as response:
        etag = response.headers["ETag"]
    async with client.get(path, headers={"If-None-Match": etag}) as response:
        assert response.status == 304
    async with client.get(path, headers={"If-None-Match": '"stale"'}) as response:
        assert response.status == 200


# --- targets, evidence, outages ---------------------------------------------------------------------------------------


async def test_targets(client: aiohttp.ClientSession, picture: Picture) -> None:
    picture.store_pending_writes, picture.store_warning = 7, "the disk is full"
    body = await fetch(client, "/targets")
    assert body["store"] == {"pending_writes": 7, "warning": "the disk is full"}
    (shown,) = body["targets"]
    assert shown["name"] == "default"
    assert shown["database"] == "db.internal:5432/app"
    assert shown["status"] == "measuring"
    assert shown["connections"] == [
        {"role": "pool", "state": "idle", "count": 2},
        {"role": "probe", "state": "resting", "count": 1},
    ]
    assert shown["probes"][0]["arm"] == "sentinel"


async def test_evidence_is_written_out(client: aiohttp.ClientSession, picture: Picture) -> None:
    picture.seen["default"] = [observation(1)]
    (shown,) = (await fetch(client, "/evidence"))["observations"]
    assert shown["at"] == "2026-11-24T12:00:01Z"
    assert shown["identity"]["started_at"] == "2026-11-23T11:59:59.500000Z"
    assert shown["death"] is None


async def test_outages_are_written_out(client: aiohttp.ClientSession, picture: Picture) -> None:
    picture.disturbed["default"] = [outage(0)]
    body = await fetch(client, "/outages")
    (shown,) = body["outages"]
    assert shown["connect"] == {
        "began": {"after": "2026-11-24T12:00:00Z", "until": "2026-11-24T12:00:00.500000Z"},
        "ended": {"after": "2026-11-24T12:00:10Z", "until": "2026-11-24T12:00:10.100000Z"},
        "shortest_seconds": 9.5,
        "longest_seconds": pytest.approx(10.1),
        "watched": True,
    }
    assert shown["write"]["ended"] is shown["write"]["longest_seconds"] is None
    assert shown["after"]["started_at"] == "2026-11-24T12:00:00Z"
    assert shown["connections_lost"] == {"closed": 3}


@pytest.mark.parametrize("path", ["/evidence", "/outages"])
async def test_pages_hold_still_while_new_items_arrive(
    client: aiohttp.ClientSession, picture: Picture, path: str
) -> None:
    make = observation if path == "/evidence" else outage
    items = [make(serial) for serial in range(10)]
    (picture.seen if path == "/evidence" else picture.disturbed)["default"] = items
    seen, pages, address = [], 0, f"{path}?limit=4"
    while address:
        async with client.get(address) as response:
            body = json.loads(await response.read())
            link = response.links.get("next")
            assert (str(link["url"].relative()) if link else None) == body["next"]
        seen += [item["id"] for item in body[path[1:] if path == "/outages" else "observations"]]
        address, pages = body["next"], pages + 1
        items.append(make(100 + pages))
    assert seen == [make(serial).id for serial in reversed(range(10))]
    assert pages == 3


async def test_a_full_last_page_has_no_next(client: aiohttp.ClientSession, picture: Picture) -> None:
    picture.seen["default"] = [observation(serial) for serial in range(4)]
    body = await fetch(client, "/evidence?limit=4")
    assert len(body["observations"]) == 4
    assert body["next"] is None


async def test_no_evidence(client: aiohttp.ClientSession) -> None:
    assert await fetch(client, "/evidence") == {"target": "default", "observations": [], "next": None}


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "ten", "", "1.5", "+5", " 5", "1_0", "٣", "9" * 100])
async def test_bad_limit(client: aiohttp.ClientSession, limit: str) -> None:
    async with client.get("/evidence", params={"limit": limit}) as response:
        assert response.status == 400
        assert response.content_type == PROBLEM_JSON
        assert json.loads(await response.read())["parameter"] == "limit"


async def test_unknown_cursor(client: aiohttp.ClientSession, picture: Picture) -> None:
    picture.seen["default"] = [observation(1)]
    await fetch(client, "/evidence?before=run-7", 404)


# --- metrics ----------------------------------------------------------------------------------------------------------


async def test_metrics_are_asked_for_by_accept(client: aiohttp.ClientSession) -> None:
    async with client.get("/metrics", headers={"Accept": "application/openmetrics-text"}) as response:
        assert await response.text() == "# accept application/openmetrics-text\n"
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert response.headers["Vary"] == "Accept"


# --- admin ------------------------------------------------------------------------------------------------------------


async def test_quit(admin: aiohttp.ClientSession, picture: Picture) -> None:
    async with admin.get("/quitquitquit") as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"
    assert not picture.left
    async with admin.post("/quitquitquit") as response:
        assert response.status == 202
        assert await response.json() == {"leaving": True}
    assert picture.left


async def test_measure(admin: aiohttp.ClientSession, picture: Picture) -> None:
    picture.views = {"default": target(), "orders": target("orders")}
    async with admin.post("/measure?target=orders") as response:
        assert response.status == 202
        assert await response.json() == {"target": "orders"}
    async with admin.post("/measure") as response:
        assert response.status == 202
    async with admin.post("/measure?target=gone") as response:
        assert response.status == 404
    assert picture.measured_afresh == ["orders", "default"]


async def test_pause_and_resume(admin: aiohttp.ClientSession, client: aiohttp.ClientSession, picture: Picture) -> None:
    assert (await fetch(client, "/targets"))["paused"] is None
    async with admin.post("/pause?for=90s") as response:
        assert response.status == 202
        told = await response.json()
    assert told == {"since": "2026-11-24T12:00:00Z", "until": "2026-11-24T12:01:30Z", "reason": "by_hand"}
    assert (await fetch(client, "/targets"))["paused"] == told
    async with admin.post("/pause") as response:
        assert (await response.json())["until"] == "2026-11-24T12:10:00Z"
    async with admin.post("/resume") as response:
        assert response.status == 202
        assert await response.json() == {"paused": False}
    assert picture.paused is None


@pytest.mark.parametrize(
    ("wish", "detail"),
    [
        ("soon", "for: not a duration: takes 1s to 24h"),
        ("0", "for: out of range: takes 1s to 24h"),
        ("25h", "for: out of range: takes 1s to 24h"),
    ],
)
async def test_a_pause_has_bounds(admin: aiohttp.ClientSession, picture: Picture, wish: str, detail: str) -> None:
    async with admin.post("/pause", params={"for": wish}) as response:
        assert response.status == 400
        problem = await response.json(content_type=PROBLEM_JSON)
    assert (problem["detail"], problem["parameter"]) == (detail, "for")
    assert picture.paused is None


async def test_web_pages_may_not_use_the_admin_port(admin: aiohttp.ClientSession, picture: Picture) -> None:
    for route in ADMIN:
        async with admin.post(route.path, headers={"Origin": "https://elsewhere.example"}) as response:
            assert response.status == 403
            assert response.content_type == PROBLEM_JSON
    assert not picture.left
    assert not picture.measured_afresh
    assert picture.paused is None


async def test_the_two_ports_do_not_share_routes(client: aiohttp.ClientSession, admin: aiohttp.ClientSession) -> None:
    async with client.post("/quitquitquit") as response:
        assert response.status == 404
    async with admin.get("/recommendation") as response:
        assert response.status == 404


async def test_admin_listens_on_loopback_only_while_the_rest_is_public() -> None:
    server = HttpServer(Picture(), render_metrics)
    await server.start("0.0.0.0", 0, 0)
    try:
        listening: dict[int, set[str]] = {}
        for connection in psutil.Process().net_connections():
            if connection.status == psutil.CONN_LISTEN:
                listening.setdefault(connection.laddr.port, set()).add(connection.laddr.ip)
        assert listening[server.port] == {"0.0.0.0"}
        assert listening[server.admin_port] == {"127.0.0.1"}
    finally:
        await server.stop(1.0)


# --- faults -----------------------------------------------------------------------------------------------------------


class Broken(Picture):
    def targets(self) -> Mapping[str, TargetView]:
        raise RuntimeError("password=hunter2")


async def test_a_failing_handler_tells_the_log_not_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    server = HttpServer(Broken(), render_metrics)
    await server.start("127.0.0.1", 0, 0)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as client:
            problem = await fetch(client, "/targets", 500)
            assert "hunter2" not in json.dumps(problem)
            assert await fetch(client, "/livez") == {"alive": True, "faults": {}}
    finally:
        await server.stop(1.0)
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.name == "sidecar.web"
    assert record.path == "/targets"
    assert record.exc_info
    assert isinstance(record.exc_info[1], RuntimeError)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nbroken header\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Large: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X-Many: 1\r\n" * 200 + b"\r\n",
    ],
    ids=["tls", "header", "line too long", "field too long", "too many fields"],
)
async def test_what_is_not_http_is_a_problem_too(
    server: HttpServer, caplog: pytest.LogCaptureFixture, request_bytes: bytes
) -> None:
    answer = await raw(server.port, request_bytes)
    head, body = answer.split(b"\r\n\r\n", 1)
    assert head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert b"application/problem+json" in head
    assert b"aiohttp" not in head
    assert json.loads(body)["status"] == 400
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG and record.name != "asyncio"]


async def test_bodies_are_refused_unread(server: HttpServer) -> None:
    answer = await raw(
        server.admin_port,
        b"POST /measure HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1000000000\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("head", [b"OPTIONS *", b"CONNECT db:5432", b"GET //health", b"GET /health/", b"GET /%00"])
async def test_odd_request_targets(server: HttpServer, head: bytes) -> None:
    answer = await raw(server.port, head + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.split(b" ", 2)[1] in (b"400", b"404")
    assert b"application/problem+json" in answer


# --- life -------------------------------------------------------------------------------------------------------------


async def test_a_port_in_use_leaves_nothing_open(picture: Picture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        before = psutil.Process().num_fds()
        server = HttpServer(picture, render_metrics)
        with pytest.raises(OSError, match=r"http\.admin_port: cannot listen on .*: Address already in use"):
            await server.start("127.0.0.1", 0, taken.getsockname()[1])
        assert psutil.Process().num_fds() == before
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.port)


class Telling(Picture):
    """Tells when it was asked, so that a stop comes before the answer has left."""

    def __init__(self, asked: asyncio.Event) -> None:
        super().__init__()
        self._asked = asked

    def observations(self, target: str) -> Sequence[Observation]:
        self._asked.set()
        return super().observations(target)


async def test_stop_answers_what_was_asked_and_closes_the_rest() -> None:
    asked = asyncio.Event()
    server = HttpServer(Telling(asked), render_metrics)
    await server.start("127.0.0.1", 0, 0)
    idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", server.port)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /evidence HTTP/1.1\r\nHost: x\r\n\r\n")
    await asked.wait()
    async with asyncio.timeout(60):
        await server.stop(1.0)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        assert await idle_reader.read() == b""
    for each in (writer, idle_writer):
        each.close()
        await each.wait_closed()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)
    await server.stop(1.0)  # a second time does no harm
