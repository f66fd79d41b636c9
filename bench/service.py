"""What the running service costs: start-up, memory, CPU at rest, requests per second. `make bench`; about two minutes.

It is `sidecar run` as anyone would start it, with one target: an embedded PostgreSQL on a path without a limit, so that
all its connections stay open and it is as busy as it ever is at rest. Clients are processes of their own. Everything
is measured on this machine as it is now: what else runs on it shows, above all in the 99th percentiles. The exit
status is 1 when a goal was missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from sidecar.demo.server import HOST, PostgresServer, free_port

REQUIRED = (
    "aiohttp",
    "sqlalchemy",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "asyncpg",
    "pydantic_settings",
    "prometheus_client",
    "orjson",
)
ALL_DECLARED = (*REQUIRED, "alembic", "aiosqlite", "yaml")
STARTS = 5
CONNECTIONS = 8
SETTLING_SECONDS = 5.0  # first contact, first rounds of the pool
ROUTES = ("/health", "/recommendation", "/metrics")

LIVE_WITHIN_SECONDS = 1.5
MEMORY_RATIO = 1.15
CPU_SECONDS_A_MINUTE = 0.3
HEALTH_P99_MS = 2.0


@contextlib.contextmanager
def running(settings: Mapping[str, str]) -> Iterator[tuple[psutil.Process, int, float]]:
    """A service of its own with these settings (environment variables without their prefix): its process, its port, and
    the seconds from its start to the first /livez."""
    with tempfile.TemporaryDirectory() as directory:
        port = free_port()
        environment = {
            "HTTP__PORT": str(port),
            "HTTP__ADMIN_PORT": "0",
            "STORE__URL": f"sqlite+aiosqlite:///{Path(directory, 'evidence.db')}",
            "LOG__LEVEL": "warning",
            **settings,
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
        began = time.perf_counter()
        service = subprocess.Popen(
            [sys.executable, "-m", "sidecar", "run"],
            env=inherited | {f"SIDECAR_{name}": value for name, value in environment.items()},
        )
        try:
            while not is_live(port):
                if service.poll() is not None:
                    raise RuntimeError(f"the service ended with status {service.returncode}")
                time.sleep(0.002)
            yield psutil.Process(service.pid), port, time.perf_counter() - began
        finally:
            service.terminate()
            service.wait()


def is_live(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port)) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    return False


def memory_of_imports(modules: tuple[str, ...]) -> float:
    """Resident memory (MB) of a process that imports these and does nothing."""
    code = f"import sys, {', '.join(modules)}; print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as importer:
        assert importer.stdout is not None
        importer.stdout.readline()
        return megabytes(psutil.Process(importer.pid))


def megabytes(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 1e6


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def under_load(port: int, route: str, seconds: float) -> dict[str, float]:
    """See `bench.load`."""
    arguments = [HOST, str(port), route, str(CONNECTIONS), str(seconds)]
    figures: dict[str, float] = json.loads(subprocess.check_output([sys.executable, "-m", "bench.load", *arguments]))
    return figures


class Report:
    """Prints a line for each figure, and remembers whether all goals were met."""

    met = True

    def show(self, what: str, measured: str, goal: str = "", met: bool = True) -> None:
        verdict = ("  met" if met else "  MISSED") if goal else ""
        print(f"{what:<44} {measured:>30}   {goal}{verdict}", flush=True)
        self.met = self.met and met


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.service", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rest", type=float, default=60.0, metavar="SECONDS", help="time at rest (default: 60)")
    parser.add_argument("--load", type=float, default=5.0, metavar="SECONDS", help="of load on each route (default: 5)")
    arguments = parser.parse_args()

    load_average = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, load average at the start {load_average}\n")
    report = Report()
    show = report.show
    with PostgresServer() as database:
        settings = {"TARGET_URL": database.url()}
        starts = []
        for _ in range(STARTS):
            with running(settings) as (_, _, seconds):
                starts.append(seconds)
        live = statistics.median(starts)
        show(
            f"start to first /livez, median of {STARTS}",
            f"{live:.2f} s ({min(starts):.2f} to {max(starts):.2f})",
            f"within {LIVE_WITHIN_SECONDS} s",
            live <= LIVE_WITHIN_SECONDS,
        )

        required, declared = memory_of_imports(REQUIRED), memory_of_imports(ALL_DECLARED)
        with running(settings) as (process, port, _):
            time.sleep(SETTLING_SECONDS)
            before = cpu_seconds(process)
            time.sleep(arguments.rest)
            cpu = (cpu_seconds(process) - before) * 60 / arguments.rest
            memory = megabytes(process)
            show(
                f"memory after {arguments.rest:g} s at rest",
                f"{memory:.1f} MB",
                f"at most {MEMORY_RATIO} x the bare imports",
                memory <= MEMORY_RATIO * required,
            )
            show("  bare import of the required packages", f"{required:.1f} MB, ratio {memory / required:.3f}")
            show("  bare import of all that are declared", f"{declared:.1f} MB, ratio {memory / declared:.3f}")
            show(
                "CPU at rest with one target",
                f"{cpu:.2f} s a minute",
                f"at most {CPU_SECONDS_A_MINUTE} s a minute",
                cpu <= CPU_SECONDS_A_MINUTE,
            )
            for route in ROUTES:
                figures = under_load(port, route, arguments.load)
                measured = f"{figures['per_second']:.0f}/s, p99 {figures['p99_ms']:.2f} ms"
                what = f"{route} over {CONNECTIONS} connections"
                if route == "/health":
                    show(what, measured, f"p99 at most {HEALTH_P99_MS:g} ms", figures["p99_ms"] <= HEALTH_P99_MS)
                else:
                    show(what, measured)
            show("memory after that", f"{megabytes(process):.1f} MB")
    return 0 if report.met else 1


if __name__ == "__main__":
    sys.exit(main())
