"""A path to PostgreSQL with a real middlebox on it, for tests and benches: no container, no machine but this one.

::

    client (the namespace of the caller) ── router ── server (PostgreSQL)

Only a kernel can imitate a silently dropped flow: a proxy in user space still acknowledges what it throws away. So
the router is a network namespace that forwards, with conntrack and nftables of its own; HAProxy, nginx and PgBouncer
are the real programs, running in it. The caller stays in the namespace it is in, which is given one leg into the
router: its sockets, its subprocesses and the code under test need to know nothing of the lab. ::

    with Lab() as lab:
        path = lab.path(lab.postgres())
        endpoint = boxes.conntrack(path, limit_seconds=6, answer="drop")
        connection = await asyncpg.connect(endpoint.dsn)
        path.cut()  # a partition, until path.heal()

Many paths may lead to one server, so that one wait proves many boxes. Several servers may stand behind one path:
`path.move(other)` gives its address to another.

**Nothing is left behind.** A namespace is held by a file descriptor, not by a name, and every process in it is killed
by the kernel when its parent dies: of tests that were killed nothing remains but a temporary directory. The only name
taken outside is `lab<n>`, the leg into the router; taking it is atomic, and `n` gives the path's addresses out of
198.18.0.0/15, the block set aside for tests of network devices (RFC 2544). So labs can run side by side.

To look inside while a test waits: `nsenter --net=<str(path.router)>`, then `ip route`, `nft list ruleset`,
`conntrack -L`, `ss -tn`.
"""

from testing.lab import boxes
from testing.lab.namespace import LabUnavailable, Namespace
from testing.lab.network import Endpoint, Lab, Path, Server

__all__ = ["Endpoint", "Lab", "LabUnavailable", "Namespace", "Path", "Server", "boxes"]
