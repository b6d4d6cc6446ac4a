#!/usr/bin/env bash
# Makes .venv with metarun and its tools in it: scripts/setup.sh PYTHON UV_VERSION. Called by make; safe to call again.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 uv_version=$2 bin=.venv/bin

if [ -z "$python" ]; then
    echo "metarun needs Python 3.11, 3.12 or 3.13; set PYTHON=/path/to/python"
    exit 2
fi
echo "Setting up .venv with $("$python" --version) (once; a minute or two on a fast line)"
[ -x $bin/python ] || "$python" -m venv .venv
$bin/python -m pip --version >/dev/null 2>&1 || $bin/python -m ensurepip >/dev/null # uv makes them without pip
[ -x $bin/uv ] || $bin/python -m pip install --quiet --disable-pip-version-check "uv==$uv_version"

# learn2learn is compiled. Where there is no compiler, one comes as a Python package.
if ! command -v "${CC:-cc}" >/dev/null && ! command -v gcc >/dev/null; then
    echo "No C compiler here; taking one from the package index for learn2learn"
    $bin/python -m pip install --quiet --disable-pip-version-check "ziglang==0.17.0"
    printf '#!/bin/sh\nexec "%s" -m ziglang cc "$@"\n' "$PWD/$bin/python" >$bin/cc
    chmod +x $bin/cc
    export CC=$PWD/$bin/cc
fi

install=($bin/uv pip install --python $bin/python --constraints constraints.txt --editable . --group dev)
"${install[@]}" || {
    echo "Once more, with this machine's own certificates"
    "${install[@]}" --system-certs
}
