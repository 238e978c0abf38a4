#!/bin/sh
# The miniature models from nothing: base student, then the teacher warmed up from it. About ten minutes on one core.
# usage: run.sh [FOLDER]
set -eu
out=${1:-runs/nano}
mkdir -p "$out"
# A model this small gains nothing from a second thread, and loses much where cores are shared.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

step() {
    printf '\n$ %s\n' "$*"
    "$@"
}

build="python -m rlt_data.recipes.nano.build"
step $build base --out "$out/student"
step $build rows --out "$out/warm-up.jsonl"
step $build warm-up --base "$out/student" --in "$out/warm-up.jsonl" --out "$out/teacher-warm"
step $build skills --model "$out/student"
step rlt-data countdown make --out "$out/test.jsonl" --split test --rows 1100 --fewest 3 --most 3 --smallest 1 \
    --largest 14 --smallest-target 0 --largest-target 120 --largest-value 120 --operators '+-*'
step rlt-data evaluate --model "$out/student" --benchmark countdown --in "$out/test.jsonl" --temperature 0.7 \
    --max-tokens 100 --batch-size 256 --out "$out/accuracy"
printf '\nThe models are in %s and %s\n' "$out/student" "$out/teacher-warm"
