"""The path client — router — server, and the lab that owns everything on it."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network
from pathlib import Path as FilePath
from typing import Self

from sidecar.demo.server import PostgresServer
from testing.lab.namespace import LabUnavailable, Namespace

PROGRAMS = ("ip", "ss", "setpriv", "nft", "haproxy", "nginx", "pgbouncer")
NETWORK = ip_network("198.18.0.0/15")  # RFC 2544: for tests of network devices, routed nowhere
_numbers = itertools.count(os.getpid())  # an address is not used twice, lest it meet packets meant for its predecessor


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a client connects to."""

    host: str
    port: int
    database: str = PostgresServer.database

    @property
    def dsn(self) -> str:
        """As asyncpg and libpq take it; for SQLAlchemy, see `url`."""
        return f"postgresql://{PostgresServer.user}@{self.host}:{self.port}/{self.database}"

    @property
    def url(self) -> str:
        return self.dsn.replace("://", "+asyncpg://")


class Server(PostgresServer):
    """PostgreSQL in a namespace of its own, trusting everyone on the lab's paths.

    It listens on a Unix socket too (`socket_dsn`), which no namespace and no box comes between.
    """

    def __init__(self, namespace: Namespace, settings: Mapping[str, str | int]) -> None:
        super().__init__({"listen_addresses": "*", **settings})
        self.port = 5432  # nobody else is in this namespace, and an address that moves keeps its port
        self.settings["unix_socket_directories"] = str(self.directory)
        self.namespace = namespace
        with (self.directory / "data" / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {NETWORK} trust\n")

    def start(self) -> None:
        with self.namespace.entered():
            super().start()

    @property
    def socket_dsn(self) -> str:
        return f"postgresql:///{self.database}?user={self.user}&host={self.directory}&port={self.port}"

    def sql(self, statement: str) -> str:
        """Run one statement, whatever has happened to the network; return what it printed, unaligned."""
        command = [str(self._binaries / "psql"), "-XAtq", "-c", statement, self.socket_dsn]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            raise RuntimeError(f"{statement}: {done.stderr.strip()}")
        return done.stdout.strip()


class Standby(Server):
    """A copy of a running server, which follows it over its Unix socket, where no partition can come between."""

    def __init__(self, primary: Server, namespace: Namespace) -> None:
        self._primary = primary
        super().__init__(namespace, {})

    def _create(self) -> None:
        primary = ["-h", str(self._primary.directory), "-p", str(self._primary.port), "-U", self.user]
        data = str(self.directory / "data")
        self._run("pg_basebackup", "-D", data, *primary, "--write-recovery-conf", "--checkpoint=fast", "--no-sync")

    def promote(self) -> None:
        """Have it take writes, on a timeline of its own; returns when it does."""
        self._run("pg_ctl", "promote", "-D", str(self.directory / "data"))


class Path:
    """The way from the caller to a server. Its router forwards everything until a box is put on it.

    There are three addresses on it: the client's, the router's, and the server's, which each of its servers has, and
    which is routed to one of them (`move`). The links are unnumbered, so a path needs no subnets.
    """

    def __init__(self, lab: Lab, servers: Sequence[Server]) -> None:
        self.lab = lab
        self.servers = servers
        self.client = lab.client
        self.router = lab.namespace()
        number = self._claim()
        self.name = f"lab{number}"
        self.client_address, self.router_address, self.server_address = (
            str(NETWORK[4 * number + host]) for host in (1, 2, 3)
        )
        self._connect()
        self.move(servers[0])

    def _claim(self) -> int:
        """Lay the link into the router under the first free name, which no other lab can take from then on."""
        while True:
            number = next(_numbers) % (NETWORK.num_addresses // 4)
            try:
                self.client.ip(f"link add lab{number} type veth peer name client netns {self.router}")
            except RuntimeError as error:
                if "File exists" not in str(error):
                    raise
            else:
                self.lab.at_end(partial(self.client.ip, f"link delete lab{number}"))
                return number

    def _connect(self) -> None:
        name, client, router, server = self.name, self.client_address, self.router_address, self.server_address
        self.client.ip(
            f"address add {client} peer {router} dev {name}",
            f"link set {name} up",
            f"route add {server} via {router} dev {name}",
        )
        self.router.ip(f"address add {router} peer {client} dev client", "link set client up")
        self.router.sysctl("ipv4/ip_forward", 1)
        for index, there in enumerate(self.servers):
            self.router.ip(
                f"link add server{index} type veth peer name {name} netns {there.namespace}",
                f"link set server{index} up",
            )
            there.namespace.ip(
                f"address add {server} peer {router} dev {name}",
                f"link set {name} up",
                f"route add {client} via {router} dev {name}",
            )

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(host=self.server_address, port=self.server.port)

    def move(self, server: Server) -> None:
        """Route the server's address to another of this path's servers, which answers the old connections with RST."""
        self.router.ip(f"route replace {self.server_address} dev server{self.servers.index(server)}")
        self.server = server

    def cut(self) -> None:
        """Drop every packet at the router, before conntrack sees it: the timers run on."""
        self.router.nft("""
            table ip partition {
                chain arriving { type filter hook prerouting priority raw; policy drop; }
                chain leaving { type filter hook output priority raw; policy drop; }
            }
        """)

    def heal(self) -> None:
        """End the partition. TCP resumes with its next retransmission, new connections at once."""
        self.router.nft("delete table ip partition")


class Lab:
    """Everything made by it ends with it. Raises LabUnavailable where it cannot be built."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise LabUnavailable("network namespaces need root")
        if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
            raise LabUnavailable(f"not installed: {', '.join(missing)}")
        with ExitStack() as ends:
            self._ends = ends
            self.directory = FilePath(ends.enter_context(tempfile.TemporaryDirectory(prefix="lab-")))
            self.client = Namespace.of_caller()
            self.at_end(self.client.close)
            try:
                self.namespace().nft("table ip trial { chain trial { ct state invalid drop; }; }")
            except RuntimeError as error:
                raise LabUnavailable(str(error)) from error
            self._ends = ends.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._ends.close()

    def at_end(self, call: Callable[[], object]) -> None:
        """Have something done when the lab ends; what is registered last is done first."""
        self._ends.callback(call)

    def namespace(self) -> Namespace:
        namespace = Namespace.new()
        self.at_end(namespace.close)
        return namespace

    def postgres(self, **settings: str | int) -> Server:
        """A running PostgreSQL, with these settings."""
        server = Server(self.namespace(), settings)
        self.at_end(server.close)
        server.start()
        return server

    def standby(self, primary: Server) -> Standby:
        """A running copy of this server in a namespace of its own, until it is promoted."""
        standby = Standby(primary, self.namespace())
        self.at_end(standby.close)
        standby.start()
        return standby

    def path(self, *servers: Server) -> Path:
        """A path of its own to a server; with several, it leads to the first until it is moved."""
        return Path(self, servers)

    def serve(self, namespace: Namespace, argv: Sequence[str], host: str, port: int) -> None:
        """Start a program that ends with the lab, and return once it listens on `host` and `port`."""
        log = self.directory / f"{argv[0]}-{host}-{port}.log"
        process = namespace.spawn(*argv, log=log)
        self.at_end(process.wait)
        self.at_end(process.kill)
        deadline = time.monotonic() + 10
        while not _listens(namespace, host, port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{argv[0]} does not listen on {host}:{port}:\n{log.read_text()}")
            time.sleep(0.02)


def _listens(namespace: Namespace, host: str, port: int) -> bool:
    return bool(namespace.run(f"ss --listening --tcp --numeric --no-header src {host}:{port}"))
