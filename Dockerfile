# Builds with docker, podman and buildah: scripts/build-image.sh uses the one at hand.
#
# The base is pinned by its digest, everything from PyPI by hashes. Another base needs python3 (3.11 or later) with venv:
# --build-arg BASE=registry.internal/python:3.13
ARG BASE=docker.io/library/python:3.13-slim-trixie@sha256:9d2e5553305c7c7b0097999bb17187c69b921ccd6bc9d40e4bb5ebe652c00285

FROM ${BASE} AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ONLY_BINARY=:all: \
    PIP_REQUIRE_VIRTUALENV=1 \
    PIP_ROOT_USER_ACTION=ignore
# For a build without network: scripts/build-image.sh fills build/wheels beforehand and sets this to 1. The hashes hold
# for those wheels as for any others; where there are none, the pattern matches nothing.
ARG PIP_NO_INDEX=0
COPY requirements.txt requirements-build.txt build/wheel[s] /src/wheels/
RUN python3 -m venv /build \
    && /build/bin/pip install --require-hashes --find-links wheels -r wheels/requirements-build.txt \
    && python3 -m venv --without-pip /opt/sidecar \
    && /build/bin/pip --python /opt/sidecar/bin/python install --require-hashes --find-links wheels -r wheels/requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY sidecar sidecar
# What runs is the wheel that everyone else gets too. The check fails the build when something is missing.
RUN /build/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir dist . \
    && /build/bin/pip --python /opt/sidecar/bin/python install --no-index --no-deps dist/*.whl \
    && /build/bin/pip --python /opt/sidecar/bin/python check \
    && /opt/sidecar/bin/sidecar --version \
    && mkdir /data

FROM ${BASE}
ARG VERSION=
ARG REVISION=
ARG SOURCE=
LABEL org.opencontainers.image.title="connection-health-sidecar" \
      org.opencontainers.image.description="Measures how database connections die on your path to PostgreSQL and serves the pool settings that survive it." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
ENV PATH=/opt/sidecar/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# No RUN in this stage: the base may be one without a shell.
COPY --from=build /opt/sidecar /opt/sidecar
# The only place it writes to: evidence.db, where store.url says nothing else. All the rest may be read-only.
COPY --from=build --chown=65532:65532 /data /data
WORKDIR /data
VOLUME ["/data"]
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
# `started`, not `ready`: what restarts unhealthy containers must not do so because a database is away.
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s --retries=3 \
    CMD ["sidecar", "wait", "--for", "started", "--timeout", "5s"]
ENTRYPOINT ["sidecar"]
CMD ["run"]
