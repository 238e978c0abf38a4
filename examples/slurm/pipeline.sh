#!/usr/bin/env bash
# A Slurm array: each job generates and scores one share of the questions, and a last job merges the shares.
#
#   job=$(sbatch --parsable --array=1-8 --gpus=1 pipeline.sh)
#   sbatch --dependency=afterok:$job pipeline.sh
#
# If jobs failed or ran out of time, submit their numbers again, such as --array=3,5: they continue where they stopped.
# The variables below, such as QUESTIONS and TEACHER, can be set before sbatch.
#SBATCH --job-name=rlt-data
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
set -euo pipefail

SHARES=${SHARES:-8} # not SLURM_ARRAY_TASK_COUNT, which is smaller when only some jobs are submitted again
QUESTIONS=${QUESTIONS:-questions.jsonl}
TEACHER=${TEACHER:-nano}
STUDENT=${STUDENT:-nano}
TRACES=${TRACES:-16} # per question
RUNS=${RUNS:-runs/shares}

# Runs a step. Exit code 4 says that some rows failed; errors.jsonl of the run lists them.
step() {
    rlt-data "$@" || [[ $? == 4 ]]
}

if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    run=$RUNS/share-$SLURM_ARRAY_TASK_ID
    step generate "$QUESTIONS" --share "$SLURM_ARRAY_TASK_ID/$SHARES" --teacher "$TEACHER" --student "$STUDENT" \
        --n "$TRACES" --max-tokens 16384 --out "$run"
    step score "$run" --student "$STUDENT"
else
    mapfile -t runs < <(seq -f "$RUNS/share-%g" "$SHARES") # in the order of the questions
    if [[ -e $RUNS/merged ]]; then
        echo "$RUNS/merged exists; remove it to merge shares that have changed"
    else
        step merge "${runs[@]}" --out "$RUNS/merged"
    fi
    step rank "$RUNS/merged"
    step distill "$RUNS/merged" --select best
fi
