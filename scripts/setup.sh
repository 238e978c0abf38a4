#!/bin/sh
# Make a virtual environment and install this project into it.
#
#     sh scripts/setup.sh VENV CONSTRAINTS PIP-ARGUMENT...
#
# PYTHON=COMMAND chooses the interpreter, TORCH_INDEX=URL the package index for torch. An environment that exists and
# runs is updated. Only wheels are installed, so no compiler is needed. What is missing is reported in one line.
set -u
venv=$1
constraints=$2
shift 2
log=$venv/setup.log

fail() {
    echo "setup: $*" >&2
    exit 1
}

pip() {
    "$bin/python" -m pip "$@" >>"$log" 2>&1 && return
    reason=$(grep '^ERROR: ' "$log" | tail -n 1)
    reason=${reason:-$(tail -n 1 "$log")}
    fail "pip failed: ${reason#ERROR: } (complete output: $log)"
}

mkdir -p "$venv" 2>/dev/null && [ -w "$venv" ] || fail "cannot write to $venv; set VENV to another folder"
bin=$venv/bin
[ ! -d "$venv/Scripts" ] || bin=$venv/Scripts # Windows
if [ -n "${PYTHON:-}" ] || ! "$bin/python" -c '' 2>/dev/null; then
    python=$(sh "$(dirname "$0")/find-python.sh") || exit 1
    # Measured with Python 3.13: 5.9 GB with the CUDA build of torch, 2.6 GB with its CPU build. The rest is downloads.
    gigabytes=4
    [ "$(uname -s)" != Linux ] || [ -n "${TORCH_INDEX:-}" ] || gigabytes=9
    free=$(df -Pk "$venv" | awk 'NR == 2 { print int($4 * 1.024e-6) }')
    if [ "$free" -lt $gigabytes ]; then
        [ $gigabytes = 4 ] || hint=", or without a GPU TORCH_INDEX=https://download.pytorch.org/whl/cpu (4 GB)"
        fail "$venv needs $gigabytes GB and its disk has $free GB free; free some, or set VENV to a folder elsewhere${hint:-}"
    fi
    echo "setup: $("$python" --version), installing into $venv; this takes a few minutes and writes to $log"
    "$python" -m venv --clear "$venv" >/dev/null || fail "$python -m venv $venv failed"
    [ ! -d "$venv/Scripts" ] || bin=$venv/Scripts
else
    echo "setup: updating $venv"
fi
: >"$log"
pip install --upgrade pip
pip install --only-binary :all: -c "$constraints" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
pip install --only-binary :all: -c "$constraints" "$@"
