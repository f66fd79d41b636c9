"""A real Prometheus scrapes the running service, loads the alerts, and answers what the dashboard asks."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from sidecar.demo.server import HOST, PostgresServer, free_port
from sidecar.demo.service import run_service

PROJECT = Path(__file__).parent.parent
FILES = PROJECT / "helm/connection-health-sidecar/files"
DASHBOARD = json.loads((FILES / "dashboard.json").read_text())
ALERTS = [rule for group in yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
QUERIES = [
    *(query["expr"] for panel in DASHBOARD["panels"] for query in panel.get("targets", ())),
    *(annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]),
]
VARIABLES = {"$target": ".*", "$instance": ".*", "$__rate_interval": "1m", "$__range": "1h"}


def until(ask: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first answer that is not empty."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(URLError, ConnectionError):
            if answer := ask():
                return answer
        assert time.monotonic() < deadline, "no answer in time"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def service(postgres: PostgresServer) -> Iterator[str]:
    """The address of a running sidecar that knows what its application runs with."""
    settings = {
        "TARGET_URL": postgres.url(),
        "TARGETS__DEFAULT__IDLE__FLOOR": "300ms",
        "TARGETS__DEFAULT__APPLICATION__POOL_RECYCLE": "1800",
        "TARGETS__DEFAULT__APPLICATION__POOL_PRE_PING": "true",
    }
    with run_service(settings) as running:
        until(lambda: 'bound="proven"' in exposition(running.address))
        yield running.address


def exposition(address: str) -> str:
    with urlopen(f"{address}/metrics") as reply:
        return reply.read().decode()


class Prometheus:
    def __init__(self, address: str) -> None:
        self.address = address

    def api(self, path: str, **parameters: str) -> Any:
        with urlopen(f"{self.address}/api/v1/{path}?{urlencode(parameters)}") as reply:
            answer = json.load(reply)
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[Any]:
        return self.api("query", query=expression)["result"]


@pytest.fixture(scope="module")
def prometheus(service: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with the configuration that compose.yaml gives it, but for the address and the pace."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not installed (Debian package `prometheus`)")
    directory = tmp_path_factory.mktemp("prometheus")
    shutil.copy(FILES / "alerts.yaml", directory)
    configuration = (PROJECT / "compose/prometheus.yml").read_text()
    assert "sidecar:8080" in configuration
    configuration = configuration.replace("sidecar:8080", service.removeprefix("http://")).replace("5s", "1s")
    (directory / "prometheus.yml").write_text(configuration)
    address = f"{HOST}:{free_port()}"
    arguments = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={address}"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([program, *arguments], cwd=directory, stdout=log, stderr=log)
    try:
        running = Prometheus(f"http://{address}")
        until(lambda: running.query("connection_health_up == 1"))
        yield running
    finally:
        process.terminate()
        process.wait(20)


def as_asked(expression: str) -> str:
    """A query of the dashboard as Grafana sends it."""
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression


def named(expressions: list[str]) -> set[str]:
    return {name for expression in expressions for name in re.findall(r"\bconnection_health_\w+", expression)}


def test_it_is_scraped(prometheus: Prometheus) -> None:
    [target] = prometheus.api("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    [recycle] = prometheus.query("connection_health_recommended_pool_recycle_seconds")
    assert recycle["metric"]["target"] == "default"
    assert float(recycle["value"][1]) >= 0


def test_the_rules_are_loaded_and_evaluated(prometheus: Prometheus) -> None:
    def evaluated() -> list[Any]:
        rules = [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]
        return [] if any(rule["health"] == "unknown" for rule in rules) else rules

    rules = until(evaluated)
    assert [rule["name"] for rule in rules] == [rule["alert"] for rule in ALERTS]
    assert {rule["health"] for rule in rules} == {"ok"}
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []


@pytest.mark.parametrize("expression", QUERIES)
def test_it_understands_every_query_of_the_dashboard(prometheus: Prometheus, expression: str) -> None:
    prometheus.query(as_asked(expression))
    assert "$" not in as_asked(expression)


def test_the_dashboard_shows_something_of_a_young_service(prometheus: Prometheus) -> None:
    by_panel = {panel["title"]: panel["targets"] for panel in DASHBOARD["panels"] if "targets" in panel}
    for title in (
        "Database",
        "pool_recycle",
        "pool_pre_ping",
        "Evidence",
        "The application's own settings",
        "Readiness",
    ):
        assert prometheus.query(as_asked(by_panel[title][0]["expr"])), title


def test_dashboard_and_alerts_name_only_metrics_that_exist(service: str) -> None:
    live = exposition(service)
    exposed = set(re.findall(r"^(connection_health_\w+)", live, flags=re.MULTILINE))
    # Not known of this server at this moment, and therefore without a series; their families are there.
    exposed |= set(re.findall(r"^# TYPE (connection_health_\w+) gauge$", live, flags=re.MULTILINE))
    alerts = [
        rule["expr"]
        for group in yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"]
        for rule in group["rules"]
    ]
    asked = named(QUERIES) | named(alerts)
    assert asked - exposed == set()
    families = set(re.findall(r"^# TYPE (connection_health_\w+)", live, flags=re.MULTILINE))
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert families - shown == set(), "neither shown nor watched"


def test_promtool_finds_nothing_wrong_with_the_live_metrics(service: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package `prometheus`)")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=exposition(service), capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_the_dashboard_is_whole() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert {x for x, _ in cells} <= set(range(24))
    for panel in panels:
        for asked in (panel, *panel.get("targets", ())):
            if panel["type"] != "row":
                assert asked["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "target", "instance"]
    assert all("$target" in query and "$instance" in query for query in QUERIES)
