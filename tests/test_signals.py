"""What servers say, and what is understood of it."""

from __future__ import annotations

import errno
import socket

import pytest

from sidecar.core.signals import EXHAUSTED, ServerSignal
from sidecar.probes.errors import name_of
from sidecar.probes.postgresql.signals import signal_of

POSTMASTER_DIED = "terminating connection due to unexpected postmaster exit"


@pytest.mark.parametrize(
    ("sqlstate", "message", "signal"),
    [
        (None, None, None),
        (None, "connection reset by peer", None),  # no server spoke
        ("57P01", "terminating connection due to administrator command", ServerSignal.STOPPING),
        ("57P01", None, ServerSignal.STOPPING),
        ("57P01", POSTMASTER_DIED, ServerSignal.ORPHANED),
        ("57P02", "terminating connection because of crash of another server process", ServerSignal.CRASHED),
        ("57P03", "the database system is starting up", ServerSignal.STARTING),
        ("57P04", "database was dropped", ServerSignal.UNKNOWN),
        ("57P05", "terminating connection due to idle-session timeout", ServerSignal.IDLE_TIMEOUT),
        ("25P03", None, ServerSignal.IN_TRANSACTION_TIMEOUT),
        ("25P04", None, ServerSignal.IN_TRANSACTION_TIMEOUT),
        ("25006", None, ServerSignal.READ_ONLY),
        ("28P01", None, ServerSignal.LOGIN_REFUSED),
        ("28000", None, ServerSignal.LOGIN_REFUSED),
        ("3D000", None, ServerSignal.NO_DATABASE),
        ("53300", None, ServerSignal.FULL),
        ("53200", None, ServerSignal.FULL),
        # PgBouncer uses one code for everything it has to say.
        ("08P01", "client_idle_timeout", ServerSignal.IDLE_TIMEOUT),
        ("08P01", "query_wait_timeout", ServerSignal.QUEUED),
        ("08P01", "no more connections allowed (max_client_conn)", ServerSignal.FULL),
        ("08P01", "no such database: app", ServerSignal.NO_DATABASE),
        ("08P01", "no such user: app", ServerSignal.LOGIN_REFUSED),
        ("08P01", "bouncer config error", ServerSignal.UNKNOWN),
        ("08P01", "server conn crashed?", ServerSignal.UNREACHABLE),
        ("08P01", "server_login_retry", ServerSignal.UNREACHABLE),
        ("08006", None, ServerSignal.UNREACHABLE),
        ("42501", "permission denied", ServerSignal.UNKNOWN),
        ("", "a message without a code", ServerSignal.UNKNOWN),
    ],
)
def test_codes_are_understood(sqlstate: str | None, message: str | None, signal: ServerSignal | None) -> None:
    assert signal_of(sqlstate, message) is signal


def test_words_count_only_with_the_code_they_belong_to() -> None:
    assert signal_of("57P02", POSTMASTER_DIED) is ServerSignal.CRASHED
    assert signal_of("08006", "client_idle_timeout") is ServerSignal.UNREACHABLE


def test_a_server_out_of_service_ends_sessions_or_takes_none() -> None:
    out_of_service = {signal for signal in ServerSignal if signal.out_of_service}
    assert out_of_service == {
        ServerSignal.STOPPING,
        ServerSignal.ORPHANED,
        ServerSignal.CRASHED,
        ServerSignal.STARTING,
    }
    assert not any(signal.is_refusal for signal in out_of_service)
    assert {signal for signal in ServerSignal if signal.ends_sessions} == out_of_service - {ServerSignal.STARTING}


def test_who_refuses_is_at_work() -> None:
    assert {
        signal
        for signal in map(signal_of, ("53300", "53200", "28P01", "28000", "3D000", "42501"))
        if signal is not None and signal.is_refusal
    } == {ServerSignal.FULL, ServerSignal.LOGIN_REFUSED, ServerSignal.NO_DATABASE, ServerSignal.UNKNOWN}
    assert not ServerSignal.UNREACHABLE.is_refusal
    assert {signal for signal in ServerSignal if signal.is_exhaustion} == {ServerSignal.FULL, ServerSignal.QUEUED}


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL])
def test_our_own_want_is_not_the_databases(number: int) -> None:
    assert name_of(OSError(number, "no")) == EXHAUSTED
    assert name_of(OSError(number, "no", "/secret/password")) == EXHAUSTED
    assert name_of(OSError(errno.ECONNREFUSED, "no")) == "ConnectionRefusedError"
    assert name_of(socket.gaierror(errno.EAGAIN, "no")) == "gaierror"
