"""The page in a real browser: headless Chromium, against the running service on a faulty path, and against rich data.

Screenshots of both themes, wide and narrow, are left in `build/page/`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from sidecar.core.advice.ping_cost import Spread
from sidecar.core.advice.recommendation import (
    IdleLimit,
    LifetimeLimit,
    LikelyCulprit,
    PoolSettings,
    Remark,
    SocketOptions,
    Verdict,
    Verification,
)
from sidecar.core.advice.render import FormatName
from sidecar.core.availability.readiness import Readiness
from sidecar.core.evidence import Downtime, Interval, Outage, OutageKind
from sidecar.core.journal import Journal
from sidecar.demo.path import FaultyPath
from sidecar.demo.server import PostgresServer
from sidecar.demo.service import Service, run_service
from sidecar.web.server import HttpServer
from testing.pictures import NOON, Picture, measuring, observation, outage, target, verified

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCREENSHOTS = Path(__file__).parent.parent / "build" / "page"
# What keeps Chromium from calling home, which would only show as failed requests here.
FLAGS = (
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    *(("--no-sandbox",) if os.geteuid() == 0 else ()),  # its sandbox does not work for root
)
AXE = (files("axe_playwright_python") / "axe.min.js").read_text("utf-8")
PATIENCE_MS = 20_000
LIMIT_SECONDS = 3.0

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)"),
    pytest.mark.timeout(180),
]


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS])
        yield browser
        await browser.close()


class Watched:
    """A page, and everything about it that must not happen."""

    def __init__(self, page: Page, base: str) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "request", lambda request: None if request.url.startswith(base) else self.complaints.append(request.url)
        )
        page.set_default_timeout(PATIENCE_MS)


Open = Callable[..., Awaitable[Watched]]


@pytest.fixture
def open_page(browser: Browser) -> Open:
    async def begin(base: str, *, width: int = 1280, theme: str = "light", script: str = "") -> Watched:
        context = await browser.new_context(
            viewport={"width": width, "height": 800},
            color_scheme=theme,
            permissions=["clipboard-read", "clipboard-write"],
        )
        if script:
            await context.add_init_script(script)
        watched = Watched(await context.new_page(), base)
        await watched.page.goto(base)
        await watched.page.locator("article dd.recycle").first.wait_for()
        return watched

    return begin


async def until_it_answers(service: Service) -> None:
    async with asyncio.timeout(60):
        while True:
            if await service.ask("/livez") is not None:
                return
            await asyncio.sleep(0.05)


async def fetched(address: str) -> str:
    return await asyncio.to_thread(lambda: urlopen(address).read().decode())


# --- the running service ----------------------------------------------------------------------------------------------


async def test_it_follows_the_running_service(
    make_server: Callable[..., PostgresServer], make_path: Callable[..., Awaitable[FaultyPath]], open_page: Open
) -> None:
    server = make_server()
    path = await make_path(server, "silent", idle_limit=LIMIT_SECONDS)
    settings = {
        "TARGET_URL": server.url(port=path.port, scheme="postgresql+asyncpg"),
        "TARGETS__DEFAULT__IDLE__FLOOR": "500ms",
        "TARGETS__DEFAULT__IDLE__DEADLINE": "1s",
        "TARGETS__DEFAULT__HEARTBEAT__EVERY": "200ms",
        "TARGETS__DEFAULT__APPLICATION__POOL_RECYCLE": "-1",
        "TARGETS__DEFAULT__APPLICATION__POOL_PRE_PING": "false",
    }
    with run_service(settings) as service:
        await until_it_answers(service)
        watched = await open_page(service.address)
        page = watched.page
        await expect(page.locator("#live-text")).to_have_text("Live")
        await expect(page.locator(".status [aria-current=step]")).to_have_text("measuring")
        await page.evaluate("window.notReloaded = true")

        # The limit, when it is found, and what follows from it.
        await expect(page.locator(".headline")).to_contain_text("Idle connections die after", timeout=60_000)
        await expect(page.locator(".status [aria-current=step]")).not_to_have_text("measuring")
        advice = json.loads(await fetched(f"{service.address}/recommendation"))
        assert 0.9 * LIMIT_SECONDS < advice["idle_limit"]["estimate_seconds"] < 1.2 * LIMIT_SECONDS
        await expect(page.locator("dd.recycle")).to_contain_text("1 s")
        await expect(page.locator(".verdict")).to_contain_text("Exposed")
        await expect(page.locator(".warning").first).to_contain_text("Pre-ping alone does not protect")
        await expect(page.locator(".mark.dead")).to_contain_text("dead by")
        assert await page.locator(".lane.died .rests").get_attribute("d")

        await assert_every_button_copies(page, service.address)
        await assert_an_outage_shows_within_two_seconds(page, path)
        assert await page.evaluate("window.notReloaded")
        assert not watched.complaints

        service_gone_at = time.monotonic()
    await expect(page.locator("#stale")).to_contain_text("Not live since")
    await expect(page.locator("#live-text")).to_have_text("Not live")
    assert time.monotonic() - service_gone_at < 60
    await expect(page.locator("dd.recycle")).to_be_visible()  # what was known stays, and says how old it is


async def assert_every_button_copies(page: Page, base: str) -> None:
    buttons = page.locator("button[data-format]")
    assert [await button.get_attribute("data-format") for button in await buttons.all()] == list(FormatName)
    for name in FormatName:
        for _ in range(5):  # the advice may change between the two looks at it
            await page.locator(f"button[data-format='{name}']").click()
            await expect(page.locator(f"button[data-format='{name}']")).to_have_attribute("data-done", "copied")
            copied = await page.evaluate("navigator.clipboard.readText()")
            if copied == await fetched(f"{base}/recommendation?target=default&format={name}"):
                break
        else:
            raise AssertionError(f"{name}: copied was {copied!r}")
        assert copied == await page.locator("pre").text_content()


async def assert_an_outage_shows_within_two_seconds(page: Page, path: FaultyPath) -> None:
    """The best of three, since whatever else this machine does is not the page's fault."""
    took = []
    for outages in (1, 2, 3):
        before = await page.locator(".outages li").count()
        assert before == outages - 1
        began = time.monotonic()
        path.refuse()
        path.reset_all()
        await expect(page.locator(".outages .badge")).to_have_text("going on")
        took.append(time.monotonic() - began)
        await path.accept()
        await expect(page.locator(".outages .badge")).to_have_count(0)
        if took[-1] < 2.0:
            return
    raise AssertionError(f"an outage showed after {took} s")


