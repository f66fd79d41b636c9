"""Errors of drivers and systems, told as facts: once, by a map from what is raised to how it is told.

A row of a map is a type of error and a function that makes of it what is to be raised instead. The row of the nearest
base class counts, as with methods: `TimeoutError` has its own words although it is an `OSError`. What has no row is a
fault in the program and passes through. After httpcore's `map_exceptions`.

The rows here hold for any driver: they are about files, names, sockets, TLS and time. A family adds its own, by which
it tells what the server said.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

from sidecar.core.evidence import Ending
from sidecar.core.signals import EXHAUSTED, ServerSignal

PASSWORD_FILE = "PasswordFile"  # noqa: S105 - no password
"""What failures are counted under that are about the password's file, not about the database."""

_NOTHING_LEFT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EAGAIN})
"""How a system says so: descriptors, memory, ports."""

_P = ParamSpec("_P")


class CannotConnect(Exception):  # noqa: N818 - reads better than CannotConnectError
    """No connection could be opened.

    `reason` is fit for operators and holds no secret. `sqlstate`, and what is `said` by it, are None when no server
    answered; then `name` is what the failure is counted under.
    """

    def __init__(
        self, reason: str, *, name: str, sqlstate: str | None = None, said: ServerSignal | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.name = name
        self.sqlstate = sqlstate
        self.said = said


class ConnectionEnded(Exception):  # noqa: N818 - a fact, not an error
    """The connection is gone; `ending` holds everything seen of it."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.message or ending.signal or ending.noticed)
        self.ending = ending


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What was tried when a connection could not be opened: the words that an error itself does not bring."""

    where: str  # host, port and database, without credentials
    host: str
    deadline_seconds: float


Rows = Mapping[type[Exception], Callable[Concatenate[Any, _P], Exception]]
"""By type of error, what makes of it the error to raise. Beside it the functions take what `translated` is given."""


@contextlib.contextmanager
def translated(rows: Rows[_P], *args: _P.args, **kwargs: _P.kwargs) -> Iterator[None]:
    """Raise, instead of an error, what `rows` make of it; it stays the `__cause__`."""
    try:
        yield
    except tuple(rows) as error:
        nearest = next(kind for kind in type(error).__mro__ if kind in rows)
        raise rows[nearest](error, *args, **kwargs) from error


def plainly(error: Exception, attempt: Attempt) -> CannotConnect:
    """In the error's own words."""
    return CannotConnect(f"cannot connect to {attempt.where}: {error}", name=name_of(error))


def _did_not_answer(error: TimeoutError, attempt: Attempt) -> CannotConnect:
    return CannotConnect(f"{attempt.where} did not answer within {attempt.deadline_seconds:g} s", name=name_of(error))


def _did_not_resolve(error: socket.gaierror, attempt: Attempt) -> CannotConnect:
    return CannotConnect(f"cannot resolve {attempt.host}: {error.strerror}", name=name_of(error))


def _no_file(error: OSError, attempt: Attempt) -> CannotConnect:
    if not error.filename:  # of a socket
        return _by_number(error, attempt)
    return CannotConnect(f"cannot read {error.filename}: {error.strerror}", name=name_of(error))


def _by_number(error: OSError, attempt: Attempt) -> CannotConnect:
    if error.errno is None:
        return plainly(error, attempt)
    # The event loop's text is for itself.
    return CannotConnect(f"cannot connect to {attempt.where}: {os.strerror(error.errno)}", name=name_of(error))


def name_of(error: BaseException) -> str:
    """What to count an error under. One that names a file is not about the database."""
    if isinstance(error, OSError) and error.errno in _NOTHING_LEFT and not isinstance(error, socket.gaierror):
        return EXHAUSTED
    return PASSWORD_FILE if getattr(error, "filename", None) is not None else type(error).__name__


CANNOT_CONNECT: Rows[[Attempt]] = {
    TimeoutError: _did_not_answer,
    FileNotFoundError: _no_file,
    PermissionError: _no_file,
    socket.gaierror: _did_not_resolve,
    ssl.SSLError: plainly,
    OSError: _by_number,
    ValueError: plainly,
}
"""Why a connection could not be opened, as far as that is the same for all drivers."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what caused it, what caused that, …"""
    while error is not None:
        yield error
        error = error.__cause__


def driver_error(error: BaseException) -> BaseException:
    """The driver's own error under SQLAlchemy's, whose text would bring the statement and a link.

    SQLAlchemy holds the error of its dialect in `orig`, and that has the driver's as its cause.
    """
    under = getattr(error, "orig", None) or error
    return under.__cause__ or under
