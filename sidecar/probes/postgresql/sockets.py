"""The socket under an asyncpg connection: keepalive, user timeout, acknowledging at once."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import asyncpg

from sidecar.core.evidence import Keepalive


def transport_of(driver: asyncpg.Connection[Any]) -> Any:
    """The transport under a driver connection. asyncpg has no public way to it (asyncpg #606); only this line knows."""
    return driver._transport


def set_socket_options(
    driver: asyncpg.Connection[Any], *, keepalive: Keepalive | None, user_timeout_ms: int | None
) -> None:
    """Set, or clear, TCP keepalive and the user timeout on a driver connection. Unix sockets have neither."""
    sock = _tcp_socket(driver)
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(keepalive is not None))
    if keepalive is not None:
        # macOS calls the idle time TCP_KEEPALIVE.
        idle = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE")  # noqa: B009
        sock.setsockopt(socket.IPPROTO_TCP, idle, keepalive.idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, keepalive.interval)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, keepalive.count)
    if user_timeout_ms is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms)


def acknowledge(driver: asyncpg.Connection[Any]) -> None:
    """Acknowledge at once what was received, so that the rest begins now.

    Linux would wait up to 40 ms for data to send it with, and for a firewall the rest begins with the last packet.
    """
    sock = _tcp_socket(driver)
    if sock is not None and hasattr(socket, "TCP_QUICKACK"):
        with contextlib.suppress(OSError):  # closed a moment ago: the end will be noticed elsewhere
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def _tcp_socket(driver: asyncpg.Connection[Any]) -> Any:
    sock = transport_of(driver).get_extra_info("socket")
    return sock if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6) else None
