"""The image: its recipe linted, its pins whole, compose.yaml valid; and, when asked for, the image built and run.

SIDECAR_TEST_IMAGE=1 builds it with the builder at hand (scripts/build-image.sh, which reads BASE, OFFLINE and
PYTHON_VERSION). What is in it is run with a read-only root filesystem where `buildah` built it and we are root.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from compose_spec import PyCompose
from packaging.requirements import Requirement

from sidecar.settings.loading import load_settings

PROJECT = Path(__file__).parent.parent
DOCKERFILE = (PROJECT / "Dockerfile").read_text()
COMPOSE = (PROJECT / "compose.yaml").read_text()
TAG = "localhost/connection-health-sidecar:test"


def instructions() -> list[str]:
    """The Dockerfile's instructions, each in one line, without comments."""
    text = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#"))
    return re.sub(r"\s*\\\n\s*", " ", text).strip().splitlines()


def runtime() -> list[str]:
    """The instructions of the last stage."""
    written = instructions()
    last = max(index for index, line in enumerate(written) if line.startswith("FROM "))
    return written[last:]


# --- the recipe -------------------------------------------------------------------------------------------------------


def test_hadolint_has_no_complaint() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    linted = subprocess.run([hadolint, "Dockerfile"], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout + linted.stderr) == (0, "")


def test_hadolint_would_complain() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    wrong = DOCKERFILE.replace("USER 65532:65532", "USER root")
    linted = subprocess.run([hadolint, "-"], input=wrong, capture_output=True, text=True, check=False)
    assert linted.returncode != 0
    assert "DL3002" in linted.stdout


def test_every_stage_stands_on_the_base_that_was_given_and_the_default_is_pinned() -> None:
    assert re.search(r"^ARG BASE=\S+:3\.\d+\S*@sha256:[0-9a-f]{64}$", DOCKERFILE, flags=re.MULTILINE)
    assert {line.split()[1] for line in instructions() if line.startswith("FROM ")} == {"${BASE}"}


def test_what_runs_needs_no_root_and_no_shell() -> None:
    written = runtime()
    assert "USER 65532:65532" in written
    assert "STOPSIGNAL SIGTERM" in written
    assert 'ENTRYPOINT ["sidecar"]' in written
    assert 'CMD ["run"]' in written
    assert not [line for line in written if line.startswith(("RUN", "ADD", "SHELL"))]
    [health] = [line for line in written if line.startswith("HEALTHCHECK")]
    command = json.loads(health.partition("CMD ")[2])
    assert command[:2] == ["sidecar", "wait"]


def test_the_build_gets_nothing_but_what_it_copies() -> None:
    allowed = (PROJECT / ".dockerignore").read_text().splitlines()
    assert allowed[1] == "*"
    copied = set()
    for line in instructions():
        if line.startswith("COPY") and "--from" not in line:
            copied |= set(line.split()[1:-1])
    assert {name.removeprefix("!") for name in allowed if name.startswith("!")} == {
        name.replace("[s]", "s") for name in copied
    }


# --- the pins ---------------------------------------------------------------------------------------------------------


def pinned(name: str) -> dict[str, tuple[Requirement, int]]:
    """Of a requirements file, by name: the pin, and how many hashes it has."""
    text = (PROJECT / name).read_text()
    found = {}
    for entry in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        if entry and not entry.startswith("#"):
            pin, *hashes = entry.split(" --hash=sha256:")
            assert all(re.fullmatch("[0-9a-f]{64}", one) for one in hashes)
            requirement = Requirement(pin)
            found[requirement.name] = requirement, len(hashes)
    return found


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-build.txt"])
def test_everything_is_pinned_with_hashes_and_no_index_is_named(name: str) -> None:
    for requirement, hashes in pinned(name).values():
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), requirement
        assert hashes
    text = (PROJECT / name).read_text()
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash)", text, flags=re.MULTILINE)


