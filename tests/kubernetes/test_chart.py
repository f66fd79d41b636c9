"""The chart: what it renders is valid, restricted, and what the sidecar understands; what is wrong is refused."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import jsonschema
import kubernetes_validate
import pytest
import yaml

from sidecar.core.advice import render as dialects
from sidecar.settings.loading import load_settings
from sidecar.settings.model import keys
from tests.kubernetes.charts import (
    CHART,
    EXAMPLE_SAMPLES,
    MINIMAL,
    NEWEST,
    OLDEST,
    REPOSITORY,
    SAMPLES,
    Manifest,
    config_of,
    containers,
    has_pods,
    one,
    pod_of,
    render,
    values_of,
)
from tests.kubernetes.custom_resources import SCHEMAS
from tests.kubernetes.pod_security import violations

"""The Kubernetes releases supported: 1.29 is the first with native sidecars, 1.37 the latest."""

TLS = {"password": {"secretName": "s", "key": "k"}, "ca": {"secretName": "s", "key": "ca.crt"}}


def merged(*trees: Manifest) -> Manifest:
    """The trees laid over one another, later ones on top."""
    result: Manifest = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


def target(**keys: Any) -> Manifest:
    return merged(MINIMAL, {"config": {"targets": {"default": keys}}})


def settings_of(manifests: list[Manifest], tmp_path: Path, environ: dict[str, str] | None = None) -> Any:
    file = tmp_path / "config.yaml"
    file.write_text(config_of(manifests))
    return load_settings({}, environ or {}, file)


def everything(example: Path) -> dict[str, list[Manifest]]:
    """All manifests of all samples of both charts."""
    rendered = {name: render(values_of(path)) for name, path in SAMPLES.items()}
    return rendered | {
        f"application-{name}": render(values_of(path), example) for name, path in EXAMPLE_SAMPLES.items()
    }


def test_samples_cover_every_way_in() -> None:
    assert len(SAMPLES) >= 12
    assert {values_of(path).get("mode", "standalone") for path in SAMPLES.values()} == {"standalone", "sidecar", "job"}


@pytest.mark.parametrize("name", ["", *SAMPLES])
def test_lints_without_warnings(name: str) -> None:
    report = helm.lint(
        CHART, values_of(SAMPLES[name]) if name else {}, strict=True, kube_version=f"v{OLDEST}.0", namespace="ns"
    )
    assert report["errors"] == []
    # The one remark: it has no icon.
    assert [each["error"] for each in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("name", EXAMPLE_SAMPLES)
def test_the_example_lints_without_warnings(name: str, example: Path) -> None:
    report = helm.lint(example, values_of(EXAMPLE_SAMPLES[name]), strict=True, with_subcharts=True)
    assert report["errors"] == []
    assert {each["error"] for each in report["messages"]} == {"icon is recommended"}


def test_every_manifest_is_valid(example: Path) -> None:
    custom: set[str] = set()
    for sample, manifests in everything(example).items():
        assert manifests or sample == "disabled", sample
        for manifest in manifests:
            if schema := SCHEMAS.get(manifest["kind"]):
                jsonschema.validate(manifest, schema)
                custom.add(manifest["kind"])
                continue
            for version in (OLDEST, NEWEST):
                # What is newer than it knows it checks against the last one it knows, and returns that.
                assert kubernetes_validate.validate(manifest, version, strict=True) == version
    assert custom == set(SCHEMAS)


def test_every_pod_is_restricted(example: Path) -> None:
    for sample, manifests in everything(example).items():
        for pod in map(pod_of, filter(has_pods, manifests)):
            assert list(violations(pod)) == [], sample
            assert pod["automountServiceAccountToken"] is False, sample
            for name, container in containers(pod).items():
                assert container["securityContext"]["readOnlyRootFilesystem"] is True, (sample, name)
                assert container["resources"]["limits"]["memory"], (sample, name)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"hostNetwork": True}, "hostNetwork"),
        ({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "volume v: hostPath"),
        ({"securityContext": {"runAsNonRoot": True}}, "c: seccompProfile"),
        ({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}, "c: runAsNonRoot"),
        ({"containers": [{"name": "c", "securityContext": {}}]}, "c: allowPrivilegeEscalation"),
        ({"containers": [{"name": "c", "ports": [{"hostPort": 1}]}]}, "c: hostPort"),
        ({"containers": [{"name": "c", "livenessProbe": {"httpGet": {"host": "h"}}}]}, "c: host of a probe or a hook"),
        ({"initContainers": [{"name": "i", "securityContext": {"runAsUser": 0}}]}, "i: runAsUser"),
    ],
)
def test_the_check_of_pods_finds_faults(change: Manifest, complaint: str) -> None:
    context = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    common = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = {"securityContext": common, "containers": [{"name": "c", "securityContext": context}]}
    assert list(violations(pod)) == []
    assert complaint in list(violations({**pod, **change}))


# What the sidecar makes of it


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "disabled"])
def test_the_sidecar_loads_what_is_rendered(name: str, tmp_path: Path) -> None:
    values = values_of(SAMPLES[name])
    environ = {
        f"SIDECAR_TARGETS__{target.upper()}__URL": "postgresql://app:secret@db/app"
        for target, given in values.get("credentials", {}).items()
        if "url" in given
    }
    settings = settings_of(render(values), tmp_path, environ)
    assert set(settings.targets) == set(values["config"]["targets"])


def test_the_example_configuration_can_be_pasted(tmp_path: Path) -> None:
    example_file = REPOSITORY / "config.example.yaml"
    config = yaml.safe_load(example_file.read_text())
    store = config.pop("store")
    rendered = settings_of(render({"config": config}), tmp_path)
    expected = load_settings({}, {}, example_file)
    assert store
    assert rendered.model_dump(exclude={"store"}) == expected.model_dump(exclude={"store"})


def test_credentials_become_files_that_are_mounted_where_the_configuration_says(tmp_path: Path) -> None:
    manifests = render(values_of(SAMPLES["standalone-tls"]))
    settings = settings_of(manifests, tmp_path).targets["orders"]
    pod = pod_of(one(manifests, "Deployment"))
    (mount,) = (
        each
        for each in containers(pod)["connection-health-sidecar"]["volumeMounts"]
        if each["name"] == "connection-health-credentials"
    )
    # Under a subPath a changed Secret would never arrive.
    assert "subPath" not in mount
    assert mount["readOnly"] is True
    (volume,) = (each["projected"] for each in pod["volumes"] if each["name"] == mount["name"])
    files = {
        f"{mount['mountPath']}/{item['path']}": (origin["name"], item["key"])
        for source in volume["sources"]
        for origin in source.values()
        for item in origin["items"]
    }
    assert files == {
        str(settings.password_file): ("orders-db", "password"),
        str(settings.tls.ca_file): ("rds-ca", "global-bundle.pem"),
        str(settings.tls.cert_file): ("orders-db-client", "tls.crt"),
        str(settings.tls.key_file): ("orders-db-client", "tls.key"),
    }


def test_evidence_lies_where_the_container_may_write(tmp_path: Path) -> None:
    manifests = render(MINIMAL)
    container = containers(pod_of(one(manifests, "Deployment")))["connection-health-sidecar"]
    (path,) = (each["mountPath"] for each in container["volumeMounts"] if each["name"] == "connection-health-evidence")
    url = settings_of(manifests, tmp_path).store.url.get_secret_value()
    assert url == f"sqlite+aiosqlite:///{path}/evidence.db"
    assert {"name": "TMPDIR", "value": path} in container["env"]


def test_a_shared_store_comes_from_a_secret_alone() -> None:
    manifests = render(values_of(SAMPLES["standalone-shared-store"]))
    assert "store" not in yaml.safe_load(config_of(manifests))
    environment = containers(pod_of(one(manifests, "Deployment")))["connection-health-sidecar"]["env"]
    assert {
        "name": "SIDECAR_STORE__URL",
        "valueFrom": {"secretKeyRef": {"name": "evidence-store", "key": "url"}},
    } in environment


def test_ports_follow_the_configuration() -> None:
    container = containers(pod_of(one(render(values_of(SAMPLES["standalone-all"])), "Deployment")))[
        "connection-health-sidecar"
    ]
    assert [port["containerPort"] for port in container["ports"]] == [9000]
    assert "lifecycle" not in container


def test_standalone_probes_and_leaves_in_time() -> None:
    deployment = one(render(MINIMAL), "Deployment")
    container = containers(pod_of(deployment))["connection-health-sidecar"]
    paths = {key: container[key]["httpGet"]["path"] for key in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/startupz", "livenessProbe": "/livez", "readinessProbe": "/health"}
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod_of(deployment)["terminationGracePeriodSeconds"] > sleep + 5  # leaving takes less than five seconds


def test_a_changed_configuration_replaces_the_pods() -> None:
    def checksum(values: Manifest) -> str:
        annotations = one(render(values), "Deployment")["spec"]["template"]["metadata"]["annotations"]
        return str(annotations["checksum/connection-health-sidecar"])

    assert checksum(MINIMAL) != checksum(target(idle={"connections": 4}))


def test_a_claim_is_kept_and_serves_one_pod_at_a_time() -> None:
    manifests = render(values_of(SAMPLES["standalone-pvc"]))
    claim = one(manifests, "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    deployment = one(manifests, "Deployment")
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert {
        "name": "connection-health-evidence",
        "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]},
    } in pod_of(deployment)["volumes"]


def test_the_job_measures_prints_and_ends() -> None:
    pod = pod_of(one(render(values_of(SAMPLES["job"])), "Job"))
    sidecar, measured = pod["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert measured["args"] == ["wait", "--for", "provisional", "--timeout", "5400s"]
    assert [each["args"] for each in pod["containers"]] == [["recommend", "--format=hikaricp"]]
    assert pod["restartPolicy"] == "Never"


@pytest.mark.parametrize(
    ("timeout", "seconds"), [("2h", 7200), (90, 90), (1.5, 2), ("1500ms", 2), ("1.5 h", 5400), ("30d", 2592000), (0, 0)]
)
def test_the_job_ends_even_if_the_sidecar_never_starts(timeout: object, seconds: int) -> None:
    job = one(render(merged(MINIMAL, {"mode": "job", "job": {"timeout": timeout}})), "Job")
    assert containers(pod_of(job))["measured"]["args"][-1] == f"{seconds}s"
    assert job["spec"]["activeDeadlineSeconds"] == seconds + 600


def test_what_the_job_may_print_is_what_the_sidecar_can_say() -> None:
    schema = helm.Chart.load(CHART).schema
    assert schema is not None
    assert set(schema["properties"]["job"]["properties"]["format"]["enum"]) == {"json", *dialects.FORMATS}


def test_monitors_select_the_pods_and_the_service() -> None:
    manifests = render(values_of(SAMPLES["standalone-monitored"]))
    deployment, service = one(manifests, "Deployment"), one(manifests, "Service")
    pod_labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    assert one(manifests, "PodMonitor")["spec"]["selector"]["matchLabels"].items() <= pod_labels
    assert service["spec"]["selector"].items() <= pod_labels
    wanted = one(manifests, "ServiceMonitor")["spec"]
    assert wanted["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert wanted["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert not {"PodMonitor", "ServiceMonitor", "PrometheusRule"} & {each["kind"] for each in render(MINIMAL)}


def test_alerts_arrive_as_they_were_written() -> None:
    rule = one(render(values_of(SAMPLES["standalone-monitored"])), "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    assert "{{ $labels.target }}" in str(rule)


def test_a_network_policy_opens_the_ports_of_the_databases() -> None:
    def ports(sample: str) -> list[int]:
        rules = one(render(values_of(SAMPLES[sample])), "NetworkPolicy")["spec"]["egress"]
        return [port["port"] for rule in rules for port in rule["ports"]]

    # 53 twice: over UDP and TCP. The store's port comes from `databasePorts`; a URL without a port means 5432.
    assert ports("standalone-shared-store") == [53, 53, 5432, 6432]
    assert ports("standalone-several-targets") == [53, 53, 5432, 6432, 5433]


def test_disabled_renders_nothing() -> None:
    assert render({"enabled": False}) == []


# What is refused

WRONG: dict[str, tuple[Manifest, str]] = {
    "unknown value": ({"replicas": 2}, "additional properties 'replicas' not allowed"),
    "unknown mode": ({"mode": "daemon"}, "at '/mode': value must be one of 'standalone', 'sidecar', 'job'"),
    "unknown container": (
        {"sidecar": {"container": "init"}},
        "at '/sidecar/container': value must be one of 'native', 'plain'",
    ),
    "not a number": ({"standalone": {"replicas": "2"}}, "at '/standalone/replicas': got string, want integer"),
    "root": ({"securityContext": {"runAsUser": 0}}, "at '/securityContext/runAsUser': minimum: got 0, want 1"),
    "privileges": ({"securityContext": {"privileged": True}}, "additional properties 'privileged' not allowed"),
    "image with a tag in the wrong place": (
        {"image": {"digest": "latest"}},
        "at '/image/digest': 'latest' does not match pattern",
    ),
    "unknown kind of persistence": (
        {"persistence": {"type": "hostPath"}},
        "at '/persistence/type': value must be one of 'emptyDir', 'pvc', 'postgresql'",
    ),
    "password in values": (
        {"credentials": {"default": {"password": "hunter2"}}},
        "at '/credentials/default/password': got string, want object",
    ),
    "secret without a key": (
        {"credentials": {"default": {"password": {"secretName": "s"}}}},
        "at '/credentials/default/password': missing property 'key'",
    ),
    "password in the URL": (
        target(url="postgresql+asyncpg://app:hunter2@db:5432/app"),
        "at '/config/targets/default/url': value must be "
        "'a URL without a password, whose Secret is named under `credentials`'",
    ),
    "password in the URL, badly encoded": (target(url="postgresql://app:hunter2/x@db"), "a URL without a password"),
    "password as a parameter": (target(url="postgresql://app@db/app?password=hunter2"), "a URL without a password"),
    "no URL": (
        target(url="db.internal"),
        "at '/config/targets/default/url': value must be 'postgresql+asyncpg://user@host:5432/database'",
    ),
    "store in the configuration": (
        merged(MINIMAL, {"config": {"store": {"url": "postgresql://a:hunter2@b/c"}}}),
        "at '/config/store': value must be 'left out: `persistence` says where evidence is kept'",
    ),
    "unknown key of the configuration": (
        merged(MINIMAL, {"config": {"polcy": {}}}),
        "at '/config': additional properties 'polcy' not allowed",
    ),
    "bad name of a target": (
        {"config": {"targets": {"Orders DB": {"url": "postgresql://app@db"}}}},
        "'Orders DB' does not match pattern",
    ),
    "not a duration": (
        target(idle={"floor": "5 minutes"}),
        "at '/config/targets/default/idle/floor': value must be '350s, 10m, 8h, 100ms, 1d or a number of seconds'",
    ),
    "unknown readiness": (
        merged(MINIMAL, {"config": {"readiness": {"depends_on": "nothing"}}}),
        "at '/config/readiness/depends_on': value must be one of 'database', 'process'",
    ),
    "port that is none": (
        merged(MINIMAL, {"config": {"http": {"port": 0}}}),
        "at '/config/http/port': minimum: got 0, want 1",
    ),
    "label that is no text": ({"podMonitor": {"labels": {"a": 1}}}, "at '/podMonitor/labels/a': got number, want"),
    "interval without a unit": ({"podMonitor": {"interval": 30}}, "at '/podMonitor/interval': got number, want string"),
    "unknown format": (
        {"job": {"format": "toml"}},
        "at '/job/format': value must be one of 'json', 'sqlalchemy'",
    ),
    "unknown milestone": (
        {"job": {"waitFor": "done"}},
        "at '/job/waitFor': value must be one of 'provisional', 'confirmed', 'verified'",
    ),
    "name that no Service may have": (
        {"fullnameOverride": "my.health"},
        "at '/fullnameOverride': 'my.health' does not match pattern",
    ),
    "memory that is none": (
        {"resources": {"limits": {"memory": "lots"}}},
        "at '/resources/limits/memory': 'lots' does not match pattern",
    ),
}

# Two values that stand apart: no schema sees that, the templates do.
CONTRADICTORY: dict[str, tuple[Manifest, str]] = {
    "no target": ({}, "config.targets: empty: takes at least one database"),
    "no URL at all": (
        {"config": {"targets": {"default": {}}}},
        "config.targets.default.url: missing: takes postgresql+asyncpg://user@host:5432/database, or its Secret",
    ),
    "two URLs": (
        merged(MINIMAL, {"credentials": {"default": {"url": {"secretName": "s", "key": "uri"}}}}),
        "credentials.default.url: config.targets.default.url is given too: takes one of both",
    ),
    "credentials of nobody": (
        merged(MINIMAL, {"credentials": {"orders": TLS}}),
        "credentials.orders: no such target: takes a name of config.targets (default)",
    ),
    "two passwords": (
        merged(target(password_file="/p"), {"credentials": {"default": {"password": TLS["password"]}}}),
        "credentials.default.password: config.targets.default.password_file is given too",
    ),
    "authority without verification": (
        merged(target(tls={"mode": "require"}), {"credentials": {"default": TLS}}),
        "credentials.default.ca: would not be used: takes verify-ca or verify-full as config.targets.default.tls.mode",
    ),
    "two authorities": (
        merged(target(tls={"mode": "verify-ca", "ca_file": "/c"}), {"credentials": {"default": TLS}}),
        "credentials.default.ca: config.targets.default.tls.ca_file is given too",
    ),
    "one port for both": (
        merged(MINIMAL, {"config": {"http": {"port": 9091}}}),
        "config.http.admin_port: the same as port",
    ),
    "store without a Secret": (
        merged(MINIMAL, {"persistence": {"type": "postgresql"}}),
        "persistence.postgresql.url.secretName: missing",
    ),
    "a claim for two": (
        merged(MINIMAL, {"persistence": {"type": "pvc"}, "standalone": {"replicas": 2}}),
        "standalone.replicas: a claim serves one pod at a time",
    ),
    "a budget for one": (
        merged(MINIMAL, {"podDisruptionBudget": {"enabled": True}}),
        "podDisruptionBudget: would block the draining of nodes",
    ),
    "policy for pods of others": (
        merged(MINIMAL, {"mode": "sidecar", "networkPolicy": {"enabled": True}}),
        "networkPolicy.enabled: concerns pods and Services that this chart makes under mode standalone only",
    ),
    "a sleep that outlasts the pod": (
        merged(MINIMAL, {"preStopSleepSeconds": 15}),
        "terminationGracePeriodSeconds: too short: takes at least 20, five more than preStopSleepSeconds",
    ),
    "a policy that shuts out the store": (
        merged(
            MINIMAL,
            {
                "networkPolicy": {"enabled": True},
                "persistence": {"type": "postgresql", "postgresql": {"url": {"secretName": "store"}}},
            },
        ),
        "networkPolicy.databasePorts: missing: takes the port of the store, whose URL is in a Secret",
    ),
    "a policy that shuts out a database": (
        {
            "networkPolicy": {"enabled": True},
            "config": {"targets": {"orders": {}}},
            "credentials": {"orders": {"url": {"secretName": "s", "key": "uri"}}},
        },
        "networkPolicy.databasePorts: missing: takes the port of target orders, whose URL is in a Secret",
    ),
    "a Job longer than anybody waits": (
        merged(MINIMAL, {"mode": "job", "job": {"timeout": "31d"}}),
        "job.timeout: too long: takes at most 30d",
    ),
    "a Job that does not know which": (
        {
            "mode": "job",
            "config": {"targets": {"a": {"url": "postgresql://u@a"}, "b": {"url": "postgresql://u@b"}}},
        },
        "job.target: missing: takes one of a, b",
    ),
}


def below(values: Manifest, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from below(value, (*path, key))


def nothing_at(path: tuple[str, ...]) -> Manifest:
    values: Manifest = {path[-1]: None}
    for key in reversed(path[:-1]):
        values = {key: values}
    return values


VALUES = (
    *below(values_of(CHART / "values.yaml")),
    *(("config", key) for key in ("policy", "readiness", "http", "log")),
    *(("config", "targets", "default", key) for key in ("tls", "pool", "idle", "heartbeat", "application")),
)
FULL = {
    name: {"enabled": True} for name in ("podMonitor", "prometheusRule", "dashboard", "serviceMonitor", "networkPolicy")
}
MODES: dict[str, Manifest] = {
    "standalone": merged(MINIMAL, FULL),
    "sidecar": merged(MINIMAL, {"mode": "sidecar", "podMonitor": {"enabled": True}}),
    "job": merged(MINIMAL, {"mode": "job", "podMonitor": {"enabled": True}}),
}


def without(values: Manifest, path: tuple[str, ...]) -> list[Manifest] | str:
    """The manifests with a null at the path, or the complaint."""
    try:
        return render(merged(values, nothing_at(path)))
    except helm.HelmError as refusal:
        return str(refusal)


def holds_null(value: object) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return any(map(holds_null, value)) if isinstance(value, list) else value is None


@pytest.mark.parametrize("mode", MODES)
def test_null_leaves_a_value_out_or_is_refused_by_its_name(mode: str) -> None:
    """Helm takes a key away that is set to null. No template may stumble over that."""
    rendered = {path: without(MODES[mode], path) for path in VALUES}
    for path, outcome in rendered.items():
        if isinstance(outcome, str):
            assert f"missing property '{path[-1]}'" in outcome or f": {'.'.join(path)}: " in outcome, path
        else:
            assert not any(map(holds_null, outcome)), path
    assert sum(isinstance(outcome, list) for outcome in rendered.values()) > len(VALUES) / 3


@pytest.mark.parametrize("probe", ["startup", "liveness", "readiness"])
def test_a_probe_can_be_left_out(probe: str, example: Path) -> None:
    container = containers(pod_of(one(render(merged(MINIMAL, nothing_at(("probes", probe)))), "Deployment")))
    found = {key for key in container["connection-health-sidecar"] if key.endswith("Probe")}
    assert found == {"startupProbe", "livenessProbe", "readinessProbe"} - {f"{probe}Probe"}
    values = values_of(EXAMPLE_SAMPLES["native"])
    values = merged(values, {"connection-health-sidecar": nothing_at(("probes", probe))})
    assert not holds_null(one(render(values, example), "Deployment"))


def test_null_is_not_0() -> None:
    assert "replicas" not in one(render(merged(MINIMAL, {"standalone": {"replicas": None}})), "Deployment")["spec"]
    job = one(render(merged(MINIMAL, {"mode": "job", "job": {"ttlSecondsAfterFinished": None}})), "Job")
    assert "ttlSecondsAfterFinished" not in job["spec"]
    for manifest in render(merged(MINIMAL, {"terminationGracePeriodSeconds": None})):
        assert not has_pods(manifest) or "terminationGracePeriodSeconds" not in pod_of(manifest)


@pytest.mark.parametrize("case", WRONG)
def test_the_schema_refuses_wrong_values_readably(case: str) -> None:
    values, message = WRONG[case]
    with pytest.raises(helm.HelmValuesError) as refusal:
        render(merged(MINIMAL, values))
    assert message in str(refusal.value)
    if "://" in str(values) or "config" in values:
        assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("case", CONTRADICTORY)
def test_the_templates_refuse_contradictions_readably(case: str) -> None:
    values, message = CONTRADICTORY[case]
    with pytest.raises(helm.HelmRenderError) as refusal:
        render(values)
    assert message in str(refusal.value)


# The schema and the settings


def schema_keys(schema: Manifest, node: Manifest, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Every key that takes a value, as `sidecar.settings.model.keys` gives them."""
    if reference := node.get("$ref"):
        return schema_keys(schema, schema["definitions"][reference.rpartition("/")[2]], path)
    sections = dict(node.get("properties", {}))
    if isinstance(others := node.get("additionalProperties"), dict):
        sections["*"] = others
    if not sections:
        return {path}
    return {key for name, section in sections.items() for key in schema_keys(schema, section, (*path, name))}


