"""What slow readers of `/events` cost the service and everybody else. `make bench-events`; two to four minutes.

It is `sidecar run` with several targets, whose server ends what rests too long and which are measured afresh again and
again, so that a lot happens; and beside it the same once more, which nobody listens to. To the one listen 200 readers
who cannot keep up: half of them take nothing at all, others a little each second, the rest half of what is told (see
`bench.readers`). Memory is looked at twice a second, and `/health` asked of both by turns, as in `bench.service`: what
else this machine is doing meets both alike. At the end the readers come back with the last id they know. The exit
status is 1 when a goal was missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil

from bench.service import SETTLING_SECONDS, Report, megabytes, running, under_load
from sidecar.demo.server import HOST, PostgresServer, free_port
from sidecar.remote import ask
from sidecar.web.server import SLOW_READER_SECONDS

READERS = 200
RATES = (0, 1_000, 0, 10_000)  # bytes a second, by turns; about 20 kB a second are told
TARGETS = tuple("abcd")
LIMIT_SECONDS = 1.0
AFRESH_EVERY_SECONDS = 0.5
FILLING_SECONDS = 12.0  # until all buffers on the way to a reader that takes nothing are full
TURNS = 8  # of load on /health of each

READER_KILOBYTES = 64.0  # of memory for each reader, whatever is told; a quarter of it is the buffer of its connection
P99_RATIO, P99_MORE_MS = 2.0, 2.0  # of /health; whichever allows more, since a quiet machine answers within 1 ms


class Service:
    """The process under test, where it answers, and how much memory it has ever taken up."""

    def __init__(self, process: psutil.Process, port: int, admin_port: int) -> None:
        self.process, self.port, self._admin = process, port, f"http://{HOST}:{admin_port}"
        self.before = self.peak = 0.0  # MB

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Measured afresh again and again, one target after the other, and watched."""
        over = threading.Event()

        def keep_busy() -> None:
            turn = 0
            while not over.wait(AFRESH_EVERY_SECONDS):
                ask(self._admin, f"/measure?target={TARGETS[turn % len(TARGETS)]}", method="POST")
                self.peak = max(self.peak, megabytes(self.process))
                turn += 1

        thread = threading.Thread(target=keep_busy)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    @property
    def grown(self) -> float:
        """By how much it has ever grown since it settled, in MB."""
        return self.peak - self.before

    def health_p99_ms(self, seconds: float) -> float:
        return under_load(self.port, "/health", seconds)["p99_ms"]


@contextlib.contextmanager
def busy_service(database: PostgresServer) -> Iterator[Service]:
    """With rests from short to beyond the limit, so that connections end all the time."""
    admin_port = free_port()
    settings = {"HTTP__ADMIN_PORT": str(admin_port)}
    for target in TARGETS:
        prefix = f"TARGETS__{target}__".upper()
        settings[f"{prefix}URL"] = database.url()
        settings[f"{prefix}IDLE__FLOOR"] = "50ms"
        settings[f"{prefix}HEARTBEAT__EVERY"] = "500ms"
    with running(settings) as (process, port, _):
        service = Service(process, port, admin_port)
        with service.busy():
            yield service


