#!/usr/bin/env bash
# Pins what the image installs, by hashes: the newest releases pyproject.toml allows, for every Python from 3.11 on.
# Needs `uv`. No address of any index gets into the files.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {
    uv --native-tls pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-annotate \
        --no-emit-index-url --no-emit-find-links --custom-compile-command 'make requirements' "$@"
}
compile pyproject.toml --output-file requirements.txt
# The build backend alone, from [build-system].
python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' |
    compile - --output-file requirements-build.txt