def test_the_pins_are_what_the_project_asks_for() -> None:
    """Run `make requirements` when this fails."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    for name, wanted in (
        ("requirements.txt", project["project"]["dependencies"]),
        ("requirements-build.txt", project["build-system"]["requires"]),
    ):
        pins = pinned(name)
        for requirement in map(Requirement, wanted):
            pin, _ = pins[requirement.name.lower()]
            assert requirement.specifier.contains(str(pin.specifier).removeprefix("==")), requirement


# --- compose.yaml -----------------------------------------------------------------------------------------------------


def test_compose_follows_its_specification() -> None:
    PyCompose.from_yaml(COMPOSE).validate()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("read_only", "read_onyl"),
        ("interval: 2s", "interval: soon"),
        ("secrets: [database-password]", "secrets: [database-passwrd]"),
    ],
)
def test_the_specification_would_not_let_a_slip_pass(right: str, wrong: str) -> None:
    assert right in COMPOSE
    with pytest.raises(ValueError, match=r"."):
        PyCompose.from_yaml(COMPOSE.replace(right, wrong, 1)).validate()


def test_the_settings_in_compose_are_settings_and_its_files_exist() -> None:
    services = yaml.safe_load(COMPOSE)["services"]
    settings = load_settings({}, services["sidecar"]["environment"], None)
    target = settings.targets["default"]
    assert target.display == "postgres:5432/app"
    assert target.application is not None
    assert str(target.password_file).startswith("/run/secrets/")
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())]
    secrets = [secret["file"] for secret in yaml.safe_load(COMPOSE)["secrets"].values()]
    for file in (*(name for name in mounted if name.startswith(".")), *secrets):
        assert (PROJECT / file).is_file(), file


def test_nothing_of_compose_is_open_to_the_network() -> None:
    for service in yaml.safe_load(COMPOSE)["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


# --- the image --------------------------------------------------------------------------------------------------------

# In a mount namespace of its own: the root filesystem of the image read-only, /data in memory, no network but loopback.
CONTAINER = """
set -e
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount -t tmpfs -o uid=65532,gid=65532 tmpfs "$1/data"
mount -o remount,bind,ro "$1"
ip link set lo up
exec chroot --userspec=65532:65532 "$1" /usr/bin/env -i PATH=/opt/sidecar/bin:/usr/bin /usr/bin/env -C /data "${@:2}"
"""

# Python, as nothing else is sure to be there. It is inside the namespace what a kubelet is.
STORY = """
import os, signal, subprocess, sys, time, urllib.request
assert os.getuid() == 65532
for place in ("/", "/opt/sidecar", "/tmp"):
    try:
        open(os.path.join(place, "x"), "w")
    except OSError:
        continue
    sys.exit(place + " can be written to")
os.environ["SIDECAR_TARGET_URL"] = "postgresql+asyncpg://app@127.0.0.1:1/app"
service = subprocess.Popen(["sidecar", "run"])
subprocess.run(["sidecar", "wait", "--for", "started", "--timeout", "30s"], check=True)
assert urllib.request.urlopen("http://127.0.0.1:8080/livez").status == 200
assert os.path.exists("/data/evidence.db")
service.send_signal(signal.SIGTERM)
sys.exit(service.wait(10))
"""


@pytest.mark.skipif(not os.environ.get("SIDECAR_TEST_IMAGE"), reason="SIDECAR_TEST_IMAGE is not set: no image is built")
@pytest.mark.timeout(900)
def test_the_image_is_built_and_runs_read_only() -> None:
    subprocess.run([PROJECT / "scripts/build-image.sh", TAG], check=True)
    buildah = shutil.which("buildah")
    if buildah is None or os.geteuid() != 0:
        pytest.skip("built, but running it takes buildah and root here")

    def run(*arguments: str) -> str:
        return subprocess.run([buildah, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    configuration = json.loads(run("inspect", "--type", "image", TAG))["Docker"]["config"]
    assert configuration["User"] == "65532:65532"
    assert configuration["Entrypoint"] == ["sidecar"]
    assert configuration["Cmd"] == ["run"]
    assert configuration["StopSignal"] == "SIGTERM"
    assert configuration["Healthcheck"]["Test"][:3] == ["CMD", "sidecar", "wait"]
    assert configuration["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    container = run("from", TAG)
    try:
        root = run("mount", container)
        assert not Path(root, "opt/sidecar/bin/pip").exists()
        namespace = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child")
        inside = ("bash", "-c", CONTAINER, "container", root, "python3", "-c", STORY)
        told = subprocess.run([*namespace, *inside], capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stdout + told.stderr
    finally:
        run("rm", container)
