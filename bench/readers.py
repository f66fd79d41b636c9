"""Readers of `/events`, most of them slow: what `bench.events` puts before the service, in a process of its own.

    python -m bench.readers HOST PORT READERS BYTES_PER_SECOND...

Each reader takes so many bytes a second, by turns the numbers given; with 0 it reads nothing at all. One more keeps up
with whatever comes, and is the witness of what was told. A line is printed once all are connected. At the end of
standard input the slow ones lose their connections, come back with the id of the last event they know, and read as fast
as they can until they are where the witness is; and then once more. What became of them is printed as JSON.

Nothing is taken on trust: the ids a reader was given must go up one by one, from each `reset` on, every record must be
the very one the witness holds, and the state it ends with must be no older than the witness's was as it came back.
"""

from __future__ import annotations

import json
import selectors
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

RECEIVE_BUFFER_BYTES = 4096  # of a reader that does not read, so that the sender soon has to hold what it sends
TICK_SECONDS = 0.25
DRAIN_SECONDS = 3.0
GRACE_SECONDS = 60.0  # for coming back and reading it all: a guard, not a goal

State = tuple[str, str]  # the kind of event, the target


class Reader:
    """One connection after another to `/events`, and what it has told so far."""

    def __init__(self, address: tuple[str, int], bytes_per_second: int | None = None) -> None:
        self._address = address
        self.bytes_per_second = bytes_per_second  # None = whatever comes
        self.names: Counter[str] = Counter()
        self.records: dict[int, bytes] = {}
        self.states: dict[State, list[bytes]] = {}
        self.last: str | None = None  # the id of the last event that had one
        self.received = 0
        self.faults: list[str] = []
        self.connect(slow=bytes_per_second is not None)

    def connect(self, *, slow: bool) -> None:
        self.socket = socket.socket()
        if slow:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self.socket.connect(self._address)
        resume = f"Last-Event-ID: {self.last}\r\n" if self.last else ""
        # HTTP/1.0 has no chunks: what follows the head is the stream.
        self.socket.sendall(f"GET /events HTTP/1.0\r\nAccept: text/event-stream\r\n{resume}\r\n".encode())
        self.socket.setblocking(False)
        self._pending = b""
        self._head_read = False

    @property
    def serial(self) -> int:
        return -1 if self.last is None else int(self.last.rpartition("-")[2])

    def take(self, limit: int) -> bool:
        """Read at most so much of what is there; whether the connection still stands."""
        try:
            data = self.socket.recv(limit)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        self.received += len(data)
        self._pending += data
        if not self._head_read and b"\r\n\r\n" in self._pending:
            head, _, self._pending = self._pending.partition(b"\r\n\r\n")
            if b" 200 " not in head.partition(b"\r\n")[0]:
                raise ConnectionError(f"unexpected answer: {head[:200]!r}")
            self._head_read = True
        if self._head_read:
            *events, self._pending = self._pending.split(b"\n\n")
            for event in events:
                self._told(event)
        return bool(data)

    def _told(self, event: bytes) -> None:
        fields = dict(line.split(b": ", 1) for line in event.split(b"\n"))
        if b"event" not in fields:
            return  # how long to wait before connecting again
        name, data = fields[b"event"].decode(), fields[b"data"]
        self.names[name] += 1
        if b"id" in fields:
            before, self.last = self.serial, fields[b"id"].decode()
            if name == "reset":
                return
            if self.serial != before + 1:
                self.faults.append(f"{self.serial} was told after {before}")
            self.records[self.serial] = data
        elif name in ("target", "recommendation"):
            document = json.loads(data)
            self.states.setdefault((name, document.get("target") or document["name"]), []).append(data)


def everything(readers: Sequence[Reader], until: Callable[[], bool], seconds: float) -> list[Reader]:
    """Read as fast as possible, until that holds or so much time has passed; those whose connection ended."""
    ended = []
    with selectors.DefaultSelector() as waiting:
        for reader in readers:
            waiting.register(reader.socket, selectors.EVENT_READ, reader)
        deadline = time.monotonic() + seconds
        while waiting.get_map() and not until() and time.monotonic() < deadline:
            for key, _ in waiting.select(TICK_SECONDS):
                if not key.data.take(1 << 20):
                    waiting.unregister(key.fileobj)
                    ended.append(key.data)
    return ended


