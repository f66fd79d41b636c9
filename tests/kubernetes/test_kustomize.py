"""The Kustomize component says what the chart says, and builds into valid, restricted pods."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from sidecar.settings.loading import load_settings
from tests.kubernetes.charts import NEWEST, REPOSITORY, Manifest, containers, has_pods, one, pod_of, render, values_of
from tests.kubernetes.pod_security import violations

COMPONENT = REPOSITORY / "kustomize" / "component"
EXAMPLE = REPOSITORY / "kustomize" / "example"
NAME = "connection-health-sidecar"


def kubectl() -> str | None:
    """A kubectl whose kustomize knows components (5 or later), or None."""
    program = shutil.which("kubectl")
    if program is None:
        return None
    answer = subprocess.run([program, "version", "--client", "-o", "json"], capture_output=True, check=False)
    try:
        version = json.loads(answer.stdout)["kustomizeVersion"]
    except (ValueError, LookupError):
        return None
    return program if int(version.lstrip("v").partition(".")[0]) >= 5 else None


def in_a_pod_of(chart: Path, kind: str) -> Manifest:
    """The Deployment of the example application with the names that the component uses."""
    secret = {"secretName": NAME, "key": "password"}
    values = {
        NAME: {
            "fullnameOverride": NAME,
            "sidecar": {"container": kind},
            "credentials": {"default": {"password": secret}},
        }
    }
    return one(render(values, chart), "Deployment")


@pytest.mark.parametrize(("kind", "place"), [("native", "initContainers"), ("plain", "containers")])
def test_the_patch_is_what_the_chart_renders(kind: str, place: str, example: Path) -> None:
    charted = in_a_pod_of(example, kind)
    patched = values_of(COMPONENT / f"{kind}.yaml")["spec"]["template"]
    ours = [volume for volume in pod_of(charted)["volumes"] if volume["name"].startswith("connection-health-")]
    assert patched["spec"] == {place: [containers(pod_of(charted))[NAME]], "volumes": ours}
    assert patched["metadata"]["labels"].items() <= charted["spec"]["template"]["metadata"]["labels"].items()


def test_the_configuration_of_the_example_is_right(example: Path) -> None:
    settings = load_settings({}, {}, EXAMPLE / "config.yaml")
    (container,) = values_of(COMPONENT / "native.yaml")["spec"]["template"]["spec"]["initContainers"]
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert any(str(settings.targets["default"].password_file).startswith(f"{mount}/") for mount in mounts)
    assert any(f"//{mount}/" in settings.store.url.get_secret_value() for mount in mounts)


@pytest.mark.skipif(kubectl() is None, reason="needs kubectl with kustomize 5 or later")
def test_it_builds() -> None:
    program = kubectl()
    assert program is not None
    built = subprocess.run([program, "kustomize", EXAMPLE], capture_output=True, text=True, check=True)
    manifests = list(yaml.safe_load_all(built.stdout))
    for manifest in manifests:
        assert kubernetes_validate.validate(manifest, NEWEST, strict=True) == NEWEST
    for pod in map(pod_of, filter(has_pods, manifests)):
        assert list(violations(pod)) == []
        assert pod["volumes"][0]["configMap"]["name"] == one(manifests, "ConfigMap")["metadata"]["name"]
    # First, so that it has started before whatever else comes to be.
    assert next(iter(containers(pod_of(one(manifests, "Deployment"))))) == NAME
    assert next(iter(containers(pod_of(one(manifests, "Job"))))) == NAME