# --- everything there is to show --------------------------------------------------------------------------------------


def rich() -> Picture:
    at = time.time()
    lasting = Outage(
        id="now", target="orders", kind="role_flip", write=Downtime(began=Interval(after=at - 9, until=at - 8))
    )
    aged = replace(outage(5000, name="orders"), id="aged", kind=OutageKind.LIFETIME)
    return Picture(
        views={
            "default": target(advice=measuring(), ready=False),
            "orders": target("orders", advice=verified("orders")),
        },
        store_warning="the disk is full",
        seen={"orders": [observation(serial, name="orders") for serial in range(1, 400)]},
        disturbed={"orders": [*(outage(serial * 9000, name="orders") for serial in range(12)), aged, lasting]},
    )


@asynccontextmanager
async def served(picture: Picture, port: int = 0) -> AsyncIterator[HttpServer]:
    server = HttpServer(picture, lambda accept: (b"", "text/plain"))
    await server.start("127.0.0.1", port, 0)
    try:
        yield server
    finally:
        await server.stop(0.1)


@pytest.fixture
async def base() -> AsyncIterator[str]:
    async with served(rich()) as server:
        yield f"http://127.0.0.1:{server.port}"


async def test_it_serves_everybody_in_both_themes_wide_and_narrow(base: str, open_page: Open) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    grounds = set()
    for theme in ("light", "dark"):
        for width in (1280, 360):
            watched = await open_page(base, width=width, theme=theme)
            page = watched.page
            await expect(page.locator("article")).to_have_count(2)
            await expect(page.locator(".picture .rests").first).to_be_attached()
            await page.locator("#target-orders details summary").click()
            await expect(page.locator("#target-orders tbody tr")).to_have_count(100)
            await expect(page.locator("#target-orders")).to_contain_text("13 outages:")
            await expect(page.locator("#target-orders")).to_contain_text("ended at the limit on age: 1")
            await page.screenshot(path=SCREENSHOTS / f"{theme}-{width}.png", full_page=True)
            assert await page.evaluate("document.documentElement.scrollWidth") == width, "scrolls sideways"
            if (theme, width) in (("light", 1280), ("dark", 360)):  # seven seconds each
                assert await serious_violations(page) == []
            grounds.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert not watched.complaints
            await page.context.close()
    assert len(grounds) == 2


