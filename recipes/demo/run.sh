#!/bin/sh
# The whole way with the bundled miniature models, on Countdown problems: half a minute on two cores.
# usage: run.sh [RUN]
set -eu
out=${1:-runs/demo}
questions=$out.jsonl

step() {
    printf '\n$ %s\n' "$*"
    "$@"
}

# The problems that the miniature knows: three numbers from 1 to 14, nothing above 120.
set -f
mkdir -p "$(dirname "$out")"
step rlt-data countdown make --out "$questions" --rows 64 --seed 1 --operators +-* --fewest 3 --most 3 --smallest 1 \
    --largest 14 --smallest-target 0 --largest-target 120 --largest-value 120
step rlt-data generate --teacher nano --in "$questions" --n 8 --temperature 1 --max-tokens 96 --batch-size 256 --out "$out"
step rlt-data score --in "$out" --student nano --temperature 1 --per-token
step rlt-data rank --in "$out"
step rlt-data distill --in "$out" --select best
step rlt-data stats "$out"
step rlt-data show "$out" countdown-train-7 --ends
step rlt-data report "$out" --out "$out/report.html"
step python -c "import datasets; print(datasets.load_dataset('$out/dataset', split='train'))"
printf '\nThe data set is in %s; open %s in a browser to read it.\n' "$out/dataset" "$out/report.html"
echo 'The same way with a real language model takes some minutes: make demo-gemma'