def slowly(witness: Reader, readers: Sequence[Reader]) -> None:
    """Until standard input ends: the witness takes everything, each reader its share."""
    taking = {reader for reader in readers if reader.bytes_per_second}
    with selectors.DefaultSelector() as waiting:
        waiting.register(sys.stdin, selectors.EVENT_READ)
        waiting.register(witness.socket, selectors.EVENT_READ)
        due = time.monotonic()
        while True:
            ready = {key.fileobj for key, _ in waiting.select(max(0.0, due - time.monotonic()))}
            if sys.stdin in ready:
                return
            if witness.socket in ready and not witness.take(1 << 20):
                raise ConnectionError("the witness lost its connection")
            if time.monotonic() >= due:
                due += TICK_SECONDS
                for reader in tuple(taking):
                    if not reader.take(int((reader.bytes_per_second or 0) * TICK_SECONDS)):
                        taking.remove(reader)


def compare(reader: Reader, witness: Reader, versions: dict[State, int]) -> None:
    """Note as faults of the reader what it holds that is not what the witness was told."""
    for serial, record in reader.records.items():
        if witness.records.get(serial, record) != record:
            reader.faults.append(f"{serial} is another record than the witness's")
    for state, known in versions.items():
        if reader.states.get(state, [b""])[-1] not in witness.states[state][known - 1 :]:
            reader.faults.append(f"the state of {' '.join(state)} is of old")


def come_back(witness: Reader, readers: Sequence[Reader]) -> set[Reader]:
    """Have them lose their connections, come back and read until they are where the witness is; who needed no reset."""
    everything([witness], lambda: False, TICK_SECONDS)
    serial, versions = witness.serial, {state: len(known) for state, known in witness.states.items()}
    came_with = {reader: (reader.serial, reader.names["reset"]) for reader in readers}
    for reader in readers:
        reader.socket.close()
        reader.connect(slow=False)
    everything([witness, *readers], lambda: all(reader.serial >= serial for reader in readers), GRACE_SECONDS)
    everything([witness, *readers], lambda: False, DRAIN_SECONDS)  # the state that follows the records
    everything([witness], lambda: False, TICK_SECONDS)  # who must know all that the others do
    for reader in readers:
        compare(reader, witness, versions)
        if reader.serial < serial:
            reader.faults.append(f"came back with {came_with[reader][0]} and was told no further than {reader.serial}")
    return {reader for reader in readers if reader.names["reset"] == came_with[reader][1]}


def main(host: str, port: int, count: int, *rates: int) -> dict[str, object]:
    address = host, port
    witness = Reader(address)
    readers = [Reader(address, rates[number % len(rates)]) for number in range(count)]
    print("connected", flush=True)
    slowly(witness, readers)

    told, told_bytes = witness.names.total(), witness.received
    given = {reader: reader.names.total() for reader in readers}
    skipped = {reader: reader.names["reset"] for reader in readers}
    deaf = [reader for reader in readers if reader.bytes_per_second == 0]
    # What reached those before they were dropped has to be read before they see the end of it.
    cut = everything(deaf, lambda: False, DRAIN_SECONDS)
    went_on = come_back(witness, readers)
    again = come_back(witness, readers)

    def about(rate: int) -> dict[str, object]:
        ours = [reader for reader in readers if reader.bytes_per_second == rate]
        return {
            "readers": len(ours),
            "given": statistics.median(given[reader] for reader in ours),  # events, while they were slow
            "gaps": sum(skipped[reader] > 1 for reader in ours),  # were told meanwhile that they have missed records
            "cut": len({*ours} & {*cut}),
            "went_on": len({*ours} & went_on),  # the others began anew
        }

    return {
        "told": told,
        "told_bytes": told_bytes,
        "by_rate": {rate: about(rate) for rate in rates},
        "went_on_again": len(again),
        "faults": [fault for reader in (witness, *readers) for fault in reader.faults],
    }


if __name__ == "__main__":
    host, *numbers = sys.argv[1:]
    print(json.dumps(main(host, *map(int, numbers))))
