"""Time rlt-data's server engine with a server that responds immediately."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from rlt_data import GenerateSettings, generate

if __name__ == "__main__":
    questions, traces, url, folder = sys.argv[1:]
    run = Path(folder) / "served"
    shutil.rmtree(run, ignore_errors=True)
    settings = GenerateSettings(
        teacher="gemma-3-270m",
        input=questions,
        out=str(run),
        n=int(traces),
        format="rlt",
        max_tokens=200,
        engine="server",
        url=(url,),
    )
    summary = generate(settings).summary
    assert not summary.failed
    (Path(folder) / "seconds.json").write_text(json.dumps(summary.seconds))
