"""What a handler gives back: an answer, a stream, or a problem raised (RFC 9457). None knows the HTTP library."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from http import HTTPStatus

from sidecar.documents import dumps

JSON = "application/json"
PROBLEM_JSON = "application/problem+json"
EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    body: bytes
    content_type: str = JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    etag: str | None = None  # strong, without its quotes; None = not worth revalidating

    @classmethod
    def tagged(cls, body: bytes, content_type: str = JSON, headers: Mapping[str, str] | None = None) -> Answer:
        """An answer that a client may hold and revalidate: its tag is a hash of the body."""
        etag = blake2b(body, digest_size=16).hexdigest()
        return cls(body=body, content_type=content_type, headers=headers or {}, etag=etag)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """An answer without end. It is opened only for who reads it, and may still raise Problem before its first chunk."""

    open: Callable[[], AsyncGenerator[bytes]]
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Problem(Exception):  # noqa: N818 - the name RFC 9457 gives it
    """An error to be shown to the caller. `extensions` become members of the body, beside the standard ones."""

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        *,
        kind: str | None = None,
        title: str | None = None,
        headers: Mapping[str, str] | None = None,
        **extensions: object,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = headers or {}
        self._members = {
            # about:blank: nothing more to know than the status says, and its phrase is the title
            "type": f"urn:connection-health:problem:{kind}" if kind else "about:blank",
            "title": title or status.phrase,
            "status": int(status),
            "detail": detail,
        }
        self._extensions = extensions

    def answer(self, instance: str) -> Answer:
        """`instance` is the address that was asked for."""
        return Answer(
            body=dumps(self._members | {"instance": instance} | self._extensions),
            content_type=PROBLEM_JSON,
            status=int(self.status),
            headers=self.headers,
        )
