#!/usr/bin/env bash
# Builds the image with the container builder at hand.
#
#   scripts/build-image.sh [TAG]           TAG is connection-health-sidecar:VERSION unless given
#
#   BUILDER=docker|podman|buildah          which, if there are several
#   BASE=registry.internal/python:3.13     another base image
#   OFFLINE=1                              pip gets no network: wheels are downloaded first, here, with this machine's pip
#   PLATFORM=manylinux_2_28_x86_64 PYTHON_VERSION=3.13    for which base they are downloaded
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
tag=${1:-connection-health-sidecar:$version}
builder=${BUILDER:-}
for candidate in docker podman buildah; do
    [ -n "$builder" ] && break
    case $candidate in
        docker) docker info >/dev/null 2>&1 && builder=docker ;;
        *) command -v "$candidate" >/dev/null && builder=$candidate ;;
    esac
done || true
[ -n "$builder" ] || { echo "no container builder found: install docker, podman or buildah" >&2; exit 1; }

arguments=(--file Dockerfile --tag "$tag" --build-arg "VERSION=$version")
revision=$(git rev-parse HEAD 2>/dev/null) && arguments+=(--build-arg "REVISION=$revision")
[ -n "${BASE:-}" ] && arguments+=(--build-arg "BASE=$BASE")
# Without this, podman and buildah drop HEALTHCHECK, which the OCI format does not know.
[ "$builder" = docker ] || arguments+=(--format docker)
# Where namespaces are not to be had, as inside another container.
[ "$builder" = buildah ] && arguments+=(--isolation "${BUILDAH_ISOLATION:-chroot}")

rm -rf build/wheels
if [ -n "${OFFLINE:-}" ]; then
    python_version=${PYTHON_VERSION:-3.13}
    for requirements in requirements.txt requirements-build.txt; do
        python3 -m pip download --quiet --require-hashes --only-binary :all: --no-deps --dest build/wheels \
            --python-version "$python_version" --implementation cp --abi "cp${python_version/./}" --abi abi3 --abi none \
            --platform "${PLATFORM:-manylinux_2_28_x86_64}" --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform any \
            --requirement "$requirements"
    done
    arguments+=(--build-arg PIP_NO_INDEX=1)
fi

"$builder" build "${arguments[@]}" .
echo "built $tag with $builder"