async def serious_violations(page: Page) -> list[str]:
    """What axe-core finds, minor things aside."""
    await page.evaluate(AXE)
    found: list[dict[str, Any]] = (await page.evaluate("axe.run()"))["violations"]
    return [
        f"{violation['id']}: {node['html'][:200]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


async def test_a_keyboard_is_enough(base: str, open_page: Open) -> None:
    page = (await open_page(base)).page
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(80):
        await page.keyboard.press("Tab")
        reached.add(await page.evaluate("document.activeElement.dataset.format ?? document.activeElement.tagName"))
    assert {*FormatName, "SUMMARY", "PRE", "A"} <= reached
    button = page.locator("#target-orders button[data-format=hikaricp]")
    await button.focus()
    await page.keyboard.press("Enter")
    await expect(button).to_have_attribute("aria-pressed", "true")
    await expect(page.locator("#said")).to_have_text("HikariCP: copied")  # said to a screen reader
    await expect(button).to_be_focused()  # though the page has been brought up to date meanwhile


async def test_without_a_clipboard_the_text_is_selected(base: str, open_page: Open) -> None:
    """As over plain HTTP from another machine. The old way needs no permission."""
    page = (await open_page(base, script="Object.defineProperty(navigator, 'clipboard', {value: undefined})")).page
    await page.locator("#target-orders button[data-format=env]").click()
    await expect(page.locator("#said")).to_have_text("Environment: copied")
    shown = await page.locator("#target-orders pre").text_content()
    assert (await page.evaluate("getSelection().toString()")).strip() == shown.strip()


# --- what nobody would show on purpose -------------------------------------------------------------------------------

HTML = "<img src=x onerror=alert(1)></p><script>alert(2)</script>"
LONG = "a" * 63


def strange() -> Picture:
    """Unknown wherever that may be, HTML in every text, and names as long as they get."""
    at = time.time()
    nothing = replace(
        measuring(LONG),
        settings=PoolSettings(pool_recycle=0.35, pool_pre_ping=True),
        socket=SocketOptions(keepalive=None, user_timeout_ms=None),
        idle_limit=IdleLimit(proven_seconds=0.0, dead_by_seconds=0.7),
        pre_ping_cost=None,
        failover=None,
        application=None,
        reasons=(),
    )
    full = replace(
        verified("html"),
        application=Verdict(verdict="exposed", because=HTML),
        lifetime_limit=LifetimeLimit(proven_seconds=99.0, likely=(LikelyCulprit(id="x", component=HTML),)),
        verification=Verification(outcome="failed", idle_seconds=9.0, checkout_ms=None, at=at),
        reasons=(Remark(code="any", text=HTML),),
        warnings=(Remark(code="any", text=HTML + "b" * 400),),
    )
    views = {
        LONG: replace(
            target(LONG, advice=nothing, ready=False), database=f"{LONG}.{LONG}.internal:5432/{LONG}", checkout=None
        ),
        "html": replace(
            target("html", advice=full),
            database=HTML,
            readiness=Readiness(ready=False, reason=HTML, since=at),
            checkout=Spread(count=200, p50_seconds=2.0142, p99_seconds=12.5, max_seconds=99.0),
        ),
    }
    died = replace(observation(1, name="html"), outcome="died", death=HTML, cause=HTML, sqlstate=HTML)
    return Picture(
        views=views,
        store_warning=HTML,
        seen={"html": [died]},
        disturbed={"html": [Outage(id="1", target="html", kind="unknown", detail=HTML)]},
    )


async def test_nothing_breaks_it_and_nothing_is_taken_for_html(open_page: Open) -> None:
    async with served(strange()) as server:
        watched = await open_page(f"http://127.0.0.1:{server.port}", width=360)
        page = watched.page
        await expect(page.locator(f"#target-{LONG} dd.recycle")).to_have_text("0.35 s")
        shown = page.locator("#target-html")
        await shown.locator("summary").click()
        await expect(shown.locator("tbody td").nth(3)).to_contain_text("<img")
        for part in (".database", ".readiness", ".warning", ".reasons li", ".outages li", ".facts", ".verdict + p"):
            await expect(shown.locator(part).first).to_contain_text("<img src=x onerror=alert(1)>")
        await expect(page.locator("#store")).to_contain_text("<img")
        assert await page.locator("img").count() == 1  # the icon
        assert await page.locator("body script").count() == 0
        await expect(shown.locator(".latency text").first).to_contain_text("2014 ms")
        assert await page.evaluate("document.documentElement.scrollWidth") == 360, "scrolls sideways"
        assert await shown.get_by_role("link", name="outages").get_attribute("href") == "outages?target=html"
        assert not watched.complaints


async def test_a_pause_and_a_small_measurement_are_told_in_the_state(open_page: Open) -> None:
    picture = Picture()
    until = Readiness(ready=True, reason="paused until 2026-11-24T12:10:00Z: no connection is held", since=NOON)
    why = Remark(code="measuring_is_paused", text="Measuring is paused: an operator asked for it.")
    waiting = Remark(code="measuring", text="Measuring is paused: no connection rests, and nothing is known yet.")
    advice = replace(measuring(), warnings=(why,), reasons=(waiting,))
    picture.views["default"] = replace(target(advice=advice), readiness=until, stage="paused", probes=())
    async with served(picture) as server:
        page = (await open_page(f"http://127.0.0.1:{server.port}")).page
        await expect(page.locator("header .readiness")).to_have_text(f"Ready: {until.reason}")
        await expect(page.locator("header .measuring")).to_have_text(why.text)
        await expect(page.locator(".warning")).to_have_count(0)
        await expect(page.locator(".headline")).to_have_text(waiting.text)
        picture.views["default"] = target()
        await expect(page.locator("header .measuring")).to_be_hidden()


async def test_after_a_restart_it_shows_what_is_measured_now(open_page: Open) -> None:
    async with served(rich()) as before:
        page = (await open_page(f"http://127.0.0.1:{before.port}")).page
        await expect(page.locator("#jump a")).to_have_text(["default", "orders"])
        outages = page.locator("#target-orders .outages li")
        await expect(outages).to_have_count(8)
        more = page.locator("#target-orders a[href='outages?target=orders']").first
        await more.focus()
        await page.wait_for_timeout(1500)  # an outage lasts, and what is told of it is told anew each second
        await expect(more).to_be_focused()
        await page.route("**/evidence*", lambda route: route.abort())
    picture = rich()
    picture.journal = Journal("another life")
    del picture.views["default"]
    async with served(picture, before.port):
        # What is not measured any more goes, and what is known stays while it cannot be fetched.
        await expect(page.locator("#jump")).to_be_hidden(timeout=60_000)
        await expect(page.locator("article")).to_have_count(1)
        await expect(outages).to_have_count(8)
        await page.unroute("**/evidence*")
        await expect(page.locator("#live-text")).to_have_text("Live", timeout=60_000)
        await expect(outages).to_have_count(8)


async def test_a_page_left_open_for_months_holds_no_more_than_it_fetched(base: str, open_page: Open) -> None:
    page = (await open_page(base)).page
    held = await page.evaluate(
        """async () => {
            const { Live } = await import("./assets/live.js");
            const live = Object.create(Live.prototype);
            Object.assign(live, { targets: new Map(), changed() {}, connected: true });
            for (let id = 0; id < 12_000; id += 1) live.put("observations", { id, target: "orders" });
            live.put("observations", { id: 11_000, target: "orders" });  // judged anew
            await live.askForStore();
            const ids = [...live.targets.get("orders").observations.keys()];
            return [ids.length, ids[0], ids.at(-1), live.store.warning];
        }"""
    )
    assert held == [5000, 7000, 11_000, "the disk is full"]


async def test_the_browser_holds_the_page_to_its_policy(base: str, open_page: Open) -> None:
    watched = await open_page(base)
    ran = await watched.page.evaluate(
        """() => {
            const script = document.createElement("script");
            try { script.textContent = "window.ran = true"; document.body.append(script); } catch { }
            const style = document.createElement("div");
            style.setAttribute("style", "color: red");
            return [window.ran ?? false, style.style.color];
        }"""
    )
    assert ran == [False, ""]
    assert any("Content Security Policy" in complaint for complaint in watched.complaints)
