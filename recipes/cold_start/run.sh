#!/bin/sh
# usage: run.sh [nano|single-gpu|paper|FILE.yaml] [--out FOLDER] [--dry-run]
set -eu
scale=${1:-nano}
[ $# -eq 0 ] || shift
exec python -m rlt_data.recipes.cold_start --scale "$scale" "$@"
