#!/bin/sh
# Writes tests/constraints.txt: the versions of all packages with which the tests run (`make constraints`).
# torch and what belongs to it are left to the ranges in pyproject.toml: which build fits is the driver's matter.
set -eu
cd "$(dirname "$0")/.."
trap 'rm -f tests/constraints.part' EXIT
{
    echo "# Made by \`make constraints\`: the versions of all packages that \`make\` installs, but torch's own."
    uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --extra test pyproject.toml |
        grep -Ev '^(torch|torchvision|triton|cuda-[a-z]+|nvidia-(cu|nccl|nvjit|nvsh|nvtx)[a-z0-9-]*)=='
} >tests/constraints.part
mv tests/constraints.part tests/constraints.txt
