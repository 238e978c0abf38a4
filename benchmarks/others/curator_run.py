"""Time bespokelabs-curator, in its own environment, with a server that responds immediately."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"CURATOR_VIEWER": "0", "TELEMETRY_ENABLED": "0", "OPENAI_API_KEY": "none", "CURATOR_DISABLE_CACHE": "1"}
os.environ["CURATOR_CACHE_DIR"] = tempfile.mkdtemp()

from bespokelabs import curator  # noqa: E402

if __name__ == "__main__":
    questions, traces, url, folder = sys.argv[1:]
    rows = [json.loads(line) for line in Path(questions).read_text().splitlines()]
    prompts = [f"{row['question']}\n{row['solution']}\n{number}" for row in rows for number in range(int(traces))]
    limits = {"max_requests_per_minute": 10**8, "max_tokens_per_minute": 10**10, "max_concurrent_requests": 64}
    # With LiteLLM, because curator's own client downloads a vocabulary.
    backend = {"base_url": url, "api_key": "none", **limits}
    model = curator.LLM(model_name="openai/instant", backend="litellm", backend_params=backend)
    start_time = time.perf_counter()
    result = model(prompts)
    seconds = time.perf_counter() - start_time
    assert len(getattr(result, "dataset", result)) == len(prompts)
    (Path(folder) / "seconds.json").write_text(json.dumps(seconds))
