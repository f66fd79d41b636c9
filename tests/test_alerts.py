"""The Prometheus rules: each alert fires when it should and only then, judged by promtool, and has its page."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parent.parent
RULES = PROJECT / "helm/connection-health-sidecar/files/alerts.yaml"
CASES = PROJECT / "tests/prometheus/alerts.yaml"
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian package `prometheus`)")
    return found


def test_promtool_has_no_complaint(promtool: str) -> None:
    checked = subprocess.run([promtool, "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"SUCCESS: {len(ALERTS)} rules found" in checked.stdout
    assert "lint error" not in checked.stdout + checked.stderr


def promtool_tests(promtool: str, directory: Path, rules: str) -> subprocess.CompletedProcess[str]:
    (directory / "alerts_under_test.yaml").write_text(rules)
    shutil.copy(CASES, directory / "cases.yaml")
    return subprocess.run(
        [promtool, "test", "rules", "cases.yaml"], cwd=directory, capture_output=True, text=True, check=False
    )


def test_each_alert_fires_when_it_should_and_only_then(promtool: str, tmp_path: Path) -> None:
    tested = promtool_tests(promtool, tmp_path, RULES.read_text())
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("connection_health_up == 0", "connection_health_up == 1"),
        ("failover|switchover", "restart"),
        ('connection_health_paused{reason!="not_looked_yet"}', "connection_health_paused"),
        ('connection_health_reduced{reason=~"crowded|refused|unseen"}', "connection_health_reduced"),
        ("unless min_over_time(connection_health_up[30m]) == 0", ""),
        ("[1h])\n        labels", "[1h]) - 1\n        labels"),
        (" and on (job, instance) max_over_time(connection_health_build_info[1h])", ""),
    ],
)
def test_a_wrong_rule_is_caught(promtool: str, tmp_path: Path, right: str, wrong: str) -> None:
    assert right in RULES.read_text()
    assert promtool_tests(promtool, tmp_path, RULES.read_text().replace(right, wrong)).returncode != 0


def test_each_alert_is_tested_firing_and_silent() -> None:
    fires: dict[str, set[bool]] = {}
    reasons = set()
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for check in case["alert_rule_test"]:
            expected = check.get("exp_alerts", [])
            fires.setdefault(check["alertname"], set()).add(bool(expected))
            reasons |= {alert["exp_labels"].get("reason") for alert in expected}
    assert fires == {alert["alert"]: {True, False} for alert in ALERTS}
    assert reasons == {alert["labels"].get("reason") for alert in ALERTS}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_each_alert_says_what_it_means_and_where_to_read_on(alert: dict[str, dict[str, str]]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    notes = alert["annotations"]
    assert "{{ $labels." in notes["summary"]
    assert notes["description"].endswith(".")
    page, _, section = notes["runbook"].partition("#")
    sections = re.findall(r"^## (.*)$", (PROJECT / page).read_text(), flags=re.MULTILINE)
    assert section in {heading.lower() for heading in sections}
