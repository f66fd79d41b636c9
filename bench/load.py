"""Asks one path over and over: the load generator of `bench.service`, in a process of its own.

    python -m bench.load HOST PORT PATH CONNECTIONS SECONDS

Each connection is kept alive and has one request under way at any time, as in `wrk -t1 -c CONNECTIONS`. It is written
close to the sockets, so that it is faster than what it measures. Prints JSON.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import sys
from time import perf_counter

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_WARM_UP_SHARE = 0.1


class _Connection:
    """One request at a time."""

    def __init__(self, address: tuple[str, int], path: str) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = f"GET {path} HTTP/1.1\r\nHost: {address[0]}\r\nAccept: */*\r\n\r\n".encode()
        self.ask()

    def ask(self) -> None:
        self._received, self._expected = b"", 0
        self.socket.sendall(self._request)
        self.asked = perf_counter()

    def answered(self) -> bool:
        """Take what has arrived; whether that completes the answer. Raises ConnectionError unless it is a 200."""
        data = self.socket.recv(1 << 20)
        self._received += data
        if not self._expected and (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end]
            length = _LENGTH.search(head)
            if not head.startswith(b"HTTP/1.1 200 ") or length is None:
                raise ConnectionError(f"unexpected answer: {head[:200]!r}")
            self._expected = end + 4 + int(length[1])
        if not data:
            raise ConnectionError("closed in the middle of an answer")
        return self._expected > 0 and len(self._received) >= self._expected


def load(address: tuple[str, int], path: str, connections: int, seconds: float) -> dict[str, float]:
    """Requests per second, and quantiles of the time to the last byte of an answer in milliseconds."""
    with selectors.DefaultSelector() as waiting:
        for _ in range(connections):
            connection = _Connection(address, path)
            waiting.register(connection.socket, selectors.EVENT_READ, connection)
        times: list[float] = []
        began = perf_counter()
        counting_from, until = began + _WARM_UP_SHARE * seconds, began + seconds
        while (now := perf_counter()) < until:
            for key, _ in waiting.select():
                connection = key.data
                if connection.answered():
                    if now >= counting_from:
                        times.append(perf_counter() - connection.asked)
                    connection.ask()
    times.sort()
    return {
        "per_second": len(times) / (until - counting_from),
        "p50_ms": 1000 * times[len(times) // 2],
        "p99_ms": 1000 * times[len(times) * 99 // 100],
        "max_ms": 1000 * times[-1],
    }


if __name__ == "__main__":
    host, port, path, connections, seconds = sys.argv[1:]
    print(json.dumps(load((host, int(port)), path, int(connections), float(seconds))))
