#!/bin/sh
# Train the miniature models from random weights: base student, warmed-up teacher, teacher after RL.
# usage: run.sh [FOLDER]
set -eu
out=${1:-runs/nano}
mkdir -p "$out"
# One process per core with one thread each: threads slow down a model of this size.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
distributed="torchrun --nproc-per-node ${PROCESSES:-2} -m"

step() {
    printf '\n$ %s\n' "$*"
    "$@"
}

build="python -m rlt_data.recipes.nano.build"
ranges="--rows 1000 --split test --fewest 3 --most 3 --smallest-target 0 --largest-target 120 --largest-value 120"
ranges="$ranges --operators +-*"
answers="--benchmark countdown --temperature 0.7 --max-tokens 180 --batch-size 250 --device cpu"

set -f
step $distributed rlt_data.recipes.nano.build base --out "$out/student"
step $build rows --out "$out/warm-up.jsonl"
step $distributed rlt_data.cli.main train-teacher warmup --model "$out/student" --in "$out/warm-up.jsonl" \
    --out "$out/teacher-warm" --epochs 1 --batch-size 64 --micro-batch-size 32 \
    --learning-rate 3e-3 --warmup-ratio 0.05 --weight-decay 0.01 --max-length 256 --save-steps 100000 \
    --no-activation-checkpointing --device cpu
step rlt-data countdown make --out "$out/train.jsonl" --rows 2048 --operators +-* --fewest 3 --most 3 --smallest 1 \
    --largest 14 --smallest-target 0 --largest-target 120 --largest-value 120
step $distributed rlt_data.cli.main train-teacher rl --model "$out/teacher-warm" --student "$out/student" \
    --in "$out/train.jsonl" --out "$out/teacher" --steps 50 --questions-per-step 32 --samples-per-question 16 \
    --micro-batch-size 64 --learning-rate 2e-4 --temperature 1 --lambda 1 --beta 0 --missing-tag-penalty -3 \
    --max-tokens 110 --held-out 128 --save-steps 10 --sampling-batch-size 256 --batch-tokens 16384 \
    --no-activation-checkpointing --device cpu

step $build skills --model "$out/student"
step rlt-data countdown make --out "$out/small.jsonl" --smallest 1 --largest 14 $ranges
step rlt-data countdown make --out "$out/large.jsonl" --smallest 15 --largest 40 $ranges
for inputs in small large; do
    step rlt-data evaluate --model "$out/student" --in "$out/$inputs.jsonl" --out "$out/accuracy-$inputs" $answers
done
printf '\nThe models are in %s, %s and %s\n' "$out/student" "$out/teacher-warm" "$out/teacher/best"
