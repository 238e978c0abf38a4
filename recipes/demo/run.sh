#!/bin/sh
# All steps with the bundled miniature models, on Countdown problems; takes half a minute on two cores.
# usage: run.sh [RUN]
set -eu
out=${1:-runs/demo}
questions=$out.jsonl

step() {
    printf '\n$ %s\n' "$*"
    "$@"
}

# The models know problems with three numbers from 1 to 14 and values up to 120.
set -f
mkdir -p "$(dirname "$out")"
step rlt-data countdown make --out "$questions" --rows 64 --seed 1 --operators +-* --fewest 3 --most 3 --smallest 1 \
    --largest 14 --smallest-target 0 --largest-target 120 --largest-value 120
step rlt-data generate --teacher nano --in "$questions" --n 8 --temperature 1 --max-tokens 96 --batch-size 256 --device cpu \
    --out "$out"
step rlt-data score --in "$out" --student nano --temperature 1 --per-token --device cpu
step rlt-data rank --in "$out"
step rlt-data distill --in "$out" --select best
step rlt-data stats "$out"
step rlt-data show "$out" countdown-train-7 --ends
step rlt-data report "$out" --out "$out/report.html"
step python -c "import datasets; print(datasets.load_dataset('$out/dataset', split='train'))"
printf '\nThe data set is in %s. Open %s in a browser to read the traces.\n' "$out/dataset" "$out/report.html"
echo 'Next: make demo-gemma runs the same steps with a real language model, in a few minutes.'
