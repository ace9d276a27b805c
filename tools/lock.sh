#!/usr/bin/env bash
# Remakes requirements.lock from pyproject.toml: exact versions for every platform, all extras. Needs uv (pip install uv).
#   tools/lock.sh                            keeps what is locked and adds what is missing
#   tools/lock.sh --upgrade                  takes the newest of everything
#   tools/lock.sh --upgrade-package torch    takes the newest torch
set -euo pipefail
cd "$(dirname "$0")/.."
unlocked=$(mktemp)
trap 'rm -f "$unlocked" "$unlocked.new"' EXIT
[ ! -f requirements.lock ] || cp requirements.lock "$unlocked"   # uv prefers the versions it finds here

uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --fork-strategy fewest \
    --no-annotate --no-header --quiet --output-file "$unlocked" "$@"

{
    echo "# Exact versions of everything gptfluence needs, all extras; Linux and macOS, Python 3.11 and newer."
    echo "# Made from pyproject.toml by tools/lock.sh; do not edit."
    echo "# CUDA packages are left out: a CUDA build of torch names its own, with exact versions, and the CPU build needs none."
    grep -Ev '^(#|nvidia-|cuda-|triton(=| ))' "$unlocked"
} > "$unlocked.new"
cat "$unlocked.new" > requirements.lock
