"""`sidecar demo` as its user sees it: a command that finds what it does not know, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
from rich.console import Console

from sidecar.core.advice.recommendation import IdleLimit
from sidecar.core.evidence import Arm
from sidecar.core.idle.probes import ProbeView
from sidecar.documents import TargetSummary
from sidecar.terminal import progress
from testing.pictures import target

pytestmark = pytest.mark.real_time

DEMO = (sys.executable, "-m", "sidecar", "demo")


async def tell_once(path: str, limit: str = "8") -> tuple[int, str]:
    demo = await asyncio.create_subprocess_exec(
        *DEMO, "--once", "--path", path, "--limit", limit, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await demo.communicate()
    return demo.returncode, output.decode()


@pytest.mark.timeout(180)
async def test_it_finds_the_limit_and_the_kind_of_death_on_every_path():
    death = {"silent": "silently", "reset": "by reset on use", "close": "closed at the limit", "server": "57P05"}
    application = {"silent": "hung", "reset": "failed", "close": "failed", "server": "failed"}
    told = dict(zip(death, await asyncio.gather(*map(tell_once, death)), strict=True))
    for path, (status, output) in told.items():
        assert status == 0, output
        assert death[path] in line(output, "How they die"), output
        assert re.search(rf"of rest {application[path]}\b", line(output, "An application")), output
        recycle = int(re.search(r"pool_recycle=(\d+)", line(output, "Advice"))[1])
        assert 1 <= recycle < 8, output


def test_it_times_a_failover_and_a_demotion():
    done = subprocess.run([*DEMO, "--once", "--path", "failover"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Recorded as: failover (timeline 1 to 2)" in done.stdout
    assert "Recorded as: role_flip" in done.stdout
    lived, demoted = (line for line in done.stdout.splitlines() if "A pool with pre-ping" in line)
    assert "no connection could be had" in lived
    assert "the write failed on a connection that had passed its ping (SQLSTATE 25006)" in demoted
    assert "NOT INSIDE" not in done.stdout


def line(output: str, heading: str) -> str:
    return next(line for line in output.splitlines() if line.startswith(f"{heading}:"))


class Demo:
    """A demo that has got as far as asking its service."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.output = ""
        while "proven" not in self.output:
            new = process.stdout.readline()
            assert new, self.output
            self.output += new
        self.address = re.search(r"http://\S+", self.output)[0]
        self.family = psutil.Process(process.pid).children(recursive=True)
        arguments = {argument for member in self.family for argument in member.cmdline()}
        beginning = str(Path(tempfile.gettempdir(), "sidecar-"))
        self.directories = [Path(argument) for argument in arguments if argument.startswith(beginning)]

    def assert_gone(self) -> None:
        assert len(self.family) > 4  # a server with its workers, a service, two guardians
        assert len(self.directories) > 1
        deadline = time.monotonic() + 20
        while any(map(is_alive, self.family)) or any(map(Path.exists, self.directories)):
            assert time.monotonic() < deadline, (self.family, self.directories)
            time.sleep(0.05)
        with pytest.raises(OSError, match="refused"):
            urlopen(self.address)


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE  # of an orphan, where nobody reaps
    return False


@pytest.fixture
def demo() -> Iterator[Demo]:
    with subprocess.Popen(
        [*DEMO, "--limit", "60"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield Demo(process)
        finally:
            process.kill()


def test_ctrl_c_ends_everything(demo):
    demo.process.send_signal(signal.SIGINT)
    output = demo.process.communicate(timeout=30)[0]
    assert demo.process.returncode == 130
    assert "Interrupted" in output
    assert "Traceback" not in output
    demo.assert_gone()


def test_nothing_outlives_a_demo_that_was_killed(demo):
    demo.process.kill()
    demo.assert_gone()


def test_a_service_that_dies_is_told_with_its_log(demo):
    service = next(member for member in demo.family if member.cmdline()[-2:] == ["sidecar", "run"])
    service.kill()
    output = demo.process.communicate(timeout=30)[0]
    assert demo.process.returncode == 1
    assert "The demo failed: the service ended with status -9" in output
    demo.assert_gone()


@pytest.mark.parametrize("limit", ["1.9", "3601"])
def test_a_limit_out_of_bounds_is_refused_with_the_bounds(limit):
    done = subprocess.run([*DEMO, "--limit", limit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--limit" in done.stderr
    assert "takes 2s to 1h" in done.stderr


@pytest.mark.timeout(180)
async def test_the_shortest_limit_it_takes_makes_a_story_that_ends():
    """How exactly it was found is for longer limits: here the floor of the search lies at half of it."""
    status, output = await tell_once("close", "2")
    assert status in (0, 1), output
    assert line(output, "True limit").startswith("True limit:     2.0 s")
    assert "failed" in line(output, "An application")


def test_without_a_terminal_a_line_tells_of_every_change():
    probe = ProbeView(connection=1, arm=Arm.SEARCH, state="resting", idle_seconds=3.0, until_seconds=7.5)
    begun = replace(TargetSummary.of(target()), probes=(probe,))
    found = replace(begun, idle_limit=IdleLimit(proven_seconds=7.5))
    console = Console(file=io.StringIO(), width=200)
    with progress(console) as show:
        show(1.0, begun, "")
        show(2.0, begun, "")
        show(3.0, found, "")
        show(4.0, found, "")
        show(8.5, found, "")
        show(9.0, replace(found, stage="monitor", probes=()), "")
    shown = console.file.getvalue().splitlines()
    assert [line.split()[0] for line in shown] == ["1.0", "3.0", "8.5", "9.0"]
    assert "proven    7.5 s" in shown[-1]
    assert shown[-2].endswith("1 resting, the oldest for 3.0 s")
    assert shown[-1].endswith("   0 resting")
    assert "\x1b" not in console.file.getvalue()
