"""What is answered to whom asks, from memory and at once.

Handlers are plain functions, not coroutines: they cannot wait for anything, least of all for a database. Which path
leads to which of them is the table's business (`routes`); they are told of it what some of them have to tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from itertools import islice
from typing import Protocol, TypeVar
from urllib.parse import urlencode

from sidecar import __version__, documents
from sidecar.catalogue import known_limits
from sidecar.core.advice.recommendation import Recommendation
from sidecar.core.advice.render import FORMATS, FormatName
from sidecar.core.evidence import Observation, Outcome
from sidecar.core.pause import LONGEST, SHORTEST, UNLESS_TOLD
from sidecar.core.views import Source, TargetView
from sidecar.documents import dumps
from sidecar.settings.values import Duration
from sidecar.web import page
from sidecar.web.answers import EVENT_STREAM, Answer, Problem, Stream
from sidecar.web.events import Feed

SERVICE = "connection-health-sidecar"
"""What the service calls itself, to people and in the header `Server`."""
PAGE_DEFAULT = 100
"""How many observations or outages a page shows, unless told."""
PAGE_MAX = 1000
"""How many it shows at most."""

RenderMetrics = Callable[[str], tuple[bytes, str]]
"""From the Accept header to the body and its content type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request, as far as a handler may look at it. Only declared query parameters are in `query`, each once."""

    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


_Item = TypeVar("_Item", bound=_Identified)


class Handlers:
    """`summaries` says by path what is served publicly; `describe` gives the OpenAPI document of it all."""

    def __init__(
        self,
        source: Source,
        render_metrics: RenderMetrics,
        *,
        summaries: Mapping[str, str],
        describe: Callable[[], object],
    ) -> None:
        self._source = source
        self._summaries = summaries
        self._describe = describe
        self._render_metrics = render_metrics
        # Rendered advice by (target, format), with the advice it was rendered from; bounded, both names being known.
        self._rendered: dict[tuple[str, FormatName], tuple[tuple[Recommendation, float], Answer]] = {}
        self._openapi: Answer | None = None
        self.feed = Feed(source)

    def index(self, ask: Ask) -> Answer:
        """The page for people, or for a program that asks for JSON an index."""
        headers = {"Vary": "Accept"}
        if not _prefers_json(ask.headers.get("Accept", "")):
            return replace(page.asset("index.html"), headers={**page.HEADERS, **headers})
        index = documents.Index(service=SERVICE, version=__version__, routes=self._summaries, formats=tuple(FormatName))
        return Answer.tagged(dumps(index), headers=headers)

    def asset(self, ask: Ask) -> Answer:
        """A part of the page."""
        return page.asset(ask.path.rpartition("/")[2])

    def health(self, ask: Ask) -> Answer:
        targets = {name: view.readiness for name, view in self._source.targets().items()}
        waiting = [f"{name}: {readiness.reason}" for name, readiness in targets.items() if not readiness.ready]
        if not self._source.started:
            waiting.insert(0, "the service is still starting")
        if waiting:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "; ".join(waiting),
                kind="not-ready",
                title="Not ready",
                ready=False,
                targets=targets,
            )
        return Answer(body=dumps(documents.Health(ready=True, targets=targets)))

    def livez(self, ask: Ask) -> Answer:
        faults = self._source.faults
        if faults:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "; ".join(f"the task {name} died: {why}" for name, why in faults.items()),
                kind="not-alive",
                title="A supervised task died",
                alive=False,
                faults=faults,
            )
        return Answer(body=dumps(documents.Liveness(alive=True, faults={})))

    def startupz(self, ask: Ask) -> Answer:
        if not self._source.started:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the service is still starting",
                kind="not-started",
                title="Still starting",
                started=False,
            )
        return Answer(body=dumps(documents.Startup(started=True)))

    def recommendation(self, ask: Ask) -> Answer:
        view = self._target(ask)
        name = _format(ask)
        basis = (view.recommendation, view.generated_at)
        held = self._rendered.get((view.name, name))
        if held is not None and held[0] == basis:
            return held[1]
        answer = _render(view, name)
        self._rendered[view.name, name] = (basis, answer)
        return answer

    def targets(self, ask: Ask) -> Answer:
        return Answer.tagged(dumps(documents.Targets.of(self._source)))

    def evidence(self, ask: Ask) -> Answer:
        name = self._target(ask).name
        page, older, headers = _page("/evidence", name, _chosen(self._source.observations(name), ask), ask)
        return Answer.tagged(dumps(documents.Evidence(target=name, observations=page, next=older)), headers=headers)

    def outages(self, ask: Ask) -> Answer:
        name = self._target(ask).name
        page, older, headers = _page("/outages", name, self._source.outages(name), ask)
        return Answer.tagged(dumps(documents.Outages(target=name, outages=page, next=older)), headers=headers)

    def events(self, ask: Ask) -> Stream:
        target = self._target(ask).name if "target" in ask.query else None
        return Stream(
            open=lambda: self.feed.read(ask.headers.get("Last-Event-ID"), target),
            content_type=EVENT_STREAM,
            headers={"X-Accel-Buffering": "no"},  # or nginx would hold it back
        )

    def known_limits(self, ask: Ask) -> Answer:
        return Answer.tagged(dumps(documents.KnownLimits(limits=known_limits())))

    def metrics(self, ask: Ask) -> Answer:
        body, content_type = self._render_metrics(ask.headers.get("Accept", ""))
        return Answer(body=body, content_type=content_type, headers={"Vary": "Accept"})

    def openapi(self, ask: Ask) -> Answer:
        if self._openapi is None:
            self._openapi = Answer.tagged(dumps(self._describe()))
        return self._openapi

    def quit(self, ask: Ask) -> Answer:
        _refuse_browsers(ask)
        self._source.quit()
        return Answer(body=dumps(documents.Leaving(leaving=True)), status=HTTPStatus.ACCEPTED)

    def pause(self, ask: Ask) -> Answer:
        _refuse_browsers(ask)
        try:
            seconds = Duration(SHORTEST, LONGEST).read(ask.query.get("for", UNLESS_TOLD))
        except ValueError as error:
            raise Problem(
                HTTPStatus.BAD_REQUEST, f"for: {error}", kind="bad-parameter", title="Bad parameter", parameter="for"
            ) from None
        pause = self._source.pause(float(str(seconds)))
        return Answer(body=dumps(pause), status=HTTPStatus.ACCEPTED)

    def resume(self, ask: Ask) -> Answer:
        _refuse_browsers(ask)
        self._source.resume()
        return Answer(body=dumps(documents.Resumed(paused=False)), status=HTTPStatus.ACCEPTED)

    def measure(self, ask: Ask) -> Answer:
        _refuse_browsers(ask)
        name = self._target(ask).name
        self._source.measure_afresh(name)
        return Answer(body=dumps(documents.Measuring(target=name)), status=HTTPStatus.ACCEPTED)

    def try_again(self, ask: Ask) -> Answer:
        _refuse_browsers(ask)
        name = self._target(ask).name
        self._source.try_again(name)
        return Answer(body=dumps(documents.Trying(target=name)), status=HTTPStatus.ACCEPTED)

    def _target(self, ask: Ask) -> TargetView:
        """The target asked for; unnamed, `default` if there is one, else the only one."""
        targets = self._source.targets()
        name = ask.query.get("target")
        if name is None:
            if "default" not in targets and len(targets) != 1:
                raise Problem(
                    HTTPStatus.BAD_REQUEST,
                    f"Say which target, as in ?target=NAME; there is: {', '.join(targets)}",
                    kind="target-needed",
                    title="Target needed",
                    available=tuple(targets),
                )
            name = "default" if "default" in targets else next(iter(targets))
        if name not in targets:
            raise Problem(
                HTTPStatus.NOT_FOUND,
                f"There is no target {name!r}; there is: {', '.join(targets)}",
                kind="unknown-target",
                title="Unknown target",
                available=tuple(targets),
            )
        return targets[name]


def _format(ask: Ask) -> FormatName:
    name = ask.query.get("format", FormatName.JSON)
    try:
        return FormatName(name)
    except ValueError:
        raise Problem(
            HTTPStatus.BAD_REQUEST,
            f"There is no format {name!r}; there is: {', '.join(FormatName)}",
            kind="unknown-format",
            title="Unknown format",
            available=tuple(FormatName),
        ) from None


def _render(view: TargetView, name: FormatName) -> Answer:
    if name is FormatName.JSON:
        return Answer.tagged(dumps(documents.recommendation(view)))
    form = FORMATS[name]
    rendered = form.render(view.recommendation)
    return Answer.tagged(rendered.encode() if isinstance(rendered, str) else dumps(rendered), form.content_type)


def _chosen(observations: Sequence[Observation], ask: Ask) -> Sequence[Observation]:
    """Those of the arm and the outcome asked for."""
    arm, outcome = ask.query.get("arm"), ask.query.get("outcome")
    if outcome is not None and outcome not in tuple(Outcome):
        raise Problem(
            HTTPStatus.BAD_REQUEST,
            f"outcome takes one of {', '.join(Outcome)}, not {outcome!r}",
            kind="bad-parameter",
            title="Bad parameter",
            parameter="outcome",
            available=tuple(Outcome),
        )
    if arm is None and outcome is None:
        return observations
    return [seen for seen in observations if arm in (None, seen.arm) and outcome in (None, seen.outcome)]


def _page(
    path: str, target: str, items: Sequence[_Item], ask: Ask
) -> tuple[tuple[_Item, ...], str | None, dict[str, str]]:
    """One page of `items`, newest first; the address of the older page, also as a Link header.

    The cursor is the id of the page's last item, not a count, so new items do not shift the pages behind it.
    """
    limit, before = _limit(ask), ask.query.get("before")
    newest_first = reversed(items)
    if before is not None and not any(item.id == before for item in newest_first):
        raise Problem(
            HTTPStatus.NOT_FOUND,
            f"Nothing here has the id {before!r}, or it is too old to be still in memory; start again without `before`",
            kind="unknown-cursor",
            title="Unknown cursor",
        )
    page = tuple(islice(newest_first, limit + 1))
    if len(page) <= limit:
        return page, None, {}
    chosen = {name: ask.query[name] for name in ("arm", "outcome") if name in ask.query}
    older = f"{path}?{urlencode({'target': target, 'limit': limit, **chosen, 'before': page[limit - 1].id})}"
    return page[:limit], older, {"Link": f'<{older}>; rel="next"'}


def _limit(ask: Ask) -> int:
    text = ask.query.get("limit", str(PAGE_DEFAULT))
    # isdecimal first: int() would also take signs, blanks and underscores
    if text.isascii() and text.isdecimal() and len(text) <= len(str(PAGE_MAX)) and 1 <= int(text) <= PAGE_MAX:
        return int(text)
    raise Problem(
        HTTPStatus.BAD_REQUEST,
        f"limit takes a whole number from 1 to {PAGE_MAX}, not {text!r}",
        kind="bad-parameter",
        title="Bad parameter",
        parameter="limit",
    )


def _prefers_json(accept: str) -> bool:
    """Whether JSON is named, and a page less or not at all. Who takes anything (`*/*`) gets the page."""
    weights = {"application/json": 0.0, "text/html": 0.0}
    for part in accept.lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        if kind in weights:
            weights[kind] = next((_weight(each) for each in parameters if each.startswith("q=")), 1.0)
    return weights["application/json"] > weights["text/html"]


def _weight(parameter: str) -> float:
    try:
        return float(parameter.removeprefix("q="))
    except ValueError:
        return 0.0


def _refuse_browsers(ask: Ask) -> None:
    """Loopback keeps other machines out, not the pages in a browser on this one; those send an Origin."""
    if "Origin" in ask.headers:
        raise Problem(HTTPStatus.FORBIDDEN, "The admin port takes no requests from web pages")
