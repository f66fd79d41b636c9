"""Network namespaces that cannot leak."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self

CLONE_NEWNET = 0x40000000  # <sched.h>; os.unshare and os.setns came with Python 3.12
_libc = ctypes.CDLL(None, use_errno=True)

# The programs need no privilege, and PgBouncer refuses root. The capability lets them read their configuration in a
# directory that is root's own.
_UNPRIVILEGED = (
    "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=+dac_override --ambient-caps=+dac_override"
    " --pdeathsig=KILL --"
)

# --pdeathsig means the death of the *thread* that started the child. This one lives as long as the process, whereas a
# thread of asyncio.to_thread ends with its event loop.
_spawner = ThreadPoolExecutor(1, thread_name_prefix="lab-spawner")


class LabUnavailable(Exception):  # noqa: N818 - a state of the machine, not a fault
    """The lab cannot be built here; the message says what is missing."""


class Namespace:
    """A network namespace. It ends when it is closed and nothing runs in it any more."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def of_caller(cls) -> Self:
        """The namespace this process is in."""
        return cls(os.open("/proc/self/ns/net", os.O_RDONLY))

    @classmethod
    def new(cls) -> Self:
        # Unsharing moves only the calling thread: one made for the purpose, and the descriptor it leaves, is enough.
        with ThreadPoolExecutor(1) as thread:
            namespace = cls(thread.submit(_unshare_network).result())
        namespace.ip("link set lo up")
        return namespace

    def __str__(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def close(self) -> None:
        os.close(self._descriptor)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Move the calling thread into this namespace: sockets it opens and processes it starts meanwhile stay there.

        Not to be held across an `await`: every task of the event loop would be moved.
        """
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _set_namespace(self._descriptor)
            yield
        finally:
            _set_namespace(before)
            os.close(before)

    def run(self, command: str, text: str = "") -> str:
        """Run a command to its end, with `text` as its input; return what it printed."""
        with self.entered():
            done = subprocess.run(
                shlex.split(command), input=text, capture_output=True, text=True, timeout=30, check=False
            )
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stderr.strip()}\n{text}")
        return done.stdout

    def ip(self, *commands: str) -> None:
        self.run("ip -batch -", "\n".join(commands))

    def nft(self, rules: str) -> None:
        """Load nftables rules, all or none."""
        self.run("nft -f -", rules)

    def sysctl(self, name: str, value: int) -> None:
        """Set a kernel parameter of this namespace, named as a path below `net/`."""
        with self.entered():
            Path("/proc/sys/net", name).write_text(str(value))

    def spawn(self, *argv: str | Path, log: Path) -> subprocess.Popen[bytes]:
        """Start a program as an unprivileged user; the kernel kills it if this process dies."""
        return _spawner.submit(self._spawn, [*_UNPRIVILEGED.split(), *map(str, argv)], log).result()

    def _spawn(self, argv: list[str], log: Path) -> subprocess.Popen[bytes]:
        with self.entered(), log.open("ab") as output:
            return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/")

    def abort_connections(self) -> None:
        """Abort every established TCP connection that ends here, unasked: each peer gets a RST."""
        self.run("ss --kill --tcp --no-header state established")


def _unshare_network() -> int:
    if _libc.unshare(CLONE_NEWNET):
        raise LabUnavailable(f"network namespaces: {os.strerror(ctypes.get_errno())}")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