def with_readers(
    service: Service, alone: Service, load_seconds: float
) -> tuple[list[tuple[float, float]], dict[str, Any]]:
    """The p99 of each pair of turns, the one alone first, and what became of the readers."""
    arguments = [HOST, str(service.port), str(READERS), *map(str, RATES)]
    command = [sys.executable, "-m", "bench.readers", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as readers:
        assert readers.stdout is not None
        if readers.stdout.readline() != "connected\n":
            raise RuntimeError("the readers could not connect")
        began = time.monotonic()
        time.sleep(FILLING_SECONDS)
        p99s = [(alone.health_p99_ms(load_seconds), service.health_p99_ms(load_seconds)) for _ in range(TURNS)]
        # Who takes nothing is dropped only after a while of taking nothing.
        time.sleep(max(0.0, began + FILLING_SECONDS + SLOW_READER_SECONDS + 10.0 - time.monotonic()))
        became, _ = readers.communicate("\n")
        if readers.returncode:
            raise RuntimeError(f"the readers ended with status {readers.returncode}")
    return p99s, json.loads(became)


def show_memory(report: Report, service: Service, alone: Service, told: dict[str, Any]) -> None:
    a_reader = (service.grown - alone.grown) * 1000 / READERS
    report.show("memory before the readers", f"{service.before:.1f} MB")
    report.show(
        "  at most, readers included",
        f"{service.peak:.1f} MB, {a_reader:.0f} kB a reader",
        f"at most {READER_KILOBYTES:g} kB a reader",
        a_reader <= READER_KILOBYTES,
    )
    report.show("  after they have left", f"{megabytes(service.process):.1f} MB")
    report.show("  meanwhile, where nobody listens", f"{alone.before:.1f} to {alone.peak:.1f} MB")
    report.show("told to who keeps up", f"{told['told']} events, {told['told_bytes'] / 1e6:.1f} MB")
    report.show("  a queue for each would have held", f"{READERS * told['told_bytes'] / 1e6:.0f} MB")


def show_health(report: Report, p99s: list[tuple[float, float]]) -> None:
    without, beside = zip(*p99s, strict=True)
    alone, with_them = statistics.median(without), statistics.median(beside)
    report.show(
        f"/health p99 where nobody listens, median of {TURNS}",
        f"{alone:.2f} ms ({min(without):.2f} to {max(without):.2f})",
    )
    report.show(
        f"/health p99 beside {READERS} readers, median of {TURNS}",
        f"{with_them:.2f} ms ({min(beside):.2f} to {max(beside):.2f})",
        f"at most {P99_RATIO:g} x that, or {P99_MORE_MS:g} ms more",
        with_them <= max(P99_RATIO * alone, alone + P99_MORE_MS),
    )


def show_readers(report: Report, told: dict[str, Any]) -> None:
    show = report.show
    for rate, about in told["by_rate"].items():
        readers = about["readers"]
        if rate == "0":
            show(
                f"{readers} that take nothing",
                f"{about['cut']} cut",
                f"all, after {SLOW_READER_SECONDS:g} s",
                about["cut"] == readers,
            )
        else:
            show(
                f"{readers} that take {int(rate) / 1000:g} kB a second",
                f"{about['given']:.0f} of {told['told']} events",
                "none cut; what is of old is skipped",
                about["cut"] == 0 and about["given"] < told["told"],
            )
            show("  told that they have missed records", f"{about['gaps']}")
        show("  back with Last-Event-ID", f"{about['went_on']} went on, {readers - about['went_on']} anew (reset)")
    show(
        "all back once more, being up to date",
        f"{told['went_on_again']} went on",
        f"all {READERS}",
        told["went_on_again"] == READERS,
    )
    show(
        "complete from where they came back",
        f"{len(told['faults'])} faults",
        f"none among {READERS}",
        not told["faults"],
    )
    for fault in told["faults"][:10]:
        print(f"  {fault}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.events", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--load", type=float, default=4.0, metavar="SECONDS", help="of load a turn (default: 4)")
    arguments = parser.parse_args()
    load_average = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, load average at the start {load_average}\n")
    with (
        PostgresServer({"idle_session_timeout": f"{LIMIT_SECONDS:g}s"}) as database,
        busy_service(database) as alone,
        busy_service(database) as service,
    ):
        time.sleep(SETTLING_SECONDS)
        for each in (alone, service):
            each.before = megabytes(each.process)
        p99s, told = with_readers(service, alone, arguments.load)
        report = Report()
        show_memory(report, service, alone, told)
        show_health(report, p99s)
        show_readers(report, told)
    return 0 if report.met else 1


if __name__ == "__main__":
    sys.exit(main())
