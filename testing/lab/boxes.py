"""What limits the rest of a connection on real paths, each with its limit as a parameter.

Every box is put on a path and returns where to connect to: `box(path, limit_seconds) -> Endpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from testing.lab.namespace import Namespace
from testing.lab.network import Endpoint, Path

PROXY_PORT = 6432
_VERDICTS = {"drop": "drop", "reset": "meta l4proto tcp reject with tcp reset"}


def conntrack(path: Path, limit_seconds: int, *, answer: Literal["drop", "reset"]) -> Endpoint:
    """A stateful firewall that forgets a resting connection, and then drops its packets or answers them with RST.

    The server's packets are refused like the client's. `nf_conntrack_tcp_loose=0` keeps the
    kernel from adopting the forgotten connection at its next packet.
    """
    path.router.nft(f"""
        table ip firewall {{
            chain forward {{
                type filter hook forward priority filter; policy accept;
                ct state invalid {_VERDICTS[answer]};
            }}
        }}
    """)
    path.router.sysctl("netfilter/nf_conntrack_tcp_timeout_established", limit_seconds)
    path.router.sysctl("netfilter/nf_conntrack_tcp_loose", 0)
    return path.endpoint


def lifetime(path: Path, limit_seconds: float, *, answer: Literal["drop", "reset"]) -> Endpoint:
    """A firewall that lets a connection live for so long, however busy it is, and then refuses its packets.

    Its opening puts it on a list, whose entries expire; unlike `update`, `add` does not renew what is there.
    """
    request, reply = "ip saddr . tcp sport . ip daddr . tcp dport", "ip daddr . tcp dport . ip saddr . tcp sport"
    path.router.nft(f"""
        table ip firewall {{
            set admitted {{
                type ipv4_addr . inet_service . ipv4_addr . inet_service
                flags dynamic, timeout
                timeout {limit_seconds * 1000:.0f}ms
            }}
            chain forward {{
                type filter hook forward priority filter; policy accept;
                iifname "client" tcp flags & (syn | ack) == syn add @admitted {{ {request} }}
                iifname "client" {request} != @admitted {_VERDICTS[answer]};
                oifname "client" {reply} != @admitted {_VERDICTS[answer]};
            }}
        }}
    """)
    return path.endpoint


def haproxy(path: Path, limit_seconds: float, *, timeout: Literal["client", "server"]) -> Endpoint:
    """HAProxy in TCP mode on the router, with `timeout client` or `timeout server`; the other one is an hour."""
    return _haproxy(path, path.router, path.router_address, {timeout: limit_seconds})


def haproxy_before_conntrack(path: Path, limit_seconds: int) -> Endpoint:
    """A proxy on the client's own host that is patient for an hour, then a firewall that drops.

    The client's TCP ends at the proxy, so no socket option of the client reaches the firewall.
    """
    conntrack(path, limit_seconds, answer="drop")
    return _haproxy(path, path.client, path.client_address, {})


def _haproxy(path: Path, namespace: Namespace, host: str, timeouts: Mapping[str, float]) -> Endpoint:
    config = path.lab.directory / f"haproxy-{host}.cfg"
    config.write_text(f"""
defaults
    mode tcp
    timeout connect 5s
    timeout client {timeouts.get("client", 3600) * 1000:.0f}ms
    timeout server {timeouts.get("server", 3600) * 1000:.0f}ms
listen postgres
    bind {host}:{PROXY_PORT}
    server postgres {path.endpoint.host}:{path.endpoint.port}
""")
    path.lab.serve(namespace, ["haproxy", "-db", "-f", str(config)], host, PROXY_PORT)
    return Endpoint(host=host, port=PROXY_PORT)


def nginx(path: Path, limit_seconds: float) -> Endpoint:
    """The stream module of nginx on the router, with `proxy_timeout`."""
    host = path.router_address
    config = path.lab.directory / f"nginx-{host}.conf"
    # One process, so that killing it leaves no worker. The stream module may be a part of nginx or a file it loads.
    config.write_text(f"""
include /etc/nginx/modules-enabled/*-mod-stream.conf;
daemon off;
master_process off;
pid {config}.pid;
error_log stderr;
events {{ }}
stream {{
    server {{
        listen {host}:{PROXY_PORT};
        proxy_pass {path.endpoint.host}:{path.endpoint.port};
        proxy_timeout {limit_seconds * 1000:.0f}ms;
    }}
}}
""")
    path.lab.serve(path.router, ["nginx", "-e", "stderr", "-c", str(config)], host, PROXY_PORT)
    return Endpoint(host=host, port=PROXY_PORT)


def pgbouncer(path: Path, limit_seconds: float, *, pool_mode: Literal["session", "transaction"]) -> Endpoint:
    """PgBouncer on the router, with `client_idle_timeout` (0: none)."""
    host = path.router_address
    config = path.lab.directory / f"pgbouncer-{host}.ini"
    config.write_text(f"""
[databases]
* = host={path.endpoint.host} port={path.endpoint.port} user={path.server.user}
[pgbouncer]
listen_addr = {host}
listen_port = {PROXY_PORT}
unix_socket_dir =
auth_type = any
pool_mode = {pool_mode}
client_idle_timeout = {limit_seconds}
""")
    path.lab.serve(path.router, ["pgbouncer", str(config)], host, PROXY_PORT)
    return Endpoint(host=host, port=PROXY_PORT)


def idle_session_timeout(path: Path, limit_seconds: float) -> Endpoint:
    """PostgreSQL's own limit, set on a database named like the path: other paths to the same server have none."""
    path.server.sql(f"CREATE DATABASE {path.name}")
    path.server.sql(f"ALTER DATABASE {path.name} SET idle_session_timeout = {limit_seconds * 1000:.0f}")
    return replace(path.endpoint, database=path.name)
