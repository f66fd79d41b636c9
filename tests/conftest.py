"""What the tests share: real PostgreSQL servers and faulty paths to them."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from sidecar.demo.path import FaultyPath
from sidecar.demo.server import HOST, PostgresServer

# The same examples every time: what fails in CI fails here too. `--hypothesis-profile=default` looks for new ones.
# How long one takes says nothing on a machine that stalls, and a test that is repeated for that is another instance of
# its class, which none of them minds.
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.differing_executors],
)
hypothesis.settings.load_profile("repeatable")

STALL = 0.1  # seconds; no test allows less for anything that is timed
MOST_WAITING = 8  # workers; beyond as many only processors bring more
ROOM_BYTES = 2 * 1024**3  # for the servers of all workers, each of which writes some 50 MB


class Stalls:
    """When this machine last stood still, as seen by a thread that wants to run often.

    Tests of limits that last a second or two happen in real time. Where the machine itself stood still in the midst of
    one, its failure says nothing: it is repeated, and the report counts it among the rerun. Any other failure stands.
    """

    def __init__(self) -> None:
        self.test_began = self.last = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            before = time.monotonic()
            time.sleep(STALL / 4)
            if (now := time.monotonic()) - before > STALL:
                self.last = now

    def in_this_test(self) -> bool:
        return self.last > self.test_began


STALLS = Stalls()


def pytest_xdist_auto_num_workers() -> int | None:
    """For `-n auto`: more workers than processors, since most of what a test does in real time is wait.

    None leaves it to the environment variable that xdist reads.
    """
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(processors, min(3 * processors, MOST_WAITING))


REAL_FIXTURES = frozenset({"postgres", "make_server", "make_path"})
REAL_MARKERS = ("real_time", "lab")


def happens_in_real_time(item: pytest.Item) -> bool:
    """Whether a server, a path, a process or a browser is involved. Nothing else can fail because the machine stood
    still: a pure decision that fails is wrong.
    """
    fixtures = getattr(item, "fixturenames", ())
    return not REAL_FIXTURES.isdisjoint(fixtures) or any(map(item.get_closest_marker, REAL_MARKERS))


# Seconds, roughly, on an idle machine; a module that takes less need not be here.
LONG_MODULES = {
    "tests/test_service.py": 120,
    "tests/lab/test_measure.py": 90,
    "tests/test_heartbeat.py": 50,
    "tests/test_demo.py": 50,
    "tests/lab/test_ages.py": 40,
    "tests/test_wheel.py": 40,
    "tests/test_page.py": 35,
    "tests/test_lifetime.py": 35,
    "tests/test_measure.py": 35,
    "tests/test_render.py": 30,
    "tests/test_store.py": 30,
    "tests/test_paths.py": 30,
    "tests/test_idle.py": 20,
    "tests/test_explain.py": 20,
    "tests/kubernetes/test_chart.py": 15,
    "tests/test_trials.py": 10,
}


def pytest_configure(config: pytest.Config) -> None:
    if gone := [name for name in LONG_MODULES if not (config.rootpath / name).is_file()]:
        raise pytest.UsageError(f"LONG_MODULES in tests/conftest.py names what is no longer there: {gone}")


def dealt(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """The items in an order that keeps all workers busy to the end.

    Each begins with an equal share, cut from the list as it is, and one that has none left takes from the end of
    another's. So every share begins with modules that take long, and ends with tests that may go anywhere.
    """
    modules: dict[str, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(item.nodeid.partition("::")[0], []).append(item)
    shares: list[list[pytest.Item]] = [[] for _ in range(workers)]
    seconds = [0] * workers
    for module in sorted(modules.keys() & LONG_MODULES, key=lambda name: (-LONG_MODULES[name], name)):
        idlest = seconds.index(min(seconds))
        seconds[idlest] += LONG_MODULES[module]
        shares[idlest] += modules.pop(module)
    short = collections.deque(itertools.chain.from_iterable(modules.values()))
    left = len(items)
    for number, share in enumerate(shares):
        size = left // (workers - number)
        while short and len(share) < size:
            share.append(short.popleft())
        left -= size
    return [*itertools.chain.from_iterable(shares), *short]


@pytest.hookimpl(trylast=True)  # what is deselected is nobody's share
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in filter(happens_in_real_time, items):
        item.add_marker(pytest.mark.flaky(reruns=2, condition=STALLS.in_this_test))
    items[:] = dealt(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    STALLS.test_began = time.monotonic()


@pytest.fixture(scope="session")
def servers_directory() -> Path | None:
    """Where servers keep their files: in memory, where that can be had, since most of what a new one costs is files.

    None stands for where the system wants what is temporary.
    """
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK | os.X_OK):
        return None
    found = os.statvfs(memory)
    executes = not found.f_flag & os.ST_NOEXEC  # a server may need a copy of its programs there
    return memory if executes and found.f_bavail * found.f_frsize >= ROOM_BYTES else None


@pytest.fixture(scope="session")
def postgres(servers_directory: Path | None) -> Iterator[PostgresServer]:
    """The server of this test process, for tests that leave it running. Trusts everyone."""
    with PostgresServer(under=servers_directory) as server:
        yield server


@pytest.fixture
def make_server(servers_directory: Path | None) -> Iterator[Callable[..., PostgresServer]]:
    """`make_server(settings=None, password=None)`: a running server for this test alone, to stop, crash or restart.

    Blocks for about half a second. Ends with the test.
    """
    with contextlib.ExitStack() as servers:

        def make(settings: dict[str, str | int] | None = None, *, password: str | None = None) -> PostgresServer:
            return servers.enter_context(PostgresServer(settings, password=password, under=servers_directory))

        yield make


@pytest.fixture
async def make_path() -> AsyncIterator[Callable[..., Awaitable[FaultyPath]]]:
    """`await make_path(server, fault="silent", idle_limit=…, lifetime_limit=…)`: a path to it, run by the test's loop.

    Connect with `server.url(port=path.port)`. Ends with the test.
    """
    async with contextlib.AsyncExitStack() as paths:

        async def make(server: PostgresServer, fault: str = "silent", **limits: object) -> FaultyPath:
            return await paths.enter_async_context(FaultyPath(HOST, server.port, fault, **limits))

        yield make
