#!/bin/sh
# Run every step with a tiny model and only the core installed.
# usage: core.sh BIN   (the bin folder of the environment)
set -eu
bin=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$bin/python" -c "
from importlib.util import find_spec
extras = [name for name in ('trl', 'vllm', 'ray', 'gguf', 's3fs', 'playwright') if find_spec(name)]
assert not extras, extras
import sys; from pathlib import Path; from tests.tiny_models import make_tiny
make_tiny(Path(sys.argv[1]), 'chat')" "$folder/model"
cp recipes/demo/questions.jsonl "$folder"
cd "$folder"
export RLT_DATA_CACHE="$folder/cache"
"$bin/rlt-data" check --in questions.jsonl
"$bin/rlt-data" generate --teacher model --in questions.jsonl --n 2 --max-tokens 20 --out run
"$bin/rlt-data" score --in run --student model
"$bin/rlt-data" rank --in run
"$bin/rlt-data" distill --in run --select all --include truncated || test $? = 2 # random weights may close nothing
"$bin/rlt-data" stats run
"$bin/rlt-data" report run --out report.html
"$bin/rlt-data" stats s3://bucket/run || test $? = 5 # says what to install
"$bin/rlt-data" formats rlt-shots >/dev/null
echo "the core works without extras"
