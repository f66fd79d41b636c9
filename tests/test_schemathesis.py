"""The description held against the running server by what it says itself: schemathesis makes up the requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.schemas import BaseSchema

from sidecar.metrics import Metrics
from sidecar.web.routes import PUBLIC
from sidecar.web.server import HttpServer
from testing.pictures import Picture, observation, outage, target, verified

pytestmark = pytest.mark.real_time


def rich() -> Picture:
    return Picture(
        views={"default": target(advice=verified()), "orders": target("orders")},
        seen={"default": [observation(serial) for serial in range(5)]},
        disturbed={"default": [outage(serial) for serial in range(5)]},
    )


@pytest.fixture(scope="module")
def public() -> Iterator[str]:
    """A server in a loop of its own, since schemathesis asks and waits."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    picture = rich()

    async def begin() -> HttpServer:
        server = HttpServer(picture, Metrics(picture, picture.views).render)
        await server.start("127.0.0.1", 0, 0)
        return server

    server = asyncio.run_coroutine_threadsafe(begin(), loop).result()
    yield f"http://127.0.0.1:{server.port}"
    asyncio.run_coroutine_threadsafe(server.stop(0.1), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def described(public: str) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{public}/openapi.json")


# The stream has no end that could be waited for (test_events.py reads it); POST is served on the admin port only.
# A route without parameters cannot be asked wrongly.
@pytest.mark.parametrize(
    ("path", "mode"),
    [
        (route.path, mode)
        for route in PUBLIC
        for mode in GenerationMode
        if route.path != "/events" and (route.query or mode is GenerationMode.POSITIVE)
    ],
)
def test_every_answer_is_as_described(path: str, mode: GenerationMode, described: BaseSchema, public: str) -> None:
    asked = 0

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(described[path]["GET"].as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        nonlocal asked
        asked += 1
        case.call_and_validate(base_url=public)

    ask()
    assert asked
