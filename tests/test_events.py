"""The journal, and `/events` on the real server with real readers, slow and lost ones among them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from sidecar.core.journal import Journal
from sidecar.web import events
from sidecar.web.server import HttpServer
from testing.pictures import Picture, observation, outage, target, verified

pytestmark = pytest.mark.real_time


@dataclass
class Event:
    name: str
    data: Any
    id: str | None


@contextlib.asynccontextmanager
async def reading(server: HttpServer, path: str = "/events", last: str | None = None) -> AsyncIterator[Reader]:
    headers = {} if last is None else {"Last-Event-ID": last}
    address = f"http://127.0.0.1:{server.port}{path}"
    async with aiohttp.ClientSession() as client, client.get(address, headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        yield Reader(response)


class Reader:
    """Parses the stream as the standard has it."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def next(self) -> Event | None:
        """The next event; None at the end of the stream."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(60):
            while line := (await self._response.content.readline()).decode():
                name, _, value = line.rstrip("\n").partition(": ")
                if name:
                    fields[name] = value
                elif "data" in fields:
                    return Event(fields.get("event", "message"), json.loads(fields["data"]), fields.get("id"))
                else:
                    fields = {}
        return None

    async def take(self, count: int) -> list[Event]:
        taken = [await self.next() for _ in range(count)]
        assert None not in taken
        return [event for event in taken if event is not None]


@pytest.fixture
def picture() -> Picture:
    return Picture()


@pytest.fixture
async def server(picture: Picture, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HttpServer]:
    monkeypatch.setattr(events, "LOOK_SECONDS", 0.05)
    server = HttpServer(picture, lambda accept: (b"", "text/plain"))
    await server.start("127.0.0.1", 0, 0)
    yield server
    await server.stop(1.0)


OPENING = ["reset", "target", "recommendation"]


def names(taken: list[Event]) -> list[str]:
    return [event.name for event in taken]


async def until_there_are(readers: int, server: HttpServer) -> None:
    async with asyncio.timeout(60):
        while True:
            if server.readers == readers:
                return
            await asyncio.sleep(0.01)


# --- the journal ------------------------------------------------------------------------------------------------------


def test_the_journal_knows_what_came_after_as_far_as_it_is_kept() -> None:
    journal = Journal("life", kept=3)
    assert journal.after(0, 9) == ()
    for serial in range(1, 6):
        journal.add(observation(serial))
    assert [entry.serial for entry in journal.after(2, 9) or ()] == [3, 4, 5]
    assert [entry.serial for entry in journal.after(2, 2) or ()] == [3, 4]
    assert [entry.record.id for entry in journal.after(4, 9) or ()] == ["run-5"]
    assert journal.after(5, 9) == ()
    assert journal.after(1, 9) is None  # 2 is gone
    assert journal.after(6, 9) is None  # never given
    assert journal.after(-1, 9) is None


# --- the stream -------------------------------------------------------------------------------------------------------


async def test_a_stream_opens_with_the_state_and_goes_on_with_what_happens(
    server: HttpServer, picture: Picture
) -> None:
    async with reading(server) as reader:
        opening = await reader.take(3)
        assert names(opening) == OPENING
        assert [event.id for event in opening] == ["life-0", None, None]
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as client:
            async with client.get("/targets") as response:
                assert (await response.json())["targets"] == [opening[1].data]
            async with client.get("/recommendation") as response:
                assert await response.json() == opening[2].data
        picture.journal.add(observation(1))
        picture.journal.add(outage(2))
        told = await reader.take(2)
        assert [(event.name, event.id, event.data["id"]) for event in told] == [
            ("observation", "life-1", "run-1"),
            ("outage", "life-2", "outage-2"),
        ]


async def test_state_is_told_when_it_changes_and_not_when_time_passes(server: HttpServer, picture: Picture) -> None:
    async with reading(server) as reader:
        await reader.take(3)
        view = picture.views["default"]
        probe = dataclasses.replace(view.probes[0], idle_seconds=13.0)
        picture.views = {"default": dataclasses.replace(view, elapsed_seconds=13.5, probes=(probe,))}
        await asyncio.sleep(0.2)  # some looks
        picture.views = {"default": target(advice=verified())}
        told = await reader.take(2)
        assert names(told) == ["target", "recommendation"]
        assert {event.data["status"] for event in told} == {"verified"}


@pytest.mark.parametrize("last", ["life-1", "life-2"])
async def test_a_reader_goes_on_where_it_was(server: HttpServer, picture: Picture, last: str) -> None:
    for serial in (1, 2, 3):
        picture.journal.add(observation(serial))
    missed = 3 - int(last[-1])
    async with reading(server, last=last) as reader:
        told = await reader.take(missed + 2)
        assert names(told) == ["observation"] * missed + ["target", "recommendation"]
        assert [event.id for event in told[:missed]] == ["life-2", "life-3"][-missed:]


@pytest.mark.parametrize("last", ["life-9", "another-1", "life--1", "life-", "-1", "1", "life-٣", "life-" + "9" * 99])
async def test_who_cannot_go_on_begins_anew(server: HttpServer, picture: Picture, last: str) -> None:
    picture.journal.add(observation(1))
    last = last.encode().decode("latin-1")  # as it goes over the wire
    async with reading(server, last=last) as reader:
        told = await reader.take(3)
        assert names(told) == OPENING
        assert told[0].id == "life-1"


async def test_one_target_alone(server: HttpServer, picture: Picture) -> None:
    picture.views["orders"] = target("orders")
    async with reading(server, "/events?target=orders") as reader:
        opening = await reader.take(3)
        assert names(opening) == OPENING
        assert (opening[1].data["name"], opening[2].data["target"]) == ("orders", "orders")
        picture.journal.add(observation(1))
        picture.journal.add(observation(2, name="orders"))
        (told,) = await reader.take(1)
        assert told.id == "life-2"


async def test_a_target_that_is_none(server: HttpServer) -> None:
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as client,
        client.get("/events?target=gone") as response,
    ):
        assert response.status == 404


async def test_silence_is_broken_by_a_heartbeat(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.1)
    async with reading(server) as reader:
        *_, beat = await reader.take(4)
        assert (beat.name, beat.id) == ("heartbeat", None)
        assert beat.data["at"].endswith("Z")


# --- bounds -----------------------------------------------------------------------------------------------------------


async def test_a_slow_reader_loses_the_oldest_and_is_told(server: HttpServer, picture: Picture) -> None:
    """It reads nothing while more happens than is kept, and more than all buffers hold."""
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    small.connect(("127.0.0.1", server.port))
    reader, writer = await asyncio.open_connection(sock=small, limit=1)  # the limit pauses reading at once
    writer.write(b"GET /events HTTP/1.0\r\n\r\n")
    await reader.readexactly(1)
    for serial in range(1, 2001):
        picture.journal.add(observation(serial))
        if serial % 100 == 0:
            await asyncio.sleep(0.005)
    told = b""
    async with asyncio.timeout(60):
        while b"id: life-2000\n" not in told:
            told += await reader.read(65536)
    writer.close()
    serials = [int(line.split(b"-")[1]) for line in told.split(b"\n") if line.startswith(b"id: ")]
    assert serials == sorted(serials)
    assert told.count(b"event: reset\n") == 2  # that of the beginning, and the gap
    assert len(serials) < 2000


async def test_a_reader_that_takes_nothing_is_dropped(
    server: HttpServer, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.web.server.SLOW_READER_SECONDS", 0.3)
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", server.port))
    with deaf:
        deaf.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        await until_there_are(1, server)
        async with asyncio.timeout(60):
            while server.readers:
                picture.journal.add(observation(1))
                await asyncio.sleep(0.001)


async def test_a_reader_that_leaves_while_it_is_told_something_is_no_failure(
    server: HttpServer, picture: Picture, caplog: pytest.LogCaptureFixture
) -> None:
    """The first of the two records meets the reset; the second then finds the connection closing, but not yet lost."""
    with socket.create_connection(("127.0.0.1", server.port)) as leaving:
        leaving.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        await until_there_are(1, server)
        await asyncio.sleep(0.2)  # it has been told all there is, and the stream waits
        leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close by RST
    picture.journal.add(observation(1))
    picture.journal.add(observation(2))
    await until_there_are(0, server)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_readers_are_bounded_and_those_that_leave_make_room(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_READERS", 1)
    async with reading(server) as reader:
        await reader.take(3)
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as client,
            client.get("/events") as response,
        ):
            assert response.status == 503
            assert response.headers["Retry-After"] == "10"
            assert response.content_type == "application/problem+json"
    await until_there_are(0, server)
    async with reading(server) as reader:
        assert names(await reader.take(3)) == OPENING


async def test_nothing_is_computed_while_nobody_listens(picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LOOK_SECONDS", 0.01)
    looks = []

    class Looked(Picture):
        def targets(self):  # type: ignore[no-untyped-def]
            looks.append(1)
            return super().targets()

    server = HttpServer(Looked(), lambda accept: (b"", "text/plain"))
    await server.start("127.0.0.1", 0, 0)
    try:
        await asyncio.sleep(0.05)
        assert not looks
        async with reading(server) as reader:
            await reader.take(3)
            await asyncio.sleep(0.05)
            assert len(looks) > 1
        await until_there_are(0, server)
        looks.clear()
        await asyncio.sleep(0.05)
        assert not looks
    finally:
        await server.stop(1.0)


async def test_a_stop_ends_the_streams_in_order(server: HttpServer) -> None:
    async with reading(server) as reader:
        await reader.take(3)
        began = asyncio.get_running_loop().time()
        stopping = asyncio.create_task(server.stop(3.0))
        assert await reader.next() is None  # a proper end, no broken connection
        await stopping
        assert asyncio.get_running_loop().time() - began < 2.0
