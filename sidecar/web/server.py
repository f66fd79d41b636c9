"""The HTTP server: two listeners, one dispatcher. The only importer of aiohttp's server.

It uses aiohttp's low-level server, since a path that is a key of a dict needs no router, and since every error, even
that of a request which is no HTTP at all, then leaves through the same door. Its modules are imported one by one:
`aiohttp.web` would bring a router, a file server and websockets as well, a megabyte that nobody here uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response, StreamResponse
from aiohttp.web_server import Server

from sidecar.core.views import Source
from sidecar.web.answers import Answer, Problem, Stream
from sidecar.web.handlers import SERVICE, Ask, Handlers, RenderMetrics
from sidecar.web.routes import ADMIN, ASSETS, PUBLIC, Route

log = logging.getLogger("sidecar.web")

LOOPBACK = "127.0.0.1"
"""Where the admin port is, and nowhere else."""
BODY_MAX_BYTES = 4096
"""No route reads a body; this much is forgiven."""
READER_BUFFER_BYTES = 16384
"""For each reader of a stream, here and again in the kernel."""
SLOW_READER_SECONDS = 60.0
"""A reader that takes nothing for so long is dropped."""

_CONNECTION: dict[str, Any] = {
    "access_log": None,  # probes would flood it
    "keepalive_timeout": 75.0,
    "lingering_time": 1.0,  # for a body nobody reads
    "max_line_size": 8190,
    "max_field_size": 8190,
    "max_headers": 64,
}
"""Of every connection; seconds, and bytes of a line or a field."""


class HttpServer:
    """Serves `source` on `port`, and the admin routes on `admin_port` of the loopback address only."""

    port: int  # the real ones, known once started
    admin_port: int

    def __init__(self, source: Source, render_metrics: RenderMetrics) -> None:
        self._handlers = Handlers(
            source,
            render_metrics,
            summaries={route.path: route.summary for route in PUBLIC},
            describe=_describe,
        )
        self._public = _Listener("http.port", _Dispatcher(self._handlers, (*PUBLIC, *ASSETS)))
        self._admin = _Listener("http.admin_port", _Dispatcher(self._handlers, ADMIN))

    @property
    def readers(self) -> int:
        """How many read `/events`."""
        return self._handlers.feed.readers

    async def start(self, host: str, port: int, admin_port: int) -> None:
        """Listen; port 0 takes any free one.

        Raises OSError, and leaves nothing open, when one cannot be bound; its `strerror` names the setting.
        """
        try:
            self.port = await self._public.open(host, port)
            self.admin_port = await self._admin.open(LOOPBACK, admin_port)
        except BaseException:
            await self.stop(0.0)
            raise

    async def stop(self, grace_seconds: float) -> None:
        """Stop listening, let requests under way finish for so long, then close every connection."""
        self._handlers.feed.close()
        await asyncio.gather(self._public.close(grace_seconds), self._admin.close(grace_seconds))


def _describe() -> object:
    from sidecar.web import openapi  # here, because hardly anybody asks

    return openapi.document(PUBLIC, ADMIN)


class _Dispatcher:
    def __init__(self, handlers: Handlers, routes: tuple[Route, ...]) -> None:
        self._handlers = handlers
        self._routes = {route.path: route for route in routes}
        self._shown = tuple(route.path for route in routes if route not in ASSETS)

    async def __call__(self, request: BaseRequest) -> StreamResponse:
        try:
            answer = self._answer(request)
            if isinstance(answer, Stream):
                return await _stream(request, answer)
        except Problem as problem:
            answer = problem.answer(request.path_qs)
        except Exception:
            log.exception("request handler failed", extra={"method": request.method, "path": request.path})
            failure = Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "The request failed; the log of the sidecar says why")
            answer = failure.answer(request.path_qs)
        return _respond(request, answer)

    def _answer(self, request: BaseRequest) -> Answer | Stream:
        route = self._routes.get(request.path)
        if route is None:
            raise Problem(HTTPStatus.NOT_FOUND, "There is no such path here", available=self._shown)
        # GET and HEAD alike: of the answer to HEAD, aiohttp sends the headers only
        if request.method != route.method and (request.method, route.method) != ("HEAD", "GET"):
            raise Problem(
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"{route.path} takes {route.allow}, not {request.method}",
                headers={"Allow": route.allow},
            )
        if (request.content_length or 0) > BODY_MAX_BYTES:
            raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "No route here reads a body")
        return route.handler(
            self._handlers, Ask(path=route.path, query=_query(request, route), headers=request.headers)
        )


def _query(request: BaseRequest, route: Route) -> Mapping[str, str]:
    if not request.query_string:
        return {}
    query = request.query
    for name in query:
        if name not in route.query or len(query.getall(name)) > 1:
            takes = ", ".join(route.query) or "no query parameter"
            raise Problem(
                HTTPStatus.BAD_REQUEST,
                f"{route.path} takes {takes}, each at most once; the fault is with {name!r}",
                kind="bad-parameter",
                title="Bad parameter",
                parameter=name,
                available=tuple(route.query),
            )
    return query


def _headers(answer: Answer | Stream) -> dict[str, str]:
    tagged = isinstance(answer, Answer) and answer.etag is not None
    return {
        "Server": SERVICE,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache" if tagged else "no-store",  # revalidate what has a tag, hold nothing else
        **answer.headers,
    }


async def _stream(request: BaseRequest, stream: Stream) -> StreamResponse:
    """Give what a reader can take, when it can; end with its connection."""
    response = StreamResponse(headers={**_headers(stream), "Content-Type": stream.content_type})
    if request.method == "HEAD":
        return response
    async with contextlib.aclosing(stream.open()) as chunks:
        first = await anext(chunks)
        writer = await response.prepare(request)
        transport = request.transport
        if writer is None or transport is None:
            return response
        _keep_small(transport)
        try:
            await writer.write(first)
            async for chunk in chunks:
                await writer.write(chunk)
                async with asyncio.timeout(SLOW_READER_SECONDS):
                    await writer.drain()
        except TimeoutError:
            log.debug("reader took nothing for too long", extra={"remote": request.remote})
            transport.abort()
        except ConnectionError:
            log.debug("reader left", extra={"remote": request.remote})  # just before this task is cancelled for it
    return response


def _keep_small(transport: asyncio.Transport) -> None:
    """Bound what is held for a reader that does not read, here and in the kernel, and notice one that is gone."""
    transport.set_write_buffer_limits(high=READER_BUFFER_BYTES)
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, READER_BUFFER_BYTES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SLOW_READER_SECONDS * 1000))


def _respond(request: BaseRequest, answer: Answer) -> Response:
    headers = _headers(answer)
    if answer.etag is not None:
        headers["ETag"] = f'"{answer.etag}"'
        # weak comparison, as RFC 9110 (13.1.2) has it for If-None-Match: W/ does not matter
        if any(held.value in (answer.etag, "*") for held in request.if_none_match or ()):
            return Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    headers["Content-Type"] = answer.content_type
    return Response(status=answer.status, body=answer.body, headers=headers)


class _Connection(RequestHandler):
    """A connection whose malformed requests are answered like every other error, and logged at debug level only."""

    __slots__ = ()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> StreamResponse:
        if status != HTTPStatus.BAD_REQUEST:
            return super().handle_error(request, status, exc, message)
        log.debug("request is not valid HTTP", extra={"remote": request.remote, "error": str(exc)})
        problem = Problem(HTTPStatus.BAD_REQUEST, "The request is not valid HTTP, or its head is too large")
        response = _respond(request, problem.answer("about:blank"))
        response.force_close()
        return response


class _Listener:
    """One address and the connections that came in by it."""

    def __init__(self, key: str, dispatcher: _Dispatcher) -> None:
        self._key = key
        self._dispatcher = dispatcher
        self._connections: Server | None = None
        self._server: asyncio.Server | None = None

    async def open(self, host: str, port: int) -> int:
        loop = asyncio.get_running_loop()
        # Cancelled with its connection: a stream would otherwise go on until it has something to tell.
        connections = Server(self._dispatcher, handler_cancellation=True)
        try:
            self._server = await loop.create_server(
                lambda: _Connection(connections, loop=loop, **_CONNECTION), host, port
            )
        except OSError as error:
            why = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
            raise OSError(error.errno, f"{self._key}: cannot listen on {host}, port {port}: {why}") from error
        self._connections = connections
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self, grace_seconds: float) -> None:
        if self._server is None or self._connections is None:
            return
        self._server.close()
        await asyncio.sleep(0)  # requests already read get their turn before idle connections are closed
        self._connections.pre_shutdown()
        await self._connections.shutdown(grace_seconds)
        self._server = self._connections = None
