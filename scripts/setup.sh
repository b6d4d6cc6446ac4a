#!/usr/bin/env bash
# Makes .venv and installs metarun and its tools there: scripts/setup.sh PYTHON UV_VERSION. make calls this; it may run again.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 uv_version=$2 bin=.venv/bin

if [ -z "$python" ]; then
    echo "metarun needs Python 3.11, 3.12 or 3.13; set PYTHON=/path/to/python"
    exit 2
fi
echo "Making .venv with $("$python" --version): one or two minutes on a fast network"
[ -x $bin/python ] || "$python" -m venv .venv
$bin/python -m pip --version >/dev/null 2>&1 || $bin/python -m ensurepip >/dev/null # an environment made by uv has no pip
[ -x $bin/uv ] || $bin/python -m pip install --quiet --disable-pip-version-check "uv==$uv_version"

# Installing learn2learn needs a C compiler. Where there is none, a Python package brings one.
if ! command -v "${CC:-cc}" >/dev/null && ! command -v gcc >/dev/null; then
    echo "No C compiler found; installing the Python package ziglang to build learn2learn"
    $bin/python -m pip install --quiet --disable-pip-version-check "ziglang==0.17.0"
    printf '#!/bin/sh\nexec "%s" -m ziglang cc "$@"\n' "$PWD/$bin/python" >$bin/cc
    chmod +x $bin/cc
    export CC=$PWD/$bin/cc
fi

install=($bin/uv pip install --python $bin/python --constraints constraints.txt --editable . --group dev)
"${install[@]}" || {
    echo "Trying again with the system's certificates"
    "${install[@]}" --system-certs
}
