#!/bin/sh
# All steps with gemma-3-270m as teacher and student, on 16 word problems; takes a few minutes on two cores.
# usage: gemma.sh [RUN]
set -eu
questions=$(dirname "$0")/questions.jsonl
out=${1:-runs/demo-gemma}

step() {
    printf '\n$ %s\n' "$*"
    "$@"
}

step rlt-data check --in "$questions"
step rlt-data generate --teacher gemma-3-270m --in "$questions" --n 4 --max-tokens 160 --out "$out"
step rlt-data score --in "$out" --student gemma-3-270m --per-token
step rlt-data rank --in "$out"
step rlt-data distill --in "$out" --select best
step rlt-data stats "$out"
step rlt-data show "$out" demo-11 --ends
step rlt-data report "$out" --out "$out/report.html"
step python -c "import datasets; print(datasets.load_dataset('$out/dataset', split='train'))"
printf '\nThe data set is in %s. Open %s in a browser to read the traces.\n' "$out/dataset" "$out/report.html"