def test_the_schema_knows_every_setting() -> None:
    schema = helm.Chart.load(CHART).schema
    assert schema is not None
    # The store is said under `persistence`; the schema has the word only to tell so.
    expected = {path for path, _ in keys() if path[0] != "store"} | {("store",)}
    assert schema_keys(schema, schema["definitions"]["config"]) == expected


def test_the_schema_refuses_what_the_sidecar_refuses() -> None:
    missed = set()
    for file in sorted((REPOSITORY / "tests" / "bad_configs").glob("*.yaml")):
        try:
            render({"config": yaml.safe_load(file.read_text())})
        except (ValueError, TypeError, yaml.YAMLError, helm.HelmError):
            continue
        missed.add(file.stem)
    # Faults that are gone once YAML has been read into values: the last of two keys wins, a number for a key is text.
    # And what no schema can say: that one duration is longer than another.
    assert missed == {"key_given_twice", "keys_not_text", "policy_least"}


# The documents


def test_the_quickest_way_in_works() -> None:
    settings = re.findall(r"--set (\S+)", (REPOSITORY / "README.md").read_text())
    assert len(settings) == 4
    values = merged(*(helm.parse_set_string(each) for each in settings))
    assert one(render(values), "Deployment")


def test_the_values_of_the_guide_are_right(example: Path) -> None:
    guide = (REPOSITORY / "docs" / "kubernetes.md").read_text()
    (standalone,) = re.findall(r"^\$ cat values.yaml\n(.*?)^\$ ", guide, re.DOTALL | re.MULTILINE)
    assert one(render(yaml.safe_load(standalone)), "Deployment")
    (sidecar,) = re.findall(r"^# values.yaml\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)
    assert one(render(yaml.safe_load(sidecar), example), "Deployment")
    defined = "".join(path.read_text() for path in (CHART / "templates").glob("*.tpl"))
    names = set(re.findall(r'include "([^"]+)"', guide))
    assert len(names) >= 6
    assert all(f'define "{name}"' in defined for name in names)


# The package


def test_the_chart_is_of_the_package_s_version() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    metadata = helm.Chart.load(CHART).metadata
    assert (metadata["version"], metadata["appVersion"]) == (project["version"], project["version"])
    container = containers(pod_of(one(render(MINIMAL), "Deployment")))["connection-health-sidecar"]
    assert container["image"].endswith(f":{project['version']}")


def test_the_packaged_chart_is_the_same(tmp_path: Path) -> None:
    archive = helm.package(CHART, destination=tmp_path)
    with helm.Chart.load(archive) as packaged:
        rendered = packaged.render(MINIMAL, name="rel", namespace="ns", revision=1)
        assert "files/alerts.yaml" in {file["name"] for file in packaged.files}
        assert not [file for file in packaged.files if file["name"].startswith("ci/")]
    assert rendered == helm.Chart.load(CHART).render(MINIMAL, name="rel", namespace="ns", revision=1)


def test_every_value_is_explained_and_checked() -> None:
    schema = helm.Chart.load(CHART).schema
    assert schema is not None
    assert set(values_of(CHART / "values.yaml")) == set(schema["properties"]) - {"global"}
